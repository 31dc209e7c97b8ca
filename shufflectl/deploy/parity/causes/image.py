"""Causes in the image: BGR, not normalised, normalised twice, NHWC read as NCHW, mirrored."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shufflectl.deploy.parity.case import Case
from shufflectl.deploy.parity.causes.hypothesis import Hypothesis, tried

__all__ = ["image"]


def image(case: Case) -> Iterator[Hypothesis]:
    """Yield the ways in which the file may get its image."""
    for name in case.segment.sources:
        if name in case.graph.inputs and next(iter(case.sources))[name].ndim == 4:
            yield from tried(_image_forms(case, name))


def _image_forms(case: Case, name: str) -> Iterator[Hypothesis]:
    forms: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {"": lambda x: x}
    spec = case.preprocess
    channels = next(iter(case.sources))[name].shape[1]
    if spec is not None and channels == 3:
        mean = np.asarray(spec.mean, np.float32).reshape(3, 1, 1)
        std = np.asarray(spec.std, np.float32).reshape(3, 1, 1)
        scale = np.float32(spec.scale)
        forms["not normalised (scaled pixels)"] = lambda x: x * std + mean
        forms["not normalised (pixels from 0 to 255)"] = lambda x: (x * std + mean) / scale
        forms["normalised twice"] = lambda x: (x - mean) / std
        forms["normalised twice, scaling included"] = lambda x: (x * scale - mean) / std
    forms["multiplied by 255"] = lambda x: x * np.float32(255)
    forms["divided by 255"] = lambda x: x / np.float32(255)
    forms["in NHWC order where NCHW is expected"] = lambda x: x.transpose(0, 2, 3, 1).reshape(x.shape)
    forms["in NCHW order where NHWC is expected"] = lambda x: x.reshape(
        x.shape[0], *x.shape[2:], x.shape[1]
    ).transpose(0, 3, 1, 2)
    forms["transposed (height and width swapped)"] = lambda x: (
        x.swapaxes(2, 3) if x.shape[2] == x.shape[3] else x
    )
    forms["upside down"] = lambda x: x[:, :, ::-1]
    forms["mirrored"] = lambda x: x[:, :, :, ::-1]
    orders = ("", "BGR where RGB is expected") if channels == 3 else ("",)
    for (form, change), order in product(forms.items(), orders):
        if not form and not order:
            continue

        def changed(
            key: str,
            value: NDArray[Any],
            change: Callable[[NDArray[Any]], NDArray[Any]] = change,
            order: str = order,
        ) -> NDArray[Any]:
            if key != name:
                return value
            return change(value[:, ::-1] if order else value)

        what = " and ".join(part for part in (order, form) if part)
        yield Hypothesis("image", f"the file computes as if its image were {what}", case.run(change=changed))
