"""From a variant's name and a word for its weights to a module that is ready to export."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from torch import nn

from shufflectl.errors import CheckpointError, UsageError
from shufflectl.models import zoo
from shufflectl.models.checkpoints.files import SUFFIXES, WeightsFile, printable, read
from shufflectl.models.checkpoints.fit import classifier, fit, skeleton
from shufflectl.models.preprocess import IMAGENET, Preprocess
from shufflectl.models.random_weights import digest, random_state
from shufflectl.models.zoo import Variant

__all__ = ["METADATA_KEY", "LoadedModel", "create", "load"]

METADATA_KEY = "shufflectl"
"""The key of a safetensors header's metadata under which `LoadedModel`'s description stands, as JSON."""

_DEFAULT = "random:0"
_RANDOM = "random:"
_DEFAULT_CLASSES = 1000
_MAX_CLASSES = 1_000_000
_MAX_SEED = 2**64
_MAX_INPUT = 4096


@dataclass(frozen=True)
class LoadedModel:
    """A network with weights, and what is known about them.

    Attributes:
        module: In evaluation mode, fp32, on the CPU: ``[N, 3, input_size, input_size] -> [N, num_classes]``.
        variant: The network's record.
        num_classes: Width of the logits.
        input_size: Height and width in pixels that the weights were trained for.
        weights: How the user named the weights, without folders.
        weights_sha256: Of the weights file; of the tensors where there is no file.
        preprocess: What happens to an image first.
        labels: Class names in the order of the logits; empty when unknown.
        author: Who made the weights; empty when unknown.
        version: The weights' version; empty when unknown.
        license: An SPDX expression; empty when unknown.
        description: One sentence.
    """

    module: nn.Module
    variant: Variant
    num_classes: int
    input_size: int
    weights: str
    weights_sha256: str
    preprocess: Preprocess = IMAGENET
    labels: tuple[str, ...] = ()
    author: str = ""
    version: str = ""
    license: str = ""
    description: str = ""


def load(name: str, *, weights: str | None = None, num_classes: int | None = None) -> LoadedModel:
    """Return a network with weights and their description.

    Args:
        name: A variant's name, as `zoo.names` lists them.
        weights: ``digits`` for the bundled weights, the path of a ``.safetensors``, ``.pt`` or ``.pth`` file,
            or ``random:SEED``. None stands for ``random:0``.
        num_classes: Width of the logits. None takes the weights' own, and 1000 for random ones.

    Raises:
        UsageError: There is no such variant, the seed is not a number, or the variant has no such bundled
            weights.
        CheckpointError: The file cannot be used, or is for another number of classes.
    """
    row = zoo.variant(name)
    spec = _DEFAULT if weights is None else weights
    if num_classes is not None and not 1 <= num_classes <= _MAX_CLASSES:
        raise UsageError(f"the number of classes is {num_classes}, and must be 1 to {_MAX_CLASSES}")
    bundled = {word for other in zoo.variants() for word in other.weights}
    if spec in bundled:
        return _bundled(row, spec, num_classes)
    if spec.startswith(_RANDOM) or spec == _RANDOM.rstrip(":"):
        return _random(row, spec, num_classes)
    path = Path(spec)
    if path.suffix.lower() not in SUFFIXES and not path.exists():
        raise UsageError(
            f"there are no weights {spec!r}",
            hint=f"pass {', '.join(sorted(bundled))}, random:SEED, or a file ({', '.join(SUFFIXES)})",
        )
    return _from_file(row, read(path), path.name, num_classes)


def create(name: str, *, weights: str | None = None, num_classes: int | None = None) -> nn.Module:
    """Return a network with weights, in evaluation mode; see `load`."""
    return load(name, weights=weights, num_classes=num_classes).module


def _random(row: Variant, spec: str, num_classes: int | None) -> LoadedModel:
    text = spec.removeprefix(_RANDOM)
    if not (text.isascii() and text.isdecimal() and int(text) < _MAX_SEED):
        raise UsageError(
            f"the weights {spec!r} do not give a seed",
            hint=f"write {_DEFAULT}, or another number below 2**64",
        )
    seed = int(text)
    classes = _DEFAULT_CLASSES if num_classes is None else num_classes
    module = skeleton(row, classes)
    state = random_state(module, seed)
    module.load_state_dict(state, assign=True)
    return LoadedModel(
        module=module.eval(),
        variant=row,
        num_classes=classes,
        input_size=row.input_size,
        weights=f"{_RANDOM}{seed}",
        weights_sha256=digest(state),
        description=f"{row.name} with random weights, seed {seed}",
    )


def _bundled(row: Variant, word: str, num_classes: int | None) -> LoadedModel:
    if word not in row.weights:
        having = [other.name for other in zoo.variants() if word in other.weights]
        raise UsageError(
            f"there are no bundled weights {word!r} for {row.name}",
            hint=f"models that have them: {', '.join(having)}",
        )
    resource = resources.files("shufflectl.models") / "weights" / f"{row.name}_{word}.safetensors"
    with resources.as_file(resource) as path:
        return _from_file(row, read(path), word, num_classes)


def _from_file(row: Variant, file: WeightsFile, display: str, num_classes: int | None) -> LoadedModel:
    record = _record(file)
    state = fit(row, file, num_classes)
    written_for = record.get("model", row.name)
    if written_for != row.name:
        found = printable(repr(written_for), 60)
        raise CheckpointError(
            f"the header of {file.path.name} says that it is of {found}, not of {row.name}",
            hint="pass that model's name",
        )
    module = skeleton(row, 1)
    classes = state[classifier(module)].shape[0]
    module = skeleton(row, classes)
    module.load_state_dict(state, assign=True)
    described = _described(file, record, classes)
    if not described.get("description"):
        described["description"] = f"{row.name} with the weights of {display}"
    return LoadedModel(
        module=module.eval(),
        variant=row,
        num_classes=classes,
        weights=display,
        weights_sha256=file.sha256,
        **{"input_size": row.input_size, **described},
    )


def _record(file: WeightsFile) -> Mapping[str, Any]:
    """Return the description in the file's header; empty where it has none."""
    text = file.metadata.get(METADATA_KEY)
    if text is None:
        return {}
    try:
        return _object(json.loads(text))
    except (ValueError, TypeError) as error:
        raise _bad_metadata(file, str(error)) from error
    except RecursionError as error:
        raise _bad_metadata(file, "it is nested too deeply") from error


def _described(file: WeightsFile, record: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """Return the fields of `LoadedModel` that the description gives."""
    result: dict[str, Any] = {}
    try:
        result["labels"] = _labels(record.get("labels", []), classes)
        if "preprocess" in record:
            result["preprocess"] = Preprocess.from_json(_object(record["preprocess"]))
        if "input_size" in record:
            result["input_size"] = _input_size(record["input_size"])
        for key in ("author", "version", "license", "description"):
            result[key] = _text(record.get(key, ""))
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise _bad_metadata(file, str(error)) from error
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


def _bad_metadata(file: WeightsFile, why: str) -> CheckpointError:
    return CheckpointError(
        f"the description in the header of {file.path.name} (key {METADATA_KEY!r}) cannot be used: "
        f"{printable(why)}",
        hint="correct it, or save the tensors again without it; see docs/checkpoints.md",
    )
