"""What usually goes wrong between an image and a model, tried on a few images.

A model that is fed in another way than it was trained runs without any error and is only less right. The
mistakes are few: channels swapped, not scaled, not normalised, resized in another way, the pixels in the
order of the other layout. Each is tried, and the one that makes the model right is named.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import comb
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from shufflectl.deploy.labelled import Fit
from shufflectl.deploy.parity.figures import figure
from shufflectl.models.preprocess import DIGITS, IMAGENET, Preprocess

__all__ = ["SAMPLE", "Explanation", "Feed", "alternatives", "explain"]

SAMPLE: Final = 64
"""Images on which mistakes are tried."""

_CHANCE: Final = 1e-3
"""The largest chance at which a gain may be luck (one-sided sign test over the images that change)."""

_GAIN: Final = 0.05
"""The smallest gain that is worth a sentence."""

_VALUES: Final[tuple[tuple[str, Preprocess], ...]] = (
    ("of 0 to 1, not normalised", Preprocess()),
    ("of 0 to 255, neither scaled nor normalised", Preprocess(scale=1.0)),
    ("normalised with ImageNet's mean and standard deviation", IMAGENET),
    ("scaled to -1 to 1", DIGITS),
)
_FITS: Final[dict[Fit, str]] = {
    "auto": "taken as they are where they have the size already",
    "crop": "resized by the shorter side, with the middle cropped",
    "squash": "resized without a crop",
}


@dataclass(frozen=True)
class Feed:
    """One way from pixels to a model's input.

    Attributes:
        preprocess: What happens to each pixel.
        fit: How images get the input's size.
        swapped: Whether the first and the last channel of the result change places.
        layout: ``nhwc``: the pixels come in the order of NHWC where the input is NCHW; ``nchw``: the reverse.
        values: What distinguishes ``preprocess`` from the model's own, in words; empty where nothing does.
    """

    preprocess: Preprocess
    fit: Fit
    swapped: bool = False
    layout: Literal["", "nhwc", "nchw"] = ""
    values: str = ""

    def prepare(self, pixels: Mapping[Fit, NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Return the input ``[N, 3, H, W]`` for images ``[N, H, W, 3]``, given for each way to resize."""
        prepared = self.preprocess.apply(pixels[self.fit])
        if self.swapped:
            prepared = prepared[:, ::-1]
        count, channels, height, width = prepared.shape
        if self.layout == "nhwc":  # [N, 3, H, W] -> [N, H, W, 3], read as [N, 3, H, W]
            prepared = prepared.transpose(0, 2, 3, 1).reshape(prepared.shape)
        elif self.layout == "nchw":  # [N, 3, H, W] read as [N, H, W, 3] -> [N, 3, H, W]
            prepared = prepared.reshape(count, height, width, channels).transpose(0, 3, 1, 2)
        return np.ascontiguousarray(prepared)

    def text(self, own: "Feed") -> str:
        """Say in words how this differs from the model's own way: ``BGR images of 0 to 255, ...``."""
        if self.layout:
            other = "NCHW" if self.layout == "nhwc" else "NHWC"
            return f"images in {self.layout.upper()} order fed as if they were {other}"
        color = self.preprocess.color.upper()
        if self.swapped:
            color = "RGB" if color == "BGR" else "BGR"
        return self.words(own, color if self.swapped else "", self.values)

    def instead_of(self, own: "Feed") -> str:
        """Say in words what it would be instead of: the same properties of the model's own way."""
        if self.layout:
            return ""
        values = ""
        if self.values:
            mine = own.preprocess
            named = (words for words, spec in _VALUES if spec.in_order(mine.color).values == mine.values)
            values = next(named, "fed as they are now")
        return own.words(self, own.preprocess.color.upper() if self.swapped else "", values)

    def words(self, other: "Feed", color: str, values: str) -> str:
        """Return ``BGR images scaled to -1 to 1, resized without a crop``; the last if the other differs."""
        words = f"{color} images {values}".strip()
        if self.fit != other.fit:
            words += f"{',' if values else ''} {_FITS[self.fit]}"
        return words


@dataclass(frozen=True)
class Explanation:
    """The mistake that explains a poor result.

    Attributes:
        cause: In words, as ``BGR images``.
        metric: What it raises: ``top-1``, or ``agreement with torch``.
        found: The share as it is, on the images tried, 0 to 1.
        would_be: The share without the mistake.
        images: How many were tried.
        instead_of: What it is now, in words; may be empty.
        conjunction: How cause and figure are joined in the sentence.
    """

    cause: str
    metric: str
    found: float
    would_be: float
    images: int
    instead_of: str = ""
    conjunction: str = "with"

    @property
    def sentence(self) -> str:
        """The explanation in one sentence."""
        now = f" with {self.instead_of}" if self.instead_of else ""
        return (
            f"{self.metric} would be {self.would_be:.2f} {self.conjunction} {self.cause}; "
            f"it is {self.found:.2f}{now} (on {self.images} images)"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the explanation as JSON values."""
        return {
            "sentence": self.sentence,
            "cause": self.cause,
            "instead_of": self.instead_of,
            "metric": self.metric,
            "found": figure(self.found),
            "would_be": figure(self.would_be),
            "images": self.images,
        }


def explain(
    predict: Callable[[NDArray[np.float32]], NDArray[np.int64]],
    own: Feed,
    pixels: Mapping[Fit, NDArray[np.uint8]],
    labels: NDArray[np.int64],
    reference: NDArray[np.int64] | None,
    *,
    takes_bytes: bool = False,
) -> Explanation | None:
    """Try the usual mistakes and return the one that explains the result; None where none does.

    A mistake explains it when more images are right without it, by a margin that chance does not give. The
    one with most images right is taken, of equals the simplest.

    Args:
        predict: The model: ``[N, 3, H, W]`` to the most likely class of each image, ``[N]``.
        own: How the model asks to be fed.
        pixels: Images ``[N, H, W, 3]`` of the input's size, for each way to resize that is to be tried.
        labels: The right classes, ``[N]``.
        reference: What torch answers, ``[N]``; None without torch.
        takes_bytes: Whether the model takes 8-bit integers, so that only pixels can be fed.
    """
    goals = [("top-1", labels)]
    if reference is not None:
        goals.append(("agreement with torch", reference))
    answers: list[tuple[Feed, NDArray[np.int64]]] = []

    def best(goal: NDArray[np.int64]) -> tuple[Feed, NDArray[np.bool_]]:
        right = [(feed, answer == goal) for feed, answer in answers]
        return max(right, key=lambda pair: int(pair[1].sum()))

    feeds = [own, *alternatives(own, pixels, takes_bytes=takes_bytes)]
    answers = [(feed, predict(feed.prepare(pixels))) for feed in feeds]
    start = answers[0][1]
    for metric, goal in goals:
        before = start == goal
        feed, after = best(goal)
        if not _explains(before, after):
            continue
        if not feed.layout and feed.fit == own.fit:
            both = [replace(feed, fit=fit) for fit in pixels if fit != own.fit]
            answers += [(other, predict(other.prepare(pixels))) for other in both]
            second, more = best(goal)
            if _explains(after, more):
                feed, after = second, more
        return Explanation(
            cause=feed.text(own),
            metric=metric,
            found=float(before.mean()),
            would_be=float(after.mean()),
            images=len(before),
            instead_of=feed.instead_of(own),
        )
    return None


def alternatives(
    own: Feed, pixels: Mapping[Fit, NDArray[np.uint8]], *, takes_bytes: bool = False
) -> list[Feed]:
    """Return the mistakes, the simple ones first.

    Args:
        own: How the model asks to be fed.
        pixels: Has the ways to resize that are to be tried.
        takes_bytes: Whether only pixels can be fed, so that no other values make sense.
    """
    mine = own.preprocess
    values = [own]
    for words, spec in _VALUES:
        other = spec.in_order(mine.color)
        if other.values != mine.values and not takes_bytes:
            values.append(replace(own, preprocess=other, values=words))
    single = [replace(own, swapped=True), *values[1:]]
    single += [replace(own, fit=fit) for fit in pixels if fit != own.fit]
    single += [replace(own, layout="nhwc"), replace(own, layout="nchw")]
    return single + [replace(feed, swapped=True) for feed in values[1:]]


def _explains(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> bool:
    """Say whether the second is better than the first by more than luck."""
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    changed = won + lost
    chance = sum(comb(changed, count) for count in range(won, changed + 1)) / 2**changed
    return chance < _CHANCE and won - lost >= _GAIN * len(before)
