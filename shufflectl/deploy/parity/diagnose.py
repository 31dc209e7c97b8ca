"""Say why a layer of a file computes something else than the captured graph.

Each cause that is known is put to the test: *if* it were the cause, what would the tensor be? The
prediction is compared with the file's tensor, and the cause whose prediction fits within the limits is the
answer. Most predictions come from executing the layer again with that one thing changed: other pads, a weight
column of zeros, an image in BGR. Where nothing fits, the answer says ``unknown`` and where the
differences are. `causes` has a module for each family, in this order:

1. Values no longer finite: overflow of half precision, or NaN from finite inputs.
2. Whole tensor: zero, an activation missing or too much, saturated, multiplied, offset, of another layout.
3. Output channels: permuted, zero, each multiplied or offset.
4. The layer's parameters: pads, padding counted in an average, no bias, a kernel that is flipped or
   transposed, an input channel whose weights are missing, scaled or wrong, two input channels that are
   swapped, operands of a concatenation in another order.
5. The image: BGR, not normalised, normalised twice, NHWC read as NCHW.
"""

from typing import Final

import numpy as np

from shufflectl.deploy.parity.case import Case, Diagnosis, wrong_channels
from shufflectl.deploy.parity.causes.channels import output_channels
from shufflectl.deploy.parity.causes.hypothesis import Hypothesis, tried
from shufflectl.deploy.parity.causes.image import image
from shufflectl.deploy.parity.causes.nonfinite import nonfinite
from shufflectl.deploy.parity.causes.parameters import layer_parameters
from shufflectl.deploy.parity.causes.whole import whole_tensor
from shufflectl.deploy.parity.causes.words import listed
from shufflectl.deploy.parity.metrics import compare

__all__ = ["diagnose"]

_GAIN_DB: Final = 10.0
"""By how much a prediction must come closer to the file's tensor than the graph's own result does."""
_ENOUGH_DB: Final = 30.0
"""How far within the limits a fit is as good as any better one."""
_CLEARLY_DB: Final = 6.0
"""By how much a cause with more freedom must fit better than one with less."""


def diagnose(case: Case) -> Diagnosis:
    """Return the cause that explains the file's tensor best, or ``unknown`` with what is known.

    What has more freedom fits better by itself, so of two causes the one with less freedom is preferred
    unless the other fits clearly better. Fits far within the limits count as equal.
    """
    broken = nonfinite(case)
    if broken is not None:
        return broken
    least = case.compare(case.expected).sqnr + _GAIN_DB
    enough = case.limits.sqnr + _ENOUGH_DB
    found: list[tuple[int, float, Diagnosis]] = []
    for family in (whole_tensor, output_channels, layer_parameters, image):
        for guess in tried(family(case)):
            fit = _fit(case, guess)
            if fit is not None and fit > least:
                answer = Diagnosis(guess.cause, guess.sentence, fit, guess.freedom == 0)
                found.append((guess.freedom, min(fit, enough), answer))
    best: tuple[int, float, Diagnosis] | None = None
    for entry in sorted(found, key=lambda entry: entry[0]):  # stable: from simple to involved
        if best is None or entry[1] > best[1] + (1 if entry[0] == best[0] else _CLEARLY_DB):
            best = entry
    return _leftover(case) if best is None else best[2]


def _fit(case: Case, guess: Hypothesis) -> float | None:
    if guess.prediction.shape != case.actual.shape:
        return None
    region = guess.region or ()
    found = compare(guess.prediction[region], case.actual[region], case.limits)
    return found.sqnr if found and found.elements else None


def _leftover(case: Case) -> Diagnosis:
    """Say what is known where no cause fits."""
    expected, actual = case.expected, case.actual
    found = case.compare(expected)
    delta = np.abs(actual - expected)
    allowed = case.limits.max_rel * found.peak
    if expected.ndim == 4 and min(expected.shape[2:]) > 2:
        rows = np.flatnonzero((delta > allowed).any(axis=(0, 1, 3)))
        columns = np.flatnonzero((delta > allowed).any(axis=(0, 1, 2)))
        inner = (delta[:, :, 1:-1, 1:-1] > allowed).any()
        if rows.size and not inner:
            text = "only the outermost rows or columns differ, as they do when padding is wrong "
            text += f"({listed('row', rows)}, {listed('column', columns)} "
            text += f"of {expected.shape[2]}x{expected.shape[3]})"
            return Diagnosis("padding", text)
    if abs(found.cosine) < 0.1:
        return Diagnosis(
            "unrelated",
            f"the whole tensor has nothing to do with what is expected (cosine {found.cosine:.2f}): "
            "other weights, or another tensor",
        )
    worst = np.unravel_index(int(delta.argmax()), delta.shape)
    place = [int(position) for position in worst]
    text = (
        f"no known cause fits; the largest difference is at {place}, {actual[worst]:.4g} "
        f"where {expected[worst]:.4g} is expected"
    )
    if expected.ndim >= 2:
        wrong = wrong_channels(case)
        text += f"; {wrong.size} of {expected.shape[1]} channels differ"
    return Diagnosis("unknown", text)
