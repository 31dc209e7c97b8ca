"""torchvision's layout of ShuffleNet V2 and MobileNetV2, whose names are ours.

Its sources are torchvision's ``models/shufflenetv2.py`` and ``models/mobilenetv2.py``. Files saved before
torch 0.4.1 lack ``num_batches_tracked``.
"""

from collections.abc import Mapping

from torch import Tensor

from shufflectl.models.zoo import Variant

__all__ = ["recognise", "rename"]

_SIGNATURES = {
    "shufflenet_v2": ("conv1.0.weight", "stage2.0.branch1.0.weight", "conv5.0.weight"),
    "mobilenet_v2": ("features.0.0.weight", "features.1.conv.0.0.weight", "classifier.1.weight"),
}


def recognise(variant: Variant, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the file has the names that mark torchvision's network of the variant's family."""
    signature = _SIGNATURES.get(variant.family)
    return signature is not None and all(name in tensors for name in signature)


def rename(variant: Variant, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG001  the table's signature
    """Return the tensors as they are."""
    return dict(tensors)
