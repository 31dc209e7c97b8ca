"""Weights for a network that a user's own code built."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import nn

from shufflectl.errors import FactoryError, UsageError
from shufflectl.models.checkpoints.files import SUFFIXES, is_checkpoint, read
from shufflectl.models.checkpoints.header import described, record
from shufflectl.models.checkpoints.strict import fit_module
from shufflectl.models.preprocess import Preprocess
from shufflectl.models.random_weights import digest, parse_seed, random_state

__all__ = ["BUILT", "LoadedWeights", "load_into"]

BUILT: Final = "built"
"""What the weights are called that the user's code itself gave to its network."""


@dataclass(frozen=True)
class LoadedWeights:
    """What is known of the weights that a network now has.

    Attributes:
        weights: How the user named them, without folders; `BUILT` for the network's own.
        sha256: Of the file; of the tensors where there is no file.
        preprocess: What happens to an image first; None where nobody says.
        input_size: Height and width in pixels that they were trained for; None where nobody says.
        labels: Class names; empty where nobody says.
        author: Who made them.
        version: Their version.
        license: An SPDX expression.
        description: One sentence.
        notes: What was decided on the way, a sentence each.
    """

    weights: str
    sha256: str
    preprocess: Preprocess | None = None
    input_size: int | None = None
    labels: tuple[str, ...] = ()
    author: str = ""
    version: str = ""
    license: str = ""
    description: str = ""
    notes: tuple[str, ...] = ()


def load_into(module: nn.Module, spec: str | None, name: str) -> LoadedWeights:
    """Load weights into a network, in place.

    Args:
        module: The network.
        spec: A checkpoint's path, ``random:SEED``, or None (or `BUILT`) for those that it has.
        name: What messages call it.

    Raises:
        UsageError: The words name no weights.
        CheckpointError: The file cannot be used or does not fit.
        FactoryError: The network has no values, and no weights are given.
    """
    if spec is None or spec == BUILT:
        if any(tensor.is_meta for tensor in module.state_dict().values()):
            raise FactoryError(
                f"{name} gives a network without values (on the meta device)", hint="pass --weights FILE"
            )
        return LoadedWeights(BUILT, digest(module.state_dict()))
    if spec == "random" or spec.startswith("random:"):
        seed = parse_seed(spec)
        state = random_state(module, seed)
        module.load_state_dict(state, assign=True)
        return LoadedWeights(f"random:{seed}", digest(state))
    path = Path(spec)
    if not is_checkpoint(path) and not path.exists():
        raise UsageError(
            f"there are no weights {spec!r} for {name}",
            hint=f"pass random:SEED, or a file ({', '.join(SUFFIXES)})",
        )
    file = read(path)
    module.load_state_dict(fit_module(module, file, name), assign=True)
    said = record(file)
    labels = said.get("labels", [])
    fields = described(file, said, len(labels) if isinstance(labels, list) else 0)
    notes: tuple[str, ...] = ()
    if file.others:
        notes = (f"{path.name}: read entry {file.entry[-1]!r}, left {', '.join(file.others)} aside",)
    return LoadedWeights(path.name, file.sha256, notes=notes, **fields)
