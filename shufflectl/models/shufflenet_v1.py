"""ShuffleNet V1 (Zhang et al., arXiv:1707.01083).

Names: ``conv1``, ``maxpool``, ``stage2`` to ``stage4`` with ``compress``, ``depthwise`` and ``expand`` in
each unit, ``fc``. The shuffle stands where the paper has it, after the first grouped convolution.

Code in circulation differs in three conventions, which checkpoints bring along (`Conventions`). None changes
the names, the shapes or the multiply-adds:

- Where the shuffle stands: Megvii's and mmpretrain's code has it after the depthwise convolution. That is no
  other function: a depthwise convolution works channel by channel, so the shuffle passes through it and takes
  its weights along (`checkpoints.layout.carry_through_depthwise`).
- Which way it goes: Megvii's reads the channels as ``[C / g, g]``, the paper as ``[g, C / g]``, which is
  the inverse permutation. With ``C / g`` no multiple of ``g`` no order of weights turns one into the other.
- In which order the downsampling unit joins: pytorchcv puts the shortcut last, and the groups of the next
  convolution see other channels.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from shufflectl.models.layers import (
    Residual,
    channel_shuffle,
    depthwise_conv,
    grouped_pointwise_conv,
    spatial_conv,
)
from shufflectl.models.staged import Staged

__all__ = [
    "BasicUnit",
    "Conventions",
    "DownsamplingUnit",
    "ShuffleNetV1",
    "build",
    "build_custom",
    "stage_channels",
    "stem_channels",
]

_STAGE_UNITS = (4, 8, 4)
_STAGE2_CHANNELS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}


class Conventions(NamedTuple):
    """What code in circulation does in different ways.

    Attributes:
        shuffle: ``paper``, or ``inverse`` for the inverse permutation.
        shortcut: Where the pooled shortcut stands among the channels of a downsampling unit.
    """

    shuffle: Literal["paper", "inverse"] = "paper"
    shortcut: Literal["first", "last"] = "first"


_PAPER = Conventions()


class _Unit(nn.Module):
    """What both units have: the bottleneck of figure 2, ``[N, inputs, H, W] -> [N, outputs, H/s, W/s]``."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bottleneck: int,
        groups: int,
        *,
        first: int,
        stride: int,
        conventions: Conventions,
    ) -> None:
        super().__init__()
        self.groups = groups
        # The inverse of a shuffle of g groups of n channels is the shuffle of n groups of g.
        self.shuffle_groups = groups if conventions.shuffle == "paper" else bottleneck // groups
        self.compress = nn.Sequential(
            grouped_pointwise_conv(inputs, bottleneck, first),
            nn.BatchNorm2d(bottleneck),
            nn.ReLU(inplace=True),
        )
        self.depthwise = nn.Sequential(depthwise_conv(bottleneck, stride), nn.BatchNorm2d(bottleneck))
        self.expand = nn.Sequential(
            grouped_pointwise_conv(bottleneck, outputs, groups), nn.BatchNorm2d(outputs)
        )

    def bottleneck(self, x: Tensor) -> Tensor:
        """Return what the branch with convolutions gives, before the last ReLU."""
        x = self.compress(x)
        if self.groups > 1:  # with one group the shuffle moves nothing
            x = channel_shuffle(x, self.shuffle_groups)
        branch: Tensor = self.expand(self.depthwise(x))
        return branch


class BasicUnit(_Unit):
    """The basic unit (figure 2b): bottleneck with grouped convolutions, shuffle, residual connection.

    ``[N, C, H, W] -> [N, C, H, W]``.

    Args:
        channels: ``C``.
        bottleneck: Channels between the two grouped convolutions.
        groups: Groups of both 1x1 convolutions.
        conventions: The shuffle's.
    """

    def __init__(
        self, channels: int, bottleneck: int, groups: int, conventions: Conventions = _PAPER
    ) -> None:
        super().__init__(
            channels, channels, bottleneck, groups, first=groups, stride=1, conventions=conventions
        )
        self.residual = Residual()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output, ``[N, C, H, W]``."""
        out: Tensor = self.relu(self.residual(x, self.bottleneck(x)))
        return out


class DownsamplingUnit(_Unit):
    """The unit with stride 2 (figure 2c): an average-pooled shortcut, joined by concatenation.

    ``[N, inputs, H, W] -> [N, outputs, H / 2, W / 2]``. The pooling counts its padding as zeros, as in
    Megvii's own code.

    Args:
        inputs: Channels of the input, which the shortcut keeps.
        outputs: Channels of the output; the bottleneck gives ``outputs - inputs`` of them.
        bottleneck: Channels between the two 1x1 convolutions.
        groups: Groups of the second 1x1 convolution.
        first: Groups of the first one: 1 in stage 2, whose input has few channels (section 3.3).
        conventions: The shuffle's, and the order of the concatenation.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bottleneck: int,
        groups: int,
        *,
        first: int,
        conventions: Conventions = _PAPER,
    ) -> None:
        super().__init__(
            inputs, outputs - inputs, bottleneck, groups, first=first, stride=2, conventions=conventions
        )
        self.shortcut_first = conventions.shortcut == "first"
        self.shortcut = nn.AvgPool2d(kernel_size=3, stride=2, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output, ``[N, outputs, H / 2, W / 2]``."""
        parts = (self.shortcut(x), self.bottleneck(x))
        out: Tensor = self.relu(torch.cat(parts if self.shortcut_first else parts[::-1], dim=1))
        return out


class ShuffleNetV1(Staged):
    """The network of table 1: 3x3 convolution, max pooling, three stages, global pooling, classifier.

    ``[N, 3, H, W] -> [N, num_classes]``, or feature maps: see `Staged`.

    Args:
        groups: Groups of the pointwise convolutions: 1, 2, 3, 4 or 8 where ``width`` is given.
        width: Scale factor of all channels ("ShuffleNet s x", section 3.3); None where they are given.
        num_classes: Width of the classifier.
        stem: Output channels of the first convolution; by default those of ``width``.
        stages: Output channels of stages 2 to 4; by default those of ``width``.
        units: Units in stages 2 to 4.
        conventions: What code in circulation does in different ways.
    """

    chain = ("conv1", "maxpool", "stage2", "stage3", "stage4")
    stages = ("stage2", "stage3", "stage4")

    def __init__(
        self,
        groups: int,
        width: float | None,
        num_classes: int,
        *,
        stem: int = 0,
        stages: Sequence[int] = (),
        units: Sequence[int] = _STAGE_UNITS,
        conventions: Conventions = _PAPER,
    ) -> None:
        super().__init__()
        if width is not None:
            stem, stages = stem_channels(groups, width), stage_channels(groups, width)
        channels = stem
        self.conv1 = nn.Sequential(
            spatial_conv(3, channels, 2), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        made: list[nn.Sequential] = []
        for outputs, depth in zip(stages, units, strict=True):
            # Section 3.3 sets the bottleneck to a quarter of the output channels. It is rounded up to whole
            # groups: the paper does not say what it does at g = 2 and 4 where a quarter is no multiple of g.
            bottleneck = _multiple(outputs / 4, groups)
            first = groups if made else 1
            down = DownsamplingUnit(
                channels, outputs, bottleneck, groups, first=first, conventions=conventions
            )
            basic = [BasicUnit(outputs, bottleneck, groups, conventions) for _ in range(depth - 1)]
            made.append(nn.Sequential(down, *basic))
            channels = outputs
        self.stage2, self.stage3, self.stage4 = made
        self.globalpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def classify(self, x: Tensor) -> Tensor:
        """Return the logits, ``[N, num_classes]``."""
        x = torch.flatten(self.globalpool(x), 1)  # [N, C, H, W] -> [N, C]
        logits: Tensor = self.fc(x)
        return logits


def stage_channels(groups: int, width: float) -> tuple[int, int, int]:
    """Return the output channels of stages 2 to 4 (table 1): each has twice those of the one before."""
    outputs = int(_STAGE2_CHANNELS[groups] * width)
    return outputs, 2 * outputs, 4 * outputs


def stem_channels(groups: int, width: float) -> int:
    """Return the output channels of the first convolution: 24 times the width, as Megvii's code has it.

    At 1.5x that code keeps 24. Where the rest that the first bottleneck must give, stage 2's channels less
    these, is not a multiple of ``groups``, they are rounded up until it is; this gives Megvii's 16 at g = 8,
    0.5x.
    """
    channels = 24 if width == 1.5 else int(24 * width)
    return channels + (int(_STAGE2_CHANNELS[groups] * width) - channels) % groups


def _multiple(value: float, of: int) -> int:
    """Return the smallest multiple of ``of`` that is not below ``value``."""
    return int(-(-value // of) * of)


def build(
    *,
    groups: int,
    width: float,
    num_classes: int,
    shuffle: Literal["paper", "inverse"] = "paper",
    shortcut: Literal["first", "last"] = "first",
) -> ShuffleNetV1:
    """Return a network of table 1; see `Conventions`."""
    return ShuffleNetV1(groups, width, num_classes, conventions=Conventions(shuffle, shortcut))


def build_custom(
    *,
    groups: int,
    stem: int,
    stages: Sequence[int],
    units: Sequence[int],
    num_classes: int,
    shuffle: Literal["paper", "inverse"] = "paper",
    shortcut: Literal["first", "last"] = "first",
) -> ShuffleNetV1:
    """Return a network with channels that table 1 does not have; see `ShuffleNetV1`."""
    return ShuffleNetV1(
        groups,
        None,
        num_classes,
        stem=stem,
        stages=stages,
        units=units,
        conventions=Conventions(shuffle, shortcut),
    )
