"""Weights drawn from a seed: the same on every machine, and as well behaved as trained ones.

Export and parity of a network need no trained weights, but they need logits that differ, tensors that fit
fp16, and batch norm that does something. Every tensor is drawn from a stream of its own, named by the seed
and the tensor's name, with integer and correctly rounded arithmetic alone, so no library's version or
processor changes a bit.

The second moment of every tensor stays near 1 on the way through the network, whatever its depth:

- A convolution's or dense layer's weights are uniform with variance ``1 / fan_in``. Those of dense and
  pointwise layers sum to zero over their inputs: otherwise what all channels have in common (ReLU leaves a
  positive mean) would grow from layer to layer until every image gave the same answer.
- A batch norm's running statistics are near 0 and 1, its bias is near 0, and its weight makes up for what
  the layers after it take away: more before a ReLU than without one, little at the end of a residual branch,
  whose sum grows otherwise.
"""

import hashlib
import math
import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shufflectl.errors import UsageError
from shufflectl.models.layers import Residual

__all__ = ["digest", "parse_seed", "random_state"]

_BITS = 24  # as many as fp32 represents exactly

_MAX_SEED = 2**64

_GAIN_BEFORE_RELU = 1.55
_GAIN = 1.0
_GAIN_RESIDUAL = 0.5


def parse_seed(spec: str) -> int:
    """Return the seed of ``random:SEED``.

    Raises:
        UsageError: It gives none.
    """
    text = spec.removeprefix("random:")
    if not (text.isascii() and text.isdecimal() and int(text) < _MAX_SEED):
        raise UsageError(
            f"the weights {spec!r} do not give a seed", hint="write random:0, or another number below 2**64"
        )
    return int(text)


def random_state(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Return a state dict for the module.

    Args:
        module: A network; of its own tensors those buffers alone are read, and kept, that are no batch norm's
            (anchors, say), and the others may be on the meta device.
        seed: Not negative.
    """
    gains = _batch_norm_gains(module)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    state: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        path = name.rpartition(".")[0]
        if path not in gains and (name not in parameters or not tensor.is_floating_point()):
            state[name] = tensor
            continue
        values = _draw(module.get_submodule(path), gains.get(path), name, tuple(tensor.shape), seed)
        state[name] = torch.from_numpy(values)
    return state


def digest(state: dict[str, Tensor]) -> str:
    """Return the SHA-256 of a state dict: names, types, shapes and values, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(state):
        array = state[name].detach().contiguous().numpy()
        sha.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        sha.update(array.data)
    return sha.hexdigest()


def _draw(
    layer: nn.Module, gain: float | None, name: str, shape: tuple[int, ...], seed: int
) -> NDArray[np.generic]:
    """Return one tensor's values."""
    kind = name.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    integers = _integers(name, math.prod(shape), seed).reshape(shape)
    if gain is not None:  # batch norm
        low, high = {
            "weight": (0.8 * gain, 1.2 * gain),
            "bias": (-0.2, 0.2),
            "running_mean": (-0.2, 0.2),
            "running_var": (0.7, 1.4),
        }[kind]
        return _scale(integers, (high - low) / 2, (high + low) / 2)
    if kind == "bias":
        return _scale(integers, 0.2, 0.0)
    if len(shape) < 2:  # the scale of another norm, a slope, a temperature
        return _scale(integers, 0.2, 1.0)
    fan_in = math.prod(shape[1:])
    if fan_in > 1 and not (isinstance(layer, nn.Conv2d) and layer.groups == layer.out_channels):
        axes = tuple(range(1, len(shape)))
        integers -= integers.sum(axis=axes, keepdims=True) // fan_in
    return _scale(integers, math.sqrt(3 / fan_in), 0.0)


def _integers(name: str, count: int, seed: int) -> NDArray[np.int64]:
    """Return ``count`` integers, uniform in ``[-2**23, 2**23)``."""
    stream = np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))
    raw = np.asarray(stream.random_raw(-(-count // 2)), np.uint64)
    halves = np.stack((raw >> np.uint64(64 - _BITS), (raw >> np.uint64(8)) & np.uint64(2**_BITS - 1)), axis=1)
    integers: NDArray[np.int64] = halves.reshape(-1)[:count].astype(np.int64)
    return integers - np.int64(2 ** (_BITS - 1))


def _scale(integers: NDArray[np.int64], half_width: float, centre: float) -> NDArray[np.float32]:
    """Return the integers as floats in ``centre +- half_width``."""
    values: NDArray[np.float32]
    values = (integers.astype(np.float64) * (half_width / 2 ** (_BITS - 1)) + centre).astype(np.float32)
    return values


def _batch_norm_gains(module: nn.Module) -> dict[str, float]:
    """Return the mean weight of every batch norm, by its path."""
    gains: dict[str, float] = {}
    for path, parent in module.named_modules():
        if not isinstance(parent, nn.Sequential):
            continue
        children = list(parent.named_children())
        ends_branch = _is_residual(module.get_submodule(path.rpartition(".")[0]))
        for index, (name, layer) in enumerate(children):
            if not isinstance(layer, nn.BatchNorm2d):
                continue
            followers = [type(child) for _, child in children[index + 1 :]]
            if followers and issubclass(followers[0], (nn.ReLU, nn.ReLU6)):
                gain = _GAIN_BEFORE_RELU
            elif ends_branch and not any(issubclass(f, nn.Conv2d) for f in followers):
                gain = _GAIN_RESIDUAL
            else:
                gain = _GAIN
            gains[f"{path}.{name}" if path else name] = gain
    for path, layer in module.named_modules(remove_duplicate=False):  # those that no Sequential holds
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            gains.setdefault(path, _GAIN)
    return gains


def _is_residual(unit: nn.Module) -> bool:
    return any(isinstance(child, Residual) for child in unit.children())
