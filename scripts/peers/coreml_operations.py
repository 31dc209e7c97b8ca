"""How often each operation occurs in a Core ML package's ML program, constants left out.

Usage: coreml_operations.py PACKAGE.mlpackage

Prints JSON. Core ML itself is not needed, and so this runs on any system.
"""

import json
import sys
from collections import Counter

import coremltools as ct


def main(package: str) -> None:
    spec = ct.models.MLModel(package, skip_model_load=True).get_spec()
    function = spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    kinds = Counter(o.type for o in block.operations if o.type != "const")
    print(json.dumps(dict(sorted(kinds.items()))))


if __name__ == "__main__":
    main(*sys.argv[1:])
