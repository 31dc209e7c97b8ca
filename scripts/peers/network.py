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
    """Return a model in evaluation mode with a checkpoint's weights, and an input for it."""
    import torch

    from shufflectl.models import zoo

    variant = zoo.variant(name)
    module = variant.build()
    module.load_state_dict(torch.load(weights, weights_only=True))
    return module.eval(), (torch.zeros(1, 3, variant.input_size, variant.input_size),)


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
