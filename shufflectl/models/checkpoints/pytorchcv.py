"""The layouts of pytorchcv (imgclsmob): ``shufflenet_*``, ``shufflenetv2_*`` and ``shufflenetv2b_*``.

V1 joins the downsampling unit's branches in the other order. ``shufflenetv2`` pads nothing at the max
pooling; ``shufflenetv2b`` keeps the number of channels in the left branch of a downsampling unit, as Megvii's
code does. The last convolution of the 1.5x and 2x networks is wider than the paper's: 1553 and 2153 channels.
"""

from types import MappingProxyType

from shufflectl.models.checkpoints.layout import Layout, spelling

__all__ = ["LAYOUTS"]

_AROUND_V2 = {
    "conv1.0": "features.init_block.conv.conv",
    "conv1.1": "features.init_block.conv.bn",
    "conv5.0": "features.final_block.conv",
    "conv5.1": "features.final_block.bn",
    "fc": "output",
}
_EVALUATION = "mean_rgb and std_rgb, osmr/imgclsmob, pytorch/datasets/imagenet1k_cls_dataset.py"


def _unit(stage: int, index: int) -> str:
    return f"features.stage{stage - 1}.unit{index + 1}"


LAYOUTS = (
    Layout(
        "pytorchcv",
        "shufflenet_v1",
        "shufflenet_g*_w*",
        "osmr/imgclsmob, pytorchcv/models/shufflenet.py",
        spell=spelling(
            _unit,
            {
                "compress.0": "compress_conv1",
                "compress.1": "compress_bn1",
                "depthwise.0": "dw_conv2",
                "depthwise.1": "dw_bn2",
                "expand.0": "expand_conv3",
                "expand.1": "expand_bn3",
            },
            {"conv1.0": "features.init_block.conv", "conv1.1": "features.init_block.bn", "fc": "output"},
        ),
        conventions=MappingProxyType({"shortcut": "last"}),
        preprocess_source=_EVALUATION,
    ),
    Layout(
        "pytorchcv",
        "shufflenet_v2",
        "shufflenetv2_w*",
        "osmr/imgclsmob, pytorchcv/models/shufflenetv2.py",
        spell=spelling(
            _unit,
            {
                "branch1.0": "dw_conv4",
                "branch1.1": "dw_bn4",
                "branch1.2": "expand_conv5",
                "branch1.3": "expand_bn5",
                "branch2.0": "compress_conv1",
                "branch2.1": "compress_bn1",
                "branch2.3": "dw_conv2",
                "branch2.4": "dw_bn2",
                "branch2.5": "expand_conv3",
                "branch2.6": "expand_bn3",
            },
            _AROUND_V2,
        ),
        conventions=MappingProxyType({"pool": "ceil"}),
        preprocess_source=_EVALUATION,
    ),
    Layout(
        "pytorchcv",
        "shufflenet_v2",
        "shufflenetv2b_w*",
        "osmr/imgclsmob, pytorchcv/models/shufflenetv2b.py",
        spell=spelling(
            _unit,
            {
                "branch1.0": "shortcut_dconv.conv",
                "branch1.1": "shortcut_dconv.bn",
                "branch1.2": "shortcut_conv.conv",
                "branch1.3": "shortcut_conv.bn",
                "branch2.0": "conv1.conv",
                "branch2.1": "conv1.bn",
                "branch2.3": "dconv.conv",
                "branch2.4": "dconv.bn",
                "branch2.5": "conv2.conv",
                "branch2.6": "conv2.bn",
            },
            _AROUND_V2,
        ),
        conventions=MappingProxyType({"shortcut": "inputs"}),
        preprocess_source=_EVALUATION,
    ),
)
