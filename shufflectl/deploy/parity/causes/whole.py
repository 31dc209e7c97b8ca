"""Causes in the whole tensor: zero, another activation, saturated, multiplied, offset, of another layout."""

from collections.abc import Iterator
from itertools import product

import numpy as np

from shufflectl.deploy.parity.case import Array, Case, before_activation
from shufflectl.deploy.parity.causes.hypothesis import Hypothesis

__all__ = ["whole_tensor"]


def whole_tensor(case: Case) -> Iterator[Hypothesis]:
    """Yield what may have happened to every value of the tensor."""
    expected, actual = case.expected, case.actual
    yield Hypothesis("zero", "the whole tensor is zero", np.zeros_like(expected))
    before = before_activation(case)
    if before is not None:
        text = f"the activation {case.last.op_type} is missing"
        yield Hypothesis("activation", text, before)
    relu = np.maximum(expected, 0)
    yield Hypothesis("activation", "an activation Relu is applied that the model does not have", relu)
    yield Hypothesis(
        "activation", "an activation Relu6 is applied that the model does not have", np.minimum(relu, 6)
    )
    low, high = float(actual.min()), float(actual.max())
    if high < expected.max() or low > expected.min():
        share = np.count_nonzero((actual == low) | (actual == high)) / actual.size
        text = f"values saturate at {low:.4g} and {high:.4g} ({share:.1%} of them), "
        text += f"where {expected.min():.4g} to {expected.max():.4g} is expected"
        yield Hypothesis("saturation", text, np.clip(expected, low, high), 1)
    power = float((expected * expected).sum())
    if power > 0 and expected.size > 1:
        factor = float((expected * actual).sum()) / power
        yield Hypothesis("scale", f"every value is multiplied by {factor:.4g}", expected * factor, 1)
        offset = float((actual - expected).mean())
        yield Hypothesis("offset", f"{offset:.4g} is added to every value", expected + offset, 1)
    yield from _layouts(expected)


def _layouts(expected: Array) -> Iterator[Hypothesis]:
    if expected.ndim != 4:
        return
    n, c, h, w = expected.shape
    if c > 1 and h * w > 1:
        yield Hypothesis(
            "layout", "the values lie in NHWC order where NCHW is expected",
            expected.transpose(0, 2, 3, 1).reshape(n, c, h, w),
        )  # fmt: skip
        yield Hypothesis(
            "layout", "the values lie in NCHW order where NHWC is expected",
            expected.reshape(n, h, w, c).transpose(0, 3, 1, 2),
        )  # fmt: skip
    if h == w and h > 1:
        yield Hypothesis("layout", "height and width are swapped", expected.swapaxes(2, 3))
    if h > 1:
        yield Hypothesis("layout", "the rows are in reverse order", expected[:, :, ::-1])
    if w > 1:
        yield Hypothesis("layout", "the columns are in reverse order", expected[:, :, :, ::-1])
    if min(h, w) < 4:
        return
    for dy, dx in product((-1, 0, 1), repeat=2):
        if dy or dx:
            inside = (slice(None), slice(None), slice(1, h - 1), slice(1, w - 1))
            text = f"the map is shifted by {abs(dy)} rows and {abs(dx)} columns: padding on the wrong side"
            yield Hypothesis("shifted", text, np.roll(expected, (dy, dx), (2, 3)), 2, inside)
