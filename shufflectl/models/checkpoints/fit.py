"""Fitting a file's tensors to a network: names, shapes, types and values.

The network is on the meta device, so nothing the size of a claim is allocated before the claim is checked.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from shufflectl.errors import CheckpointError
from shufflectl.models.checkpoints.files import WeightsFile, printable
from shufflectl.models.checkpoints.layouts import LAYOUTS, recognise
from shufflectl.models.zoo import Variant, variants

__all__ = ["classifier", "fit", "skeleton"]

_COUNTER = "num_batches_tracked"
_MAX_CLASSES = 1_000_000


def skeleton(variant: Variant, num_classes: int) -> nn.Module:
    """Return the variant's module on the meta device: names and shapes without values."""
    with torch.device("meta"):
        return variant.build(num_classes)


def classifier(module: nn.Module) -> str:
    """Return the name of the classifier's weight: the last dense layer's."""
    return f"{[name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)][-1]}.weight"


def fit(variant: Variant, file: WeightsFile, num_classes: int | None) -> dict[str, Tensor]:
    """Return a file's tensors as the variant's state dict in fp32.

    Args:
        variant: The network.
        file: What the file holds.
        num_classes: How many classes the user expects; None to take the file's.

    Raises:
        CheckpointError: The file is of another network or layout, has another number of classes, lacks
            tensors, has others, or holds values that no trained network has.
    """
    layout = recognise(variant, file.tensors)
    if layout is None:
        raise _foreign(variant, file)
    tensors = layout.rename(variant, file.tensors)
    expected = skeleton(variant, _classes(variant, file, tensors, num_classes)).state_dict()
    missing = [name for name in expected if name not in tensors and not name.endswith(_COUNTER)]
    extra = [name for name in tensors if name not in expected]
    other = _better(variant, file) or "check what network the file is of: `shufflectl models` lists them"
    if missing:
        raise CheckpointError(
            f"{file.path.name} does not fit {variant.name}: {_some(missing)} {_are(missing)} missing",
            hint=other,
        )
    if extra:
        raise CheckpointError(
            f"{file.path.name} does not fit {variant.name}: it also holds {_some(extra)}", hint=other
        )
    for name, wanted in expected.items():
        if name in tensors and tensors[name].shape != wanted.shape:
            raise CheckpointError(
                f"{file.path.name} does not fit {variant.name}: tensor {name!r} has shape "
                f"{list(tensors[name].shape)} there, and {list(wanted.shape)} in the network",
                hint=other,
            )
    return {name: _checked(file, name, tensors.get(name), wanted) for name, wanted in expected.items()}


def _classes(
    variant: Variant, file: WeightsFile, tensors: Mapping[str, Tensor], num_classes: int | None
) -> int:
    """Return the number of classes that the file's classifier has."""
    name = classifier(skeleton(variant, 1))
    weight = tensors.get(name)
    if weight is None:
        raise CheckpointError(
            f"{file.path.name} has no classifier: tensor {name!r} is missing",
            hint="save the whole network's state_dict, not the backbone's alone",
        )
    found = weight.shape[0] if weight.ndim == 2 else 0
    if not 0 < found <= _MAX_CLASSES:
        raise CheckpointError(
            f"tensor {name!r} of {file.path.name} has shape {list(weight.shape)}, which is not a classifier's"
        )
    if num_classes is not None and num_classes != found:
        raise CheckpointError(
            f"{file.path.name} is for {found} classes (tensor {name!r} has shape {list(weight.shape)}), and "
            f"{num_classes} were asked for",
            hint=f"pass --num-classes {found}, or leave it out",
        )
    return found


def _checked(file: WeightsFile, name: str, tensor: Tensor | None, wanted: Tensor) -> Tensor:
    """Return a tensor in the network's type, having looked at its values."""
    if tensor is None:  # a counter of training steps, which inference does not read
        return torch.zeros(wanted.shape, dtype=wanted.dtype)
    if name.endswith(_COUNTER):
        return tensor.to(wanted.dtype, copy=True)
    if not tensor.is_floating_point():
        raise CheckpointError(
            f"tensor {name!r} of {file.path.name} is of type {str(tensor.dtype).removeprefix('torch.')}, and "
            "weights are floating-point numbers",
            hint="save the float model's state_dict, before any quantisation",
        )
    values = tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if not bool(torch.isfinite(values).all()):
        raise CheckpointError(
            f"tensor {name!r} of {file.path.name} holds NaN or infinity",
            hint="the training diverged, or the file is damaged: use an earlier checkpoint",
        )
    if name.endswith("running_var") and bool((values < 0).any()):
        raise CheckpointError(
            f"tensor {name!r} of {file.path.name} holds negative variances",
            hint="the file is damaged: get it again",
        )
    return values


def _foreign(variant: Variant, file: WeightsFile) -> CheckpointError:
    """Return the error for a file that no layout of the variant recognises."""
    better = _better(variant, file)
    if better:
        return CheckpointError(f"{file.path.name} holds another network than {variant.name}", hint=better)
    holds = f"it holds {_some(list(file.tensors))}" if file.tensors else "it holds no tensors"
    return CheckpointError(
        f"{file.path.name} has none of the layouts known for {variant.name}: {holds}",
        hint=f"layouts: {', '.join(layout.name for layout in LAYOUTS)}; rename the tensors to one of them",
    )


def _better(variant: Variant, file: WeightsFile) -> str:
    """Return a hint that names the variants that the file fits in every name and shape; empty if none."""
    fitting = list(_fitting(file))
    if not fitting or variant.name in fitting:
        return ""
    return f"its tensors are those of {' or '.join(fitting)}"


def _fitting(file: WeightsFile) -> Iterator[str]:
    for other in variants():
        layout = recognise(other, file.tensors)
        if layout is None:
            continue
        tensors = layout.rename(other, file.tensors)
        module = skeleton(other, 1)
        head = classifier(module).rpartition(".")[0]
        expected = {n: t.shape for n, t in module.state_dict().items() if not n.startswith(f"{head}.")}
        held = {n: t.shape for n, t in tensors.items() if not n.startswith(f"{head}.")}
        counters = [n for n in expected if n.endswith(_COUNTER) and n not in held]
        if held == {n: s for n, s in expected.items() if n not in counters}:
            yield other.name


def _some(names: list[str]) -> str:
    """Return the first names of a list, quoted, and how many more there are."""
    shown = ", ".join(repr(printable(name, 80)) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
