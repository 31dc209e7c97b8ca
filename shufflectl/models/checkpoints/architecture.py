"""The network that a set of tensors belongs to, read off their shapes.

A network of the registry gets its name. Another one, as pytorchcv's wide ones are, is named for its channels:
family, groups in V1, then the channels of the first convolution, of the stages and in V2 of the last
convolution, for example ``shufflenet_v2_24x176x352x704x1553``.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count as counting
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor, nn

from shufflectl.models import shufflenet_v1
from shufflectl.models.checkpoints.layout import STANDARD_UNITS, Layout
from shufflectl.models.count import count
from shufflectl.models.zoo import Variant, names, variants

__all__ = ["Shapes", "architecture", "is_custom", "skeleton"]

_STAGES: Final = (2, 3, 4)
_CLASSES: Final = 1000  # that figures of networks are stated for
_CUSTOM: Final = re.compile(r"shufflenet_v(1_g\d+|2)_\d+(x\d+){3,4}(_u\d+x\d+x\d+)?")

Shapes = Callable[[str], tuple[int, ...]]
"""Gives a tensor's shape by our name; raises KeyError where there is none."""


def skeleton(variant: Variant, num_classes: int) -> nn.Module:
    """Return the variant's module on the meta device: names and shapes without values."""
    with torch.device("meta"):
        return variant.build(num_classes)


def is_custom(name: str) -> bool:
    """Whether a name is formed as those of networks that the registry lacks."""
    return _CUSTOM.fullmatch(name) is not None


def architecture(layout: Layout, prefix: str, tensors: Mapping[str, Tensor]) -> Variant | None:
    """Return the network that the shapes are those of, or None where they are of no network of the family.

    Only the tensors that tell the channels are looked at: whether all others fit is `fit`'s to say.

    Args:
        layout: How the tensors are named.
        prefix: What stands before the names.
        tensors: By their names in the file.
    """

    def shape(name: str) -> tuple[int, ...]:
        found = tuple(tensors[prefix + layout.spell(name)].shape)
        if len(found) != 4 or 0 in found:
            raise ValueError(name)
        return found

    reader = {"shufflenet_v1": _v1, "shufflenet_v2": _v2}.get(layout.family)
    if reader is None:
        return None
    try:
        found = reader(shape, layout)
        return found if found.name in names() else _measured(found)
    except (KeyError, ValueError, RuntimeError):  # what torch raises of channels that groups do not divide
        return None


def _v1(shape: Shapes, layout: Layout) -> Variant:
    stem = shape("conv1.0.weight")[0]
    groups, remainder = divmod(shape("stage2.0.compress.0.weight")[0], shape("stage2.0.expand.0.weight")[1])
    if remainder:
        raise ValueError("groups")
    stages: list[int] = []
    for stage in _STAGES:
        inputs = stages[-1] if stages else stem
        stages.append(inputs + shape(f"stage{stage}.0.expand.0.weight")[0])
    units = _units(shape, layout, "compress")
    for row in variants():
        if row.family == layout.family and units == STANDARD_UNITS:
            of_row = (row.arguments["groups"], row.arguments["width"])
            if (groups, stem, tuple(stages)) == (
                of_row[0],
                shufflenet_v1.stem_channels(*of_row),
                shufflenet_v1.stage_channels(*of_row),
            ):
                return row
    return _custom(
        layout.family,
        f"shufflenet_v1_g{groups}",
        (stem, *stages),
        units,
        {"groups": groups, "stem": stem, "stages": tuple(stages), "units": units},
    )


def _v2(shape: Shapes, layout: Layout) -> Variant:
    stem = shape("conv1.0.weight")[0]
    stages = tuple(
        shape(f"stage{stage}.0.branch1.2.weight")[0] + shape(f"stage{stage}.0.branch2.5.weight")[0]
        for stage in _STAGES
    )
    last = shape("conv5.0.weight")[0]
    units = _units(shape, layout, "branch2")
    arguments: dict[str, Any] = {"stage_channels": stages, "last_channels": last}
    for row in variants():
        standard = row.family == layout.family and (stem, units) == (24, STANDARD_UNITS)
        if standard and arguments == dict(row.arguments):
            return row
    arguments |= {"stem": stem, "stage_units": units}
    return _custom(layout.family, "shufflenet_v2", (stem, *stages, last), units, arguments)


def _units(shape: Shapes, layout: Layout, part: str) -> tuple[int, ...]:
    """Return how many units each stage has."""

    def held(stage: int, index: int) -> bool:
        try:
            shape(f"stage{stage}.{index}.{part}.0.weight")
        except KeyError:
            return False
        return True

    if layout.units is not None:
        return layout.units
    return tuple(next(i for i in counting() if not held(stage, i)) for stage in _STAGES)


def _custom(
    family: str,
    name: str,
    channels: tuple[int, ...],
    units: tuple[int, ...],
    arguments: dict[str, Any],
) -> Variant:
    depth = "" if units == STANDARD_UNITS else "_u" + "x".join(map(str, units))
    return Variant(
        name=f"{name}_{'x'.join(map(str, channels))}{depth}",
        family=family,
        builder=f"shufflectl.models.{family}:build_custom",
        arguments=MappingProxyType(arguments),
        parameters=0,
        multiply_adds=0,
    )


def _measured(variant: Variant) -> Variant:
    """Return a variant with its figures, counted on the meta device."""
    figures = count(skeleton(variant, _CLASSES), variant.input_size)
    return replace(variant, parameters=figures.parameters, multiply_adds=figures.multiply_adds)
