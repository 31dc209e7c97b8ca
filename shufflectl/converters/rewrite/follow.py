"""Where the elements of a graph's tensors come from, found by executing its data movement.

No form of movement is recognised by its spelling: each connected region of data-movement nodes is *executed*
on tensors that hold, instead of values, the number of each element. Whether a result is a channel map is read
off the whole result, not sampled, so the map holds for whatever values the tensors take.

With a symbolic batch N the region is executed for N = 2 and N = 3, and both must give the same map. All
constants of the region are the same in both, and what could still tell larger batches apart, a bound that
cuts a batch-dependent axis short, is refused.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.movement import (
    MAX_ELEMENTS,
    CannotExecuteError,
    clamped_lengths,
    data_inputs,
    execute,
    is_movement,
)
from shufflectl.converters.rewrite.provenance import Channel, ChannelMap, label
from shufflectl.errors import GraphError

__all__ = ["Execution", "Made", "follow"]

Codes = NDArray[Any]  # int32, or int64 where the numbers do not fit

_MULTIPLE: Final = re.compile(r"(\d{1,9})\*\w+")
"""The name of a dimension that holds several images' parts, as ``58*batch``."""

_MAX_CHANNELS: Final = 1 << 21
"""The most channels that are followed in a graph, over all tensors: some hundred megabytes of maps."""


@dataclass
class _Base:
    """A tensor whose elements are numbered: a source, or a channel map inside a region."""

    name: str
    offset: int
    shape: tuple[int, ...]


@dataclass
class Made:
    """What a tensor that data movement makes turned out to be.

    Attributes:
        map: Its channels over what its node reads; None where it is no channel map.
        reshaped: Whether its spatial shape differs from that of what it is made of.
        reason: Why it is no channel map.
    """

    map: ChannelMap | None
    reshaped: bool = False
    reason: str = ""


class Execution:
    """One execution of all data-movement nodes, with one batch size.

    Attributes:
        made: What each tensor turned out to be that was made, by name, in graph order.
        failed: Why nodes could not be executed, by `label`.
    """

    def __init__(
        self,
        graph: Graph,
        batch: int | None,
        unclean: set[str],
        cut: set[str],
        refused: Mapping[str, str],
    ) -> None:
        self.graph = graph
        self.batch = batch
        self.cut = cut
        self.refused = refused
        self.unclean = unclean
        self.made: dict[str, Made] = {}
        self.failed: dict[str, str] = {}
        self.reads: dict[str, list[str]] = {}
        self.codes: dict[str, Codes] = {}
        self.clamps: dict[str, list[int]] = {}
        self._bases: list[_Base] = []
        self._by_name: dict[str, _Base] = {}
        self._next = 0
        self._held = 0
        self._channels = 0
        self._left: dict[str, int] = {}
        self._run()

    def _shape(self, value: ir.Value) -> tuple[int, ...]:
        try:
            dims = self.graph.shape(value)
        except GraphError as error:
            raise CannotExecuteError(error.message) from error
        sizes = []
        for axis, dim in enumerate(dims):
            if isinstance(dim, int):
                sizes.append(dim)
            elif axis == 0 and self.batch is not None:
                several = _MULTIPLE.fullmatch(dim)
                sizes.append(self.batch * (int(several[1]) if several else 1))
            else:
                raise CannotExecuteError(f"axis {axis} of {value.name!r} has no known length")
        if (count := math.prod(sizes)) > MAX_ELEMENTS:
            raise CannotExecuteError(f"{value.name!r} has {count} elements, too many to follow")
        return tuple(sizes)

    def _encode(self, value: ir.Value) -> Codes:
        """Return the numbers of a base's elements; no two elements of the graph share one."""
        name = str(value.name)
        base = self._by_name.get(name)
        if base is None:
            base = _Base(name, self._next, self._shape(value))
            self._next += max(math.prod(base.shape), 1)
            self._bases.append(base)
            self._by_name[name] = base
        end = base.offset + math.prod(base.shape)
        dtype = np.int32 if end < 1 << 31 else np.int64
        return np.arange(base.offset, end, dtype=dtype).reshape(base.shape)

    def _input(self, value: ir.Value) -> Codes:
        name = str(value.name)
        if name not in self.codes:
            return self._encode(value)
        self._left[name] -= 1
        if self._left[name]:
            return self.codes[name]
        # The last reader takes it, so that memory holds no more than the nodes at work need.
        array = self.codes.pop(name)
        self._held -= array.size
        return array

    def _check_bounds(self, node: ir.Node, key: str, array: Codes) -> list[int]:
        if key in self.cut:
            raise CannotExecuteError("it cuts an axis whose length depends on the batch")
        return clamped_lengths(node, array.shape)

    def _execute(self, node: ir.Node, arrays: Sequence[Codes]) -> list[Codes]:
        outputs = execute(node, arrays)
        if self._held + sum(a.size for a in outputs) > MAX_ELEMENTS:
            raise CannotExecuteError("too many elements would have to be followed at a time")
        return outputs

    def _run(self) -> None:
        for node in self.graph.nodes:
            if not is_movement(node):
                continue
            key = label(node)
            if key in self.refused:
                self.failed[key] = self.refused[key]
                continue
            try:
                values = data_inputs(node)
                self.reads[key] = [str(v.name) for v in values]
                arrays = [self._input(value) for value in values]
                self.clamps[key] = self._check_bounds(node, key, arrays[0])
                outputs = self._execute(node, arrays)
            except CannotExecuteError as error:
                self.failed[key] = f"{node.op_type} {key!r}: {error}"
                continue
            for value, array in zip(node.outputs, outputs, strict=True):
                if value.name:  # an optional result that nobody reads has none
                    self._read(value, array)

    def _read(self, value: ir.Value, array: Codes) -> None:
        name = str(value.name)
        made = self._map(name, array)
        if name in self.unclean:
            made = Made(None, reason=f"{name!r} is not the same map for every batch size")
        self.made[name] = made
        if made.map is None or made.reshaped:
            self.codes[name] = array
            self._held += array.size
            self._left[name] = max(sum(is_movement(u.node) for u in value.uses()), 1)

    def _map(self, name: str, array: Codes) -> Made:
        if array.ndim < 2 or not array.size:
            return Made(None, reason=f"{name!r} has no channel axis")
        batch, count, *spatial = array.shape
        if self._channels + count > _MAX_CHANNELS:
            return Made(None, reason=f"{name!r} has {count} channels, too many to follow")
        self._channels += count
        flat = array.reshape(batch, count, -1)
        first = flat[0, :, 0].astype(np.int64)
        owner = np.searchsorted([b.offset for b in self._bases], first, side="right") - 1
        channels, strides, reshaped = [], [], False
        for c, (code, index) in enumerate(zip(first.tolist(), owner.tolist(), strict=True)):
            base = self._bases[index]
            size = math.prod(base.shape[2:])
            if len(base.shape) < 2 or base.shape[0] != batch or size != flat.shape[2]:
                return Made(
                    None,
                    reason=f"{name!r} {list(array.shape)} does not have the batch and positions of "
                    f"{base.name!r} {list(base.shape)}, whose elements it holds",
                )
            source, position = divmod(code - base.offset, size)
            if position or source >= base.shape[1]:
                return Made(None, reason=self._where(name, c, 0, 0, code))
            reshaped |= list(base.shape[2:]) != spatial
            channels.append(Channel(base.name, source))
            strides.append(base.shape[1] * size)
        expected = first[None, :, None] + np.arange(batch)[:, None, None] * np.asarray(strides)[None, :, None]
        wrong = flat != expected.astype(array.dtype) + np.arange(flat.shape[2], dtype=array.dtype)
        if wrong.any():
            at = int(wrong.argmax())
            batch_index, rest = divmod(at, count * flat.shape[2])
            c, p = divmod(rest, flat.shape[2])
            return Made(None, reason=self._where(name, c, p, batch_index, int(flat.flat[at])))
        return Made(ChannelMap(tuple(channels)), reshaped)

    def _where(self, name: str, c: int, p: int, n: int, code: int) -> str:
        offsets = [b.offset for b in self._bases]
        base = self._bases[int(np.searchsorted(offsets, code, side="right")) - 1]
        index = tuple(int(i) for i in np.unravel_index(code - base.offset, base.shape))
        return (
            f"{name!r} is not a channel map: its channel {c} holds, at batch index {n} and position {p}, "
            f"the element {list(index)} of {base.name!r}"
        )


def follow(graph: Graph) -> Execution:
    """Execute the graph's data movement; with a symbolic batch, twice, and keep what agrees."""
    symbolic = any(
        v.shape is not None and len(v.shape) > 0 and not isinstance(v.shape[0], int) for v in graph.inputs
    )
    if not symbolic:
        return Execution(graph, None, set(), set(), {})
    unclean: set[str] = set()
    cut: set[str] = set()
    refused: dict[str, str] = {}
    while True:
        small, large = (Execution(graph, batch, unclean, cut, refused) for batch in (2, 3))
        failed = large.failed | small.failed
        if small.failed.keys() != large.failed.keys():  # it fits one batch, as where that is baked in
            refused |= failed
            continue
        # Reasons name elements, which two batch sizes count differently: only maps must agree.
        differ = {
            name
            for name in small.made | large.made
            if small.made.get(name) != large.made.get(name) and (_holds(small, name) or _holds(large, name))
        } - unclean
        varies = {node for node in small.clamps if small.clamps[node] != large.clamps.get(node)} - cut
        if not differ and not varies:
            small.failed = failed
            return small
        unclean |= differ
        cut |= varies


def _holds(execution: Execution, name: str) -> bool:
    made = execution.made.get(name)
    return made is not None and made.map is not None
