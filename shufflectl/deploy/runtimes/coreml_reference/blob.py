"""The weights of a Core ML program: a reader of ``weight.bin`` that trusts nothing in it.

The file is what Apple's MILBlob library calls storage format 2, little-endian throughout. It opens with a
header of 64 bytes::

    u32 count of blobs   u32 version (2)   56 bytes reserved

A value of the program gives the offset of a blob's record, which is 64 bytes long::

    u32 sentinel 0xDEADBEEF   u32 data type   u64 size in bytes   u64 offset of the data
    u64 padding in bits   32 bytes reserved
"""

import mmap
import struct
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from shufflectl.errors import ArtifactError

__all__ = ["BLOB_TYPES", "NARROW_TYPES", "BlobFile"]

_HEADER: Final = struct.Struct("<II56x")
_RECORD: Final = struct.Struct("<IIQQQ32x")
_SENTINEL: Final = 0xDEADBEEF
_VERSION: Final = 2
_REMEDY: Final = "export the model again, and copy the whole .mlpackage folder"

BLOB_TYPES: Final = MappingProxyType(
    {
        1: np.dtype("<f2"),
        2: np.dtype("<f4"),
        3: np.dtype("u1"),
        4: np.dtype("i1"),
        6: np.dtype("<i2"),
        7: np.dtype("<u2"),
        14: np.dtype("<i4"),
        15: np.dtype("<u4"),
    }
)
"""MILBlob's ``BlobDataType`` as numpy types."""

NARROW_TYPES: Final = MappingProxyType(
    {"INT4": 8, "UINT1": 9, "UINT2": 10, "UINT4": 11, "UINT3": 12, "UINT6": 13}
)
"""The numbers of types narrower than a byte, by MIL's names."""


class BlobFile:
    """An open ``weight.bin``.

    Args:
        path: The file.

    Raises:
        ArtifactError: It is missing, empty or not a blob file of version 2.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                if size < _HEADER.size:
                    raise ArtifactError(f"{path} is truncated: {size} bytes", hint=_REMEDY)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ArtifactError(
                f"the weights {path} cannot be read: {error.strerror or error}", hint=_REMEDY
            ) from error
        _, version = _HEADER.unpack_from(self._map)
        if version != _VERSION:
            self._map.close()
            raise ArtifactError(f"{path} is not a weight file of storage version {_VERSION}", hint=_REMEDY)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._map.close()

    def read(self, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Return a copy of one blob.

        Args:
            offset: Where the blob's record is.
            dtype: The type that the program declares.
            shape: The shape that the program declares.

        Raises:
            ArtifactError: The record or the data lie outside the file, or are not what the program declares.
        """
        start = self._found(
            offset, {kind for kind, known in BLOB_TYPES.items() if known == dtype}, dtype.name
        )
        count = 1
        for dimension in shape:
            count *= dimension
        self._sized(offset, count * dtype.itemsize, f"{count} x {dtype.name}")
        return np.frombuffer(self._map, dtype, count, start).reshape(shape).copy()

    def read_packed(self, offset: int, kind: str, size: int) -> NDArray[np.uint8]:
        """Return a copy of the bytes of a blob whose numbers are narrower than a byte.

        Args:
            offset: Where the blob's record is.
            kind: MIL's name of the type that the program declares, one of `NARROW_TYPES`.
            size: How many bytes the program's shape takes.

        Raises:
            ArtifactError: As for `read`.
        """
        start = self._found(offset, {NARROW_TYPES[kind]}, kind.lower())
        self._sized(offset, size, f"{size} bytes of {kind.lower()}")
        return np.frombuffer(self._map, np.uint8, size, start).copy()

    def _found(self, offset: int, kinds: set[int], wanted: str) -> int:
        """Return where the data of a blob of one of these types begins."""
        if offset < _HEADER.size or offset + _RECORD.size > len(self._map):
            raise self._damaged(offset, "lies outside the file")
        sentinel, kind, _, start, _ = _RECORD.unpack_from(self._map, offset)
        if sentinel != _SENTINEL:
            raise self._damaged(offset, "does not begin with the mark of a blob")
        if kind not in kinds:
            raise self._damaged(offset, f"has data type {kind}, and the program wants {wanted}")
        return int(start)

    def _sized(self, offset: int, wanted: int, what: str) -> None:
        """Refuse a blob of another size, or one that ends outside the file."""
        _, _, size, start, _ = _RECORD.unpack_from(self._map, offset)
        if size != wanted:
            raise self._damaged(offset, f"has {size} bytes, and the program wants {what}")
        if start + size > len(self._map):
            raise self._damaged(offset, f"ends at byte {start + size} of {len(self._map)}")

    def _damaged(self, offset: int, why: str) -> ArtifactError:
        return ArtifactError(f"{self.path} is damaged: the blob at offset {offset} {why}", hint=_REMEDY)
