"""From a variant's name and a word for its weights to a module that is ready to export."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from torch import nn

from shufflectl.errors import CheckpointError, UsageError
from shufflectl.models import zoo
from shufflectl.models.checkpoints.architecture import is_custom
from shufflectl.models.checkpoints.files import SUFFIXES, WeightsFile, is_checkpoint, printable, read
from shufflectl.models.checkpoints.fit import Fitted, fit, skeleton, some
from shufflectl.models.checkpoints.header import METADATA_KEY, described, record
from shufflectl.models.checkpoints.identify import identify
from shufflectl.models.download import Notify, fetch
from shufflectl.models.preprocess import IMAGENET, Preprocess
from shufflectl.models.random_weights import digest, parse_seed, random_state
from shufflectl.models.staged import OUTPUT_STRIDES, Staged, set_features, set_output_stride
from shufflectl.models.zoo import LOGITS, Variant

__all__ = ["METADATA_KEY", "LoadedModel", "create", "dense", "load"]

_DEFAULT = "random:0"
_RANDOM = "random:"
_DEFAULT_CLASSES = 1000
_MAX_CLASSES = 1_000_000


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
        notes: What was decided on the way from the file to the network, and the user may want otherwise.
        output_stride: What `dense` has made it; None where it is the network's own.
        outputs: The names of the outputs.
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
    notes: tuple[str, ...] = ()
    output_stride: int | None = None
    outputs: tuple[str, ...] = (LOGITS,)


def dense(model: LoadedModel, output_stride: int | None, features: Sequence[str]) -> LoadedModel:
    """Return a model with another output stride, or with feature maps as outputs; its network is changed.

    Args:
        model: The model.
        output_stride: See `set_output_stride`; None for the network's own.
        features: See `set_features`; empty for the logits alone.

    Raises:
        UsageError: There is no such stride or feature map.
    """
    network = model.module
    assert isinstance(network, Staged)  # noqa: S101 - all networks of the registry are
    if output_stride is not None:
        set_output_stride(network, output_stride)
    if features:
        set_features(network, features)
    return replace(
        model,
        output_stride=None if output_stride == OUTPUT_STRIDES[-1] else output_stride,
        outputs=network.outputs,
        labels=model.labels if LOGITS in network.outputs else (),
    )


def load(
    name: str | None = None,
    *,
    weights: str | None = None,
    num_classes: int | None = None,
    notify: Notify = lambda _what, _done, _total: None,
) -> LoadedModel:
    """Return a network with weights and their description.

    Args:
        name: A variant's name, as `zoo.names` lists them, or as `identify` gives it for a file of a network
            that is not listed. None for what the weights file is of.
        weights: ``digits`` for the bundled weights, ``imagenet`` for those that torchvision publishes, the
            path of a ``.safetensors``, ``.pt``, ``.pth`` or ``.ckpt`` file, or ``random:SEED``. None stands
            for ``random:0``.
        num_classes: Width of the logits. None takes the weights' own, and 1000 for random ones.
        notify: Told about the progress of a download.

    Raises:
        UsageError: There is no such variant, the seed is not a number, the variant has no such bundled
            weights, or neither a variant nor a file is named.
        CheckpointError: The file cannot be used, is of another network, or is for another number of classes.
        UnavailableError: Published weights cannot be downloaded.
        OutputError: Nor stored.
    """
    spec = _DEFAULT if weights is None else weights
    is_file = _is_file(spec)
    if name is None and not is_file:
        raise UsageError(
            "no model is named",
            hint="name one that `shufflectl models` lists, or pass --weights with a checkpoint that tells it",
        )
    if is_file and (name is None or name not in zoo.names()):
        return _from_unnamed_file(name, Path(spec), num_classes)
    row = zoo.variant(name or "")
    if num_classes is not None and not 1 <= num_classes <= _MAX_CLASSES:
        raise UsageError(f"the number of classes is {num_classes}, and must be 1 to {_MAX_CLASSES}")
    if spec in _words():
        if spec not in row.words:
            raise _no_such_weights(row, spec)
        if spec in row.weights:
            return _bundled(row, spec, num_classes)
        return _published(row, spec, num_classes, notify)
    if spec.startswith(_RANDOM) or spec == _RANDOM.rstrip(":"):
        return _random(row, spec, num_classes)
    if not is_file:
        raise UsageError(
            f"there are no weights {spec!r}",
            hint=f"pass {', '.join(_words())}, random:SEED, or a file ({', '.join(SUFFIXES)})",
        )
    path = Path(spec)
    return _from_file(row, read(path), path.name, num_classes)


def _is_file(spec: str) -> bool:
    """Whether the words for weights are a path."""
    if spec.startswith(_RANDOM) or spec in _words():
        return False
    return is_checkpoint(Path(spec)) or Path(spec).exists()


def _from_unnamed_file(name: str | None, path: Path, num_classes: int | None) -> LoadedModel:
    """Return the network that a file is of; a name that is not listed must be the one found."""
    if name is not None and not is_custom(name):
        zoo.variant(name)  # refuses it, before the file is read
    file = read(path)
    found = identify(file)
    if name is not None and (found.match is None or found.match.variant.name != name):
        zoo.variant(name)
    return _from_file(found.require().variant, file, path.name, num_classes)


def create(name: str, *, weights: str | None = None, num_classes: int | None = None) -> nn.Module:
    """Return a network with weights, in evaluation mode; see `load`."""
    return load(name, weights=weights, num_classes=num_classes).module


def _random(row: Variant, spec: str, num_classes: int | None) -> LoadedModel:
    seed = parse_seed(spec)
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


def _words() -> tuple[str, ...]:
    """Return what trained weights can be had by name, of any model."""
    return tuple(sorted({word for row in zoo.variants() for word in row.words}))


def _no_such_weights(row: Variant, word: str) -> UsageError:
    having = [other for other in zoo.variants() if word in other.words]
    kind = "bundled" if word in having[0].weights else "published"
    return UsageError(
        f"there are no {kind} weights {word!r} for {row.name}",
        hint=f"models that have them: {', '.join(other.name for other in having)}",
    )


def _published(row: Variant, word: str, num_classes: int | None, notify: Notify) -> LoadedModel:
    item = next(item for item in row.pretrained if item.word == word)
    loaded = _from_file(row, read(fetch(item, notify)), word, num_classes)
    return replace(
        loaded,
        preprocess=replace(loaded.preprocess, crop=item.crop),
        author="torchvision",
        version=item.version,
        description=f"{row.name} with torchvision's weights {item.version}: {item.top1_accuracy:g} % top-1 "
        "on ImageNet-1K",
    )


def _bundled(row: Variant, word: str, num_classes: int | None) -> LoadedModel:
    resource = resources.files("shufflectl.models") / "weights" / f"{row.name}_{word}.safetensors"
    with resources.as_file(resource) as path:
        return _from_file(row, read(path), word, num_classes)


def _from_file(row: Variant, file: WeightsFile, display: str, num_classes: int | None) -> LoadedModel:
    said = record(file)
    fitted = fit(row, file, num_classes)
    written_for = said.get("model", row.name)
    if written_for != row.name:
        found = printable(repr(written_for), 60)
        raise CheckpointError(
            f"the header of {file.path.name} says that it is of {found}, not of {row.name}",
            hint="pass that model's name",
        )
    module = skeleton(fitted.variant, fitted.num_classes)
    module.load_state_dict(fitted.state, assign=True)
    fields = described(file, said, fitted.num_classes)
    if not fields.get("description"):
        fields["description"] = f"{row.name} with the weights of {display}"
    return LoadedModel(
        module=module.eval(),
        variant=fitted.variant,
        num_classes=fitted.num_classes,
        weights=display,
        weights_sha256=file.sha256,
        notes=_notes(file, fitted),
        **{"input_size": row.input_size, "preprocess": fitted.layout.preprocess, **fields},
    )


def _notes(file: WeightsFile, fitted: Fitted) -> tuple[str, ...]:
    notes: list[str] = []
    if file.others:
        notes.append(f"{file.path.name}: read entry {file.entry[-1]!r}, left {', '.join(file.others)} aside")
    if fitted.ignored:
        notes.append(f"{file.path.name}: left aside what is not of the network: {some(fitted.ignored)}")
    return tuple(notes)
