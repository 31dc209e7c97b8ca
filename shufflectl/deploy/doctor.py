"""What is installed, what works here, what is missing and how to get it.

Nothing is believed because it is installed: each target is proved by exporting a small graph, running
the file, and comparing the result with ONNX Runtime's.
"""

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from shufflectl import __version__
from shufflectl.converters.targets import TARGETS
from shufflectl.deploy import runtimes
from shufflectl.deploy.devices import Adb, survey
from shufflectl.errors import ShufflectlError

__all__ = ["Check", "Diagnosis", "diagnose"]

State = Literal["ok", "missing", "broken", "absent"]

_PACKAGES = {
    "torch": "",
    "onnx": "",
    "onnx-ir": "",
    "onnxscript": "",
    "onnxsim": "",
    "onnxruntime": "",
    "safetensors": "",
    "numpy": "",
    "pillow": "",
    "ai-edge-litert": "tflite",
    "flatbuffers": "tflite",
    "coremltools": "coreml",
}


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis.

    Attributes:
        group: ``package``, ``target``, ``runtime`` or ``device``.
        name: What was looked at.
        state: ``ok``; ``missing`` (can be installed); ``broken`` (installed, but does not work); ``absent``
            (does not exist on this platform, or is not connected).
        detail: The version, the proof, or what is wrong.
        remedy: How to get it; empty when ok.
    """

    group: str
    name: str
    state: State
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was found.

    Attributes:
        machine: Facts on the machine, by name.
        checks: One row for each thing looked at.
    """

    machine: dict[str, str]
    checks: tuple[Check, ...]

    @property
    def usable(self) -> bool:
        """Whether at least the core works: every core package, and the ONNX target."""
        core = {c.state for c in self.checks if c.group == "package" and not _PACKAGES.get(c.name)}
        return core == {"ok"} and any(
            c.state == "ok" for c in self.checks if c.group == "target" and c.name == "onnx"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the diagnosis as JSON values."""
        return {
            "schema": "shufflectl.doctor/1",
            "shufflectl": __version__,
            "usable": self.usable,
            "machine": self.machine,
            "checks": [asdict(check) for check in self.checks],
        }


def diagnose(
    *, runtime_python: Path | None = None, notify: Callable[[str], None] = lambda _: None
) -> Diagnosis:
    """Look at this machine.

    Args:
        runtime_python: The interpreter in which to look for tflite-runtime.
        notify: Told what is being looked at.
    """
    checks = [_package(name, extra) for name, extra in _PACKAGES.items()]
    for name in runtimes.NAMES:
        notify(f"runtime {name}")
        checks.append(_runtime(name, runtime_python))
    for name in TARGETS:
        notify(f"target {name}")
        checks.append(_target(name))
    notify("devices")
    checks.extend(_devices())
    return Diagnosis(_machine(), tuple(checks))


def _machine() -> dict[str, str]:
    facts = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_version()} ({sys.executable})",
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "free disk": f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GiB",
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"
    return facts


def _package(name: str, extra: str) -> Check:
    try:
        return Check("package", name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        wanted = f"shufflectl[{extra}]" if extra else "shufflectl"
        return Check("package", name, "missing", "not installed", f"pip install '{wanted}'")


def _runtime(name: str, python: Path | None) -> Check:
    try:
        state = runtimes.create(name, python=python).available()
    except ShufflectlError as error:
        return Check("runtime", name, "missing", error.message, error.hint)
    if state.ok:
        return Check("runtime", name, "ok", state.version)
    return Check("runtime", name, "missing" if state.remedy else "absent", state.reason, state.remedy)


def _target(name: str) -> Check:
    """Export a convolution, run the file, compare."""
    import numpy as np
    import onnx
    import onnx_ir as ir

    from shufflectl.converters.graph import Graph
    from shufflectl.converters.metadata import ModelInfo
    from shufflectl.converters.targets import EmitOptions

    rng = np.random.default_rng(0)
    image = rng.standard_normal((1, 3, 8, 8), np.float32)
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]>'
        "doctor (float[1,3,8,8] image) => (float[1,4,8,8] features) {"
        " [conv] maps = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [1, 1],"
        " dilations = [1, 1], group = 1> (image, weight)\n [relu] features = Relu (maps) }"
    )
    weight = rng.standard_normal((4, 3, 3, 3), np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
    graph = Graph(ir.from_proto(onnx.shape_inference.infer_shapes(model)))
    row = TARGETS[name]
    padded = np.pad(image[0], ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    expected = np.maximum(np.einsum("ihwkl,oikl->ohw", windows, weight)[None], 0)
    try:
        with tempfile.TemporaryDirectory(prefix="shufflectl-") as folder:
            path = Path(folder) / f"doctor{row.extension}"
            row.emit(graph, ModelInfo(name="doctor"), EmitOptions(), path)
            runtime = runtimes.choose(name)
            with runtime.load(path) as session:
                views = session.trace
                made = session.run({session.inputs[0].name: views["image"].to_file(image)})
                actual = views["features"].to_logical(made[session.outputs[0].name])
    except ShufflectlError as error:
        state: State = "missing" if error.exit_code in (7, 8) else "broken"
        return Check("target", name, state, error.message, error.hint)
    worst = float(np.abs(actual - expected).max())
    if not worst < 1e-4:
        return Check("target", name, "broken", f"{runtime.name} is off by {worst:.2g} on one convolution")
    return Check(
        "target", name, "ok", f"a file was written, run with {runtime.name}, and is right to {worst:.1e}"
    )


def _devices() -> list[Check]:
    try:
        adb = Adb.find()
    except ShufflectlError as error:
        return [Check("device", "adb", "missing", error.message, error.hint)]
    try:
        found = survey(adb)
    except ShufflectlError as error:
        return [Check("device", "adb", "broken", error.message, error.hint)]
    version = adb.version()
    connected = f"{len(found)} device(s) connected"
    checks = [Check("device", "adb", "ok", f"{version}, {connected}" if version else connected)]
    for item in found:
        if item.usable and item.identity is not None:
            checks.append(Check("device", item.serial, "ok", item.identity.model))
        else:
            text, remedy = item.problems[0]
            checks.append(Check("device", item.serial, "absent", text, remedy))
    return checks
