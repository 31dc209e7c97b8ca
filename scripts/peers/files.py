"""The files of the latency comparison: made by the official converters and by shufflectl, and kept."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peers.engines import AGAIN, AUTO, CODES, ENGINES, NHWC, OFFICIAL
from peers.environments import OWN, PEERS, requirements

ROOT = PEERS.parents[1]


class Builder:
    """Makes the files, and keeps them.

    Args:
        work: Where they are kept: a folder a model.
        pythons: The interpreter of each environment.
        forms: The forms of ours.
    """

    def __init__(self, work: Path, pythons: Mapping[str, Path], forms: Sequence[str]) -> None:
        self._work = work
        self._pythons = pythons
        self._forms = forms
        self._models = _digest(sorted((ROOT / "shufflectl" / "models").rglob("*.py")))
        self._converters = _digest(sorted((ROOT / "shufflectl").rglob("*.py")))

    def python(self, environment: str) -> str:
        """Return an environment's interpreter."""
        return str(self._pythons[environment])

    def reference(self, model: str) -> Path:
        """Return an archive of the image and the logits that torch computes for it."""
        return self._make(model, "reference.npz", "reference.py")

    def official(self, model: str, engine: str) -> Path:
        """Return the official file of a runtime."""
        if engine in ("onnxruntime", "openvino"):
            return self._make(model, "official.onnx", "onnx_simplified.py")
        if engine == "litert":
            return self._tflite(model, "official.tflite")
        if engine == "ncnn":
            return self._make(model, "official.param", "ncnn_pnnx.py", "runtimes")
        if engine == "mnn":
            source = self.official(model, "onnxruntime")
            return self._make(model, "official.mnn", "mnn_convert.py", "runtimes", arguments=[str(source)])
        return self._make(model, "official.pte", "executorch_xnnpack.py", "executorch")

    def contestants(self, model: str, engine: str) -> dict[str, Path]:
        """Return the files that meet in one runtime, by label."""
        official = self.official(model, engine)
        files = {OFFICIAL: official, AGAIN: official}
        if engine == "litert":
            files[NHWC] = self._tflite(model, "official-nhwc.tflite", "channels-last")
        own = self.own(model)[ENGINES[engine].ours]
        folder = self._work / model / "own"
        return files | {form: folder / what["file"] for form, what in own.items() if what["file"]}

    def in_codes(self, model: str, engine: str) -> dict[str, Path]:
        """Return the int8 files that meet in one runtime, by label; all are calibrated on the same images."""
        images = self._work / model / "images.npy"
        self._make(model, "reference-of-codes.npz", "reference.py", after=[images.name])
        extension = ENGINES[engine].extension
        program, environment = {
            ".onnx": ("onnx_quantised.py", OWN),
            ".tflite": ("tflite_quantised.py", "litert-torch"),
        }[extension]
        floats = {OFFICIAL: self.official(model, engine)}
        if engine == "litert":
            floats[NHWC] = self._tflite(model, "official-nhwc.tflite", "channels-last")
        files = {
            label: self._make(
                model,
                f"{path.stem}-int8{extension}",
                program,
                environment,
                arguments=[str(path), str(images)],
            )
            for label, path in floats.items()
        }
        folder = self._own_codes(model, images)
        files |= {AGAIN: files[OFFICIAL], AUTO: folder / f"auto{extension}"}
        return files | ({CODES: folder / "codes.tflite"} if engine == "litert" else {})

    def _own_codes(self, model: str, images: Path) -> Path:
        folder = self._work / model / "own-codes"
        stamp = _stamp(PEERS / "own_codes.py", text=self._converters)
        if not _fresh(folder / "report.json", stamp):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            arguments = [model, str(self._weights(model)), str(images), str(folder)]
            call([self.python(OWN), str(PEERS / "own_codes.py"), *arguments], f"our int8 files of {model}")
            _sign(folder / "report.json", stamp)
        return folder

    def across(self, model: str, engine: str) -> dict[str, Path]:
        """Return the files of one runtime that meet other runtimes' files."""
        if not ENGINES[engine].ours:
            return {OFFICIAL: self.official(model, engine)}
        files = self.contestants(model, engine)
        return {label: files[label] for label in (OFFICIAL, AUTO)}

    def own(self, model: str) -> dict[str, dict[str, dict[str, Any]]]:
        """Return what our files are, by target and form; see scripts/peers/own_files.py."""
        folder = self._work / model / "own"
        stamp = _stamp(PEERS / "own_files.py", PEERS / "floor.py", text=f"{self._converters} {self._forms}")
        if not _fresh(folder / "report.json", stamp):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            arguments = [model, str(self._weights(model)), str(folder), *self._forms]
            call([self.python(OWN), str(PEERS / "own_files.py"), *arguments], f"our files of {model}")
            _sign(folder / "report.json", stamp)
        found: dict[str, dict[str, dict[str, Any]]] = json.loads((folder / "report.json").read_text("utf-8"))
        return found

    def coreml(self, model: str) -> dict[str, dict[str, int]]:
        """Return how often each operation occurs in coremltools' package and in ours."""
        theirs = self._make(
            model, "official.mlpackage", "coreml_coremltools.py", "coremltools", after=["laps.json"]
        )
        out = self._work / model / "coreml"
        shutil.rmtree(out, ignore_errors=True)
        weights = str(self._weights(model))
        command = [self.python(OWN), "-m", "shufflectl", "export", model, "--weights", weights]
        call([*command, "--target", "coreml", "--out", str(out)], f"our Core ML package of {model}")
        ours = next(out.glob("*.mlpackage"))
        program = str(PEERS / "coreml_operations.py")
        found: dict[str, dict[str, int]] = {}
        for label, path in ((OFFICIAL, theirs), (AUTO, ours)):
            text = call([self.python("coremltools"), program, str(path)], f"operations of {path.name}")
            found[label] = json.loads(text)
        return found

    def _tflite(self, model: str, name: str, *flags: str) -> Path:
        after = ["laps.json", *flags]
        return self._make(model, name, "tflite_litert_torch.py", "litert-torch", after=after)

    def _weights(self, model: str) -> Path:
        path = self._work / model / "weights.pt"
        stamp = _stamp(PEERS / "random_weights.py", text=self._models)
        if not _fresh(path, stamp):
            path.parent.mkdir(parents=True, exist_ok=True)
            program = str(PEERS / "random_weights.py")
            call([self.python(OWN), program, model, str(path)], f"weights of {model}")
            _sign(path, stamp)
        return path

    def _make(
        self,
        model: str,
        name: str,
        program: str,
        environment: str = OWN,
        *,
        arguments: Sequence[str] | None = None,
        after: Sequence[str] = (),
    ) -> Path:
        """Return a file, made by one of the peers' programs unless it is there already.

        Args:
            model: The model.
            name: The file's name.
            program: It is called with the arguments, the file's path, and what comes after.
            environment: Where it runs.
            arguments: By default the model's name and its weights.
            after: A name that ends in ``.json`` or ``.npy`` is that of a file beside it.
        """
        path = self._work / model / name
        before = [model, str(self._weights(model))] if arguments is None else arguments
        pins = [] if environment == OWN else [requirements(environment)]
        stamp = _stamp(PEERS / program, PEERS / "network.py", *pins, text=f"{self._models} {after}")
        if not _fresh(path, stamp):
            shutil.rmtree(path, ignore_errors=True)
            rest = [str(path.with_name(a)) if a.endswith((".json", ".npy")) else a for a in after]
            command = [self.python(environment), str(PEERS / program), *before, str(path), *rest]
            call(command, f"{name} of {model}")
            if not path.exists():
                raise SystemExit(f"{program} did not write {path}")
            _sign(path, stamp)
        return path


def _digest(files: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        total.update(file.name.encode() + b"\0" + file.read_bytes())
    return total.hexdigest()


def _stamp(*files: Path, text: str) -> str:
    return hashlib.sha256((_digest(files) + text).encode()).hexdigest()


def _stamp_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.stamp")


def _fresh(path: Path, stamp: str) -> bool:
    mark = _stamp_file(path)
    return path.exists() and mark.is_file() and mark.read_text(encoding="utf-8") == stamp


def _sign(path: Path, stamp: str) -> None:
    _stamp_file(path).write_text(stamp, encoding="utf-8")


def call(command: Sequence[str], what: str) -> str:
    """Run a program and return its output."""
    print(f"{what} ...", file=sys.stderr, flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout
