"""Fitting a file's tensors to a network: names, shapes, types and values.

The network is on the meta device, so nothing the size of a claim is allocated before the claim is checked.
Names in messages are the file's own.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from shufflectl.errors import CheckpointError
from shufflectl.models.checkpoints import layouts
from shufflectl.models.checkpoints.architecture import architecture, skeleton
from shufflectl.models.checkpoints.files import WeightsFile, printable
from shufflectl.models.checkpoints.layout import Layout
from shufflectl.models.zoo import Variant, variants

__all__ = [
    "Comparison",
    "Fitted",
    "checked",
    "classifier",
    "compare",
    "fit",
    "only_network",
    "skeleton",
    "some",
]

_COUNTER = "num_batches_tracked"
_MAX_CLASSES = 1_000_000
_EMA = re.compile(r"(^|[._])ema([._]|$)")


@dataclass(frozen=True)
class Fitted:
    """A file's tensors as a network's state dict.

    Attributes:
        variant: The network, with the conventions of the file's layout.
        state: By our names, fp32.
        layout: How the file names its tensors.
        prefix: What stands before the names.
        num_classes: Width of the classifier.
        ignored: Tensors of the file that stand beside the network, by the file's names.
    """

    variant: Variant
    state: dict[str, Tensor]
    layout: Layout
    prefix: str
    num_classes: int
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """What speaks against a file's being of a network, by the file's names; nothing if it is.

    Attributes:
        layout: The layout that was tried.
        prefix: What stands before the names.
        variant: The network that was tried.
        missing: Tensors that the network has and the file lacks.
        extra: Tensors that the file has and the network lacks.
        misshaped: Name, shape in the file, shape in the network; the classifier's rows are not compared.
    """

    layout: Layout
    prefix: str
    variant: Variant
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    misshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    @property
    def fits(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.problems

    @property
    def summary(self) -> tuple[tuple[str, str], ...]:
        """What does not fit, by kind, each with a few names."""
        shapes = tuple(
            f"{printable(name, 80)!r} {list(found)} not {list(wanted)}"
            for name, found, wanted in self.misshaped[:3]
        )
        more = f" and {len(self.misshaped) - 3} more" if len(self.misshaped) > 3 else ""
        rows = (
            ("missing", some(self.missing)),
            ("too many", some(self.extra)),
            ("other shape", ", ".join(shapes) + more),
        )
        return tuple(row for row in rows if row[1])

    @property
    def problems(self) -> int:
        """How many tensors do not fit."""
        return len(self.missing) + len(self.extra) + len(self.misshaped)


def classifier(module: nn.Module) -> str:
    """Return the name of the classifier's weight: the last dense layer's."""
    return f"{[name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)][-1]}.weight"


def compare(layout: Layout, prefix: str, variant: Variant, tensors: Mapping[str, Tensor]) -> Comparison:
    """Hold a file's names and shapes against a network's."""
    expected, head = _shapes(layout, layout.applied(variant))
    missing: list[str] = []
    misshaped: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    for name, (wanted, required) in expected.items():
        tensor = tensors.get(prefix + name)
        if tensor is None:
            if required:
                missing.append(prefix + name)
            continue
        found = tuple(tensor.shape)
        compared = (found[1:], wanted[1:]) if name in head and found else (found, wanted)
        if compared[0] != compared[1]:
            misshaped.append((prefix + name, found, wanted))
    extra = [n for n in tensors if n.startswith(prefix) and n.removeprefix(prefix) not in expected]
    return Comparison(layout, prefix, variant, tuple(missing), tuple(extra), tuple(misshaped))


@cache
def _shapes(
    layout: Layout, variant: Variant
) -> tuple[dict[str, tuple[tuple[int, ...], bool]], frozenset[str]]:
    """Return shapes and whether a file must have them, by the layout's names, and the classifier's names."""
    module = skeleton(variant, 1)
    head = classifier(module).rpartition(".")[0]
    shapes = {
        layout.spell(name): (
            tuple(tensor.shape),
            not name.endswith(_COUNTER) and name not in layout.optional,
        )
        for name, tensor in module.state_dict().items()
    }
    return shapes, frozenset(layout.spell(f"{head}.{part}") for part in ("weight", "bias"))


def only_network(file: WeightsFile, family: str | None = None) -> tuple[Layout, str] | None:
    """Return the layout of a file's network and the prefix of its names; None where no layout marks it.

    Of several networks, the one that is called ``ema`` counts: those averaged weights are what the training
    was validated with.

    Raises:
        CheckpointError: It holds several networks.
    """
    found = layouts.recognise(file.tensors, family)
    averaged = [mark for mark in found if _EMA.search(mark[1])]
    if len(found) > 1 and len(averaged) != 1:
        places = ", ".join(repr(printable(prefix, 60) or "(no prefix)") for _, prefix in found[:4])
        raise CheckpointError(
            f"{file.path.name} holds {len(found)} networks, whose names begin with {places}",
            hint="save the state_dict of the one to export",
        )
    return averaged[0] if averaged else found[0] if found else None


def fit(variant: Variant, file: WeightsFile, num_classes: int | None) -> Fitted:
    """Return a file's tensors as the variant's state dict in fp32.

    Args:
        variant: The network.
        file: What the file holds.
        num_classes: How many classes the user expects; None to take the file's.

    Raises:
        CheckpointError: The file is of another network or layout, has another number of classes, lacks
            tensors, has others, or holds values that no trained network has.
    """
    mark = only_network(file, variant.family)
    if mark is None:
        raise _foreign(variant, file)
    layout, prefix = mark
    variant = layout.applied(variant)
    classes = _classes(variant, layout, prefix, file, num_classes)
    found = compare(layout, prefix, variant, file.tensors)
    other = _better(variant, file) or "check what network the file is of: `shufflectl identify` says it"
    if found.missing:
        raise CheckpointError(
            f"{file.path.name} does not fit {variant.name}: {some(found.missing)} "
            f"{'is' if len(found.missing) == 1 else 'are'} missing",
            hint=other,
        )
    if found.extra:
        raise CheckpointError(
            f"{file.path.name} does not fit {variant.name}: it also holds {some(found.extra)}", hint=other
        )
    expected = skeleton(variant, classes).state_dict()
    for name, wanted in expected.items():
        tensor = file.tensors.get(prefix + layout.spell(name))
        if tensor is not None and tensor.shape != wanted.shape:
            raise CheckpointError(
                f"{file.path.name} does not fit {variant.name}: tensor "
                f"{printable(prefix + layout.spell(name))!r} has shape {list(tensor.shape)} there, and "
                f"{list(wanted.shape)} in the network",
                hint=other,
            )
    state = {name: checked(file, prefix + layout.spell(name), wanted) for name, wanted in expected.items()}
    ignored = tuple(name for name in file.tensors if not name.startswith(prefix))
    return Fitted(variant, layout.reorder(state, variant), layout, prefix, classes, ignored)


def _classes(
    variant: Variant, layout: Layout, prefix: str, file: WeightsFile, num_classes: int | None
) -> int:
    """Return the number of classes that the file's classifier has."""
    name = prefix + layout.spell(classifier(skeleton(variant, 1)))
    weight = file.tensors.get(name)
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


def checked(file: WeightsFile, name: str, wanted: Tensor) -> Tensor:
    """Return a tensor in the network's type, having looked at its values.

    Args:
        file: What the file holds.
        name: The tensor's name there; one that the file lacks is zero.
        wanted: The network's own: its shape and type; floating-point ones become fp32.

    Raises:
        CheckpointError: The values are none that a trained network has.
    """
    tensor = file.tensors.get(name)
    if tensor is None:  # a counter of training steps, which inference does not read, or a bias that is zero
        return torch.zeros(wanted.shape, dtype=wanted.dtype)
    if name.endswith(_COUNTER) or (
        not wanted.is_floating_point() and not tensor.is_floating_point() and not tensor.is_complex()
    ):
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
    holds = f"it holds {some(list(file.tensors))}" if file.tensors else "it holds no tensors"
    known = ", ".join(layouts.names(variant.family))
    return CheckpointError(
        f"{file.path.name} has none of the layouts known for {variant.name}: {holds}",
        hint=f"layouts: {known}; rename the tensors to one of them",
    )


def _better(variant: Variant, file: WeightsFile) -> str:
    """Return a hint that names the networks that the file fits in every name and shape; empty if none."""
    fitting: list[str] = []
    for layout, prefix in layouts.recognise(file.tensors):
        read = architecture(layout, prefix, file.tensors)
        rows = [row for row in variants() if row.family == layout.family] if read is None else [read]
        fitting += [row.name for row in rows if compare(layout, prefix, row, file.tensors).fits]
    if not fitting or variant.name in fitting:
        return ""
    return f"its tensors are those of {' or '.join(fitting)}"


def some(names: Sequence[str]) -> str:
    """Return the first names of a list, quoted, and how many more there are."""
    shown = ", ".join(repr(printable(name, 80)) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
