"""Opening files that may be anything: missing, a folder, huge, or of another kind than their name says."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from shufflectl.converters.metadata import METADATA_KEY, TRACE_KEY, ModelInfo
from shufflectl.converters.trace import Trace
from shufflectl.errors import ArtifactError

__all__ = ["EXPORT_AGAIN", "info_from_text", "kind_of", "own_metadata", "read_file"]

EXPORT_AGAIN: Final = "export it again, or copy it again from where it came"
"""What to do about a damaged artifact."""

_LIMIT: Final = 2**31 - 1
"""Protocol buffers and TFLite's 32-bit offsets both end at 2 GiB; what is larger cannot be either."""

_LFS: Final = "a Git LFS pointer"
_MALFORMED: Final = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading JSON of another shape raises."""


def read_file(path: Path, what: str) -> bytes:
    """Return a file's content.

    Args:
        path: The file.
        what: Its kind with an article, for messages: ``an ONNX file``.

    Raises:
        ArtifactError: It is missing, empty, a folder, unreadable, larger than 2 GiB or of another known kind.
    """
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder, not {what}", hint="pass the file itself")
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > _LIMIT:
                raise ArtifactError(
                    f"{path} has {size} bytes, and {what} ends at 2 GiB", hint="pass a model file"
                )
            data = stream.read(_LIMIT)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist", hint="check the path") from error
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read: {error.strerror or error}", hint="check its permissions"
        ) from error
    if not data:
        raise ArtifactError(f"{path} is empty", hint=EXPORT_AGAIN)
    kind = kind_of(data)
    if kind is not None and kind != what:
        hint = "run 'git lfs pull' to fetch the file" if kind == _LFS else "rename it, or pass the right file"
        raise ArtifactError(f"{path} is {kind}, not {what}", hint=hint)
    return data


def kind_of(data: bytes) -> str | None:
    """Return what a file is by its first bytes, with an article, or None where they tell nothing."""
    if data[4:8] == b"TFL3":
        return "a TFLite file"
    if data.startswith(b"version https://git-lfs"):
        return _LFS
    if data.startswith(b"PK\x03\x04"):
        return "a zip archive (or a torch checkpoint)"
    if data.startswith((b"\x80\x02", b"\x80\x04", b"\x80\x05")):
        return "a pickle"
    if data.lstrip()[:1] == b"<":
        return "an HTML or XML document"
    return None


def own_metadata(metadata: Mapping[str, str | bytes], path: Path) -> tuple[ModelInfo | None, Trace]:
    """Return what shufflectl wrote into a file: None and an empty trace where it did not write the file.

    Args:
        metadata: The format's own metadata.
        path: The file, for messages.

    Raises:
        ArtifactError: It is there and cannot be read.
    """
    try:
        info = ModelInfo.from_json(json.loads(metadata[METADATA_KEY])) if METADATA_KEY in metadata else None
        trace = Trace.from_json(metadata[TRACE_KEY]) if TRACE_KEY in metadata else Trace()
    except _MALFORMED as error:
        raise ArtifactError(
            f"{path} is damaged: its shufflectl metadata cannot be read", hint=EXPORT_AGAIN
        ) from error
    return info, trace


def info_from_text(metadata: Mapping[str, str]) -> ModelInfo | None:
    """Return what a file's metadata say about the model, or None where shufflectl did not write them."""
    text = metadata.get(METADATA_KEY)
    if text is None:
        return None
    try:
        return ModelInfo.from_json(json.loads(text))
    except _MALFORMED:
        return None
