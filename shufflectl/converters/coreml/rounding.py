"""Rounds the tensors of a graph with scales to their codes: ``quantize`` and ``dequantize`` of iOS 17.

Given, with scales for ``x``, ``z`` and ``c``::

    y = Conv(x, w, b)           # [N, C, H, W]
    z = Relu(y)
    c = Concat(z, x)            # the same scale

Result::

    y = conv(x, w.codes, b)
    z = dequantize(quantize(relu(y)))
    c = concat(z, x)

Cases, for each tensor with a scale:

1. Arithmetic makes it: it is rounded there, once, and every reader takes the rounded one. An input likewise.
2. Data movement makes it of tensors that have the same scale, so its numbers are those of codes already:
   nothing is rounded. MIL's ``concat``, ``split`` and ``pad`` take no integers, so what moves is what
   ``dequantize`` gave.
3. An operator with integer kernels reads what was moved: such a kernel takes what ``dequantize`` gives
   directly. Where the movement has integer forms (``reshape``, ``transpose``, slices), the codes are moved
   instead, and no tensor is rounded again; elsewhere the tensor gets one more pair, which changes no number.

Core ML's own tools surround the same operators with pairs (``insert_prefix_quantize_dequantize_pair`` in
coremltools). A zero point of -128 is written as uint8 codes without one, which Core ML runs faster
(``nullify_redundant_quantization_zero_point``).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from shufflectl.converters.coreml.emission import Emission
from shufflectl.converters.graph import Graph, Quantization
from shufflectl.converters.quantize.operators import weighted
from shufflectl.converters.quantize.scales import Scale
from shufflectl.converters.quantize.ties import is_activation_tensor, moved_inputs
from shufflectl.errors import GraphError

__all__ = ["Rounding"]

_CHANGED: Final = frozenset({"AveragePool"})
"""Operators that share a scale with what they read but make numbers between codes."""

_IN_CODES: Final = frozenset({"Flatten", "Gather", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
"""Movement whose MIL operations take integers of 8 bits from iOS 17 on."""

_KERNELS: Final = frozenset({"Add", "AveragePool", "MaxPool"})
"""What has integer kernels besides convolutions and matrices (``SUPPORTED_OP_TYPES`` in coremltools)."""

_LOWEST: Final = -128


class Rounding:
    """Rounds tensors while a program is built.

    Args:
        emission: The emission.
        quantization: The graph's scales.
        append: Emits one node.
    """

    def __init__(
        self, emission: Emission, quantization: Quantization, append: Callable[[ir.Node], None]
    ) -> None:
        self._e = emission
        self._scales = quantization.scales
        self._floats = quantization.floats
        self._append = append
        self._codes: dict[str, Any] = {}
        self._again: dict[str, Any] = {}

    def enter(self, value: ir.Value) -> None:
        """Round an input of the graph, which is bound."""
        name = str(value.name)
        if name in self._scales:
            made = self._e.namer.helper(self._e.namer.tensor(name), "rounded")
            self._round(name, self._e.values[name], made)

    def node(self, node: ir.Node) -> None:
        """Emit a node: what it reads and what it makes has codes where the graph says so."""
        rounded = [v for v in node.outputs if str(v.name) in self._scales and not self._on_grid(node, v)]
        finals = {str(v.name): self._e.namer.tensor(str(v.name)) for v in rounded}
        for name, final in finals.items():
            self._e.namer.rename(name, self._e.namer.helper(final, "float"))
        with self._reading(self._operands(node)):
            self._append(node)
        for name, final in finals.items():
            if name in self._e.values:
                self._round(name, self._e.values[name], final)
                self._e.namer.rename(name, final)

    def again(self, name: str) -> str | None:
        """Return what a moved tensor is called where it was rounded for an integer kernel."""
        variable = self._again.get(name)
        return None if variable is None else str(variable.name)

    def _round(self, name: str, variable: Any, final: str) -> None:
        helper = self._e.namer.helper
        self._codes[name] = self._quantized(self._scales[name], variable, helper(final, "codes"))
        self._e.values[name] = self._dequantized(name, final)

    def _quantized(self, scale: Scale, variable: Any, name: str) -> Any:
        kind, given = self._grid(scale)
        return self._e.mb.quantize(input=variable, output_dtype=kind, name=name, **given)

    def _dequantized(self, name: str, final: str) -> Any:
        _, given = self._grid(self._scales[name])
        return self._e.mb.dequantize(input=self._codes[name], name=final, **given)

    def _grid(self, scale: Scale) -> tuple[str, dict[str, Any]]:
        """Return the type of a grid's codes, and its scale and zero point as MIL has them."""
        half = np.float16(scale.scale)
        if not (half > 0 and np.isfinite(half)):
            raise GraphError(
                f"a tensor has a scale of {scale.scale:g}, which is none in fp16",
                hint="look for layers whose weights make activations vanish or overflow",
            )
        given: dict[str, Any] = {"scale": np.float32(half)}
        if scale.zero_point == _LOWEST:
            return "uint8", given
        if scale.zero_point != 0:
            given["zero_point"] = np.int8(scale.zero_point)
        return "int8", given

    def _on_grid(self, node: ir.Node, value: ir.Value) -> bool:
        """Whether a node makes a tensor of numbers that are codes already (case 2)."""
        moved = moved_inputs(node)
        if not moved or node.op_type in _CHANGED or _interpolates(node):
            return False
        scale = self._scales[str(value.name)]
        if any(
            self._scales.get(str(source.name)) != scale for source in moved if is_activation_tensor(source)
        ):
            return False
        joined = [Graph.constant(source) for source in node.inputs] if node.op_type == "Concat" else []
        return all(
            np.array_equal(scale.values(scale.codes(array)), array) for array in joined if array is not None
        )

    def _operands(self, node: ir.Node) -> dict[str, Any]:
        """Return, for what an integer kernel reads, the variables that `dequantize` gives (case 3)."""
        if str(node.name) in self._floats:
            return {}
        found = weighted(node)
        read = [found.data] if found is not None else []
        if node.op_type in _KERNELS:
            read = [v for v in node.inputs if is_activation_tensor(v) and v is not None]
        names = [str(v.name) for v in read]
        if not all(name in self._scales for name in names):
            return {}
        operands = {}
        for value, name in zip(read, names, strict=True):
            if getattr(self._e.values[name].op, "op_type", "") == "dequantize":
                continue
            if name not in self._again:
                if not self._moves_codes(value):
                    final = self._e.namer.helper(self._e.namer.tensor(name), "codes")
                    self._codes[name] = self._quantized(self._scales[name], self._e.values[name], final)
                made = self._e.namer.helper(self._e.namer.tensor(name), "rounded")
                self._again[name] = self._dequantized(name, made)
            operands[name] = self._again[name]
        return operands

    def _moves_codes(self, value: ir.Value) -> bool:
        """Move the codes of what a tensor is made of, if all of the movement can; whether it can."""
        name, maker = str(value.name), value.producer()
        if name in self._codes:
            return True
        if maker is None or maker.op_type not in _IN_CODES or not self._on_grid(maker, value):
            return False
        (source,) = moved_inputs(maker)
        if not self._moves_codes(source):
            return False
        final = self._e.namer.tensor(name)
        kept = self._e.values[name]
        self._e.namer.rename(name, self._e.namer.helper(final, "codes"))
        with self._reading({str(source.name): self._codes[str(source.name)]}):
            self._append(maker)
        self._codes[name] = self._e.values[name]
        self._e.values[name] = kept
        self._e.namer.rename(name, final)
        return True

    @contextmanager
    def _reading(self, operands: dict[str, Any]) -> Iterator[None]:
        """Let operators read other variables for some tensors."""
        before = {name: self._e.values[name] for name in operands}
        self._e.values.update(operands)
        try:
            yield
        finally:
            self._e.values.update(before)


def _interpolates(node: ir.Node) -> bool:
    return node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") != "nearest"
