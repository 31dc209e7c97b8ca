"""Causes in output channels: permuted, zero, each multiplied or offset."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from shufflectl.deploy.parity.case import Array, Case, before_activation, wrong_channels
from shufflectl.deploy.parity.causes.hypothesis import Hypothesis
from shufflectl.deploy.parity.causes.words import NAMED, figures, listed

__all__ = ["output_channels"]


def output_channels(case: Case) -> Iterator[Hypothesis]:
    """Yield what may have happened to some of the tensor's channels."""
    expected = case.expected
    if expected.ndim < 2 or expected.shape[1] < 2:
        return
    count = expected.shape[1]
    wrong = wrong_channels(case)
    if wrong.size == 0:
        return
    rows = np.moveaxis(expected, 1, 0).reshape(count, -1)
    held = np.moveaxis(case.actual, 1, 0).reshape(count, -1)

    def restored(values: Array) -> Array:
        shape = (count, *(size for axis, size in enumerate(expected.shape) if axis != 1))
        return np.moveaxis(values.reshape(shape), 0, 1)

    # Squared distances of each wrong channel to every expected one.
    distance = np.square(rows).sum(1)[np.newaxis] - 2 * held[wrong] @ rows.T
    order = np.arange(count)
    order[wrong] = distance.argmin(axis=1)
    if (order[wrong] != wrong).any():
        complete = sorted(order) == list(range(count))
        yield Hypothesis("channels permuted", _order_text(order), restored(rows[order]), 0 if complete else 1)

    silent = wrong[~held[wrong].any(axis=1)]
    if silent.size:
        zeroed = rows.copy()
        zeroed[silent] = 0
        yield Hypothesis(
            "channels zero", f"{listed('channel', silent)} of {count} hold only zeros", restored(zeroed)
        )
    yield from _fitted_channels(case, wrong, held, restored)


def _fitted_channels(
    case: Case, wrong: NDArray[np.intp], held: Array, restored: Callable[[Array], Array]
) -> Iterator[Hypothesis]:
    """Yield each wrong channel as ``scale * x + offset``, of what comes before a clipping activation."""
    before = before_activation(case) if case.last.op_type in ("Relu", "Clip") else None
    base = case.expected if before is None else before
    rows = np.moveaxis(base, 1, 0).reshape(base.shape[1], -1)
    low = -math.inf if before is None else float(case.expected.min())
    high = math.inf if before is None or case.last.op_type == "Relu" else float(case.expected.max())
    fits = {kind: rows.copy() for kind in ("constant", "scale", "offset", "affine")}
    levels, scales, offsets = [], [], []
    for channel in wrong:
        active = (held[channel] > low) & (held[channel] < high)
        x, y = rows[channel][active], held[channel][active]
        if x.size < 3:  # any two numbers lie on a line
            return
        power, spread = float((x * x).sum()), float(np.square(x - x.mean()).sum())
        slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread > 0 else 0.0
        levels.append(float(y.mean()))
        scales.append(float((x * y).sum()) / power if power > 0 else 0.0)
        offsets.append(float((y - x).mean()))
        fits["constant"][channel] = levels[-1]
        fits["scale"][channel] = rows[channel] * scales[-1]
        fits["offset"][channel] = rows[channel] + offsets[-1]
        fits["affine"][channel] = rows[channel] * slope + (levels[-1] - slope * x.mean())
    what = listed("output channel", wrong) + f" of {rows.shape[0]}"
    texts = {
        "constant": f"{what}: constant at {figures(levels)}, as if without weights",
        "scale": f"{what}: multiplied by {figures(scales)}",
        "offset": f"{what}: {figures(offsets)} is added, as of a wrong bias",
        "affine": f"{what}: each with a scale and an offset of its own, as of a batch norm folded wrongly",
    }
    for kind, values in fits.items():
        freedom = 1 if wrong.size == 1 and kind != "affine" else 2
        yield Hypothesis("channels scaled", texts[kind], np.clip(restored(values), low, high), freedom)


def _order_text(order: NDArray[np.intp]) -> str:
    moved = np.flatnonzero(order != np.arange(order.size))
    count = order.size
    if sorted(order) == list(range(count)):
        if moved.size == 2:
            return f"channels {moved[0]} and {moved[1]} of {count} are swapped"
        for groups in range(2, count):
            if count % groups == 0 and (order == np.arange(count).reshape(groups, -1).T.ravel()).all():
                return f"the {count} channels are shuffled once more, with {groups} groups"
        pairs = ", ".join(f"{c} holds {order[c]}" for c in moved[:NAMED])
        return f"{moved.size} of {count} channels are permuted: {pairs}" + (
            ", ..." if moved.size > NAMED else ""
        )
    pairs = ", ".join(f"{c} holds {order[c]}" for c in moved[:NAMED])
    more = ", ..." if moved.size > NAMED else ""
    return f"{moved.size} of {count} channels hold another channel's values: {pairs}{more}"
