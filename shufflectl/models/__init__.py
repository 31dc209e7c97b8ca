"""What is deployed: variants, weights, preprocessing. Importing this package does not import torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shufflectl.models.loading import LoadedModel, create, dense, load

__all__ = ["LoadedModel", "create", "dense", "load"]


def __getattr__(name: str) -> Any:
    """Import the part that needs torch when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from shufflectl.models import loading

    return getattr(loading, name)
