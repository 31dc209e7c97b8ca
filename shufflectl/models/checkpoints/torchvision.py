"""torchvision's layout of ShuffleNet V2 and MobileNetV2, whose names are ours.

Files saved before torch 0.4.1 lack ``num_batches_tracked``.
"""

from shufflectl.models.checkpoints.layout import Layout

__all__ = ["LAYOUTS"]

_TRANSFORMS = "ImageClassification, torchvision/transforms/_presets.py"

LAYOUTS = (
    Layout(
        "torchvision",
        "shufflenet_v2",
        "shufflenet_v2_x0_5 to x2_0",
        "pytorch/vision, torchvision/models/shufflenetv2.py",
        preprocess_source=_TRANSFORMS,
    ),
    Layout(
        "torchvision",
        "mobilenet_v2",
        "mobilenet_v2",
        "pytorch/vision, torchvision/models/mobilenetv2.py",
        preprocess_source=_TRANSFORMS,
    ),
)
