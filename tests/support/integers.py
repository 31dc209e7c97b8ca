"""Small graphs in codes of eight bits: their TFLite files, and what ONNX Runtime makes of the same graph."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.schema_py_generated import BuiltinOperator as Op
from numpy.typing import NDArray

from converters.quantize.nets import images, runner, session
from shufflectl.converters.graph import Graph
from shufflectl.converters.quantize.calibrate import calibrate
from shufflectl.converters.quantize.recipe import Recipe
from shufflectl.converters.rewrite.choose import Candidate
from shufflectl.converters.rewrite.lowering import Options
from shufflectl.deploy.parity.codes import CodeReference
from shufflectl.deploy.parity.limits import CODE_LIMITS
from shufflectl.deploy.parity.locate import Examination, examine
from shufflectl.deploy.quantization import Quantized
from shufflectl.deploy.runtimes.litert import LiteRT
from support.tflite import NAMES, census, emit_bytes, model_of, run, trace_of

PLAIN = Recipe(equalise=0.0, correct_bias=False)


@dataclass(frozen=True)
class Coded:
    """A graph in codes and its TFLite file."""

    quantized: Quantized
    data: bytes
    io: str = "float"

    @property
    def census(self) -> dict[str, int]:
        """How many of each operator the file has."""
        return census(self.data)

    @property
    def versions(self) -> dict[str, set[int]]:
        """The versions of each operator."""
        found: dict[str, set[int]] = {}
        for entry in model_of(self.data).operatorCodes:
            found.setdefault(NAMES[entry.builtinCode], set()).add(int(entry.version))
        return found

    @property
    def minimum_runtime(self) -> str:
        """The oldest runtime, as the file says."""
        model = model_of(self.data)
        entry = next(m for m in model.metadata if m.name == b"min_runtime_version")
        return bytes(model.buffers[entry.buffer].data).rstrip(b"\0").decode()

    def both(
        self, image: NDArray[np.float32], *, delegate: bool
    ) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Return each output's codes as ONNX Runtime and as LiteRT give them."""
        wanted = self.wanted(image)
        given = run(self.data, {self._input: self.to_file(image)}, delegate=delegate)
        return {name: (codes, self.from_file(name, given[name])) for name, codes in wanted.items()}

    @property
    def _input(self) -> str:
        return str(self.quantized.graph.inputs[0].name)

    def wanted(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.int64]]:
        """Return each output's codes as ONNX Runtime gives them; of one without codes, thousands of it."""
        reference = self.quantized.reference()
        names = [str(v.name) for v in reference.outputs]
        found = session(reference.to_proto(), names).run(names, {self._input: image})
        return {n: self._codes(n, array) for n, array in zip(names, found, strict=True)}

    def to_file(self, image: NDArray[np.float32]) -> NDArray[Any]:
        """Return an image as the file takes it."""
        array = trace_of(self.data)[self._input].to_file(image) if self._input in self.trace else image
        scale = self.quantized.in_codes.get(self._input)
        if self.io == "float" or scale is None:
            return array
        codes = scale.codes(array)
        return codes if self.io == "int8" else (codes.astype(np.int16) + 128).astype(np.uint8)

    @property
    def trace(self) -> Mapping[str, Any]:
        """Where tensors are."""
        return trace_of(self.data)

    def from_file(self, name: str, array: NDArray[Any]) -> NDArray[np.int64]:
        """Return the codes of what the file gave for an output."""
        if name in self.trace:
            array = self.trace[name].to_logical(array)
        if array.dtype == np.float32:
            return self._codes(name, array)
        return array.astype(np.int64) - (128 if array.dtype == np.uint8 else 0)

    def _codes(self, name: str, array: NDArray[Any]) -> NDArray[np.int64]:
        scale = self.quantized.in_codes.get(name)
        if scale is None:
            return np.rint(array.astype(np.float64) * 1000).astype(np.int64)
        return np.rint(array.astype(np.float64) / scale.scale).astype(np.int64) + scale.zero_point

    def examined(self, image: NDArray[np.float32], folder: Path) -> Examination:
        """Compare layer by layer, as exports do."""
        path = folder / "net.tflite"
        path.write_bytes(self.data)
        limits = CODE_LIMITS["tflite"]
        codes = CodeReference(self.quantized.in_codes, limits)
        with LiteRT().load(path) as opened:
            given = {self._input: image}
            return examine(self.quantized.reference(), opened, given, limits.numbers, codes=codes)

    def examination(self, image: NDArray[np.float32]) -> Examination:
        """The same in a folder of its own."""
        with tempfile.TemporaryDirectory(prefix="integers") as folder:
            return self.examined(image, Path(folder))


def coded(
    graph: Graph,
    *,
    floats: Sequence[str] = (),
    form: Candidate | None = None,
    recipe: Recipe = PLAIN,
    io: str = "float",
    batches: Sequence[NDArray[np.float32]] | None = None,
    **options: Any,
) -> Coded:
    """Calibrate a graph of one input on noise and write it."""
    run_all = runner(list(batches) if batches is not None else images(graph, 8))
    found = calibrate(graph, run_all, recipe, source="noise", images=8, seed=0, floats=frozenset(floats))
    quantized = Quantized(graph, found)
    made, _ = quantized.form(form or Candidate("native", Options()))
    return Coded(quantized, emit_bytes(made, precision="int8", io=io, **options), io)


def pairs(data: bytes) -> int:
    """Return how many DEQUANTIZE a file has whose floats only a QUANTIZE of the same grid reads."""
    model = model_of(data)
    graph = model.subgraphs[0]
    codes = [model.operatorCodes[op.opcodeIndex].builtinCode for op in graph.operators]
    count = 0
    for op, code in zip(graph.operators, codes, strict=True):
        if code != Op.DEQUANTIZE:
            continue
        made = op.outputs[0]
        readers = [c for other, c in zip(graph.operators, codes, strict=True) if made in other.inputs]
        count += bool(readers) and all(c == Op.QUANTIZE for c in readers) and made not in graph.outputs
    return count
