"""Our own layout, of the networks that torchvision does not have."""

from collections.abc import Mapping

from torch import Tensor

from shufflectl.models.zoo import Variant

__all__ = ["recognise", "rename"]

_SIGNATURES = {
    "shufflenet_v1": ("conv1.0.weight", "stage2.0.compress.0.weight", "fc.weight"),
    "shufflenet_v2_large": ("conv1.0.weight", "stage5.0.branch1.0.weight", "conv6.0.weight"),
    "mobilenet_v1": ("conv1.0.weight", "blocks.0.depthwise.0.weight", "fc.weight"),
}


def recognise(variant: Variant, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the file has the names that mark our network of the variant's family."""
    signature = _SIGNATURES.get(variant.family)
    return signature is not None and all(name in tensors for name in signature)


def rename(variant: Variant, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG001  the table's signature
    """Return the tensors as they are."""
    return dict(tensors)
