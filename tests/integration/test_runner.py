"""The runner in C, built for this machine and run on real files with the LiteRT that pip installed."""

import math
import re
import shutil
import signal
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shufflectl.benchmarks.runner import build, library
from shufflectl.deploy.digests import digest
from support.runner import QUICK, Called, call, require_compiler

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_compiler()
    path = tmp_path_factory.mktemp("runner") / "shufflectl-runner"
    build(path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, run_cli: Any) -> Path:
    """One network, with shuffles folded away."""
    return exported(tmp_path_factory.mktemp("folded"), run_cli, "auto")


@pytest.fixture(scope="module")
def partly_delegated(tmp_path_factory: pytest.TempPathFactory, run_cli: Any) -> Path:
    """The same network, with shuffles as gathers, which XNNPACK leaves to LiteRT."""
    return exported(tmp_path_factory.mktemp("gathers"), run_cli, "gather")


def exported(folder: Path, run_cli: Any, shuffle: str) -> Path:
    run = run_cli(
        *("export", "shufflenet_v2_x0_5", "--weights", "digits", "--target", "tflite", "--images", "2"),
        *("--shuffle", shuffle, "--out", folder),
    )
    assert 0 == run.status, run.stderr
    (path,) = folder.glob("*.tflite")
    return path


@pytest.fixture(scope="module")
def measured(program: Path, model: Path) -> Called:
    """One round of one file, with two threads."""
    called = call(program, "--model", model, "--threads", "2", "--min-iterations", "60", "--seed", "7")
    assert 0 == called.status, called.stderr
    return called


def test_a_round_holds_raw_times_apart_from_the_warm_up(measured: Called, model: Path) -> None:
    document = measured.document
    assert "shufflectl.runner/1" == document["schema"]
    (found,) = document["models"]
    assert str(model) == found["path"]
    assert model.stat().st_size == found["bytes"]
    assert found["first_ns"] == found["warmup_ns"][0]
    assert 30 < len(found["warmup_ns"])
    assert 60 <= len(found["samples_ns"])
    assert all(type(ns) is int and ns > 0 for ns in (*found["warmup_ns"], *found["samples_ns"]))
    assert 0 < found["init_ns"] < 10_000_000_000
    spent = sum(found["samples_ns"]) + sum(found["warmup_ns"][1:])
    assert 0.9 < spent / document["measured_ns"] <= 1


def test_the_process_has_as_many_threads_as_were_asked_for(
    measured: Called, program: Path, model: Path
) -> None:
    assert (2, 2) == (measured.document["threads"], measured.document["process_threads"])
    alone = call(program, "--model", model, *QUICK).document
    assert (1, 1) == (alone["threads"], alone["process_threads"])


def test_peak_memory_is_that_of_the_program_and_not_of_what_started_it(measured: Called) -> None:
    # This process, with torch in it, holds hundreds of megabytes.
    assert 5e6 < measured.document["peak_rss_bytes"] < 150e6


def test_inputs_follow_from_the_seed(program: Path, model: Path) -> None:
    prints = [
        call(program, "--model", model, "--seed", seed, *QUICK).document["models"][0]["output_fnv1a"]
        for seed in ("7", "7", "8")
    ]
    assert prints[0] == prints[1] != prints[2]


def test_the_delegation_is_what_the_interpreter_says(
    program: Path, model: Path, partly_delegated: Path
) -> None:
    from shufflectl.deploy.runtimes.litert import delegation

    for path in (model, partly_delegated):
        expected = delegation(path)
        found = call(program, "--model", path, *QUICK).document["models"][0]["delegation"]
        assert {
            "accelerator": "xnnpack",
            "replaced": sum(map(len, expected.partitions)),
            "total": expected.operators,
            "partitions": len(expected.partitions),
        } == found
    assert found["replaced"] < found["total"]
    assert 1 < found["partitions"]


def test_two_files_take_turns(program: Path, model: Path, partly_delegated: Path) -> None:
    called = call(program, "--model", model, "--model", partly_delegated, "--min-iterations", "40")
    first, second = called.document["models"]
    assert [str(model), str(partly_delegated)] == [first["path"], second["path"]]
    assert len(first["samples_ns"]) == len(second["samples_ns"]) >= 40
    assert len(first["warmup_ns"]) == len(second["warmup_ns"])
    assert first["output_fnv1a"] != second["output_fnv1a"]


def test_a_file_paired_with_itself_is_as_fast_as_itself(program: Path, model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy of the model, with 'quotes' \"and\" ünïcode.tflite"
    shutil.copy(model, copy)
    called = call(program, "--model", model, "--model", copy, "--min-iterations", "300")
    first, second = called.document["models"]
    assert str(copy) == second["path"].encode("latin-1").decode()
    assert first["output_fnv1a"] == second["output_fnv1a"]
    ratio = statistics.median(first["samples_ns"]) / statistics.median(second["samples_ns"])
    assert math.isclose(1, ratio, rel_tol=0.25)


def test_the_warm_up_says_when_it_ran_into_its_limit(program: Path, model: Path, measured: Called) -> None:
    called = call(program, "--model", model, *QUICK)
    (found,) = called.document["models"]
    assert not found["steady"]
    assert 1 == len(found["warmup_ns"])


def test_samples_are_bounded(program: Path, model: Path) -> None:
    called = call(
        *(program, "--model", model, "--max-iterations", "20", "--min-iterations", "20"),
        *("--warmup-min-iterations", "5", "--warmup-min-seconds", "0", "--min-seconds", "60"),
    )
    (found,) = called.document["models"]
    assert (20, 20) == (len(found["warmup_ns"]), len(found["samples_ns"]))


def test_the_output_file_appears_whole(program: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    called = call(program, "--model", model, "--output", out, *QUICK)
    assert (0, "") == (called.status, called.stdout)
    assert out.read_text().endswith("}\n")
    assert [out] == list(tmp_path.iterdir())


def test_a_killed_run_leaves_no_result(program: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    argv = [program, "--library", library(), "--model", model, "--output", out, "--min-seconds", "60"]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    while not (tmp_path / "result.json.partial").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()


REFUSED = {
    "unknown option": (("--warmup", "3"), 2, "no option '--warmup'"),
    "no value": (("--seed",), 2, "--seed wants a value"),
    "negative threads": (("--threads", "-1"), 2, "--threads wants a whole number from 1 to 64"),
    "threads in words": (("--threads", "two"), 2, "not 'two'"),
    "endless": (("--min-seconds", "inf"), 2, "--min-seconds wants seconds"),
    "contradiction": (("--min-iterations", "9", "--max-iterations", "8"), 2, "--max-iterations 8 is less"),
    "a device as output": (("--output", "/dev/null"), 2, "/dev/null is no plain file"),
    "no such folder": (("--output", "/nowhere/result.json"), 2, "/nowhere/result.json cannot be written"),
    "three files": (("--model", "b", "--model", "c"), 2, "at most 2 times"),
    "no such file": (("--model", "/nowhere.tflite"), 3, "/nowhere.tflite cannot be read"),
    "a folder": (("--model", "/dev"), 3, "/dev is no .tflite file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_in_one_line(program: Path, model: Path, case: str) -> None:
    words, status, message = REFUSED[case]
    called = call(program, "--model", model, *words)
    assert status == called.status, called.stderr
    assert message in called.error
    assert "" == called.stdout
    assert Path("/dev/null").is_char_device()


def test_no_model_is_refused(program: Path) -> None:
    called = call(program)
    assert (2, "error: --model is missing; --help shows the usage") == (called.status, called.error)


def test_a_damaged_file_is_named_whatever_litert_does_with_it(
    program: Path, model: Path, tmp_path: Path
) -> None:
    data = model.read_bytes()
    damaged = {
        "noise": bytes(range(256)) * 40,
        "cut": data[: len(data) // 10],  # LiteRT 2.3 crashes on this
        "header only": data[:64],
    }
    for name, content in damaged.items():
        path = tmp_path / f"{name}.tflite"
        path.write_bytes(content)
        called = call(program, "--model", path, "--output", tmp_path / "result.json", *QUICK)
        assert 3 == called.status, (name, called.stderr)
        assert re.search(r"damaged|cannot prepare", called.error)
    assert not list(tmp_path.glob("result.json*"))


def test_another_library_is_refused(program: Path, model: Path, tmp_path: Path) -> None:
    missing = call(program, "--model", model, library_path=tmp_path / "none.so")
    assert (7, True) == (missing.status, "cannot be loaded" in missing.error)
    source = tmp_path / "old.c"
    source.write_text("int LiteRtCreateCpuOptions; int LiteRtCreateEnvironment;\n")
    old = tmp_path / "old.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", old, source], check=True)
    called = call(program, "--model", model, library_path=old)
    assert (7, True) == (called.status, "is a LiteRT before 2.2" in called.error)


def test_the_library_beside_the_program_is_found(program: Path, model: Path, tmp_path: Path) -> None:
    here = tmp_path / program.name
    shutil.copy(program, here)
    (tmp_path / "libLiteRt.so").symlink_to(library())
    argv = [here, "--model", model, *QUICK]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    assert f'"library": "{tmp_path}/libLiteRt.so"' in done.stdout


def test_the_command_builds_it(tmp_path: Path, run_cli: Any) -> None:
    require_compiler()
    out = tmp_path / "a runner"
    run = run_cli("runner", "build", "--out", out, "--json")
    assert 0 == run.status, run.stderr
    assert (str(out), digest(out)) == (run.document["built"], run.document["sha256"])
    assert (
        "shufflectl-runner"
        in subprocess.run([out, "--version"], capture_output=True, text=True, check=True).stdout
    )
    failed = run_cli("runner", "build", "--out", tmp_path / "nothing", "--cc", "no-such-compiler")
    assert 7 == failed.status
    assert not (tmp_path / "nothing").exists()
