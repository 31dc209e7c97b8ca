"""Run exported files over labelled images: how often they are right, how often they say what torch says."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shufflectl.converters.metadata import ModelInfo
from shufflectl.deploy import runtimes
from shufflectl.deploy.artifacts import Artifact, Group, find_groups
from shufflectl.deploy.check import (
    built_of,
    image_input,
    original_of,
    reference_model,
)
from shufflectl.deploy.export import REFERENCE
from shufflectl.deploy.labelled import Damaged, Fit, Images, find_images
from shufflectl.deploy.mistakes import SAMPLE, Explanation, Feed, explain
from shufflectl.deploy.onnx_model import is_file
from shufflectl.deploy.options import ParityOptions, parse_factory
from shufflectl.deploy.parity.figures import figure
from shufflectl.deploy.parity.nway import Member
from shufflectl.deploy.parity.ports import Ports
from shufflectl.deploy.verify import Notify
from shufflectl.errors import ArtifactError, DataError, GateError
from shufflectl.models import LoadedModel
from shufflectl.models.checkpoints.files import printable
from shufflectl.models.factory import Factory
from shufflectl.models.preprocess import IMAGENET, PIXELS, Preprocess

__all__ = ["Evaluation", "FileScore", "ModelScores", "Score", "evaluate"]

_LOW_TOP1: Final = 0.95
_LOW_AGREEMENT: Final = 0.98
"""Below one of these the usual mistakes are tried."""

_TOP: Final = 5

_BATCH: Final = 16
"""Images that are decoded, and run, at once."""


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


@dataclass
class _Runner:
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
        groups = [self._rows(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
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


def evaluate(
    paths: Sequence[Path],
    *,
    data: str,
    model: str | None = None,
    weights: str | None = None,
    arguments: Sequence[str] = (),
    fit: Fit = "auto",
    follow_links: bool = False,
    min_top1: float | None = None,
    options: ParityOptions | None = None,
    notify: Notify = lambda _what, _done, _total: None,
) -> Evaluation:
    """Run exported files over labelled images, each with its own preprocessing.

    Folders become outputs by the class names that the files carry, else in sorted order where there are as
    many folders as outputs. Images are decoded in batches; a file that does not decode is named in the
    result. Where top-1 or the agreement with torch is low, the usual mistakes of preprocessing are tried.

    Args:
        paths: Export folders, or single artifacts.
        data: A folder with one sub-folder a class, or ``digits``.
        model: The model to compare with, the ONNX file that the files were made from, or the user's function
            that built it (``package.module:factory``), whose code then runs; None for what the files say.
        weights: The weights to compare with; None for what the files say.
        arguments: Of that function, as ``key=value``.
        fit: How images get the input's size; see `ImageFolder.read`.
        follow_links: Whether links in the folder may lead out of it.
        min_top1: The smallest top-1 that `Evaluation.raise_for_failure` lets pass, 0 to 1.
        options: Runtimes, threads, and how many images; None for the first runtime of each, one thread, all.
        notify: Told about progress.

    Raises:
        DataError: There is no image, none decodes, or the folders do not fit the model's classes.
        ArtifactError: A file is missing, damaged, or no classifier of images.
        CheckpointError: The given weights are not those of the files.
        UnavailableError: No runtime here executes a format.
        MissingDependencyError: A runtime's package is not installed.
    """
    settings = options or ParityOptions(images=None)
    factory = parse_factory(model, arguments, ())
    groups = find_groups(paths, notify)
    notify("looking for images", 0, 0)
    images = find_images(data, settings.images, follow_links=follow_links)
    damaged: dict[str, Damaged] = {}
    models = tuple(
        _evaluate(group, images, model, factory, weights, fit, settings, damaged, notify) for group in groups
    )
    return Evaluation(
        data=images.source,
        images=len(images.labels) - len(damaged),
        classes=len(images.classes),
        damaged=tuple(damaged.values()),
        refused=images.refused,
        models=models,
        min_top1=min_top1,
    )


def _evaluate(
    group: Group,
    images: Images,
    name: str | None,
    factory: Factory | None,
    weights: str | None,
    fit: Fit,
    options: ParityOptions,
    damaged: dict[str, Damaged],
    notify: Notify,
) -> ModelScores:
    size, batch = image_input(group.artifacts[0], options)
    info = group.info
    loaded = None
    with ExitStack() as stack:
        if factory is not None:
            stack.enter_context(redirect_stdout(sys.stderr))  # what a user's code prints is no result
            built = built_of(group, factory, weights, options, notify)
            member = Member.from_module(
                REFERENCE, built.module, batch=built.batch if isinstance(built.batch, int) else None
            )
            reference = _Runner(member, built.info.preprocess)
        elif name is not None and is_file(name):
            notify(f"reading {Path(name).name}", 0, 0)
            original = original_of(group, Path(name), weights, size, batch)
            session = stack.enter_context(
                runtimes.choose("onnx", options.runtimes).load(original.path, threads=options.threads)
            )
            member = Member.from_session(original.reference().name, "fp32", session)
            reference = _Runner(member, original.info.preprocess)
        else:
            notify("loading weights", 0, 0)
            loaded = reference_model(group, name, weights, notify)
            reference = None
            if loaded is not None:
                reference = _Runner(Member.from_module(REFERENCE, loaded.module), loaded.preprocess)
        title = loaded.variant.name if loaded else info.name if info else group.artifacts[0].path.stem
        runners: list[_Runner] = []
        described: list[tuple[str, str]] = []
        for artifact in group.artifacts:
            runtime = runtimes.choose(artifact.target, options.runtimes, python=options.runtime_python)
            session = stack.enter_context(runtime.load(artifact.path, threads=options.threads))
            member = Member.from_session(artifact.file, artifact.precision, session)
            ports = Ports(session, artifact.file)
            source, preprocess = _preprocess_of(ports, info, loaded)
            runners.append(_Runner(member, preprocess, ports.takes_bytes))
            described.append((f"{runtime.name} {runtime.available().version}".strip(), source))
        everyone = runners if reference is None else [reference, *runners]
        for runner in everyone:
            runner.warm_up(size)
            if runner.outputs != everyone[0].outputs:
                first = everyone[0]
                raise ArtifactError(
                    f"{runner.member.name} tells {runner.outputs} classes apart, and {first.member.name} "
                    f"{first.outputs}",
                    hint="evaluate files of one model at a time",
                )
        names = info.labels if info is not None else loaded.labels if loaded is not None else ()
        outputs, classes_by = _outputs_of(images, names, everyone[0].outputs, title)
        labels = outputs[np.asarray(images.labels, np.int64)]
        trained = runners[0].preprocess
        images = images.seen(trained.crop)
        fit = "squash" if fit == "auto" and trained.resize == "squash" else fit
        usable = _run(everyone, reference, images, labels, size, fit, damaged, title, notify)
        diagnosis = _Diagnosis(images, outputs, labels, usable, size, fit, reference, notify)
        # The fastest file first: those that answer the same are explained by it.
        low = {
            runner.member.name: diagnosis.of(runner, by_order=classes_by == "order")
            for runner in sorted(runners, key=lambda runner: runner.seconds)
            if runner.is_low(judged=reference is not None)
        }
        files = [
            FileScore(
                artifact=artifact,
                runtime=runtime_name,
                preprocess=runner.preprocess,
                preprocess_from=source,
                score=runner.score(),
                agreement=None if reference is None else runner.agreed,
                explained=artifact.file in low,
                explanation=low.get(artifact.file),
            )
            for artifact, runner, (runtime_name, source) in zip(
                group.artifacts, runners, described, strict=True
            )
        ]
    return ModelScores(
        model=title,
        input_size=size,
        outputs=everyone[0].outputs,
        classes_by=classes_by,
        reference=None if reference is None else reference.score(),
        files=tuple(files),
        reference_name=REFERENCE if reference is None else reference.member.name,
    )


def _preprocess_of(
    ports: Ports, manifest: ModelInfo | None, loaded: LoadedModel | None
) -> tuple[str, Preprocess]:
    """Return what a file is fed with, and who says so.

    Of a file that takes codes, and of which nothing else is known, the codes are taken for the pixels.
    """
    own = ports.session.info
    if own is not None:
        return "file", own.expects
    if ports.takes_bytes:
        return "assumed", PIXELS
    if manifest is not None:
        return "manifest", manifest.preprocess
    if loaded is not None:
        return "weights", loaded.preprocess
    return "assumed", ports.codes_as_pixels or IMAGENET


def _run(
    everyone: Sequence[_Runner],
    reference: _Runner | None,
    images: Images,
    labels: NDArray[np.int64],
    size: int,
    fit: Fit,
    damaged: dict[str, Damaged],
    title: str,
    notify: Notify,
) -> list[int]:
    """Run all images through everyone, a batch at a time, and return the indices of those that decode."""
    total = len(labels)
    usable: list[int] = []
    for start in range(0, total, _BATCH):
        notify(f"evaluating {title}", start, total)
        pixels, found = [], []
        for index in range(start, min(start + _BATCH, total)):
            image = images.read(index, size, fit)
            if isinstance(image, Damaged):
                damaged[image.file] = image
            else:
                pixels.append(image)
                found.append(index)
        if not found:
            continue
        usable += found
        batch = np.stack(pixels)
        prepared: dict[Preprocess, NDArray[np.float32]] = {}
        expected: NDArray[np.int64] | None = None
        for runner in everyone:
            if runner.preprocess not in prepared:
                prepared[runner.preprocess] = runner.preprocess.apply(batch)
            predicted = runner.take(prepared[runner.preprocess], labels[found])
            if runner is reference:
                expected = predicted
            elif expected is not None:
                runner.agreed += int(((predicted == expected) & (predicted >= 0)).sum())
    if not usable:
        first = next(iter(damaged.values()))
        raise DataError(
            f"none of the {total} images in {images.source} decodes",
            hint=printable(f"{first.file}: {first.why}"),
        )
    return usable


@dataclass
class _Diagnosis:
    """Looks for mistakes on a few images; files that answer the same get the same explanation."""

    images: Images
    outputs: NDArray[np.int64]
    labels: NDArray[np.int64]
    usable: Sequence[int]
    size: int
    fit: Fit
    reference: _Runner | None
    notify: Notify
    _sample: "_Sample | None" = None
    _known: dict[tuple[Preprocess, bytes], Explanation | None] = field(default_factory=dict)

    def of(self, runner: _Runner, *, by_order: bool) -> Explanation | None:
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


def _ranked(rows: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the most likely classes, ``[N, 5]``, of equals the first; -1 where a row is not finite."""
    order = np.argsort(-rows, axis=1, kind="stable")[:, :_TOP].astype(np.int64)
    order[~np.isfinite(rows).all(axis=1)] = -1
    return order


def _outputs_of(
    images: Images, names: Sequence[str], width: int, title: str
) -> tuple[NDArray[np.int64], str]:
    """Return the output of each class of the images, and how it was found.

    Args:
        images: Their classes are mapped.
        names: The outputs' names, where the files carry them.
        width: How many outputs there are.
        title: The model, for messages.

    Raises:
        DataError: The classes do not fit.
    """
    for form in (str, _folded):
        places = _places(names[:width], form)
        found = [places.get(form(name), []) for name in images.classes]
        twice = [name for name, places_of in zip(images.classes, found, strict=True) if len(places_of) > 1]
        if twice and form is str:
            raise DataError(
                f"{title} has two classes of the name {twice[0]!r}",
                hint="name no folder after a class whose name is not unique",
            )
        if all(len(places_of) == 1 for places_of in found) and len({p[0] for p in found}) == len(found):
            return np.asarray([place[0] for place in found], np.int64), "names"
    missing = [name for name, places_of in zip(images.classes, found, strict=True) if not places_of]
    if len(images.classes) == width and len(missing) in (0, width):
        return np.arange(width, dtype=np.int64), "order"
    if names and len(missing) < len(images.classes):
        raise DataError(
            f"{images.source} has a class {missing[0] if missing else images.classes[0]!r}, which is none of "
            f"{title}",
            hint="name the folders after the model's classes: " + _some(names),
        )
    raise DataError(
        f"{images.source} has {len(images.classes)} classes ({_some(images.classes)}), and {title} tells "
        f"{width} apart{f' ({_some(names)})' if names else ''}",
        hint="name the folders after the model's classes, or have one folder for each, in their order",
    )


def _folded(name: str) -> str:
    """Return a name as far as it matters: ``Great_White Shark`` is ``great white shark``."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _places(names: Sequence[str], form: Callable[[str], str]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        places.setdefault(form(name), []).append(index)
    return places


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_TOP])
    return printable(shown if len(names) <= _TOP else f"{shown} ... {names[-1]}")


def _other_order(runner: _Runner, images: Images, outputs: NDArray[np.int64]) -> Explanation | None:
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
