#!/usr/bin/env python3
"""How much eight bits lose, for every model of the registry, and next to the official quantisers.

Each model is exported in fp32 and int8 to all targets. Measured on images that it was not calibrated on:

- SQNR and top-1 agreement of each int8 file with torch in fp32, accuracy where images are labelled;
- the codes inside the TFLite file against those inside the ONNX file, on the same images, as the kernels that
  are shipped compute them (scripts/peers/inner_codes.py); and each layer's against what ONNX Runtime makes of
  the same file's codes before it;
- the size next to the fp32 file, and the verdict of the export, which examines every layer in codes;
- SQNR of the official int8 files: ONNX Runtime's `quantize_static` (Q/DQ, weights by channel, uint8
  activations, min-max) of torch's own export, and ai-edge-quantizer's static_wi8_ai8 of litert-torch's, which
  are calibrated on the same images. The better of them is what ours are held against;
- latency next to our fp32 file and the official int8 file, in turns inside one process, one thread. Core ML
  has no runtime here.

Networks of the registry have the weights random:0, and smooth noise for images; networks that are bundled
with weights are measured on the bundled digits too. Another trained network: --checkpoint, with --images.

Each model's figures are kept as JSON under --work, so that an interrupted run goes on where it stopped; the
official files are kept there too. The table is written from all
that is there.

Usage: python scripts/quantisation_table.py [--only NAME,...] [--size N] [--official NAME,...]
           [--official-only] [--checkpoint FILE --images FILE.npz [--classes N] [--title TEXT]]
           [--env-dir FOLDER] [--work FOLDER] [--docs]
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from peers import official_codes
from peers.environments import interpreters
from peers.files import ROOT
from peers.quantisation_page import TARGETS, page, summary
from peers.turns import RUNNERS, timed

from shufflectl.converters.graph import Graph
from shufflectl.errors import ShufflectlError
from shufflectl.models import zoo

PAGE = ROOT / "docs" / "quantisation-table.md"
SCHEMA = "shufflectl.quantisation-table/3"
CLASSIFIER = "logits"

Record = dict[str, Any]
Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Subject:
    """A network with weights, and images for it.

    Attributes:
        key: Its file under --work.
        model: A name of the registry.
        weights: As `models.load` takes them.
        shown: The weights as the table calls them.
        size: Of the images.
        classes: None for what the weights have.
        calibration: Pictures, ``[N, size, size, 3]``.
        test: Others.
        labels: Of those; None where they show nothing.
        source: What the pictures are, in words.
    """

    key: str
    model: str
    weights: str
    shown: str
    size: int
    classes: int | None
    calibration: Images
    test: Images
    labels: NDArray[np.int64] | None
    source: str


def main() -> None:
    arguments = _parse()
    work = arguments.work.expanduser().resolve()
    work.mkdir(parents=True, exist_ok=True)
    wanted = set(zoo.names() if arguments.official is None else arguments.official)
    pythons = interpreters(arguments.env_dir, [official_codes.ENVIRONMENT] if wanted else [])
    failed = []
    for subject in _subjects(arguments):
        file = work / f"{subject.key}.json"
        known = json.loads(file.read_text("utf-8")) if file.exists() else {}
        official = work / "official" / subject.key
        compare = subject.model in wanted
        if known.get("schema") == SCHEMA and (known["official"] or not compare):
            continue
        begun = time.monotonic()
        try:
            if compare and official_codes.find(official) is None:
                _make_official(subject, official, pythons)
            if arguments.official_only:
                print(f"{subject.key}: {time.monotonic() - begun:.0f} s", flush=True)
                continue
            record = measure(subject, work / subject.key, official if compare else None)
        except (ShufflectlError, SystemExit) as error:  # the others go on; this one is named at the end
            failed.append(subject.key)
            print(f"{subject.key}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"{subject.key}: {time.monotonic() - begun:.0f} s, {summary(record)}", flush=True)
    if arguments.docs:
        records = [json.loads(file.read_text("utf-8")) for file in sorted(work.glob("*.json"))]
        PAGE.write_text(page([r for r in records if r.get("schema") == SCHEMA]), encoding="utf-8")
        print(f"wrote {PAGE.relative_to(ROOT)}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = lambda text: tuple(part for part in text.split(",") if part)  # noqa: E731 - a type of this parser
    kept = Path("~/.cache")
    parser.add_argument(
        "--env-dir", type=Path, default=kept / "shufflectl-peers", help="where the environments are kept"
    )
    parser.add_argument(
        "--work", type=Path, default=kept / "shufflectl-quantisation", help="where figures are kept"
    )
    parser.add_argument("--only", type=names, default=(), help="models, with commas; all by default")
    parser.add_argument("--weights", choices=("random", "digits"), help="one kind of weights alone")
    parser.add_argument("--size", type=int, help="of images for random weights; the model's own by default")
    parser.add_argument("--calibrate", type=int, default=16, help="images of noise to calibrate on")
    parser.add_argument("--test", type=int, default=16, help="images of noise to measure on")
    parser.add_argument(
        "--official", type=names, help="models to run the official quantisers for; all by default"
    )
    parser.add_argument("--official-only", action="store_true", help="make the official files, and no other")
    parser.add_argument(
        "--checkpoint", type=Path, help="measure this checkpoint, and no model of the registry"
    )
    parser.add_argument("--model", help="of that checkpoint; by default what it is of")
    parser.add_argument("--images", type=Path, help="an .npz file with images (uint8, NHWC) and labels")
    parser.add_argument("--classes", type=int, help="of that checkpoint")
    parser.add_argument("--split", type=int, default=128, help="images to calibrate on, the first ones")
    parser.add_argument("--title", default="", help="what the table calls its weights")
    parser.add_argument("--docs", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    if (arguments.checkpoint is None) != (arguments.images is None):
        parser.error("--checkpoint and --images go together")
    return arguments


def _subjects(arguments: argparse.Namespace) -> Iterable[Subject]:
    if arguments.checkpoint is not None:
        yield _given(arguments)
        return
    for name in zoo.names():
        if arguments.only and name not in arguments.only:
            continue
        if "digits" in zoo.variant(name).weights and arguments.weights != "random":
            yield _digits(name)
        if arguments.weights != "digits":
            size = arguments.size or zoo.variant(name).input_size
            yield _random(name, size, arguments.calibrate, arguments.test)


def _given(arguments: argparse.Namespace) -> Subject:
    from shufflectl.models import load

    with np.load(arguments.images) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    loaded = load(arguments.model, weights=str(arguments.checkpoint), num_classes=arguments.classes)
    title = arguments.title or arguments.checkpoint.stem
    return Subject(
        f"{loaded.variant.name}-{title}".replace(" ", "-"),
        loaded.variant.name,
        str(arguments.checkpoint),
        title,
        images.shape[1],
        arguments.classes,
        images[: arguments.split],
        images[arguments.split :],
        labels[arguments.split :].astype(np.int64),
        title,
    )


def _digits(name: str) -> Subject:
    from shufflectl.models import load
    from shufflectl.models.data import digits_calibration, digits_test

    size = load(name, weights="digits").input_size
    held_out = digits_test(size)
    chosen = digits_calibration(size)[::2]
    return Subject(
        f"{name}-digits",
        name,
        "digits",
        "digits",
        size,
        None,
        chosen,
        held_out.images,
        held_out.labels,
        "bundled digits",
    )


def _random(name: str, size: int, calibrate: int, test: int) -> Subject:
    images = smooth_noise(calibrate + test, size)
    kind = "smooth noise"
    return Subject(
        f"{name}-random-{size}",
        name,
        "random:0",
        "random:0",
        size,
        None,
        images[:calibrate],
        images[calibrate:],
        None,
        kind,
    )


def smooth_noise(count: int, size: int) -> Images:
    """Return pictures of noise on a grid of 8 x 8, enlarged: the same on every machine."""
    from shufflectl.models.data import resize

    coarse = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return resize(coarse, size)


class _Network(NamedTuple):
    """A network that is measured.

    Attributes:
        loaded: What `models.load` returns.
        calibration: Prepared images, ``[N, 3, size, size]``.
        test: Others.
        logits: What torch makes of those.
    """

    loaded: Any
    calibration: NDArray[np.float32]
    test: NDArray[np.float32]
    logits: NDArray[np.float32]


def _network(subject: Subject) -> _Network:
    import torch

    from shufflectl.models import load

    loaded = load(subject.model, weights=subject.weights, num_classes=subject.classes)
    calibration, test = (loaded.preprocess.apply(i) for i in (subject.calibration, subject.test))
    with torch.inference_mode():
        logits = np.concatenate(
            [loaded.module(torch.from_numpy(test[i : i + 16])).numpy() for i in range(0, len(test), 16)]
        )
    return _Network(loaded, calibration, test, logits)


def _make_official(subject: Subject, folder: Path, pythons: Mapping[str, Path]) -> None:
    network = _network(subject)
    name = f"{subject.model}@{subject.size}"
    official_codes.make(folder, name, network.loaded.module, network.calibration, pythons)


def measure(subject: Subject, folder: Path, official: Path | None) -> Record:
    """Export a network, and return its figures; the folder is removed again.

    Args:
        subject: The network and its images.
        folder: For files.
        official: The folder of the official files; None to leave them out.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        return _measured(subject, folder, official)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measured(subject: Subject, folder: Path, official: Path | None) -> Record:
    from shufflectl.deploy.export import captured

    network = _network(subject)
    found = (official_codes.find(official) if official is not None else None) or {"files": {}}
    theirs = {target: official / what["file"] for target, what in found["files"].items() if official}
    own = _own(
        subject,
        folder,
        network.test,
        network.logits,
        cache(lambda: captured(network.loaded, subject.size, 1)),
        theirs,
    )
    return {
        "schema": SCHEMA,
        "model": subject.model,
        "weights": subject.shown,
        "size": subject.size,
        "images": subject.source,
        "calibrated": len(network.calibration),
        "tested": len(network.test),
        "accuracy": _accuracy(network.logits, subject.labels),
        **own,
        "official": {
            target: what | _figures(theirs[target], target, network.test, network.logits, subject.labels)
            for target, what in found["files"].items()
        },
        "versions": found.get("versions", {}),
    }


def _own(
    subject: Subject,
    folder: Path,
    test: NDArray[np.float32],
    logits: NDArray[np.float32],
    graph: Callable[[], Graph],
    official: Mapping[str, Path],
) -> Record:
    """Export, and return what our files are like, and how fast next to the official ones."""
    from peers.inner_codes import inner_codes, layer_codes

    from shufflectl.deploy.calibration_options import CalibrationOptions
    from shufflectl.deploy.export import export
    from shufflectl.deploy.options import ExportRequest, ParityOptions

    pictures = folder / "calibration.npz"
    np.savez(pictures, images=subject.calibration)
    request = ExportRequest(
        model=subject.model,
        weights=subject.weights,
        num_classes=subject.classes,
        input_size=subject.size,
        targets=TARGETS,
        precisions=("fp32", "int8"),
        out=folder / "own",
        calibration=CalibrationOptions(str(pictures), images=len(subject.calibration)),
        keep_failing=True,
        parity=ParityOptions(images=4, random_images=2),
    )
    results = {(r.artifact.target, r.artifact.precision): r for r in export(request).results}
    targets: Record = {}
    paths = {}
    for target in TARGETS:
        result = results[target, "int8"]
        paths[target] = folder / "own" / result.artifact.file
        targets[target] = {
            **_figures(paths[target], target, test, logits, subject.labels),
            "bytes": result.summary.bytes,
            "ratio": result.summary.bytes / results[target, "fp32"].summary.bytes,
            "passed": result.passed,
            "reasons": list(result.reasons),
            "medians_ms": [],
        }
        if target in RUNNERS:
            files = {"fp32": folder / "own" / results[target, "fp32"].artifact.file, "int8": paths[target]}
            files |= {"official": official[target]} if target in official else {}
            targets[target]["medians_ms"] = timed(target, files, test[:1], folder)
    few = test[:4]
    codes = compare_codes(zip(*(inner_codes(paths[t], few) for t in ("onnx", "tflite")), strict=True))
    layers = {t: by_layer(layer_codes(paths[t], few, graph)) for t in ("onnx", "tflite")}
    return {"targets": targets, "codes": codes, "layers": layers}


def by_layer(found: Iterable[tuple[str, Any]]) -> Record:
    """Return how far codes of layers are off, before the classifier."""
    inner = [codes for name, codes in found if name != CLASSIFIER]
    return {
        "elements": sum(codes.elements for codes in inner),
        "different": sum(codes.different for codes in inner),
        "largest": int(max(codes.largest for codes in inner)),
    }


def compare_codes(pairs: Iterable[tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]]]) -> Record:
    """Return how far the codes of two files are apart, before the classifier and behind it."""
    counts = {place: {"elements": 0, "different": 0, "largest": 0} for place in ("before", "classifier")}
    tensors: set[str] = set()
    for first, second in pairs:
        for name in first.keys() & second.keys():
            off = np.abs(first[name].astype(np.int32) - second[name])
            count = counts["classifier" if name == CLASSIFIER else "before"]
            count["elements"] += off.size
            count["different"] += int(np.count_nonzero(off))
            count["largest"] = max(count["largest"], int(off.max()))
            tensors.add(name)
    return {"tensors": len(tensors), **counts}


def _figures(
    path: Path,
    target: str,
    test: NDArray[np.float32],
    logits: NDArray[np.float32],
    labels: NDArray[np.int64] | None,
) -> Record:
    """Return how near a file's logits are to those that are right."""
    from shufflectl.deploy import runtimes
    from shufflectl.deploy.parity.limits import ANY
    from shufflectl.deploy.parity.metrics import compare
    from shufflectl.deploy.parity.nway import Member

    with runtimes.choose(target, ()).load(path) as session:
        (made,) = Member.from_session(path.name, "int8", session).run(test)
    found = compare(logits, made, ANY)
    return {
        "sqnr": found.sqnr,
        "agreement": float((made.argmax(1) == logits.argmax(1)).mean()),
        "accuracy": _accuracy(made, labels),
    }


def _accuracy(logits: NDArray[np.float32], labels: NDArray[np.int64] | None) -> float | None:
    return None if labels is None else float((logits.argmax(1) == labels).mean())


if __name__ == "__main__":
    main()
