"""Our own runner on this machine: which program is taken, and scripts in its place that misbehave."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shufflectl.benchmarks.android import store
from shufflectl.benchmarks.android.store import Program
from shufflectl.benchmarks.executor import Job, Measured
from shufflectl.benchmarks.local.own import OWN, OwnExecutor, find
from shufflectl.benchmarks.local.runtimes import create, timed
from shufflectl.benchmarks.results import Delegation, Warmup
from shufflectl.deploy.devices import program_abi
from shufflectl.errors import ArtifactError, ShufflectlError, UnavailableError, UsageError
from support.adb_daemon import program
from support.tflite_files import Op, tflite_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="our own runner is for Linux")

MACHINES = {"x86_64": 62, "arm64-v8a": 183}
HERE = program_abi(Path(sys.executable).resolve()) if sys.platform == "linux" else ""
OURS = "shufflectl.runner/1"
TIMES = [5] * 50
DOCUMENT = {
    "schema": OURS,
    "accelerator": "cpu",
    "threads": 1,
    "measured_ns": 400,
    "waited_ns": 100,
    "peak_rss_bytes": 41,
    "models": [
        {
            "init_ns": 12,
            "first_ns": 9,
            "steady": True,
            "warmup_ns": [9, 8],
            "samples_ns": TIMES,
            "delegation": {"accelerator": "xnnpack", "replaced": 1, "total": 1, "partitions": 1},
        }
    ],
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs to add; the cache of runners is empty."""
    monkeypatch.setenv("SHUFFLECTL_CACHE", str(tmp_path / "cache"))
    return tmp_path


def runner(folder: Path, name: str, words: str = OURS, abi: str = HERE) -> Path:
    path = folder / name
    path.write_bytes(program(words, machine=MACHINES[abi]))
    path.chmod(0o755)
    return path


class TestWhichProgram:
    """A path, a name in the cache, or the only one there that runs here."""

    def test_a_path_and_a_name(self, cache: Path) -> None:
        path = runner(cache, "shufflectl-runner")
        assert path == find(str(path)).path
        store.add("mine", str(path))
        assert find(str(path)).sha256 == find("mine").sha256

    def test_the_only_one_in_the_cache_that_runs_here(self, cache: Path) -> None:
        other = next(abi for abi in MACHINES if abi != HERE)
        store.add("phone", str(runner(cache, "a", abi=other)))
        store.add("theirs", str(runner(cache, "b", words="Inference timings in us: ")))
        with pytest.raises(UnavailableError, match=f"has none for {HERE}") as caught:
            find(None)
        assert "shufflectl runner build" in caught.value.hint
        store.add("mine", str(runner(cache, "c")))
        assert "mine" == find(None).name
        store.add("second", str(runner(cache, "d")))
        with pytest.raises(UsageError, match="which program") as asked:
            find(None)
        assert "mine, second" in asked.value.hint

    def test_others_are_refused(self, cache: Path) -> None:
        with pytest.raises(UsageError, match="b is one of tflite"):
            find(str(runner(cache, "b", words="Inference timings in us: ")))
        other = next(abi for abi in MACHINES if abi != HERE)
        with pytest.raises(ArtifactError, match=f"for {other}, and this is {HERE}"):
            find(str(runner(cache, "a", abi=other)))
        with pytest.raises(UsageError, match="there is no runner"):
            find("nothing")
        plain = runner(cache, "c")
        plain.chmod(0o644)
        with pytest.raises(UsageError, match="may not be executed"):
            find(str(plain))
        store.add("mine", str(plain))
        assert "mine" == find("mine").name


def test_it_is_one_of_the_runtimes_of_tflite_files_and_not_the_preferred_one(cache: Path) -> None:
    assert OWN in timed("tflite")[1:]
    assert OWN not in (*timed("onnx"), *timed("coreml"))
    assert OWN == create(OWN, runner=str(runner(cache, "r"))).runner.name


def executor(folder: Path, script: str, timeout: float = 20) -> OwnExecutor:
    """Return one whose program is a shell script, and whose library is no library."""
    path, library = folder / "a runner", folder / "libLiteRt.so"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    library.write_bytes(b"library")
    return OwnExecutor(Program("script", "shufflectl", path, (library,), "0" * 64, HERE), timeout=timeout)


def measure(folder: Path, script: str, timeout: float = 20, **changes: Any) -> Measured:
    model = folder / "it's a $(model).tflite"
    shape = [1, 8, 8, 3]
    model.write_bytes(tflite_bytes([Op("ABS", ["x"], ["y"])], {"x": shape, "y": shape}, outputs=["y"]))
    found = executor(folder, script, timeout)
    with found.open([model]):
        (result,) = found.run(replace(Job((model,), 0, 7, Warmup(), 50, 0.5), **changes))
    return result


def answer(document: object = DOCUMENT) -> str:
    return f"cat > result.json <<'END'\n{json.dumps(document)}\nEND"


@pytest.mark.integration
def test_its_answer_is_taken(tmp_path: Path) -> None:
    result = measure(tmp_path, f"sleep 0.1\n{answer()}")  # the clock of CPU time ticks 100 times a second
    assert (tuple(TIMES), (9, 8), 12, 9, 41) == (
        result.samples_ns,
        result.warmup_ns,
        result.init_ns,
        result.first_ns,
        result.peak_rss_bytes,
    )
    assert Delegation("xnnpack", 1, 1, 1) == result.delegation
    assert result.before is not None
    assert result.after is not None
    assert 0.25 == result.after.waited
    assert result.after.others is not None
    assert result.before.load_1m is not None


@pytest.mark.integration
def test_it_is_told_what_the_job_says(tmp_path: Path) -> None:
    measure(
        tmp_path,
        f'printf "%s\\n" "$@" > "$(dirname "$0")/words"\n{answer({**DOCUMENT, "threads": 2})}',
        threads=2,
    )
    words = (tmp_path / "words").read_text().splitlines()
    told = dict(zip(words[::2], words[1::2], strict=True))
    assert {
        "--model": str(tmp_path / "it's a $(model).tflite"),
        "--library": str(tmp_path / "libLiteRt.so"),
        "--threads": "2",
        "--seed": "7",
    }.items() <= told.items()


@pytest.mark.integration
def test_it_is_pinned_and_this_process_is_not(tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    script = f'grep Cpus_allowed_list /proc/self/status > "$(dirname "$0")/cores"\n{answer()}'
    measure(tmp_path, script, affinity=str(max(allowed)))
    assert f"Cpus_allowed_list:\t{max(allowed)}\n" == (tmp_path / "cores").read_text()
    assert allowed == os.sched_getaffinity(0)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        ("kill -SEGV $$", ArtifactError, "status -11"),
        ("echo 'error: out of luck' >&2; exit 3", ArtifactError, "out of luck"),
        ("echo 'error: no library' >&2; exit 7", UnavailableError, "no library"),
        ("exec sleep 60", ArtifactError, "within 1 s"),
        ("exit 0", UnavailableError, "no result"),
        ("head -c 17000000 /dev/zero > result.json", UnavailableError, "no result"),
        ("mkdir result.json", UnavailableError, "no result"),
        (answer({**DOCUMENT, "threads": 4}), UnavailableError, "other threads"),
    ],
)
def test_a_program_that_misbehaves(
    tmp_path: Path, script: str, error: type[ShufflectlError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        measure(tmp_path, script, timeout=1)
    assert error is type(caught.value)


def test_the_result_names_the_program_and_a_library_of_its_own(tmp_path: Path) -> None:
    found = executor(tmp_path, "exit 1")
    with found.open([]):
        assert (OWN, "0" * 64, "library ") == (
            found.runner.name,
            found.runner.sha256,
            found.runner.version[:8],
        )
    alone = OwnExecutor(Program("script", "shufflectl", tmp_path, (), "0" * 64, HERE))
    with alone.open([]):
        assert "." in alone.runner.version


def test_files_of_another_kind_are_refused_before_anything_runs(tmp_path: Path) -> None:
    damaged = tmp_path / "x.tflite"
    damaged.write_bytes(b"\x1c\0\0\0TFL3" + b"\xff" * 100)
    for path in (damaged, tmp_path / "x.onnx"):
        with pytest.raises(ArtifactError), executor(tmp_path, "exit 1").open([path]):
            pass


def test_the_gpu_is_not_of_this_machine(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gpu"):
        executor(tmp_path, "exit 1").run(Job((), 0, 0, Warmup(), 1, 0.0, accelerator="gpu"))
