"""One member of an evaluation: runs images in batches and counts what it answers."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shufflectl.deploy.evaluation.scores import Score
from shufflectl.deploy.parity.nway import Member
from shufflectl.errors import ArtifactError
from shufflectl.models.preprocess import Preprocess

__all__ = ["BATCH", "Runner"]

_LOW_TOP1: Final = 0.95
_LOW_AGREEMENT: Final = 0.98
"""Below one of these the usual mistakes are tried."""

_TOP: Final = 5

BATCH: Final = 16
"""Images that are decoded, and run, at once."""


@dataclass
class Runner:
    """One member of the evaluation, and what it has answered so far."""

    member: Member
    preprocess: Preprocess
    takes_bytes: bool = False
    outputs: int = 0
    top1: int = 0
    top5: int = 0
    images: int = 0
    nonfinite: int = 0
    agreed: int = 0
    seconds: float = 0.0
    confusion: Counter[tuple[int, int]] = field(default_factory=Counter)

    def warm_up(self, size: int) -> None:
        """Run one image, to learn the number of classes."""
        self.outputs = self._rows(np.zeros((1, 3, size, size), np.float32)).shape[1]

    def _rows(self, images: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return ``[N, classes]``."""
        results = self.member.run(images)
        shape = results[0].shape
        if (
            len(results) != 1
            or shape[:1] != (len(images),)
            or len(shape) < 2
            or max(shape[2:], default=1) > 1
        ):
            raise ArtifactError(
                f"{self.member.name} gives {', '.join(str(list(array.shape)) for array in results)}, "
                "not one figure a class",
                hint="evaluate works on classifiers with one output",
            )
        return np.asarray(results[0], np.float64).reshape(len(images), -1)

    def predict(self, images: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the most likely class of each image; -1 where an output is not finite."""
        groups = [self._rows(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        return _ranked(np.concatenate(groups))[:, 0]

    def take(self, images: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Run a batch, count what is right, and return the predictions, ``[N]``."""
        begun = time.perf_counter()
        rows = self._rows(images)
        self.seconds += time.perf_counter() - begun
        ranked = _ranked(rows)
        predicted = ranked[:, 0]
        self.images += len(labels)
        self.nonfinite += int((predicted < 0).sum())
        self.top1 += int((predicted == labels).sum())
        self.top5 += int((ranked == labels[:, np.newaxis]).any(axis=1).sum())
        self.confusion.update(zip(labels.tolist(), predicted.tolist(), strict=True))
        return predicted

    def is_low(self, *, judged: bool) -> bool:
        """Say whether the result is poor; ``judged``: whether there was torch to agree with."""
        low = self.top1 < _LOW_TOP1 * self.images
        return low or (judged and self.agreed < _LOW_AGREEMENT * self.images)

    def score(self) -> Score:
        """Return what was counted."""
        top5 = self.top5 if self.outputs > _TOP else None
        return Score(self.images, self.top1, top5, self.nonfinite, self.seconds)


def _ranked(rows: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the most likely classes, ``[N, 5]``, of equals the first; -1 where a row is not finite."""
    order = np.argsort(-rows, axis=1, kind="stable")[:, :_TOP].astype(np.int64)
    order[~np.isfinite(rows).all(axis=1)] = -1
    return order
