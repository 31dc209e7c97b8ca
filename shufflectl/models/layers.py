"""The pieces that the papers build their networks of.

Papers: ShuffleNet V1 is Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for
Mobile Devices", arXiv:1707.01083; ShuffleNet V2 is Ma et al., "ShuffleNet V2: Practical Guidelines for
Efficient CNN Architecture Design", arXiv:1807.11164; squeeze-and-excitation is Hu et al., arXiv:1709.01507.

Batch norm follows every convolution, so no convolution has a bias.
"""

import torch
from torch import Tensor, nn

__all__ = [
    "Residual",
    "SqueezeExcitation",
    "channel_shuffle",
    "depthwise_conv",
    "grouped_pointwise_conv",
    "pointwise_conv",
    "spatial_conv",
]


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of ``groups`` groups (ShuffleNet V1, section 3.1 and figure 1c).

    Channel ``k`` of group ``j`` moves to ``k * groups + j``. The form is torchvision's, with a tensor of
    rank 5, which Core ML and ncnn recognise; other forms are the rewrites' business.

    Args:
        x: ``[N, C, H, W]``; ``C`` is a multiple of ``groups``.
        groups: How many groups the channels of ``x`` come in.

    Returns:
        ``[N, C, H, W]``.
    """
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)  # [N, C, H, W] -> [N, g, C/g, H, W]
    x = torch.transpose(x, 1, 2).contiguous()  # [N, g, C/g, H, W] -> [N, C/g, g, H, W]
    return x.view(batch, channels, height, width)  # [N, C/g, g, H, W] -> [N, C, H, W]


def pointwise_conv(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a dense 1x1 convolution, ``[N, inputs, H, W] -> [N, outputs, H, W]``."""
    return nn.Conv2d(inputs, outputs, 1, bias=False)


def grouped_pointwise_conv(inputs: int, outputs: int, groups: int) -> nn.Conv2d:
    """Return a 1x1 convolution in groups, ``[N, inputs, H, W] -> [N, outputs, H, W]``.

    ShuffleNet V1, section 3.1 ("GConv" in figure 2): each group of outputs sees its own group of inputs
    alone, at ``1 / groups`` of the multiply-adds. Both channel counts are multiples of ``groups``.
    """
    return nn.Conv2d(inputs, outputs, 1, groups=groups, bias=False)


def depthwise_conv(channels: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 depthwise convolution, one filter a channel.

    "DWConv" in ShuffleNet V1, figure 2, and ShuffleNet V2, figure 3.
    ``[N, channels, H, W] -> [N, channels, ceil(H / stride), ceil(W / stride)]``.
    """
    return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)


def spatial_conv(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    """Return a dense 3x3 convolution, as the networks' first layers are.

    ``[N, inputs, H, W] -> [N, outputs, ceil(H / stride), ceil(W / stride)]``.
    """
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class Residual(nn.Module):
    """The residual connection: the shortcut plus the branch, both ``[N, C, H, W]``.

    ShuffleNet V1, figure 2b; MobileNetV2 (arXiv:1801.04381), figure 4d; in ShuffleNet V2 only in the very
    deep network (appendix, "ShuffleNet v2 with SE/residual").
    """

    def forward(self, shortcut: Tensor, branch: Tensor) -> Tensor:
        """Return the sum."""
        return shortcut + branch


class SqueezeExcitation(nn.Module):
    """Squeeze-and-excitation: scale every channel with a figure in 0 to 1 computed from all of them.

    ``[N, C, H, W]`` -> global average pooling, 1x1 convolution to ``squeeze`` channels, ReLU, 1x1 convolution
    back to ``C``, sigmoid -> ``[N, C, 1, 1]``, multiplied with the input. Attribute names are those of
    torchvision's ``SqueezeExcitation``.

    Args:
        channels: ``C``.
        squeeze: The width of the inner layer.
    """

    def __init__(self, channels: int, squeeze: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeeze, 1)
        self.activation = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(squeeze, channels, 1)
        self.scale_activation = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled channels, ``[N, C, H, W]``."""
        scale: Tensor = self.avgpool(x)  # [N, C, H, W] -> [N, C, 1, 1]
        scale = self.activation(self.fc1(scale))
        scale = self.scale_activation(self.fc2(scale))
        return x * scale
