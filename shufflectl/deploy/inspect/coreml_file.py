"""Reads a Core ML package that holds an ML program. Weights are never loaded: shapes say what is needed.

The format is ``MIL.proto`` of coremltools; operators, their parameters and the shapes of kernels are those of
its MIL reference. A free first dimension of an input counts as one image, wherever it comes first.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shufflectl.deploy.files import info_from_text
from shufflectl.deploy.inspect.program import (
    Codes,
    Contraction,
    Operation,
    Program,
    Role,
    Shape,
    Value,
    is_scalar,
    known_shape,
    role_table,
    size_in_bytes,
)
from shufflectl.deploy.runtimes.coreml_reference.package import inside, read_model
from shufflectl.deploy.runtimes.coreml_reference.protos import message_modules
from shufflectl.errors import ArtifactError

__all__ = ["read_coreml"]

_HINT = "export the model again, and copy the whole .mlpackage folder"
_VERSION_KEY = "com.github.apple.coremltools.version"
_MODEL_PATH = "@model_path/"
_BLOB_RECORD = 64
"""Bytes of the record that stands before each constant in ``weight.bin`` (MILBlob's storage format 2)."""

_COMPRESSED = "constexpr_"
_STORED = ("quantized_data", "data", "indices", "nonzero_data", "source_val")
"""Parameters of operations of compressed weights that hold one element for each weight."""

_WEIGHTS = {
    "conv": ("weight", "bias"),
    "conv_transpose": ("weight", "bias"),
    "linear": ("weight", "bias"),
    "matmul": ("x", "y"),
    "batch_norm": ("gamma", "beta"),
    "instance_norm": ("gamma", "beta"),
    "layer_norm": ("gamma", "beta"),
    "prelu": ("alpha",),
    "gather": ("x",),
    "gather_along_axis": ("x",),
    "gather_nd": ("x",),
}
"""Parameters that hold trained constants; element-wise operators have theirs anywhere."""

_BINARY = """
    add sub mul real_div floor_div mod pow maximum minimum equal not_equal less less_equal greater
    greater_equal logical_and logical_or logical_xor select
    """
_BINARY_NAMES = frozenset(_BINARY.split())

_ROLES = role_table(
    {
        "convolution": "conv conv_transpose",
        "dense": "linear matmul",
        "pooling": """
            avg_pool max_pool l2_pool reduce_mean reduce_sum reduce_max reduce_min reduce_prod
            reduce_l1_norm reduce_l2_norm reduce_log_sum reduce_log_sum_exp reduce_sum_square
            """,
        "elementwise": f"""
            {_BINARY}
            relu relu6 leaky_relu prelu sigmoid sigmoid_hard tanh scaled_tanh softplus softplus_parametric
            softsign elu gelu silu linear_activation thresholded_relu clamped_relu clip exp exp2 log sqrt
            rsqrt inverse square abs sign floor ceil round sin cos tan asin acos atan sinh cosh asinh
            acosh atanh erf threshold logical_not batch_norm
            """,
        "movement": """
            transpose concat split stack slice_by_index slice_by_size slice_update pad gather
            gather_along_axis gather_nd scatter scatter_along_axis scatter_nd tile depth_to_space
            space_to_depth pixel_shuffle pixel_unshuffle batch_to_space space_to_batch reverse
            reverse_sequence cast quantize dequantize band_part crop sliding_windows
            """,
        "view": "reshape reshape_like squeeze expand_dims flatten2d identity shape",
        "other": """
            softmax instance_norm layer_norm l2_norm local_response_norm upsample_bilinear
            upsample_nearest_neighbor resize resize_bilinear resize_nearest_neighbor reduce_argmax
            reduce_argmin topk argsort one_hot cumsum fill fill_like range_1d non_zero
            non_maximum_suppression crop_resize resample affine random_bernoulli random_categorical
            random_normal random_uniform classify
            """,
    }
)


def read_coreml(path: Path) -> tuple[Program, int]:
    """Read a ``.mlpackage``.

    Returns:
        Its main function as a program, and the size in bytes of all files in the package.

    Raises:
        ArtifactError: It is missing, damaged, no package, or holds no ML program.
        MissingDependencyError: coremltools is not installed.
    """
    spec, folder = read_model(path)
    program = spec.mlProgram
    name = spec.description.defaultFunctionName or "main"
    function = program.functions.get(name)
    if function is None or function.opset not in function.block_specializations:
        raise ArtifactError(f"{path} is damaged: its program has no function {name!r}", hint=_HINT)
    reader = _Reader(function, folder)
    block = function.block_specializations[function.opset]
    operations = tuple(reader.operations(block.operations))
    if not block.outputs:
        raise ArtifactError(f"{path} is damaged: its program has no output", hint=_HINT)
    metadata = spec.description.metadata
    tools = metadata.userDefined.get(_VERSION_KEY, "")
    result = Program(
        "coreml",
        reader.inputs,
        tuple(reader.declared(name) for name in block.outputs),
        operations,
        f"coremltools {tools}" if tools else "",
        info_from_text(metadata.userDefined),
    )
    return result, _size(path)


def _size(package: Path) -> int:
    total = 0
    for folder, _, files in os.walk(package):
        for file in files:
            path = Path(folder) / file
            if not path.is_symlink():
                total += path.stat().st_size
    return total


class _Reader:
    """The operations of one function."""

    def __init__(self, function: Any, folder: Path) -> None:
        _, mil = message_modules()
        self._types = {number: name.lower() for name, number in mil.DataType.items()}
        self._folder = folder
        self._blobs: dict[str, int] = {}
        self._declared: dict[str, Value] = {}
        self._values: dict[str, Value] = {}
        self._scalars: dict[str, int] = {}
        self._numbers: dict[str, float] = {}
        self.inputs = tuple(self._type(item.name, item.type) for item in function.inputs)
        self._free_batch = any(v.shape and v.shape[0] is None for v in self.inputs)
        for value in self.inputs:
            self._add(value)

    def declared(self, name: str) -> Value:
        """Return a tensor as the file declares it."""
        return self._declared.get(name, Value(name, None, None))

    def operations(self, messages: Sequence[Any]) -> Iterator[Operation]:
        for message in messages:
            if message.type == "const":
                self._constant(message)
            elif message.type.startswith(_COMPRESSED):
                self._compressed(message)
            else:
                yield self._operation(message)

    def _add(self, declared: Value, *, constant: bool = False) -> Value:
        shape = declared.shape
        if shape and shape[0] is None and self._free_batch:
            shape = (1, *shape[1:])
        value = Value(declared.name, shape, declared.dtype, constant)
        self._declared[declared.name] = declared
        self._values[declared.name] = value
        return value

    def _type(self, name: str, message: Any) -> Value:
        if message.WhichOneof("type") != "tensorType":
            return Value(name, None, None)
        tensor = message.tensorType
        dtype = self._types.get(tensor.dataType)
        if tensor.rank != len(tensor.dimensions):
            return Value(name, None, dtype)
        shape: Shape = tuple(
            int(d.constant.size) if d.WhichOneof("dimension") == "constant" else None
            for d in tensor.dimensions
        )
        return Value(name, shape, dtype)

    def _constant(self, message: Any) -> None:
        value = message.attributes.get("val")
        for item in message.outputs:
            self._add(self._type(item.name, item.type), constant=True)
            if value is not None:
                self._literal(item.name, value)

    def _compressed(self, message: Any) -> None:
        """Add weights that are held in fewer bits: a constant of the type in which the file holds them."""
        bound = self._bound(message)
        for key, value in message.attributes.items():
            if key != "name":  # before iOS 18 the operands are attributes
                held = self._type(f"{message.outputs[0].name if message.outputs else ''}:{key}", value.type)
                bound[key] = [self._add(held, constant=True)]
                self._literal(held.name, value)
        kinds = {key: values[0].dtype for key, values in bound.items() if values}
        kind = next((kinds[key] for key in _STORED if key in kinds), None)
        table = known_shape(_first(bound, "lut"))
        if table is not None and "shape" in bound:  # places in bytes: the length of the table says how wide
            kind = f"uint{max(table[0] - 1, 1).bit_length()}"
        for item in message.outputs:
            declared = self._type(item.name, item.type)
            self._add(Value(declared.name, declared.shape, kind or declared.dtype), constant=True)

    def _literal(self, name: str, value: Any) -> None:
        """Check where a constant's value is, and keep it where it is a number that shapes an operator."""
        if value.WhichOneof("value") == "blobFileValue":
            blob = value.blobFileValue
            end = blob.offset + _BLOB_RECORD + (size_in_bytes(self._values[name]) or 0)
            if end > self._blob_size(blob.fileName):
                file = blob.fileName.removeprefix(_MODEL_PATH)
                raise ArtifactError(
                    f"{self._folder / file} is truncated: it ends before the weight {name!r}", hint=_HINT
                )
            return
        tensor = value.immediateValue.tensor
        number = _scalar(tensor, self._values[name].dtype)
        if number is not None:
            self._numbers[name] = number
        values = tensor.ints.values or tensor.bools.values
        if values:
            self._scalars[name] = int(values[0])

    def _blob_size(self, name: str) -> int:
        if name not in self._blobs:
            if not name.startswith(_MODEL_PATH):
                raise ArtifactError(
                    f"the program wants weights from {name!r}, which is outside of the package",
                    hint="do not trust this package",
                )
            file = inside(self._folder, name.removeprefix(_MODEL_PATH), "the weights")
            if not file.is_file():
                raise ArtifactError(f"the weights are missing: {file}", hint=_HINT)
            self._blobs[name] = file.stat().st_size
        return self._blobs[name]

    def _bound(self, message: Any) -> dict[str, list[Value]]:
        """Return an operator's arguments by parameter, in the order of the parameters' names."""
        # A protobuf map has no order of its own.
        bound: dict[str, list[Value]] = {}
        owner = message.outputs[0].name if message.outputs else ""
        for parameter in sorted(message.inputs):
            values = []
            for index, binding in enumerate(message.inputs[parameter].arguments):
                if binding.WhichOneof("binding") == "name":
                    values.append(self._values.get(binding.name, Value(binding.name, None, None)))
                else:
                    declared = self._type(f"{owner}:{parameter}:{index}", binding.value.type)
                    values.append(Value(declared.name, declared.shape, declared.dtype, constant=True))
                    self._values[declared.name] = values[-1]
                    self._literal(declared.name, binding.value)
            bound[parameter] = values
        return bound

    def _operation(self, message: Any) -> Operation:
        bound = self._bound(message)
        given = [v for values in bound.values() for v in values]
        kind = str(message.type)
        role = _ROLES.get(kind, "unknown")
        constant = False
        if role not in ("convolution", "dense", "unknown") and given and all(v.constant for v in given):
            constant = True
        if constant:
            role = "weights"
        outputs = tuple(
            self._add(self._type(item.name, item.type), constant=constant) for item in message.outputs
        )
        weights, biases = _weights(kind, role, bound)
        return Operation(
            self._name(message) or (outputs[0].name if outputs else kind),
            kind,
            role,
            tuple(v for v in given if not v.constant),
            outputs,
            weights,
            biases,
            self._contraction(kind, bound, outputs),
            self._codes(kind, bound, outputs),
        )

    def _codes(
        self, kind: str, bound: Mapping[str, Sequence[Value]], outputs: Sequence[Value]
    ) -> Codes | None:
        """Return the grid of the codes that a conversion makes or reads, if the tensor has just one."""
        if kind not in ("quantize", "dequantize"):
            return None
        held = _first(bound, "input") if kind == "dequantize" else next(iter(outputs), None)
        scale, zero = _first(bound, "scale"), _first(bound, "zero_point")
        step = None if scale is None else self._numbers.get(scale.name)
        shift = 0.0 if zero is None else self._numbers.get(zero.name)
        return None if held is None or step is None or shift is None else Codes(held.dtype, step, int(shift))

    @staticmethod
    def _name(message: Any) -> str:
        if "name" not in message.attributes:
            return ""
        texts = message.attributes["name"].immediateValue.tensor.strings.values
        return str(texts[0]) if texts else ""

    def _contraction(
        self, kind: str, bound: Mapping[str, Sequence[Value]], outputs: Sequence[Value]
    ) -> Contraction | None:
        result = known_shape(outputs[0]) if outputs else None
        image, weight = known_shape(_first(bound, "x")), known_shape(_first(bound, "weight"))
        if result is None or image is None:
            return None
        if kind == "linear" and weight is not None and len(weight) == 2:  # [c2, c1]
            return Contraction(weight[1], weight[0], math.prod(result) // max(weight[0], 1))
        if kind == "matmul" and result:
            transposed = self._scalar(bound, "transpose_x", 0)
            depth = image[-2] if transposed and len(image) > 1 else image[-1] if image else 1
            return Contraction(depth, result[-1], math.prod(result) // max(result[-1], 1))
        if kind not in ("conv", "conv_transpose") or weight is None or len(weight) < 3:
            return None
        groups = self._scalar(bound, "groups", 1)
        if groups < 1 or not (len(image) == len(result) == len(weight)):
            return None
        if kind == "conv":  # [c2, c1/g, *window]
            return Contraction(
                weight[1] * groups, weight[0], result[0] * math.prod(result[2:]), groups, weight[2:]
            )
        # conv_transpose has a kernel of [c1, c2/g, *window].
        return Contraction(weight[0], weight[1] * groups, image[0] * math.prod(image[2:]), groups, weight[2:])

    def _scalar(self, bound: Mapping[str, Sequence[Value]], parameter: str, default: int) -> int:
        value = _first(bound, parameter)
        return default if value is None else self._scalars.get(value.name, default)


_WORDS = {"float16": "<f2", "int8": "i1", "uint8": "u1"}


def _scalar(tensor: Any, dtype: str | None) -> float | None:
    """Return a number that is written into the program; None for anything else."""
    kind = tensor.WhichOneof("value")
    if kind == "bytes":
        word = np.dtype(_WORDS[dtype]) if dtype in _WORDS else None
        data = tensor.bytes.values
        number = float(np.frombuffer(data, word)[0]) if word and len(data) == word.itemsize else None
    elif kind in ("floats", "ints") and len(getattr(tensor, kind).values) == 1:
        number = float(getattr(tensor, kind).values[0])
    else:
        number = None
    return number if number is not None and math.isfinite(number) else None


def _first(bound: Mapping[str, Sequence[Value]], parameter: str) -> Value | None:
    values = bound.get(parameter, ())
    return values[0] if values else None


def _weights(kind: str, role: Role, bound: Mapping[str, Sequence[Value]]) -> tuple[tuple[Value, ...], int]:
    """Return the trained constants, biases last, and the number of biases."""
    if role == "weights":
        return (), 0
    if kind in _WEIGHTS:
        chosen = [v for parameter in _WEIGHTS[kind] for v in bound.get(parameter, ())]
    elif kind in _BINARY_NAMES:
        # A scalar is part of a formula (the 3 of hard-swish), not a trained tensor.
        chosen = [v for values in bound.values() for v in values if not is_scalar(v)]
    else:
        return (), 0
    constants = tuple(v for v in chosen if v.constant)
    biased = role in ("convolution", "dense") and any(v.constant for v in bound.get("bias", ()))
    return constants, int(biased)
