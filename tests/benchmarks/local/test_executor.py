"""Rounds on this machine: real processes that run a tiny model, and processes that misbehave."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from shufflectl.benchmarks.executor import Job, Measured
from shufflectl.benchmarks.local import executor as module
from shufflectl.benchmarks.local.executor import LocalExecutor
from shufflectl.benchmarks.local.machine import affinity, snapshot, target
from shufflectl.benchmarks.results import Warmup
from shufflectl.deploy.runtimes.base import Availability
from shufflectl.deploy.runtimes.coreml import CoreML
from shufflectl.errors import ArtifactError, ShufflectlError, UnavailableError, UnstableError, UsageError
from support.tflite_files import Op, tflite_bytes

WARMUP = Warmup(min_iterations=3, min_seconds=0.0, window=2, tolerance=0.9, max_seconds=0.2)
TINY = """<ir_version: 8, opset_import: ["" : 17]>
tiny (float[1,3,8,8] image, int64[1] axes, bool[2] mask) => (float[1,3,8,8] out, int64[1] same, bool[2] not)
{ out = Relu(image)
  same = Identity(axes)
  not = Not(mask) }"""


@pytest.fixture(scope="module")
def tiny_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "it's tiny.onnx"
    onnx.save(onnx.parser.parse_model(TINY), path)
    return path


@pytest.fixture(scope="module")
def tiny_lite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tflite") / "tiny.tflite"
    shape = [1, 8, 8, 3]
    path.write_bytes(tflite_bytes([Op("ABS", ["x"], ["out"])], {"x": shape, "out": shape}, outputs=["out"]))
    return path


def job(*paths: Path, **changes: Any) -> Job:
    return replace(Job(paths, 0, 1, WARMUP, min_iterations=5, min_seconds=0.0), **changes)


def measured(runtime: str, wanted: Job, python: Path | None = None) -> tuple[Measured, ...]:
    executor = LocalExecutor(runtime, python=python)
    with executor.open(wanted.artifacts):
        assert executor.runner.version
        return executor.run(wanted)


def check(result: Measured, samples: int = 5) -> None:
    assert samples == len(result.samples_ns)
    assert min(result.samples_ns) > 0
    assert result.warmup_ns[0] == result.first_ns
    assert len(result.warmup_ns) > 3
    assert result.init_ns is not None
    assert result.init_ns > 0
    assert result.measured_s is not None
    assert sum(result.samples_ns) + sum(result.warmup_ns[1:]) <= result.measured_s * 1e9
    if sys.platform == "linux":
        assert result.peak_rss_bytes is not None
        # Far less than this process: what the process held before it became the worker does not count.
        assert 10e6 < result.peak_rss_bytes < 150e6
        assert result.after is not None
        assert result.after.load_1m is not None


@pytest.mark.integration
def test_onnxruntime_in_a_process_of_its_own(tiny_onnx: Path) -> None:
    ballast = bytearray(200_000_000)
    (result,) = measured("onnxruntime", job(tiny_onnx))
    del ballast
    check(result)
    assert result.delegation is None


@pytest.mark.integration
def test_litert_says_what_xnnpack_took(tiny_lite: Path) -> None:
    (result,) = measured("litert", job(tiny_lite, threads=2))
    check(result)
    assert result.delegation is not None
    assert "xnnpack" == result.delegation.accelerator
    assert result.delegation.replaced == result.delegation.total


@pytest.mark.integration
def test_tflite_runtime_in_its_own_interpreter(tiny_lite: Path, tflite_python: Path) -> None:
    (result,) = measured("tflite-runtime", job(tiny_lite), tflite_python)
    check(result)


@pytest.mark.integration
def test_two_files_take_turns(tiny_onnx: Path) -> None:
    for threads in (1, 2):
        results = measured("onnxruntime", job(tiny_onnx, tiny_onnx, threads=threads, settle=2))
        assert 2 == len(results)
        for result in results:
            check(result)
        assert results[0].measured_s == results[1].measured_s


@pytest.mark.integration
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin processes")
def test_it_is_pinned(tiny_onnx: Path) -> None:
    core = min(os.sched_getaffinity(0))
    check(measured("onnxruntime", job(tiny_onnx, affinity=str(core)))[0])
    assert core in os.sched_getaffinity(0)


@pytest.mark.integration
def test_it_measures_for_as_long_as_it_was_asked(tiny_onnx: Path) -> None:
    (result,) = measured("onnxruntime", job(tiny_onnx, min_seconds=0.2))
    assert len(result.samples_ns) > 5
    assert result.measured_s is not None
    assert result.measured_s >= 0.2


@pytest.mark.integration
def test_what_never_is_steady_is_measured_all_the_same(tiny_onnx: Path) -> None:
    (result,) = measured("onnxruntime", job(tiny_onnx, warmup=replace(WARMUP, tolerance=0.0)))
    assert result.steady is False
    assert 5 == len(result.samples_ns)


@pytest.mark.integration
def test_a_file_that_the_runtime_refuses_is_named(tmp_path: Path) -> None:
    path = tmp_path / "odd.onnx"
    text = TINY.replace("Relu", "NoSuchOperator")
    onnx.save(onnx.parser.parse_model(text), path)
    with pytest.raises(ArtifactError, match=r"odd\.onnx.*NoSuchOperator"):
        measured("onnxruntime", job(path))


@pytest.mark.integration
def test_an_input_of_any_size_is_refused_except_for_the_batch(tmp_path: Path) -> None:
    path = tmp_path / "sizes.onnx"
    onnx.save(onnx.parser.parse_model(TINY.replace("1,3,8,8", "N,3,8,8")), path)
    check(measured("onnxruntime", job(path))[0])
    onnx.save(onnx.parser.parse_model(TINY.replace("1,3,8,8", "1,3,H,W")), path)
    with pytest.raises(ArtifactError, match="no fixed size"):
        measured("onnxruntime", job(path))


def test_files_of_another_kind_are_refused_before_anything_runs(tiny_onnx: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "x.tflite"
    damaged.write_bytes(b"\x1c\0\0\0TFL3" + b"\xff" * 100)
    for runtime, path in (("litert", tiny_onnx), ("litert", damaged), ("onnxruntime", tmp_path / "no.onnx")):
        with pytest.raises(ArtifactError), LocalExecutor(runtime).open([path]):
            pass


def test_weights_outside_of_the_folder_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "in" / "x.onnx"
    path.parent.mkdir()
    model = onnx.parser.parse_model(TINY)
    tensor = model.graph.initializer.add(name="w", dims=[1], data_type=1, data_location=1)
    tensor.external_data.add(key="location", value="../secret")
    path.write_bytes(model.SerializeToString())
    (tmp_path / "secret").write_bytes(b"\0\0\0\0")
    with pytest.raises(ArtifactError), LocalExecutor("onnxruntime").open([path]):
        pass


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A worker program that the test writes."""
    path = tmp_path / "worker.py"
    monkeypatch.setattr(module, "_WORKER", path)
    return path


RESULT = {
    "init_ns": 1,
    "first_ns": 2,
    "warmup_ns": [2],
    "samples_ns": [3],
    "steady": True,
    "delegation": None,
}
REPLY = {"results": [RESULT], "measured_s": 0.1, "noise": {}, "peak_rss_bytes": None}


@pytest.mark.integration
@pytest.mark.parametrize(
    ("program", "error", "says"),
    [
        ("import os; os.kill(os.getpid(), 11)", ArtifactError, "status -11 on m.onnx"),
        ("import sys; sys.exit('out of luck')", ArtifactError, "status 1 on m.onnx: out of luck"),
        ("import time; time.sleep(60)", ArtifactError, "within 2 s"),
        ("print('hello')", ArtifactError, "status 0"),
        ("print('[1]')", ArtifactError, "status 0"),
        ("print('[' * 100000)", ArtifactError, "status 0"),
        ("print('x' * 20_000_000)", UnavailableError, "more than"),
        ("print('{}')", UnstableError, "makes no sense"),
        ('print(\'{"error": "import", "message": "no such module"}\')', UnavailableError, "no such module"),
        ('print(\'{"error": "file", "message": "m.onnx: bad"}\')', ArtifactError, "cannot run m.onnx: bad"),
        ('print(\'{"error": "other", "message": "bug"}\')', ShufflectlError, "bug"),
    ],
)
def test_a_worker_that_misbehaves(
    worker: Path, program: str, error: type[ShufflectlError], says: str
) -> None:
    worker.write_text(program)
    with pytest.raises(error) as caught:
        LocalExecutor("onnxruntime", timeout=2).run(job(Path("m.onnx")))
    assert says in caught.value.message
    assert len(caught.value.message) < 1000


@pytest.mark.integration
@pytest.mark.parametrize(
    "change",
    [
        {"results": []},
        {"results": [RESULT, RESULT]},
        {"results": 3},
        {"results": [{**RESULT, "samples_ns": [-1]}]},
        {"results": [{**RESULT, "samples_ns": [1.5]}]},
        {"results": [{**RESULT, "samples_ns": ["1"]}]},
        {"results": [{**RESULT, "init_ns": 2**63}]},
        {"results": [{**RESULT, "first_ns": True}]},
        {"results": [{**RESULT, "delegation": {"accelerator": "x"}}]},
        {"noise": []},
        {"peak_rss_bytes": -5},
        {"measured_s": None},
    ],
)
def test_a_reply_that_makes_no_sense_is_a_spoiled_round(worker: Path, change: dict[str, Any]) -> None:
    worker.write_text(f"print({json.dumps(json.dumps({**REPLY, **change}))})")
    with pytest.raises(UnstableError, match="makes no sense"):
        LocalExecutor("onnxruntime", timeout=20).run(job(Path("m.onnx")))


@pytest.mark.integration
def test_a_reply_that_makes_sense_is_taken(worker: Path) -> None:
    worker.write_text(f"print({json.dumps(json.dumps(REPLY))})")
    (result,) = LocalExecutor("onnxruntime", timeout=20).run(job(Path("m.onnx")))
    assert ((3,), 1, 2, True) == (result.samples_ns, result.init_ns, result.first_ns, result.steady)


def test_the_worker_keeps_to_what_old_interpreters_execute() -> None:
    import ast

    text = Path(module.__file__).with_name("round_worker.py").read_text("utf-8")
    tree = ast.parse(text, feature_version=(3, 8))
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(name.startswith("shufflectl") for name in names)


def test_runtimes_that_are_not_timed() -> None:
    for name in ("coreml-reference", "onnxruntim", ""):
        with pytest.raises(UsageError):
            LocalExecutor(name)


def test_the_version_of_core_ml_is_that_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = Availability(ok=True, version="9.0")
    monkeypatch.setattr(CoreML, "available", lambda _: ready)
    monkeypatch.setattr(module.platform, "mac_ver", lambda: ("15.2", ("", "", ""), "arm64"))
    executor = LocalExecutor("coreml")
    with executor.open([]):
        assert "macOS 15.2, coremltools 9.0" == executor.runner.version


def test_the_gpu_is_not_of_this_machine() -> None:
    with pytest.raises(UsageError, match="gpu"):
        LocalExecutor("onnxruntime").run(job(Path("m.onnx"), accelerator="gpu"))


def test_cores_are_those_that_this_process_may_use() -> None:
    assert () == affinity("")
    for text in ("x", "0,", "-1", "99999", "0;1"):
        with pytest.raises(UsageError):
            affinity(text)


def test_the_machine_is_described_without_its_name() -> None:
    import platform

    found = target()
    assert found.cores == os.cpu_count()
    assert platform.node() not in repr(found) or len(platform.node()) < 4
    assert snapshot(noise={"stolen": 0.5}).stolen == 0.5
