"""What a layout of checkpoints is: a library's names of tensors, and what its code does differently."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from shufflectl.models.layers import channel_shuffle
from shufflectl.models.preprocess import IMAGENET, Preprocess
from shufflectl.models.zoo import Variant

__all__ = ["STANDARD_UNITS", "Layout", "Spell", "carry_through_depthwise", "spelling"]

STANDARD_UNITS: Final = (4, 8, 4)
"""Units in stages 2 to 4, in both papers."""

Spell = Callable[[str], str]
"""Turns one of our tensor names into the layout's."""

Reorder = Callable[[dict[str, Tensor], Variant], dict[str, Tensor]]
"""Reorders the elements of a state dict under our names, where the library's code and ours differ in that."""

_SIGNATURES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "shufflenet_v1": ("conv1.0.weight", "stage2.0.compress.0.weight"),
        "shufflenet_v2": ("conv1.0.weight", "stage2.0.branch1.0.weight", "conv5.0.weight"),
        "shufflenet_v2_large": ("conv1.0.weight", "stage5.0.branch1.0.weight", "conv6.0.weight"),
        "mobilenet_v1": ("conv1.0.weight", "blocks.0.depthwise.0.weight"),
        "mobilenet_v2": ("features.0.0.weight", "features.1.conv.0.0.weight"),
    }
)


def _same(name: str) -> str:
    return name


def _in_order(state: dict[str, Tensor], _variant: Variant) -> dict[str, Tensor]:
    return state


@dataclass(frozen=True)
class Layout:
    """One library's way to name the tensors of one family.

    Attributes:
        name: The library.
        family: The family of networks, a key of `zoo.FAMILIES`.
        networks: What the library calls them.
        source: Where the library defines them.
        spell: Our names of tensors to the library's.
        conventions: Arguments of our builder that make it compute what the library's code computes.
        reorder: What must happen to the elements.
        optional: Our names of tensors that the library may leave out, where they stand for zeros.
        units: Units in stages 2 to 4 where the names do not tell; None where they do.
        preprocess: What the library's published weights expect.
        preprocess_source: Where that stands.
    """

    name: str
    family: str
    networks: str
    source: str
    spell: Spell = _same
    conventions: Mapping[str, Any] = field(default_factory=dict, hash=False)
    reorder: Reorder = _in_order
    optional: frozenset[str] = frozenset()
    units: tuple[int, ...] | None = None
    preprocess: Preprocess = IMAGENET
    preprocess_source: str = ""

    @property
    def signature(self) -> tuple[str, ...]:
        """The names, as the library spells them, that mark a file of this layout."""
        return tuple(self.spell(name) for name in _SIGNATURES[self.family])

    def prefixes(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return what stands before the names of a network of this layout, for each in the file.

        Wrappers put it there: ``module.`` of DistributedDataParallel, ``model.`` of a LightningModule,
        ``_orig_mod.`` of torch.compile, and combinations.
        """
        held = set(names)
        first, *rest = self.signature
        found = (name[: -len(first)] for name in held if name.endswith(first))
        return tuple(
            sorted(p for p in found if p[-1:] in ("", ".") and all(f"{p}{name}" in held for name in rest))
        )

    def applied(self, variant: Variant) -> Variant:
        """Return a variant with this layout's conventions among its builder's arguments."""
        if not self.conventions:
            return variant
        return replace(variant, arguments=MappingProxyType({**variant.arguments, **self.conventions}))


def spelling(
    unit: Callable[[int, int], str], layers: Mapping[str, str], around: Mapping[str, str]
) -> Callable[[str], str]:
    """Return a function that spells our names as a library does.

    Args:
        unit: The library's path of a unit, by our stage (2 to 4) and the unit's index in it.
        layers: Layers within a unit, ours to the library's.
        around: Layers outside of units, likewise.
    """

    def spell(name: str) -> str:
        layer, _, parameter = name.rpartition(".")
        inner = re.fullmatch(r"stage(\d)\.(\d+)\.(.+)", layer)
        if inner is None:
            return f"{around[layer]}.{parameter}"
        return f"{unit(int(inner[1]), int(inner[2]))}.{layers[inner[3]]}.{parameter}"

    return spell


def carry_through_depthwise(state: dict[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Move the shuffle of ShuffleNet V1 from behind the depthwise convolution to before it.

    The depthwise convolution with its batch norm, ``d``, maps channel ``c`` to channel ``c`` alone. With
    ``s`` the permutation, ``s(d(x))[p] = d[s[p]](x[s[p]])``: the same as shuffling first, with the weights of
    ``d`` shuffled likewise.
    """
    result = dict(state)
    groups = int(variant.arguments["groups"])
    for name, tensor in state.items():
        if ".depthwise." in name and tensor.ndim:
            channels = tensor.shape[0]
            inverse = variant.arguments.get("shuffle", "paper") == "inverse"
            identity = torch.arange(channels).reshape(1, channels, 1, 1)
            order = channel_shuffle(identity, channels // groups if inverse else groups)
            result[name] = tensor[order.flatten()]
    return result
