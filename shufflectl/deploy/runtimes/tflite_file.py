"""Reads a TFLite file and checks its structure before any runtime maps it.

TFLite's runtimes follow a file's offsets and indices without checking them (the Python packages leave out the
flatbuffer verifier), so a damaged file can end the whole process. Everything that a runtime follows is
checked here in plain Python: every offset, table, vector and string lies inside the file; every index names
a tensor, buffer or operator that exists; every constant has the bytes that its shape and type ask for; every
operator reads only what earlier ones made; windows have strides of at least one. A file that keeps its
weights in other files is refused: it would make the runtime open files of its choosing.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shufflectl.converters.metadata import ModelInfo
from shufflectl.converters.quantize.scales import Scale
from shufflectl.converters.trace import Trace
from shufflectl.deploy.files import EXPORT_AGAIN, own_metadata, read_file
from shufflectl.deploy.runtimes.base import Integers, bias_flaw
from shufflectl.errors import ArtifactError

__all__ = ["TfliteFile", "read"]

_MAX_TENSOR: Final = 2**29
"""The most bytes that one tensor may take, at the file's own batch: two of a damaged shape fit in memory."""

_MAX_COUNT: Final = 1_000_000
"""The most entries that a vector of tables may have."""

_Field = tuple[str, str]
"""A field's name and kind: a number of bytes, ``string``, ``Table``, or in brackets a vector of one."""

# The tables of TFLite's schema (version 3) that a runtime follows: the fields in the order of their slots. An
# empty name is a slot that is deprecated.
_SCHEMA: Final[dict[str, tuple[_Field, ...]]] = {
    "Model": (
        ("version", "4"),
        ("operator_codes", "[OperatorCode]"),
        ("subgraphs", "[SubGraph]"),
        ("description", "string"),
        ("buffers", "[Buffer]"),
        ("metadata_buffer", "[4]"),
        ("metadata", "[Metadata]"),
        ("signature_defs", "[SignatureDef]"),
        ("external_buffer_groups", "[Any]"),
        ("external_buffers", "[Any]"),
    ),
    "OperatorCode": (("deprecated_code", "1"), ("custom_code", "string"), ("version", "4"), ("code", "4")),
    "SubGraph": (
        ("tensors", "[Tensor]"),
        ("inputs", "[4]"),
        ("outputs", "[4]"),
        ("operators", "[Operator]"),
        ("name", "string"),
        ("debug", "4"),
    ),
    "Tensor": (
        ("shape", "[4]"),
        ("type", "1"),
        ("buffer", "4"),
        ("name", "string"),
        ("quantization", "Quantization"),
        ("is_variable", "1"),
        ("sparsity", "Any"),
        ("shape_signature", "[4]"),
        ("has_rank", "1"),
        ("variant_tensors", "[Any]"),
        ("external_buffer", "4"),
    ),
    "Quantization": (
        ("min", "[4]"),
        ("max", "[4]"),
        ("scale", "[4]"),
        ("zero_point", "[8]"),
        ("details_type", "1"),
        ("details", "Any"),
        ("dimension", "4"),
    ),
    "Operator": (
        ("opcode", "4"),
        ("inputs", "[4]"),
        ("outputs", "[4]"),
        ("options_type", "1"),
        ("options", "Options"),
        ("custom_options", "[1]"),
        ("custom_format", "1"),
        ("mutating", "[1]"),
        ("intermediates", "[4]"),
        ("large_offset", "8"),
        ("large_size", "8"),
        ("options2_type", "1"),
        ("options2", "Any"),
        ("debug", "4"),
    ),
    "Buffer": (("data", "[1]"), ("offset", "8"), ("size", "8")),
    "Metadata": (("name", "string"), ("buffer", "4")),
    "SignatureDef": (
        ("inputs", "[TensorMap]"),
        ("outputs", "[TensorMap]"),
        ("key", "string"),
        ("", "4"),
        ("subgraph", "4"),
    ),
    "TensorMap": (("name", "string"), ("tensor", "4")),
    "Any": (),
    # Options by their tag in the union BuiltinOptions: those that hold an offset, or a divisor.
    "Options": (),
    "Options1": (
        *(("padding", "1"), ("stride_w", "4"), ("stride_h", "4"), ("activation", "1")),
        *(("dilation_w", "4"), ("dilation_h", "4")),
    ),
    "Options2": (
        *(("padding", "1"), ("stride_w", "4"), ("stride_h", "4"), ("multiplier", "4"), ("activation", "1")),
        *(("dilation_w", "4"), ("dilation_h", "4")),
    ),
    "Options3": (("channels", "4"), ("columns", "[4]"), ("dims", "[4]")),
    "Options5": (
        *(("padding", "1"), ("stride_w", "4"), ("stride_h", "4"), ("filter_w", "4"), ("filter_h", "4")),
        *(("activation", "1"),),
    ),
    "Options8": (
        *(("activation", "1"), ("format", "1"), ("keep", "1"), ("asymmetric", "1"), ("bias", "1")),
        *(("spec", "[1]"),),
    ),
    "Options17": (("new_shape", "[4]"),),
    "Options30": (("squeeze_dims", "[4]"),),
    "Options35": (("splits", "4"),),
    "Options64": (("splits", "4"), ("axis", "4")),
    "Options79": (("splits", "4"),),
    "Options111": (("container", "string"), ("shared", "string")),
    "Options115": (("boundaries", "[4]"),),
}
_AT_LEAST_ONE: Final = ("stride_w", "stride_h", "filter_w", "filter_h")
_DILATIONS: Final = ("dilation_w", "dilation_h")  # 1 where the field is not there

_DTYPES: Final[dict[int, np.dtype[Any]]] = {
    0: np.dtype(np.float32),
    1: np.dtype(np.float16),
    2: np.dtype(np.int32),
    3: np.dtype(np.uint8),
    4: np.dtype(np.int64),
    6: np.dtype(np.bool_),
    7: np.dtype(np.int16),
    9: np.dtype(np.int8),
    10: np.dtype(np.float64),
}
_HALF_BYTE: Final = (17, 20)  # INT4 and UINT4
_CUSTOM: Final = 32
_DEQUANTIZE: Final = 6
_QUANTIZE: Final = 114
_WEIGHTED: Final = {3: (4, 0), 4: (4, 3), 9: (2, 0)}
"""CONV_2D, DEPTHWISE_CONV_2D, FULLY_CONNECTED: the rank of the weights and their axis of output channels."""

_OPTIONS: Final = {1: 5, 3: 1, 4: 2, 17: 5, 49: 35, 88: 64, 102: 79}
"""Windows and splits by their tag of options, without which a runtime divides by zero or miscounts."""

_CONTROL_FLOW: Final = {118: "IF", 119: "WHILE", 129: "CALL_ONCE"}


class _DamagedError(ValueError):
    """A structure that a sound file cannot have, in a few words."""


class _RefusedError(ValueError):
    """A part of the schema that shufflectl's files do not use and that is not checked, in a few words."""


class _Reader:
    """Follows a flatbuffer's offsets, each within the file."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def number(self, position: int, form: str) -> int:
        size = struct.calcsize(form)
        if position < 0 or position + size > len(self.data):
            raise _DamagedError(f"an offset leads to byte {position} of {len(self.data)}")
        return int(struct.unpack_from(form, self.data, position)[0])

    def follow(self, position: int) -> int:
        target = position + self.number(position, "<I")
        if target + 4 > len(self.data):
            raise _DamagedError(f"an offset leads to byte {target} of {len(self.data)}")
        return target

    def vector(self, position: int, size: int) -> tuple[int, int]:
        """Return where the vector's elements are and how many there are."""
        start = self.follow(position)
        count = self.number(start, "<I")
        if start + 4 + count * size > len(self.data):
            raise _DamagedError(f"a vector of {count} entries ends after the file")
        return start + 4, count

    def table(self, position: int, name: str) -> dict[str, Any]:
        """Return the fields that a table has, its inner tables included."""
        layout = position - self.number(position, "<i")
        layout_size, size = self.number(layout, "<H"), self.number(layout + 2, "<H")
        if layout_size < 4 or layout_size % 2 or layout < 0 or layout + layout_size > len(self.data):
            raise _DamagedError("a table's layout is not one")
        if position + size > len(self.data):
            raise _DamagedError("a table ends after the file")
        slots = struct.unpack_from(f"<{(layout_size - 4) // 2}H", self.data, layout + 4)
        if any(slot >= size for slot in slots):
            raise _DamagedError("a field lies outside its table")
        found: dict[str, Any] = {}
        for (key, kind), slot in zip(_SCHEMA[name], slots, strict=False):
            if slot:
                width = int(kind) if kind.isdigit() else 4
                if slot + width > size:
                    raise _DamagedError("a field lies outside its table")
                tagged = f"Options{found.get('options_type', 0)}"
                chosen = tagged if kind == "Options" and tagged in _SCHEMA else kind
                found[key] = self.field(position + slot, chosen)
        return found

    def field(self, position: int, kind: str) -> Any:
        if kind.isdigit():
            return self.number(position, {"1": "<B", "4": "<i", "8": "<Q"}[kind])
        if kind == "string":
            start, count = self.vector(position, 1)
            self.number(start + count, "<B")  # the zero byte behind it
            try:
                return self.data[start : start + count].decode()
            except UnicodeDecodeError as e:  # LiteRT's Python interface decodes names, and would fail
                raise _DamagedError("a string is not UTF-8") from e
        if kind == "[1]":
            return self.vector(position, 1)
        if kind in ("[4]", "[8]"):
            width = int(kind[1])
            start, count = self.vector(position, width)
            return np.frombuffer(self.data, "<i4" if width == 4 else "<i8", count, start)
        if kind.startswith("["):
            start, count = self.vector(position, 4)
            if count > _MAX_COUNT:
                raise _DamagedError(f"a vector has {count} entries")
            return [self.table(self.follow(start + 4 * i), kind[1:-1]) for i in range(count)]
        return self.table(self.follow(position), kind)


@dataclass(frozen=True)
class TfliteFile:
    """A file whose structure is sound.

    Attributes:
        path: Where it was read from.
        data: Its bytes.
        info: What it says about itself; None for a file that shufflectl did not write.
        trace: Where the captured graph's tensors are; empty for a file that shufflectl did not write.
        custom: Names of custom operators in it.
        integers: What its codes stand for.
    """

    path: Path
    data: bytes
    info: ModelInfo | None
    trace: Trace
    custom: tuple[str, ...]
    integers: Integers


def read(path: Path) -> TfliteFile:
    """Read a file and check its structure.

    Raises:
        ArtifactError: It is missing, damaged or of another kind.
    """
    data = read_file(path, "a TFLite file")
    if data[4:8] != b"TFL3":
        raise ArtifactError(
            f"{path} is not a TFLite file, or is cut short: it does not begin as one", hint=EXPORT_AGAIN
        )
    try:
        model = _checked(data)
    except _DamagedError as e:
        raise ArtifactError(f"{path} is damaged: {e}", hint=EXPORT_AGAIN) from e
    except _RefusedError as e:
        hint = "only plain models of one graph are run here; convert it with shufflectl"
        raise ArtifactError(f"{path} cannot be used: {e}", hint=hint) from e
    info, trace = own_metadata(_notes(data, model), path)
    custom = tuple(c.get("custom_code", "?") for c in model["operator_codes"] if _code(c) == _CUSTOM)
    return TfliteFile(path, data, info, trace, custom, _integers(model))


def _integers(model: Mapping[str, Any]) -> Integers:
    """Return the grid of every tensor of codes, and the layers whose bias has a scale that contradicts it."""
    graph = model["subgraphs"][0]
    tensors = graph["tensors"]
    grids = {str(tensor.get("name", "")): grid for tensor in tensors if (grid := _grid(tensor)) is not None}
    flaws: dict[str, str] = {}
    for op in graph.get("operators", ()):
        inputs = [int(t) for t in op.get("inputs", ())]
        code = _code(model["operator_codes"][op.get("opcode", 0)])
        if code in (_QUANTIZE, _DEQUANTIZE):  # the floats are on the grid of the codes
            ends = [tensors[inputs[0]], tensors[int(op["outputs"][0])]]
            for numbers, codes in (ends, ends[::-1]):
                if (grid := _grid(codes)) is not None and _DTYPES.get(numbers.get("type", 0)) == np.float32:
                    grids.setdefault(str(numbers.get("name", "")), grid)
        if code not in _WEIGHTED or len(inputs) < 3:
            continue
        if inputs[2] < 0 or (source := _grid(tensors[inputs[0]])) is None:
            continue
        weights, bias = (_scales(tensors[t]) for t in inputs[1:3])
        flaw = bias_flaw(source, weights, bias) if weights.size and bias.size else ""
        if flaw:
            flaws[str(tensors[int(op["outputs"][0])].get("name", ""))] = flaw
    return Integers(grids, flaws)


def _scales(tensor: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return the scales of a tensor; none where it has none."""
    given = tensor.get("quantization", {}).get("scale")
    scales: NDArray[np.float32] = np.zeros(0, np.float32) if given is None else given.view("<f4")
    return scales


def _grid(tensor: Mapping[str, Any]) -> Scale | None:
    """Return the one scale of a tensor of codes, as of int8; None where it has none."""
    scales, zeros = _scales(tensor), tensor.get("quantization", {}).get("zero_point", ())
    kind = _DTYPES.get(tensor.get("type", 0))
    if len(scales) != 1 or len(zeros) != 1 or kind not in (np.int8, np.uint8):
        return None
    return Scale(float(scales[0]), int(zeros[0]) - (128 if kind == np.uint8 else 0))


def _checked(data: bytes) -> dict[str, Any]:
    """Return the model's tables."""
    reader = _Reader(data)
    model = reader.table(reader.follow(0), "Model")
    if model.get("version") != 3:
        raise _DamagedError(f"its schema has version {model.get('version', 0)}, not 3")
    for key in ("operator_codes", "subgraphs", "buffers", "metadata", "signature_defs"):
        model.setdefault(key, [])
    if not model["subgraphs"]:
        raise _DamagedError("it holds no graph")
    if model.get("external_buffer_groups") or model.get("external_buffers"):
        raise _RefusedError("it keeps its weights in other files")
    for buffer in model["buffers"]:
        if buffer.get("offset", 0) > 1 and buffer["offset"] + buffer.get("size", 0) > len(data):
            raise _DamagedError("a buffer ends after the file")
    for graph in model["subgraphs"]:
        _check_graph(model, graph)
    for entry in model["metadata"]:
        _index(entry.get("buffer", 0), len(model["buffers"]), "buffer of the metadata")
    for signature in model["signature_defs"]:
        which = signature.get("subgraph", 0)
        _index(which, len(model["subgraphs"]), "graph of a signature")
        count = len(model["subgraphs"][which]["tensors"])
        for entry in (*signature.get("inputs", ()), *signature.get("outputs", ())):
            _index(entry.get("tensor", 0), count, "tensor of a signature")
    return model


def _index(value: int, count: int, what: str, lowest: int = 0) -> None:
    if not lowest <= value < count:
        raise _DamagedError(f"number {value} is no {what}: there are {count}")


def _code(entry: Mapping[str, Any]) -> int:
    deprecated = entry.get("deprecated_code", 0)
    return int(max(deprecated - 256 if deprecated > 127 else deprecated, entry.get("code", 0)))


def _check_graph(model: Mapping[str, Any], graph: dict[str, Any]) -> None:
    tensors = graph.setdefault("tensors", [])
    ready = set()
    for i, tensor in enumerate(tensors):
        _index(tensor.get("buffer", 0), len(model["buffers"]), "buffer")
        if "sparsity" in tensor or tensor.get("external_buffer"):
            raise _RefusedError(f"tensor {tensor.get('name', i)!r} is sparse or kept elsewhere")
        if _check_tensor(model["buffers"][tensor.get("buffer", 0)], tensor) or tensor.get("is_variable"):
            ready.add(i)
    inputs = [int(t) for t in graph.get("inputs", ())]
    for t in inputs:
        _index(t, len(tensors), "input tensor")
    ready.update(inputs)
    for op in graph.get("operators", ()):
        _index(op.get("opcode", 0), len(model["operator_codes"]), "operator code")
        code = _code(model["operator_codes"][op.get("opcode", 0)])
        if code in _CONTROL_FLOW:
            raise _RefusedError(f"it holds the control flow operator {_CONTROL_FLOW[code]}")
        if op.get("options2_type"):
            raise _RefusedError("it holds StableHLO operators")
        for t in (*op.get("inputs", ()), *op.get("intermediates", ())):
            _index(int(t), len(tensors), "tensor", lowest=-1)
        for t in op.get("inputs", ()):
            if t >= 0 and int(t) not in ready:
                raise _DamagedError(f"tensor {tensors[t].get('name', int(t))!r} is read before it is made")
        for t in op.get("outputs", ()):
            _index(int(t), len(tensors), "output tensor")
            if int(t) in ready:
                raise _DamagedError(f"tensor {tensors[t].get('name', int(t))!r} is made twice")
        ready.update(int(t) for t in op.get("outputs", ()))
        _check_operands(code, op, tensors)
        _check_options(code, op)
    for t in graph.get("outputs", ()):
        _index(int(t), len(tensors), "output tensor")
        if int(t) not in ready:
            raise _DamagedError(f"output {tensors[t].get('name', int(t))!r} is never made")


def _check_operands(code: int, op: Mapping[str, Any], tensors: list[dict[str, Any]]) -> None:
    """Check the shapes of weights, which XNNPACK packs by the declared shapes before any kernel sees them."""
    shapes = [
        [int(d) for d in tensors[t].get("shape", ())] if t >= 0 else []
        for t in (*op.get("inputs", ()), *op.get("outputs", ()))
    ]
    count = len(op.get("inputs", ()))
    sources, results = shapes[:count], shapes[count:]
    if code == _DEQUANTIZE:
        sound = count == 1 and len(results) == 1 and sources == results
    elif code in _WEIGHTED:
        rank, outputs = _WEIGHTED[code]
        sound = count >= 2 and len(results) >= 1 and len(sources[1]) == rank
        if sound:
            width = sources[1][outputs]
            sound = min(sources[1]) > 0 and bool(results[0]) and results[0][-1] == width
            biased = count > 2 and op["inputs"][2] >= 0
            sound = sound and (not biased or sources[2] == [width])
    else:
        return
    if not sound:
        raise _DamagedError(f"the shapes {sources} of an operator's inputs do not make {results}")


def _check_options(code: int, op: Mapping[str, Any]) -> None:
    """Check option values that runtimes divide by or count with."""
    if code in _OPTIONS and (op.get("options_type", 0) != _OPTIONS[code] or "options" not in op):
        raise _DamagedError("an operator lacks its options")
    fields, options = _fields(op), op.get("options", {})
    if any(options.get(key, 0) < 1 for key in _AT_LEAST_ONE if key in fields) or any(
        options.get(key, 1) < 1 for key in _DILATIONS
    ):
        raise _DamagedError("a window has a size, stride or dilation below one")
    if options.get("padding", 0) > 1:
        raise _DamagedError("a window has an unknown padding")
    if "splits" in fields and options.get("splits", 0) != len(op.get("outputs", ())):
        raise _DamagedError("a split has another number of parts than outputs")


def _fields(op: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the option fields that an operator's kind of options has."""
    return frozenset(key for key, _ in _SCHEMA.get(f"Options{op.get('options_type', 0)}", ()))


def _check_tensor(buffer: Mapping[str, Any], tensor: Mapping[str, Any]) -> bool:
    """Check a tensor's shape and bytes; return whether it is a constant."""
    shape = [int(d) for d in tensor.get("shape", ())]
    name = tensor.get("name", "")
    signature = tensor.get("shape_signature")
    if any(d < 0 for d in shape) or (signature is not None and len(signature) not in (0, len(shape))):
        raise _DamagedError(f"tensor {name!r} has an impossible shape")
    kind = tensor.get("type", 0)
    _check_quantization(tensor, shape)
    elements = math.prod(shape)
    width = _DTYPES[kind].itemsize if kind in _DTYPES else 1
    if elements * width > _MAX_TENSOR:
        raise _DamagedError(f"tensor {name!r} of shape {shape} exceeds 512 MiB")
    _, have = buffer.get("data", (0, 0))
    if not have:
        return bool(buffer.get("size")) and buffer.get("offset", 0) > 1
    want = (elements + 1) // 2 if kind in _HALF_BYTE else elements * width
    if (kind in _DTYPES or kind in _HALF_BYTE) and have != want:
        raise _DamagedError(
            f"tensor {name!r} has {have} bytes of data, and its shape {shape} asks for {want}"
        )
    return True


def _check_quantization(tensor: Mapping[str, Any], shape: list[int]) -> None:
    """Check that scales and zero points fit each other and the tensor: runtimes index one by the other."""
    scales, zeros = _scales(tensor), tensor.get("quantization", {}).get("zero_point", ())
    if not len(scales) and not len(zeros):
        return
    name = tensor.get("name", "")
    axis = tensor["quantization"].get("dimension", 0)
    fits = len(scales) == 1 or (0 <= axis < len(shape) and len(scales) == shape[axis])
    if len(scales) != len(zeros) or not fits:
        raise _DamagedError(
            f"tensor {name!r} of shape {shape} has {len(scales)} scales and {len(zeros)} zero points"
        )
    if not np.isfinite(scales).all() or (scales <= 0).any():
        raise _DamagedError(f"tensor {name!r} has a scale that is no positive number")
    dtype = _DTYPES.get(tensor.get("type", 0))
    if dtype is not None and dtype.kind in "iu":
        held = np.iinfo(dtype)
        if min(zeros) < held.min or max(zeros) > held.max:
            raise _DamagedError(f"tensor {name!r} of {dtype} has a zero point that its type does not hold")


def _notes(data: bytes, model: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the metadata buffers by name."""
    result = {}
    for entry in model["metadata"]:
        start, count = model["buffers"][entry.get("buffer", 0)].get("data", (0, 0))
        result[entry.get("name", "")] = data[start : start + count]
    return result
