"""Takes out of a program with codes what is there twice, and shortens the names of what no graph has.

coremltools gives every operand a constant of its own, with a name that says whose it is. A program in which
each tensor is rounded has twice as many operations as one in floats, and in a small network their text is as
large as the weights. None of this changes what an operation computes.

- Constants of the same value are one; every operation that had one reads that.
- Results that are no tensor of the graph have a letter and a number: ``q`` codes, ``d`` what they stand for,
  ``w`` weights behind their codes, ``c`` constants, ``t`` what comes before rounding. Tensors of the graph
  have the graph's names, without the ``_cast_fp16`` that coremltools appends.
- In the weight file each blob has a record of 64 bytes and is filled up to as many. Equal blobs are one, and
  vectors that are shorter in the program are held there, as coremltools does up to ten numbers.

The layout of the weight file is MILBlob's, storage format 2: a header (u32 count, u32 version, 56 bytes), and
for each blob a record (u32 sentinel, u32 type, u64 size, u64 offset of the data, 40 bytes more) and its data,
both at multiples of 64.
"""

import struct
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

__all__ = ["shorten", "slim_weights"]

_LETTERS: Final = {"const": "c", "constexpr_affine_dequantize": "w", "dequantize": "d", "quantize": "q"}
_RECORD: Final = struct.Struct("<IIQQ40s")
_ALIGNMENT: Final = 64
_REFERENCE: Final = 32
"""About the bytes by which a reference to a blob is longer than an empty vector."""
_LONGEST: Final = 4096
"""Vectors of more bytes stay in the weight file, which is mapped into memory rather than parsed."""


def _block(spec: Any) -> Any:
    function = spec.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


def shorten(spec: Any, tensors: Mapping[str, str]) -> dict[str, str]:
    """Share the constants of a program and shorten its names, in place.

    Args:
        spec: The ``Model`` message.
        tensors: The names in the program of what stands for tensors of the graph, and those that they shall
            have.

    Returns:
        For each of those tensors that has another name now, that name.
    """
    block = _block(spec)
    ends = {*(str(i.name) for i in spec.mlProgram.functions["main"].inputs), *map(str, block.outputs)}
    shared = _share(block)
    names = {name: name for name in ends}
    taken = {*ends, *tensors.values()}
    used = set(ends)
    counts = Counter[str]()
    for operation in block.operations:
        for output in operation.outputs:
            if output.name in ends:
                continue
            short = tensors.get(output.name)
            if short is None or short in used:
                short = _numbered(_LETTERS.get(operation.type, "t"), counts, taken)
            names[output.name] = short
            used.add(short)
    for operation in block.operations:
        for argument in operation.inputs.values():
            for binding in argument.arguments:
                if binding.WhichOneof("binding") == "name":
                    binding.name = names[shared.get(binding.name, binding.name)]
        for output in operation.outputs:
            output.name = names[output.name]
        if operation.outputs and "name" in operation.attributes:
            text = operation.attributes["name"].immediateValue.tensor.strings
            text.values[:] = [operation.outputs[0].name]
    return {name: names[name] for name in tensors if names.get(name, name) != name}


def _numbered(letter: str, counts: Counter[str], taken: Collection[str]) -> str:
    while True:
        name = f"{letter}{counts[letter]}"
        counts[letter] += 1
        if name not in taken:
            return name


def _share(block: Any) -> dict[str, str]:
    """Leave one of each constant; return, for the others, which one stands for them."""
    first: dict[bytes, str] = {}
    shared: dict[str, str] = {}
    kept = []
    for operation in block.operations:
        if operation.type == "const" and operation.outputs[0].name not in block.outputs:
            name = str(operation.outputs[0].name)
            value = operation.attributes["val"].SerializeToString(deterministic=True)
            if first.setdefault(value, name) != name:
                shared[name] = first[value]
                continue
        kept.append(operation)
    del block.operations[len(kept) :]
    for place, operation in enumerate(kept):
        if block.operations[place] is not operation:
            block.operations[place].CopyFrom(operation)
    return shared


def slim_weights(spec: Any, weights: Path) -> None:
    """Hold each blob of a program once, and short vectors in the program itself, in place.

    Args:
        spec: The ``Model`` message.
        weights: Its ``weight.bin``, which is written anew.
    """
    old = weights.read_bytes()
    held = [(value, *_blob(old, value.blobFileValue.offset)) for value in _values(_block(spec))]
    count = Counter((kind, data) for _, kind, data, _ in held)
    new = bytearray(old[:_ALIGNMENT])
    places: dict[tuple[int, bytes], int] = {}
    for value, kind, data, record in held:
        if _is_vector_of_bytes(value) and _shorter_inside(len(data), count[kind, data]):
            value.immediateValue.tensor.bytes.values = data
            continue
        if (kind, data) not in places:
            places[kind, data] = offset = len(new)
            new += _RECORD.pack(*record[:3], offset + _RECORD.size, *record[4:]) + data
            new += bytes(-len(new) % _ALIGNMENT)
        value.blobFileValue.offset = places[kind, data]
    struct.pack_into("<I", new, 0, len(places))
    weights.write_bytes(new)


def _blob(file: bytes, place: int) -> tuple[int, bytes, tuple[Any, ...]]:
    """Return the type of a blob, its data and its record."""
    record = _RECORD.unpack_from(file, place)
    _, kind, size, start, _ = record
    return kind, file[start : start + size], record


def _is_vector_of_bytes(value: Any) -> bool:
    """Whether a program holds such a value as its bytes: numbers of 32 bits are in fields of their own."""
    from coremltools.proto import MIL_pb2 as mil

    kind = value.type.tensorType
    return len(kind.dimensions) == 1 and kind.dataType in (mil.FLOAT16, mil.INT8, mil.UINT8)


def _shorter_inside(size: int, count: int) -> bool:
    """Whether so many copies of a vector in the program are shorter than one blob and references to it."""
    blob = _RECORD.size + size + -size % _ALIGNMENT
    return size <= _LONGEST and size * count <= blob + _REFERENCE * count


def _values(block: Any) -> Iterator[Any]:
    """Yield the values that lie in the weight file."""
    for operation in block.operations:
        for key in sorted(operation.attributes):
            if operation.attributes[key].HasField("blobFileValue"):
                yield operation.attributes[key]
