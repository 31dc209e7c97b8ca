"""What explains a poor result: a usual mistake of preprocessing, or folders in another order than outputs."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shufflectl.deploy.evaluation.runner import Runner
from shufflectl.deploy.labelled import Damaged, Fit, Images
from shufflectl.deploy.mistakes import SAMPLE, Explanation, Feed, explain
from shufflectl.deploy.verify import Notify
from shufflectl.errors import DataError
from shufflectl.models.preprocess import Preprocess

__all__ = ["Diagnosis"]


@dataclass
class Diagnosis:
    """Looks for mistakes on a few images; files that answer the same get the same explanation."""

    images: Images
    outputs: NDArray[np.int64]
    labels: NDArray[np.int64]
    usable: Sequence[int]
    size: int
    fit: Fit
    reference: Runner | None
    notify: Notify
    _sample: "_Sample | None" = None
    _known: dict[tuple[Preprocess, bytes], Explanation | None] = field(default_factory=dict)

    def of(self, runner: Runner, *, by_order: bool) -> Explanation | None:
        """Return the mistake that explains what a file answered; None where none does.

        Args:
            runner: The file.
            by_order: Whether folders became outputs by their order alone, which may be another.
        """
        self.notify(f"trying other preprocessings on {runner.member.name}", 0, 0)
        if self._sample is None:
            self._sample = self._gather()
        sample = self._sample
        own = Feed(runner.preprocess, self.fit)
        key = (runner.preprocess, runner.predict(own.prepare(sample.pixels)).tobytes())
        if key not in self._known:
            self._known[key] = explain(
                runner.predict,
                own,
                sample.pixels,
                sample.labels,
                sample.reference,
                takes_bytes=runner.takes_bytes,
            )
        found = self._known[key]
        return _other_order(runner, self.images, self.outputs) if found is None and by_order else found

    def _gather(self) -> "_Sample":
        places = np.linspace(0, len(self.usable) - 1, min(SAMPLE, len(self.usable))).round().astype(np.intp)
        chosen = [self.usable[int(place)] for place in places]
        fits: list[Fit] = ["auto", "crop", "squash"] if self.images.resized else [self.fit]
        pixels: dict[Fit, NDArray[np.uint8]] = {}
        for fit in sorted(fits, key=lambda fit: fit != self.fit):
            read = [self.images.read(index, self.size, fit) for index in chosen]
            batch = [image for image in read if not isinstance(image, Damaged)]
            if len(batch) != len(chosen):
                raise DataError(
                    f"images in {self.images.source} changed while they were evaluated",
                    hint="evaluate again when nothing writes to the folder",
                )
            stacked = np.stack(batch)
            if not any(np.array_equal(stacked, other) for other in pixels.values()):
                pixels[fit] = stacked
        expected = None
        if self.reference is not None:
            own = Feed(self.reference.preprocess, self.fit)
            expected = self.reference.predict(own.prepare(pixels))
        return _Sample(pixels, self.labels[chosen], expected)


@dataclass(frozen=True)
class _Sample:
    """What mistakes are tried on.

    Attributes:
        pixels: ``[N, H, W, 3]`` for each way to resize that makes a difference.
        labels: ``[N]``.
        reference: Torch's answers, ``[N]``; None without torch.
    """

    pixels: dict[Fit, NDArray[np.uint8]]
    labels: NDArray[np.int64]
    reference: NDArray[np.int64] | None


def _other_order(runner: Runner, images: Images, outputs: NDArray[np.int64]) -> Explanation | None:
    """Return the explanation that folders and outputs are in different orders, where that is so.

    It is where the images of each folder get one answer in the main, each folder another, and far more
    images would be right if these answers were the folders' classes.
    """
    usual: dict[int, tuple[int, int]] = {}
    for (label, predicted), count in runner.confusion.items():
        if predicted >= 0 and (count, -predicted) > (
            usual.get(label, (0, 0))[0],
            -usual.get(label, (0, 0))[1],
        ):
            usual[label] = (count, predicted)
    labels = {label for label, _ in runner.confusion}
    answers = {predicted for _, predicted in usual.values()}
    if len(labels) < 2 or len(answers) < len(labels) or runner.images < 5 * len(labels):
        return None
    found = runner.top1 / runner.images
    would_be = sum(count for count, _ in usual.values()) / runner.images
    moved = next((label for label in sorted(usual) if usual[label][1] != label), None)
    if moved is None or would_be < found + 0.2:
        return None
    folder = images.classes[int(np.flatnonzero(outputs == moved)[0])]
    cause = (
        f"folders and outputs were in one order: most images of {folder!r} get output {usual[moved][1]}, "
        f"where the folder is number {moved}"
    )
    return Explanation(cause, "top-1", found, would_be, runner.images, conjunction="if")
