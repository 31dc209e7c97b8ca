"""`shufflectl bench` and `shufflectl compare`, as users call them."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shufflectl.benchmarks.results import read_suite
from shufflectl.deploy.digests import digest

pytestmark = pytest.mark.integration
QUICK = ("--rounds", "6", "--min-seconds", "0.02", "--min-warmup", "0", "--max-warmup", "0.1")
# The machine that runs tests is busy: a measurement may rightly be called unstable.
FINE = (0, 6)


def test_a_folder_as_table_json_and_csv(run_cli: Any, digits_dist: Path, tmp_path: Path) -> None:
    out, runs = tmp_path / "r.json", tmp_path / "r.csv"
    done = run_cli("bench", digits_dist, *QUICK, "--out", out, "--csv", runs, env={"COLUMNS": "200"})
    assert done.status in FINE, done.stderr
    suite = read_suite(out)
    assert {"onnxruntime", "litert"} == {b.runner.name for b in suite.benchmarks}
    assert all(6 == len(b.rounds) for b in suite.benchmarks)
    assert {"fp32", "fp16"} == {b.config.precision for b in suite.benchmarks}
    for name in ("shufflenet_v2_x0_5-fp32.onnx", "95 % interval", "peak memory", "load average"):
        assert name in done.stdout
    assert "not measured: shufflenet_v2_x0_5-fp32.mlpackage" in done.stderr
    rows = list(csv.DictReader(runs.read_text().splitlines()))
    timed = [row for row in rows if row["phase"] == "timed"]
    assert sum(len(r.samples_ns) for b in suite.benchmarks for r in b.rounds) == len(timed)
    assert suite.benchmarks[0].rounds[0].samples_ns[0] == int(timed[0]["ns"])


def test_a_baseline_file_is_measured_in_pairs(run_cli: Any, digits_dist: Path) -> None:
    file = digits_dist / "shufflenet_v2_x0_5-fp32.tflite"
    done = run_cli("bench", file, "--baseline", file, "--tolerance", "900%", *QUICK, "--json")
    assert 0 == done.status, done.stderr
    document = done.document
    (comparison,) = document["comparisons"]
    assert ("paired", "pass", 6) == tuple(comparison[key] for key in ("mode", "verdict", "rounds"))
    assert "paired" == document["benchmarks"][0]["config"]["mode"]


def test_a_slower_file_fails_the_gate(run_cli: Any, digits_dist: Path, tmp_path: Path) -> None:
    fast = tmp_path / "result.json"
    done = run_cli("bench", digits_dist / "shufflenet_v2_x0_5-fp32.onnx", *QUICK, "--out", fast)
    assert done.status in FINE
    document = json.loads(fast.read_text())
    for entry in document["benchmarks"][0]["rounds"]:
        entry["median_ns"] *= 20
    slow = tmp_path / "slow.json"
    slow.write_text(json.dumps(document))
    done = run_cli("compare", fast, slow, "--tolerance", "3%", "--json")
    assert (5, "fail", "unpaired") == (
        done.status,
        *(done.document["comparisons"][0][key] for key in ("verdict", "mode")),
    )
    done = run_cli("compare", fast, slow)
    assert 0 == done.status
    assert "separate processes" in done.stdout
    document["benchmarks"][0]["config"]["threads"] = 2
    slow.write_text(json.dumps(document))
    done = run_cli("compare", fast, slow)
    assert 3 == done.status
    assert "different numbers of threads" in done.stderr


def test_a_stored_baseline_of_another_runner_is_refused_and_what_was_measured_is_kept(
    run_cli: Any, digits_dist: Path, tmp_path: Path
) -> None:
    stored, out = tmp_path / "stored.json", tmp_path / "out.json"
    onnx, tflite = (digits_dist / f"shufflenet_v2_x0_5-fp32.{kind}" for kind in ("onnx", "tflite"))
    assert run_cli("bench", onnx, *QUICK, "--out", stored).status in FINE
    done = run_cli("bench", tflite, *QUICK, "--baseline", stored, "--out", out)
    assert 3 == done.status
    assert "different runners" in done.stderr
    assert 6 == len(read_suite(out).benchmarks[0].rounds)


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (("--runtime", "coreml-reference"), 2, "not timed"),
        (("--runtime", "litert"), 2, "does not run"),
        (("--affinity", "99999"), 2, "core 99999"),
        (("--device", "toaster"), 2, "no device"),
        (("--tolerance", "3%"), 2, "needs a baseline"),
        (("--mode", "paired"), 2, "no pair"),
        (("--threads", "0"), 2, "threads"),
        (("--runner", "x"), 2, "phones"),
        (("--runtime", "litert-c"), 2, "does not run"),
        (("--runtime", "litert-c", "--runner", "x", "--runner", "y"), 2, "a runner on this machine is one"),
        (("--accelerator", "gpu"), 2, "gpu"),
        (("--out", "no/such/folder.json"), 3, "does not exist"),
        (("--plot", "figure.gif"), 2, "not written as '.gif'"),
        (("--plot", "no/such/figure.png"), 2, "does not exist"),
        (("--baseline", "missing.onnx"), 3, "does not exist"),
        (("--baseline", "missing.json"), 3, "cannot be read"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    run_cli: Any, digits_dist: Path, options: tuple[str, ...], status: int, says: str
) -> None:
    done = run_cli("bench", digits_dist / "shufflenet_v2_x0_5-fp32.onnx", *options, "--json")
    assert status == done.status
    assert says in done.document["error"]["message"]
    assert "Traceback" not in done.stderr


def test_a_figure_without_matplotlib_is_refused_before_anything_is_measured(
    run_cli: Any, tmp_path: Path
) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    figure = tmp_path / "figure.png"
    done = run_cli("bench", tmp_path / "none.onnx", "--plot", figure, env={"PYTHONPATH": paths})
    assert 8 == done.status
    assert "shufflectl[plot]" in done.stderr


def test_our_own_runner_measures_here(
    run_cli: Any, digits_dist: Path, own_runner: Path, tmp_path: Path
) -> None:
    file, out = digits_dist / "shufflenet_v2_x0_5-fp32.tflite", tmp_path / "result.json"
    env = {"SHUFFLECTL_CACHE": str(tmp_path / "cache")}
    words = ("bench", file, "--runtime", "litert-c", *QUICK)
    missing = run_cli(*words, env=env)
    assert 7 == missing.status
    assert "shufflectl runner build" in missing.stderr
    done = run_cli(*words, "--runner", own_runner, "--runtime", "litert", "--out", out, env=env)
    assert done.status in FINE, done.stderr
    ours, theirs = read_suite(out).benchmarks
    assert (digest(own_runner), theirs.runner.version) == (ours.runner.sha256, ours.runner.version)
    for entry in ours.rounds:
        assert len(entry.samples_ns) >= 30
        assert entry.first_ns == entry.warmup_ns[0]
        assert 0 < (entry.init_ns or 0) < 10_000_000_000
        assert 5e6 < (entry.peak_rss_bytes or 0) < 150e6
        assert theirs.rounds[0].delegation == entry.delegation
    assert "litert-c" in done.stdout
    assert 0 == run_cli("runner", "add", "mine", own_runner, env=env).status
    paired = run_cli(*words, "--baseline", file, "--tolerance", "900%", "--threads", "2", "--json", env=env)
    assert 0 == paired.status, paired.stderr
    (comparison,) = paired.document["comparisons"]
    assert ("paired", "pass", 6) == tuple(comparison[key] for key in ("mode", "verdict", "rounds"))
    assert paired.document["overhead"] is not None


def interrupted(*argv: str | Path, whole_group: bool) -> Any:
    """Call bench, and interrupt it while its fourth process runs; as a terminal does, or bench alone."""
    options = ("--rounds", "200", *QUICK[2:], "--verbose")
    process = subprocess.Popen(
        [sys.executable, "-m", "shufflectl", "bench", *map(str, argv), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert process.stderr is not None
    try:
        started = 0
        for line in process.stderr:
            started += "round_worker.py" in line
            if started == 4:
                break
        send, to = (os.killpg, process.pid) if whole_group else (os.kill, process.pid)
        send(to, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out, err


def test_ctrl_c_keeps_the_rounds_that_have_ended(run_cli: Any, digits_dist: Path, tmp_path: Path) -> None:
    file, out = digits_dist / "shufflenet_v2_x0_5-fp32.onnx", tmp_path / "r.json"
    status, shown, said = interrupted(file, "--out", out, whole_group=True)
    assert 130 == status, said
    suite = read_suite(out)
    (benchmark,) = suite.benchmarks
    assert suite.interrupted
    assert 3 <= len(benchmark.rounds) < 200
    assert all(entry.valid and len(entry.samples_ns) for entry in benchmark.rounds)
    assert "unstable" == benchmark.status
    assert "interrupted" in shown
    assert f"interrupted: {len(benchmark.rounds)} rounds had ended, and are in {out}" in said
    assert [out] == list(tmp_path.iterdir())
    done = run_cli("report", out, "--html", tmp_path / "r.html")
    assert 0 == done.status
    assert "1 of the measurements interrupted" in done.stdout


def test_ctrl_c_without_a_file_says_how_much_is_lost(digits_dist: Path) -> None:
    status, shown, said = interrupted(digits_dist / "shufflenet_v2_x0_5-fp32.onnx", whole_group=False)
    assert 130 == status, said
    assert "median ms" in shown
    assert re.search(r"interrupted: \d+ rounds had ended, and their runs are lost", said)
    assert "--out" in said


def test_formats_do_not_pair(run_cli: Any, digits_dist: Path) -> None:
    onnx, tflite = (digits_dist / f"shufflenet_v2_x0_5-fp32.{kind}" for kind in ("onnx", "tflite"))
    done = run_cli("bench", tflite, "--baseline", onnx)
    assert 2 == done.status
    assert "different runtimes" in done.stderr


def test_core_ml_is_not_on_this_platform(run_cli: Any, digits_dist: Path) -> None:
    import platform

    if platform.system() == "Darwin":
        pytest.skip("this platform has Core ML")
    done = run_cli("bench", digits_dist / "shufflenet_v2_x0_5-fp32.mlpackage")
    assert 7 == done.status
    assert "macOS only" in done.stderr
