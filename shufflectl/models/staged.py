"""Networks as chains of named parts: their feature maps, at the stride that dense prediction needs.

**Feature maps.** `Staged.outputs` names what the network gives: parts of its chain, and ``logits``. Parts
behind the last one that is named do not run.

**Output stride.** Detection and segmentation want feature maps of a finer grid than 1/32. `set_output_stride`
gives a network that grid with the weights that it has, as torchvision's ``replace_stride_with_dilation`` does
for ResNet. With ``r = 1`` at the input, for each unit in the order of the chain, whose spatial layers (3x3
convolutions and pooling, on parallel branches) have stride ``s``:

1. The stride so far times ``s`` is within the output stride: the unit keeps ``s``.
2. It is not: the stride becomes 1. The layers of this unit read at distance ``r``, those of all later units
   at distance ``r * s`` (dilation, and padding by as much for a 3x3 window).

A layer at distance ``r`` on the fine grid reads, from a position of the coarse grid, the values that it reads
at distance 1 on the coarse grid, and zeros of the padding where it reads them there. So the fine map,
subsampled, is the map of the network as it was: ``fine[..., ::r, ::r] == coarse``, at any input size.
Convolutions of 1x1, shuffles, splits and ReLU work position by position and need nothing. Two things see the
whole grid, and change: the global pooling before the classifier, and squeeze-and-excitation.

Average pooling has no dilation in any runtime. It is a depthwise convolution whose weights are all 1/9 (it
counts its padding), and that has.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from shufflectl.errors import UsageError, nearest
from shufflectl.models.zoo import LOGITS

__all__ = ["OUTPUT_STRIDES", "DilatedAveragePool", "Staged", "set_features", "set_output_stride"]

OUTPUT_STRIDES: Final = (8, 16, 32)
"""What the output stride may be; 32 is that of every network here."""


class Staged(nn.Module):
    """A network as a chain of parts, and a classifier behind it: ``[N, 3, H, W]`` to its outputs.

    Attributes:
        chain: Paths of the parts, in the order in which they run.
        stages: Those whose outputs are feature maps as papers speak of them: the last one of each resolution.
        outputs: Parts of the chain, in its order, and ``LOGITS`` at the end, in any choice.
    """

    chain: tuple[str, ...]
    stages: tuple[str, ...]
    outputs: tuple[str, ...] = (LOGITS,)

    def classify(self, x: Tensor) -> Tensor:
        """Return the logits, ``[N, num_classes]``, of what the last part gives, ``[N, C, H, W]``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the logits, ``[N, num_classes]``, or what `outputs` names: a tuple where that is several."""
        found: list[Tensor] = []
        for name in self._running():
            x = self.get_submodule(name)(x)
            if name in self.outputs:
                found.append(x)
        if LOGITS in self.outputs:
            found.append(self.classify(x))
        return found[0] if len(found) == 1 else tuple(found)

    def _running(self) -> tuple[str, ...]:
        if LOGITS in self.outputs:
            return self.chain
        return self.chain[: max(self.chain.index(name) for name in self.outputs) + 1]


class DilatedAveragePool(nn.Module):
    """Average pooling at a distance, ``[N, C, H, W] -> [N, C, H, W]``, which counts its padding as zeros.

    Args:
        channels: ``C``.
        kernel: Height and width of the window, odd.
        dilation: The distance of what it reads.
    """

    weight: Tensor

    def __init__(self, channels: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.padding = dilation * (kernel - 1) // 2
        # It is no parameter, and no checkpoint has it.
        shape = (channels, 1, kernel, kernel)
        self.register_buffer("weight", torch.full(shape, 1 / kernel**2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the averages."""
        groups = self.weight.shape[0]
        return nn.functional.conv2d(
            x, self.weight, padding=self.padding, dilation=self.dilation, groups=groups
        )


def set_features(network: Staged, wanted: Sequence[str]) -> None:
    """Let a network give feature maps.

    Args:
        network: It is changed.
        wanted: Names of parts of its chain, ``all`` for its stages, and ``LOGITS``.

    Raises:
        UsageError: One is no part of it, or none is named.
    """
    names = {name for word in wanted for name in (network.stages if word == "all" else (word,))}
    known = (*network.chain, LOGITS)
    for name in names:
        if name not in known:
            raise UsageError(f"the network has no feature map {name!r}", hint=nearest(name, (*known, "all")))
    if not names:
        raise UsageError("no feature map is named", hint="choose from: " + ", ".join((*known, "all")))
    network.outputs = tuple(name for name in known if name in names)


def set_output_stride(network: Staged, output_stride: int) -> None:
    """Move strides into dilations; see the top of this file.

    Args:
        network: It is changed; its weights stay as they are.
        output_stride: One of `OUTPUT_STRIDES`: how many pixels apart the last feature map's positions are.

    Raises:
        UsageError: It is none of them.
    """
    if output_stride not in OUTPUT_STRIDES:
        raise UsageError(
            f"{output_stride} is not an output stride",
            hint="choose from: " + ", ".join(map(str, OUTPUT_STRIDES)),
        )
    total = rate = 1
    for path in network.chain:
        for unit in _units(network.get_submodule(path)):
            stride = max((_pair(layer.stride)[0] for layer in _layers(unit)), default=1)
            after = rate
            if total * stride <= output_stride:
                total *= stride
            else:
                after = rate * stride
                stride = 1
                for layer in _layers(unit):
                    layer.stride = (1, 1) if isinstance(layer, nn.Conv2d) else 1
            if rate > 1:
                _dilate(unit, rate)
            rate = after


def _units(part: nn.Module) -> Iterator[nn.Module]:
    """Yield what runs one after the other within a part."""
    if isinstance(part, nn.Sequential):
        for child in part:
            yield from _units(child)
    else:
        yield part


def _layers(unit: nn.Module) -> list[nn.Conv2d | nn.AvgPool2d | nn.MaxPool2d]:
    return [m for m in unit.modules() if isinstance(m, (nn.Conv2d, nn.AvgPool2d, nn.MaxPool2d))]


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else value


def _dilate(unit: nn.Module, rate: int) -> None:
    """Let the spatial layers of a unit read at a distance."""
    for path, layer in list(unit.named_modules()):
        if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
            layer.dilation = (rate, rate)
            layer.padding = tuple(rate * (size - 1) // 2 for size in layer.kernel_size)
        elif isinstance(layer, nn.AvgPool2d):
            parent, _, name = path.rpartition(".")
            inputs = next(m.in_channels for m in unit.modules() if isinstance(m, nn.Conv2d))
            pool = DilatedAveragePool(inputs, _pair(layer.kernel_size)[0], rate)
            setattr(unit.get_submodule(parent), name, pool.train(unit.training))
