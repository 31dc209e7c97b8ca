"""The layout of mmpretrain and its predecessor mmcls: a backbone of ``ConvModule`` and ``head.fc``.

V2 is torchvision's network. In V1 the shuffle, the paper's, stands behind the depthwise convolution.
"""

from shufflectl.models.checkpoints.layout import Layout, carry_through_depthwise, spelling

__all__ = ["LAYOUTS"]

_AROUND = {"conv1.0": "backbone.conv1.conv", "conv1.1": "backbone.conv1.bn", "fc": "head.fc"}
_DATA = "open-mmlab/mmpretrain, configs/_base_/datasets/imagenet_bs64_pil_resize.py"
_PARTS = ("conv", "bn")


def _unit(stage: int, index: int) -> str:
    return f"backbone.layers.{stage - 2}.{index}"


LAYOUTS = (
    Layout(
        "mmpretrain",
        "shufflenet_v1",
        "ShuffleNetV1",
        "open-mmlab/mmpretrain, mmpretrain/models/backbones/shufflenet_v1.py",
        spell=spelling(
            _unit,
            {
                f"{ours}.{i}": f"{theirs}.{part}"
                for ours, theirs in (
                    ("compress", "g_conv_1x1_compress"),
                    ("depthwise", "depthwise_conv3x3_bn"),
                    ("expand", "g_conv_1x1_expand"),
                )
                for i, part in enumerate(_PARTS)
            },
            _AROUND,
        ),
        reorder=carry_through_depthwise,
        preprocess_source=_DATA,
    ),
    Layout(
        "mmpretrain",
        "shufflenet_v2",
        "ShuffleNetV2",
        "open-mmlab/mmpretrain, mmpretrain/models/backbones/shufflenet_v2.py",
        spell=spelling(
            _unit,
            {
                f"{branch}.{first + i}": f"{branch}.{module}.{part}"
                for branch, firsts in (("branch1", (0, 2)), ("branch2", (0, 3, 5)))
                for module, first in enumerate(firsts)
                for i, part in enumerate(_PARTS)
            },
            _AROUND | {"conv5.0": "backbone.layers.3.conv", "conv5.1": "backbone.layers.3.bn"},
        ),
        preprocess_source=_DATA,
    ),
)
