"""Run exported files over labelled images: how often they are right, how often they say what torch says."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shufflectl.converters.metadata import ModelInfo
from shufflectl.deploy import runtimes
from shufflectl.deploy.artifacts import Group, find_groups
from shufflectl.deploy.check import (
    built_of,
    image_input,
    original_of,
    reference_model,
)
from shufflectl.deploy.evaluation.classes import outputs_of
from shufflectl.deploy.evaluation.diagnosis import Diagnosis
from shufflectl.deploy.evaluation.runner import BATCH, Runner
from shufflectl.deploy.evaluation.scores import Evaluation, FileScore, ModelScores
from shufflectl.deploy.export import REFERENCE
from shufflectl.deploy.labelled import Damaged, Fit, Images, find_images
from shufflectl.deploy.onnx_model import is_file
from shufflectl.deploy.options import ParityOptions, parse_factory
from shufflectl.deploy.parity.nway import Member
from shufflectl.deploy.parity.ports import Ports
from shufflectl.deploy.verify import Notify
from shufflectl.errors import ArtifactError, DataError
from shufflectl.models import LoadedModel
from shufflectl.models.checkpoints.files import printable
from shufflectl.models.factory import Factory
from shufflectl.models.preprocess import IMAGENET, PIXELS, Preprocess

__all__ = ["evaluate"]


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
            reference = Runner(member, built.info.preprocess)
        elif name is not None and is_file(name):
            notify(f"reading {Path(name).name}", 0, 0)
            original = original_of(group, Path(name), weights, size, batch)
            session = stack.enter_context(
                runtimes.choose("onnx", options.runtimes).load(original.path, threads=options.threads)
            )
            member = Member.from_session(original.reference().name, "fp32", session)
            reference = Runner(member, original.info.preprocess)
        else:
            notify("loading weights", 0, 0)
            loaded = reference_model(group, name, weights, notify)
            reference = None
            if loaded is not None:
                reference = Runner(Member.from_module(REFERENCE, loaded.module), loaded.preprocess)
        title = loaded.variant.name if loaded else info.name if info else group.artifacts[0].path.stem
        runners: list[Runner] = []
        described: list[tuple[str, str]] = []
        for artifact in group.artifacts:
            runtime = runtimes.choose(artifact.target, options.runtimes, python=options.runtime_python)
            session = stack.enter_context(runtime.load(artifact.path, threads=options.threads))
            member = Member.from_session(artifact.file, artifact.precision, session)
            ports = Ports(session, artifact.file)
            source, preprocess = _preprocess_of(ports, info, loaded)
            runners.append(Runner(member, preprocess, ports.takes_bytes))
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
        outputs, classes_by = outputs_of(images, names, everyone[0].outputs, title)
        labels = outputs[np.asarray(images.labels, np.int64)]
        trained = runners[0].preprocess
        images = images.seen(trained.crop)
        fit = "squash" if fit == "auto" and trained.resize == "squash" else fit
        usable = _run(everyone, reference, images, labels, size, fit, damaged, title, notify)
        diagnosis = Diagnosis(images, outputs, labels, usable, size, fit, reference, notify)
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
    everyone: Sequence[Runner],
    reference: Runner | None,
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
    for start in range(0, total, BATCH):
        notify(f"evaluating {title}", start, total)
        pixels, found = [], []
        for index in range(start, min(start + BATCH, total)):
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
