"""Fitting a file's tensors to a network that a user's own code built: every name and every shape.

There is no layout to recognise, so the names must be the network's own, behind a prefix at most that a
training loop has put before all of them (``module.``, ``model.``, ``_orig_mod.``).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from shufflectl.errors import CheckpointError
from shufflectl.models.checkpoints.files import WeightsFile, printable
from shufflectl.models.checkpoints.fit import checked, some

__all__ = ["fit_module"]

_COUNTER = "num_batches_tracked"


def fit_module(module: nn.Module, file: WeightsFile, name: str) -> dict[str, Tensor]:
    """Return a file's tensors as a module's state dict, floating-point ones in fp32.

    Args:
        module: The network; its own values are not read, except of step counters that the file lacks.
        file: What the file holds.
        name: What messages call the network.

    Raises:
        CheckpointError: Tensors are missing, too many or of other shapes, or hold values that no trained
            network has.
    """
    expected = module.state_dict()
    required = [key for key in expected if not key.endswith(_COUNTER)]
    prefix = _prefix(file.tensors, required)
    names = {key.removeprefix(prefix) for key in file.tensors if key.startswith(prefix)}
    missing = [prefix + key for key in required if key not in names]
    extra = [key for key in file.tensors if not key.startswith(prefix) or key[len(prefix) :] not in expected]
    hint = "build the network as it was trained: its arguments are --arg key=value"
    if missing or extra:
        problems = [f"{some(missing)} {_are(missing)} missing"] if missing else []
        problems += [f"it also holds {some(extra)}"] if extra else []
        raise CheckpointError(f"{file.path.name} does not fit {name}: {', and '.join(problems)}", hint=hint)
    state: dict[str, Tensor] = {}
    for key, wanted in expected.items():
        stored = file.tensors.get(prefix + key)
        if stored is None:
            state[key] = torch.zeros(wanted.shape, dtype=wanted.dtype)
            continue
        if stored.shape != wanted.shape:
            raise CheckpointError(
                f"{file.path.name} does not fit {name}: tensor {printable(prefix + key)!r} has shape "
                f"{list(stored.shape)} there, and {list(wanted.shape)} in the network",
                hint=hint,
            )
        state[key] = checked(file, prefix + key, wanted)
    return state


def _prefix(tensors: Mapping[str, Tensor], required: list[str]) -> str:
    """Return what stands before all of the network's names in the file; empty where the names are bare."""
    if not required or any(key in tensors for key in required):
        return ""
    last = required[-1]
    candidates = sorted({key[: -len(last)] for key in tensors if key.endswith(f".{last}")}, key=len)
    return next((p for p in candidates if all(p + key in tensors for key in required)), "")


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
