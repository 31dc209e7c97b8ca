"""What an evaluation found: scores of files, of models, and of all, as values and as JSON."""

from dataclasses import dataclass
from typing import Any

from shufflectl.deploy.artifacts import Artifact
from shufflectl.deploy.export import REFERENCE
from shufflectl.deploy.labelled import Damaged
from shufflectl.deploy.mistakes import Explanation
from shufflectl.deploy.parity.figures import figure
from shufflectl.errors import GateError
from shufflectl.models.preprocess import Preprocess

__all__ = ["Evaluation", "FileScore", "ModelScores", "Score"]


@dataclass(frozen=True)
class Score:
    """How often a model is right.

    Attributes:
        images: Images that were run.
        top1: Images whose most likely class is the right one.
        top5: Images whose right class is among the five most likely; None with five classes or fewer.
        nonfinite: Images whose outputs are not all finite; they count as wrong.
        seconds: What the runtime took for all of them, decoding apart.
    """

    images: int
    top1: int
    top5: int | None
    nonfinite: int
    seconds: float

    @property
    def share(self) -> float:
        """Top-1, 0 to 1."""
        return self.top1 / self.images if self.images else 0.0

    @property
    def share5(self) -> float | None:
        """Top-5, 0 to 1."""
        return None if self.top5 is None else self.top5 / max(1, self.images)

    @property
    def images_per_second(self) -> float:
        """Of the runtime alone, in batches of 16 where the file takes them."""
        return self.images / self.seconds if self.seconds > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the score as JSON values."""
        return {
            "images": self.images,
            "top1": {"correct": self.top1, "share": figure(self.share)},
            "top5": None if self.share5 is None else {"correct": self.top5, "share": figure(self.share5)},
            "nonfinite": self.nonfinite,
            "images_per_second": figure(self.images_per_second),
        }


@dataclass(frozen=True)
class FileScore:
    """What is known of one file.

    Attributes:
        artifact: The file.
        runtime: Name and version of the runtime that ran it.
        preprocess: What it was fed with.
        preprocess_from: Where that is from: ``file``, ``manifest``, ``weights``, or ``assumed``.
        score: How often it is right.
        agreement: Images on which it names the class that torch names; None without torch.
        explained: Whether the usual mistakes were tried.
        explanation: The one that explains the result.
    """

    artifact: Artifact
    runtime: str
    preprocess: Preprocess
    preprocess_from: str
    score: Score
    agreement: int | None
    explained: bool = False
    explanation: Explanation | None = None

    @property
    def agreement_share(self) -> float | None:
        """Top-1 agreement with torch, 0 to 1."""
        return None if self.agreement is None else self.agreement / max(1, self.score.images)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        share = self.agreement_share
        return {
            "file": self.artifact.file,
            "target": self.artifact.target,
            "precision": self.artifact.precision,
            "runtime": self.runtime,
            "preprocess": {**self.preprocess.to_json(), "from": self.preprocess_from},
            **self.score.to_json(),
            "agreement": None if share is None else {"same": self.agreement, "share": figure(share)},
            "explanation": None if self.explanation is None else self.explanation.to_json(),
        }


@dataclass(frozen=True)
class ModelScores:
    """What is known of one model.

    Attributes:
        model: The model's name.
        input_size: Height and width of its input, in pixels.
        outputs: How many classes it tells apart.
        classes_by: How folders became outputs: ``names`` or ``order``.
        reference: The score of torch, or of the original file; None where there is neither.
        files: One for each file.
        reference_name: What the reference is called.
    """

    model: str
    input_size: int
    outputs: int
    classes_by: str
    reference: Score | None
    files: tuple[FileScore, ...]
    reference_name: str = REFERENCE

    def to_json(self) -> dict[str, Any]:
        """Return the results as JSON values."""
        return {
            "model": self.model,
            "input_size": self.input_size,
            "outputs": self.outputs,
            "classes_by": self.classes_by,
            "reference": None
            if self.reference is None
            else {"name": self.reference_name, **self.reference.to_json()},
            "files": [entry.to_json() for entry in self.files],
        }


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        data: Where the images are from, as the user named it.
        images: How many were run.
        classes: How many classes they are of.
        damaged: Files that do not decode.
        refused: Files that were not looked into.
        models: One for each model among the files.
        min_top1: The gate; None without one.
    """

    data: str
    images: int
    classes: int
    damaged: tuple[Damaged, ...]
    refused: tuple[Damaged, ...]
    models: tuple[ModelScores, ...]
    min_top1: float | None = None

    @property
    def failing(self) -> tuple[FileScore, ...]:
        """Files below the gate."""
        limit = self.min_top1
        return tuple(f for m in self.models for f in m.files if limit is not None and f.score.share < limit)

    def to_json(self) -> dict[str, Any]:
        """Return the result as the document of ``schemas/evaluate-1.schema.json``."""
        return {
            "schema": "shufflectl.evaluate/1",
            "passed": not self.failing,
            "min_top1": self.min_top1,
            "data": {
                "source": self.data,
                "images": self.images,
                "classes": self.classes,
                "damaged": [entry.to_json() for entry in self.damaged],
                "refused": [entry.to_json() for entry in self.refused],
            },
            "models": [model.to_json() for model in self.models],
        }

    def raise_for_failure(self) -> None:
        """Raise what the exit code is made of.

        Raises:
            GateError: A file's top-1 is below the gate.
        """
        if not self.failing:
            return
        found = ", ".join(f"{f.artifact.file} has {f.score.share:.4g}" for f in self.failing)
        hint = ""
        if any(f.explained for f in self.failing):
            hint = "look at the images, at the names of their folders, and at how the file is fed"
        raise GateError(
            f"top-1 is below {self.min_top1:g}: {found}",
            hint=next((f.explanation.sentence for f in self.failing if f.explanation), hint),
        )
