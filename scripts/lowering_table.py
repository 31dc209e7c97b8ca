#!/usr/bin/env python3
"""Apply every lowering to ShuffleNet V2 x1.0 and write the table in docs/lowerings.md.

usage: python scripts/lowering_table.py [MODEL]
"""

import re
import sys
from collections import Counter
from pathlib import Path

import torch

from shufflectl.converters.capture import capture
from shufflectl.converters.rewrite.lowering import LOWERINGS, Options, apply, bytes_moved
from shufflectl.models import create

PAGE = Path(__file__).resolve().parent.parent / "docs" / "lowerings.md"
COLUMNS = (("Concat",), ("Slice", "Split"), ("Transpose",), ("Gather",), ("Conv",))
EXTRA = (("fold-split", Options(align=16, merge=16)),)


def main() -> None:
    """Capture once, lower in every way, replace what stands between the markers."""
    name = sys.argv[1] if len(sys.argv) > 1 else "shufflenet_v2_x1_0"
    graph = capture(create(name), (torch.zeros(1, 3, 224, 224),), name=name)
    wanted = [(form, Options()) for form in LOWERINGS] + list(EXTRA)
    lines = [
        f"Made by `scripts/lowering_table.py` for {name} (224 x 224, batch 1, fp32).",
        "",
        "| form | " + " | ".join(", ".join(types) for types in COLUMNS) + " | MB moved |",
        "|---|" + "---:|" * (len(COLUMNS) + 1),
    ]
    for form, options in wanted:
        lowered, _ = apply(form, graph, options)
        counts = Counter(node.op_type for node in lowered.nodes)
        cells = [str(sum(counts[t] for t in types) or "") for types in COLUMNS]
        title = form if options == Options() else f"{form}, align {options.align}, merge {options.merge}"
        lines.append(f"| {title} | " + " | ".join(cells) + f" | {bytes_moved(lowered.nodes) / 1e6:.1f} |")
    begin, end = "<!-- table:begin -->", "<!-- table:end -->"
    table = "\n".join([begin, *lines, end])
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(re.sub(f"{begin}.*?{end}", lambda _: table, page, flags=re.DOTALL), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
