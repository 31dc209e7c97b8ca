"""Which operators of a file compute in codes of eight bits, and what the codes at its border stand for.

TFLite's operators take and give codes. Those of ONNX and Core ML take floats between a conversion of codes
into floats and one of floats into codes, which a runtime fuses into an integer kernel if it has one::

    codes -> DequantizeLinear -> Conv -> Relu -> QuantizeLinear -> codes

Such a group computes in codes, as far as the file says, where all that enters it is codes (the weights as
well), all that leaves it becomes codes, and it is one operator, with bounded activations behind it or not.
Whether a runtime does fuse it is another question: see `ort_layout`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

from shufflectl.converters.disjoint_sets import DisjointSets
from shufflectl.deploy.inspect.program import Codes, Operation, Program, Value

__all__ = ["Arithmetic", "arithmetic", "border"]

Arithmetic = Literal["codes", "floats", "conversion"]
"""``conversion``: from floats into codes, from codes into floats, or from codes into others."""

_TO_CODES: Final = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "QUANTIZE", "quantize"})
_TO_FLOATS: Final = frozenset({"DequantizeLinear", "DEQUANTIZE", "dequantize"})
_ACTIVATIONS: Final = frozenset({"Relu", "Clip", "relu", "relu6", "clip", "RELU", "RELU6"})
_CODES: Final = frozenset({"int8", "uint8", "int16", "uint16", "int4", "uint4"})
_LOOKED_THROUGH: Final = frozenset(
    {"cast", "transpose", "Transpose", "TRANSPOSE", "Reshape", "reshape", "RESHAPE"}
)
_FAR: Final = 8


def _kind(operation: Operation) -> str:
    return operation.type.rpartition(".")[2]  # a domain comes first


def _is_float(value: Value) -> bool:
    return value.dtype is not None and ("float" in value.dtype)


def arithmetic(operations: Sequence[Operation]) -> tuple[Arithmetic | None, ...]:
    """Return what each operator computes in; None for one that only prepares weights or shapes."""
    found: list[Arithmetic | None] = []
    for operation in operations:
        values = (*operation.inputs, *operation.outputs)
        floating = any(_is_float(value) for value in values)
        coded = any(value.dtype in _CODES for value in operation.inputs)
        if operation.role == "weights":
            found.append(None)
        elif _kind(operation) in _TO_CODES | _TO_FLOATS:
            found.append("conversion")
        elif floating:
            found.append("floats")
        else:
            found.append("codes" if coded else None)
    for group in _groups(operations, found):
        if _in_codes(group, operations):
            for place in group:
                found[place] = "codes"
    return tuple(found)


def _groups(operations: Sequence[Operation], kinds: Sequence[Arithmetic | None]) -> list[list[int]]:
    """Return the operators on floats that hang together by tensors of floats."""
    floats = [place for place, kind in enumerate(kinds) if kind == "floats"]
    sets = DisjointSets[int]()
    makers = {value.name: place for place in floats for value in operations[place].outputs}
    for place in floats:
        for value in operations[place].inputs:
            if value.name in makers:
                sets.tie([place, makers[value.name]])
    groups: dict[int, list[int]] = {}
    for place in floats:
        groups.setdefault(sets.find(place), []).append(place)
    return list(groups.values())


def _in_codes(group: Sequence[int], operations: Sequence[Operation]) -> bool:
    members = [operations[place] for place in group]
    if sum(_kind(member) not in _ACTIVATIONS for member in members) > 1:
        return False
    kernels = (v for m in members for v in m.weights[: len(m.weights) - m.biases])
    if any((value.held or value.dtype) not in _CODES for value in kernels):
        return False
    makers = {value.name: op for op in operations for value in op.outputs}
    inner = {value.name for member in members for value in member.outputs}
    entering = {v.name for m in members for v in m.inputs if _is_float(v)} - inner
    if not entering or any(name not in makers or _kind(makers[name]) not in _TO_FLOATS for name in entering):
        return False
    readers = _readers(operations, inner)
    return all(
        all(place in group or _kind(operations[place]) in _TO_CODES for place in readers[name])
        and bool(readers[name])
        for name in inner
    )


def _readers(operations: Sequence[Operation], names: Iterable[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {name: [] for name in names}
    for place, operation in enumerate(operations):
        for value in operation.inputs:
            if value.name in found:
                found[value.name].append(place)
    return found


def border(program: Program) -> Mapping[str, Codes]:
    """Return the grid of each input and output that is held in codes, or becomes codes or is made of them."""
    makers = {value.name: op for op in program.operations for value in op.outputs}
    readers: dict[str, list[Operation]] = {}
    for op in program.operations:
        for value in op.inputs:
            readers.setdefault(value.name, []).append(op)
    found = {value.name: value.codes for value in (*program.inputs, *program.outputs) if value.codes}
    for value in program.inputs:
        name = value.name
        for _ in range(_FAR):
            following = readers.get(name, [])
            codes = next((op.codes for op in following if op.codes is not None), None)
            if codes is not None:
                found.setdefault(value.name, codes)
            if len(following) != 1 or _kind(following[0]) not in _LOOKED_THROUGH or not following[0].outputs:
                break
            name = following[0].outputs[0].name
    for value in program.outputs:
        name = value.name
        for _ in range(_FAR):
            maker = makers.get(name)
            if maker is None:
                break
            if maker.codes is not None:
                found.setdefault(value.name, maker.codes)
            if _kind(maker) not in _LOOKED_THROUGH or not maker.inputs:
                break
            name = maker.inputs[0].name
    return found
