"""The network that every converter of the comparison gets: the same module, weights and input."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# The converters' environments do not have shufflectl installed; its models need torch alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def network(name: str, weights: Path) -> "tuple[torch.nn.Module, tuple[torch.Tensor, ...]]":
    """Return a model in evaluation mode with a checkpoint's weights, and an input for it.

    Args:
        name: Of the registry; ``NAME@SIZE`` for images of another size than its own.
        weights: The checkpoint, whose last matrix has a row for each class.
    """
    import torch

    from shufflectl.models import zoo

    name, _, given = name.partition("@")
    variant = zoo.variant(name)
    state = torch.load(weights, weights_only=True)
    classes = [tensor.shape[0] for tensor in state.values() if tensor.ndim > 1][-1]
    module = variant.build(classes)
    module.load_state_dict(state)
    size = int(given) if given else variant.input_size
    return module.eval(), (torch.zeros(1, 3, size, size),)


class Stopwatch:
    """Seconds between laps, by name. Make it before heavy imports: they are what the first lap measures."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End a lap."""
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now

    def write(self, path: Path) -> None:
        """Write the laps as JSON."""
        path.write_text(json.dumps(self.seconds), encoding="utf-8")
