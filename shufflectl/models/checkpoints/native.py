"""Our own layout, of the networks that torchvision does not have."""

from shufflectl.models.checkpoints.layout import Layout

__all__ = ["LAYOUTS"]

LAYOUTS = tuple(
    Layout("shufflectl", family, networks, f"shufflectl/models/{module}.py")
    for family, networks, module in (
        ("shufflenet_v1", "shufflenet_v1_g*_x*", "shufflenet_v1"),
        ("shufflenet_v2_large", "shufflenet_v2_50, se_shufflenet_v2_164", "shufflenet_v2"),
        ("mobilenet_v1", "mobilenet_v1_x*", "mobilenet_v1"),
    )
)
