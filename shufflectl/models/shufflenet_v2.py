"""ShuffleNet V2 (Ma et al., arXiv:1807.11164), with torchvision's module and state-dict names.

A checkpoint of torchvision's ``shufflenet_v2_x*`` loads as it is: ``conv1``, ``maxpool``, ``stage2`` to
``stage4`` with ``branch1`` and ``branch2`` in each unit, ``conv5``, ``fc``. The paper's larger networks
continue the scheme: ``stage5``, and the last convolution is ``conv6`` as in the appendix's table.

Code in circulation differs in three conventions, which checkpoints bring along (`Conventions`):

- How a basic unit comes by its two parts: in Megvii's code it takes the even and the odd channels of what the
  unit before concatenated, and nothing is shuffled at a unit's end.
- How many channels the left branch of a downsampling unit gives: half of the outputs in the paper and in
  torchvision; as many as it takes in Megvii's code and in pytorchcv's ``shufflenetv2b``. In stage 2 that is
  another number, and then no order of weights turns Megvii's unit into the paper's.
- How the max pooling meets the border: pytorchcv's ``shufflenetv2`` pads nothing, and lets the last window
  stick out, where others pad one pixel all round.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from shufflectl.models.layers import (
    Residual,
    SqueezeExcitation,
    channel_shuffle,
    depthwise_conv,
    pointwise_conv,
    spatial_conv,
)
from shufflectl.models.staged import Staged

__all__ = [
    "BasicUnit",
    "Conventions",
    "DownsamplingUnit",
    "ResidualUnit",
    "ShuffleNetV2",
    "ShuffleNetV2Large",
    "build",
    "build_custom",
    "build_large",
]

_STAGE_UNITS = (4, 8, 4)


class Conventions(NamedTuple):
    """What code in circulation does in different ways.

    Attributes:
        split: A basic unit's two parts: the ``halves`` of its input, whose channels the unit before shuffled;
            or the even and odd channels (``parity``) of an input that nothing shuffled.
        shortcut: Outputs of a downsampling unit's left branch: ``half`` of all, or as many as its ``inputs``.
        pool: Max pooling with one pixel of padding (``padded``), or with none and a last window that may
            stick out (``ceil``).
    """

    split: Literal["halves", "parity"] = "halves"
    shortcut: Literal["half", "inputs"] = "half"
    pool: Literal["padded", "ceil"] = "padded"


_PAPER = Conventions()


def _branch2(inputs: int, inner: int, stride: int, outputs: int | None = None) -> nn.Sequential:
    """Return the convolutions of the right branch (figure 3c and 3d): 1x1, 3x3 depthwise, 1x1."""
    outputs = inner if outputs is None else outputs
    return nn.Sequential(
        pointwise_conv(inputs, inner),
        nn.BatchNorm2d(inner),
        nn.ReLU(inplace=True),
        depthwise_conv(inner, stride),
        nn.BatchNorm2d(inner),
        pointwise_conv(inner, outputs),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class BasicUnit(nn.Module):
    """The basic unit (figure 3c): one half of the channels passes, the other goes through three convolutions.

    ``[N, C, H, W] -> [N, C, H, W]``. The channel shuffle mixes the halves for the next unit's split.

    Args:
        channels: ``C``, even.
        conventions: The split's.
    """

    def __init__(self, channels: int, conventions: Conventions = _PAPER) -> None:
        super().__init__()
        self.branch2 = _branch2(channels // 2, channels // 2, 1)
        self.parity = conventions.split == "parity"

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output, ``[N, C, H, W]``."""
        if self.parity:  # the even channels come to stand before the odd ones
            x = channel_shuffle(x, x.size(1) // 2)
        passed, worked = x.chunk(2, dim=1)  # [N, C, H, W] -> 2 x [N, C/2, H, W]
        joined = torch.cat((passed, self.branch2(worked)), dim=1)
        return joined if self.parity else channel_shuffle(joined, 2)


class DownsamplingUnit(nn.Module):
    """The unit for spatial down sampling (figure 3d): no split, both branches see all channels.

    ``[N, inputs, H, W] -> [N, outputs, H / stride, W / stride]``. With stride 1 it opens a stage that keeps
    its size, as stage 2 of the larger networks does.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output, even.
        stride: 2, or 1 where only the number of channels changes.
        excite: Whether squeeze-and-excitation follows the right branch.
        conventions: The left branch's width, and whether the unit shuffles.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 2,
        *,
        excite: bool = False,
        conventions: Conventions = _PAPER,
    ) -> None:
        super().__init__()
        half = outputs // 2
        left = half if conventions.shortcut == "half" else inputs
        self.shuffles = conventions.split == "halves"
        self.branch1 = nn.Sequential(
            depthwise_conv(inputs, stride),
            nn.BatchNorm2d(inputs),
            pointwise_conv(inputs, left),
            nn.BatchNorm2d(left),
            nn.ReLU(inplace=True),
        )
        self.branch2 = _branch2(inputs, half, stride, outputs - left)
        if excite:
            self.branch2.append(SqueezeExcitation(half, half))

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output, ``[N, outputs, H / stride, W / stride]``."""
        joined = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return channel_shuffle(joined, 2) if self.shuffles else joined


class ResidualUnit(nn.Module):
    """The basic unit with squeeze-and-excitation and a residual connection (appendix, figure 2c).

    ``[N, C, H, W] -> [N, C, H, W]``: the half that is worked on is added to the result of its convolutions
    before the last ReLU. The paper adds this path where a network is very deep (section 5, "Generalization to
    Large Models").

    Args:
        channels: ``C``, even.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        *layers, _relu = _branch2(half, half, 1)  # the ReLU follows the sum
        self.branch2 = nn.Sequential(*layers, SqueezeExcitation(half, half))
        self.residual = Residual()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output, ``[N, C, H, W]``."""
        passed, worked = x.chunk(2, dim=1)  # [N, C, H, W] -> 2 x [N, C/2, H, W]
        worked = self.relu(self.residual(worked, self.branch2(worked)))
        return channel_shuffle(torch.cat((passed, worked), dim=1), 2)


class ShuffleNetV2(Staged):
    """The network of table 5: 3x3 convolution, max pooling, three stages, 1x1 convolution, classifier.

    ``[N, 3, H, W] -> [N, num_classes]``, or feature maps: see `Staged`.

    Args:
        stage_channels: Output channels of stages 2 to 4.
        last_channels: Output channels of ``conv5``.
        num_classes: Width of the classifier.
        stem: Output channels of ``conv1``.
        stage_units: Units in stages 2 to 4.
        conventions: What code in circulation does in different ways.
    """

    chain = ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5")
    stages = ("stage2", "stage3", "stage4")

    def __init__(
        self,
        stage_channels: Sequence[int],
        last_channels: int,
        num_classes: int,
        *,
        stem: int = 24,
        stage_units: Sequence[int] = _STAGE_UNITS,
        conventions: Conventions = _PAPER,
    ) -> None:
        super().__init__()
        channels = stem
        self.conv1 = _conv_bn_relu(spatial_conv(3, channels, 2))
        ceil = conventions.pool == "ceil"
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=0 if ceil else 1, ceil_mode=ceil)
        stages: list[nn.Sequential] = []
        for outputs, units in zip(stage_channels, stage_units, strict=True):
            basic = [BasicUnit(outputs, conventions) for _ in range(units - 1)]
            first = DownsamplingUnit(channels, outputs, conventions=conventions)
            stages.append(nn.Sequential(first, *basic))
            channels = outputs
        self.stage2, self.stage3, self.stage4 = stages
        self.conv5 = _conv_bn_relu(pointwise_conv(channels, last_channels))
        self.fc = nn.Linear(last_channels, num_classes)

    def classify(self, x: Tensor) -> Tensor:
        """Return the logits, ``[N, num_classes]``."""
        logits: Tensor = self.fc(x.mean([2, 3]))  # [N, C, H, W] -> [N, C] -> [N, num_classes]
        return logits


class ShuffleNetV2Large(Staged):
    """The networks for comparison with ResNet-50 and SENet (table 6; channels in the appendix's table).

    ``[N, 3, H, W] -> [N, num_classes]``, or feature maps: see `Staged`. Stage 2 works at a quarter of the
    input's height and width without reducing them, stages 3 to 5 halve them.

    Args:
        stem_channels: Output channels of the 3x3 convolutions of ``conv1``; the first has stride 2.
        stage_channels: Output channels of stages 2 to 5.
        stage_units: Units in stages 2 to 5.
        excite: Whether units have squeeze-and-excitation, and basic units a residual connection.
        num_classes: Width of the classifier.
    """

    chain = ("conv1", "maxpool", "stage2", "stage3", "stage4", "stage5", "conv6")
    stages = ("stage2", "stage3", "stage4", "stage5")

    def __init__(
        self,
        stem_channels: Sequence[int],
        stage_channels: Sequence[int],
        stage_units: Sequence[int],
        *,
        excite: bool,
        num_classes: int,
    ) -> None:
        super().__init__()
        channels = 3
        stem: list[nn.Module] = []
        for index, outputs in enumerate(stem_channels):
            stem += _conv_bn_relu(spatial_conv(channels, outputs, 1 if index else 2))
            channels = outputs
        self.conv1 = nn.Sequential(*stem)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        unit = ResidualUnit if excite else BasicUnit
        stages: list[nn.Sequential] = []
        for outputs, units in zip(stage_channels, stage_units, strict=True):
            first = DownsamplingUnit(channels, outputs, 2 if stages else 1, excite=excite)
            stages.append(nn.Sequential(first, *(unit(outputs) for _ in range(units - 1))))
            channels = outputs
        self.stage2, self.stage3, self.stage4, self.stage5 = stages
        self.conv6 = _conv_bn_relu(pointwise_conv(channels, 2048))
        self.fc = nn.Linear(2048, num_classes)

    def classify(self, x: Tensor) -> Tensor:
        """Return the logits, ``[N, num_classes]``."""
        logits: Tensor = self.fc(x.mean([2, 3]))  # [N, C, H, W] -> [N, C] -> [N, num_classes]
        return logits


def _conv_bn_relu(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True))


def build(
    *,
    stage_channels: Sequence[int],
    last_channels: int,
    num_classes: int,
    split: Literal["halves", "parity"] = "halves",
    shortcut: Literal["half", "inputs"] = "half",
    pool: Literal["padded", "ceil"] = "padded",
) -> ShuffleNetV2:
    """Return a network of table 5; see `Conventions`."""
    conventions = Conventions(split, shortcut, pool)
    return ShuffleNetV2(stage_channels, last_channels, num_classes, conventions=conventions)


def build_custom(
    *,
    stem: int,
    stage_channels: Sequence[int],
    stage_units: Sequence[int],
    last_channels: int,
    num_classes: int,
    split: Literal["halves", "parity"] = "halves",
    shortcut: Literal["half", "inputs"] = "half",
    pool: Literal["padded", "ceil"] = "padded",
) -> ShuffleNetV2:
    """Return a network with channels that table 5 does not have; see `ShuffleNetV2`."""
    return ShuffleNetV2(
        stage_channels,
        last_channels,
        num_classes,
        stem=stem,
        stage_units=stage_units,
        conventions=Conventions(split, shortcut, pool),
    )


def build_large(
    *,
    stem_channels: Sequence[int],
    stage_channels: Sequence[int],
    stage_units: Sequence[int],
    excite: bool,
    num_classes: int,
) -> ShuffleNetV2Large:
    """Return a network of table 6."""
    return ShuffleNetV2Large(
        stem_channels, stage_channels, stage_units, excite=excite, num_classes=num_classes
    )
