"""What a safetensors file may say about itself, as JSON in its header."""

import json
from collections.abc import Mapping
from typing import Any

from shufflectl.errors import CheckpointError
from shufflectl.models.checkpoints.files import WeightsFile, printable
from shufflectl.models.preprocess import Preprocess

__all__ = ["METADATA_KEY", "described", "record"]

METADATA_KEY = "shufflectl"
"""The key of a safetensors header's metadata under which the description stands."""

_MAX_INPUT = 4096


def record(file: WeightsFile) -> Mapping[str, Any]:
    """Return the description in the file's header; empty where it has none.

    Raises:
        CheckpointError: It is no JSON object.
    """
    text = file.metadata.get(METADATA_KEY)
    if text is None:
        return {}
    try:
        return _object(json.loads(text))
    except (ValueError, TypeError) as error:
        raise _bad(file, str(error)) from error
    except RecursionError as error:
        raise _bad(file, "it is nested too deeply") from error


def described(file: WeightsFile, found: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """Return the fields of `LoadedModel` that a description gives.

    Raises:
        CheckpointError: One has another type than it should, or does not fit the number of classes.
    """
    result: dict[str, Any] = {}
    try:
        result["labels"] = _labels(found.get("labels", []), classes)
        if "preprocess" in found:
            result["preprocess"] = Preprocess.from_json(_object(found["preprocess"]))
        if "input_size" in found:
            result["input_size"] = _input_size(found["input_size"])
        for key in ("author", "version", "license", "description"):
            result[key] = _text(found.get(key, ""))
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise _bad(file, str(error)) from error
    return result


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r:.40} is not an object")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not a text")
    return value


def _input_size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_INPUT:
        raise ValueError(f"the input size {value!r:.40} is not a number of pixels in 1 to {_MAX_INPUT}")
    return value


def _labels(value: object, classes: int) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"the labels {value!r:.40} are not a list")
    if value and len(value) != classes:
        raise ValueError(f"there are {len(value)} labels and {classes} classes")
    return tuple(_text(label) for label in value)


def _bad(file: WeightsFile, why: str) -> CheckpointError:
    return CheckpointError(
        f"the description in the header of {file.path.name} (key {METADATA_KEY!r}) cannot be used: "
        f"{printable(why)}",
        hint="correct it, or save the tensors again without it; see docs/checkpoints.md",
    )
