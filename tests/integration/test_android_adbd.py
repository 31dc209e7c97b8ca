"""The whole path to a phone: the real adb client, a real device daemon (Debian's adbd), our runner in C.

The daemon that stands in for phones that fail is in `test_adb_devices`; here is one that is not ours.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shufflectl.benchmarks.results import read_suite
from shufflectl.benchmarks.runner import NAME, build, library
from shufflectl.deploy.digests import digest
from support.adbd import RealDevice
from support.runner import build_paced, require_compiler

pytestmark = pytest.mark.integration

# What the device layer does, as a program in the daemon's network namespace.
LAYER = """
import pathlib, sys
from shufflectl.deploy.devices import Adb, Workspace, find_device, require_tools
device = find_device(Adb.find(), sys.argv[1])
require_tools(device, ("taskset",))
with Workspace(device) as folder:
    def run(*argv, **more):
        ran = device.run(argv, timeout=more.pop("timeout", 20), folder=folder.path, **more)
        return ran.status, ran.stdout, ran.stderr, ran.timed_out
    print(repr(eval(pathlib.Path(sys.argv[2]).read_text())))
"""


@pytest.fixture
def layer(real_device: RealDevice, tmp_path: Path) -> Callable[[str], object]:
    """Evaluates an expression of ``device``, ``folder`` and ``run`` on the device."""

    def evaluate(expression: str) -> object:
        source = tmp_path / "expression"
        source.write_text(expression)
        done = real_device.call(sys.executable, "-c", LAYER, real_device.serial, source)
        assert 0 == done.returncode, done.stderr
        return eval(done.stdout)  # noqa: S307 - what the line above printed

    return evaluate


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_program_has_its_own_status_streams_words_and_cores(
    real_device: RealDevice, layer: Callable[[str], object]
) -> None:
    words = ["a b", "$HOME", "; reboot", "'\"", "*", "\\", "", "ü"]
    found = layer(
        "[run('sh', '-c', 'echo out; echo err >&2; exit 3'),"
        f" run('sh', '-c', 'for word in \"$@\"; do echo \"$word\"; done', 'sh', *{words!r}),"
        " run('grep', 'Cpus_allowed:', '/proc/self/status', cores=[0]),"
        " run('sleep', '60', timeout=1)[0::3]]"
    )
    assert [
        (3, "out\n", "err\n", False),
        (0, "".join(f"{word}\n" for word in words), "", False),
        (0, "Cpus_allowed:\t1\n", "", False),
        (137, True),
    ] == found
    assert [] == real_device.left()


def test_the_status_of_a_program_that_ends_at_once_is_its_own(layer: Callable[[str], object]) -> None:
    assert [7] * 10 == layer("[run('sh', '-c', 'exit 7')[0] for _ in range(10)]")


def test_files_go_there_and_come_back_whole(
    real_device: RealDevice, layer: Callable[[str], object], tmp_path: Path
) -> None:
    sent, back = tmp_path / 'it\'s a "file" $HOME.bin', tmp_path / "back.bin"
    sent.write_bytes(bytes(range(256)) * 4096)
    layer(
        f"(device.push(pathlib.Path({str(sent)!r}), folder.path + '/a file'),"
        f" device.pull(folder.path + '/a file', pathlib.Path({str(back)!r})))"
    )
    assert sent.read_bytes() == back.read_bytes()
    assert [] == real_device.left()


def sleeping(device: RealDevice) -> bool:
    return "sleep 600" in device.call("adb", "-s", device.serial, "shell", "ps -A -o ARGS").stdout


def test_nothing_is_left_after_a_client_that_was_killed(real_device: RealDevice, tmp_path: Path) -> None:
    source = tmp_path / "expression"
    source.write_text("run('sh', '-c', 'while :; do sleep 600 & sleep 0.01; done', timeout=600)")
    argv = real_device.inside([sys.executable, "-c", LAYER, real_device.serial, source])
    process = subprocess.Popen(argv, env=real_device.env)
    try:
        assert eventually(lambda: sleeping(real_device))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert eventually(lambda: [] == real_device.left())
    assert eventually(lambda: not sleeping(real_device))


def test_a_program_that_starts_while_the_folder_is_removed_is_ended_too(
    real_device: RealDevice, layer: Callable[[str], object]
) -> None:
    # A farewell is said between the first look at what runs in the folder and its removal.
    late = [
        "sh",
        "-c",
        "for folder in /data/local/tmp/shufflectl-*; do ( cd $folder || exit; sleep 600 & ) done",
    ]
    layer(f"Workspace(device, [{late}]).__enter__().__exit__(None, None, None)")
    assert not sleeping(real_device)
    assert [] == real_device.left()


def test_the_device_is_described(real_device: RealDevice) -> None:
    done = real_device.shufflectl("devices", "--json")
    assert 0 == done.returncode, done.stderr
    (found,) = json.loads(done.stdout)["devices"]
    assert (real_device.serial, "Debian adbd", True) == (found["serial"], found["model"], found["usable"])


PACE = 0.04
QUICK = ("--rounds", "2", "--min-seconds", "0.1", "--min-iterations", "20", "--max-warmup", "0.3")


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our runner, built for this machine, and LiteRT's library beside it."""
    require_compiler()
    path = tmp_path_factory.mktemp("runner") / NAME
    build(path)
    shutil.copy(library(), path.parent)
    return path


@pytest.fixture(scope="module")
def paced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, but that an inference takes `PACE` seconds, on a loaded machine too."""
    require_compiler()
    path = tmp_path_factory.mktemp("paced") / NAME
    build_paced(path, PACE)
    shutil.copy(library(), path.parent)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, run_cli: Any) -> Path:
    """What the README's first lines make."""
    out = tmp_path_factory.mktemp("exported") / "a folder's name"
    run = run_cli("export", "shufflenet_v2_x1_0", "--weights", "random:0", "--target", "tflite", "--out", out)
    assert 0 == run.status, run.stderr
    (path,) = out.glob("*.tflite")
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A cache of the user's own, empty."""
    return {"SHUFFLECTL_CACHE": str(tmp_path_factory.mktemp("cache"))}


def test_from_export_to_a_table_with_a_runner_of_the_cache(
    real_device: RealDevice, paced: Path, exported: Path, cache: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "result.json"
    words = ("bench", exported, "--device", "android")
    none = real_device.shufflectl(*words, env=cache)
    assert 2 == none.returncode
    for command in ("shufflectl runner build", "shufflectl runner add"):
        assert command in " ".join(none.stderr.split())
    added = real_device.shufflectl("runner", "add", "own", paced, "--library", library(), env=cache)
    assert 0 == added.returncode, added.stderr
    more = ("--rounds", "10", "--min-seconds", "0.25", "--max-warmup", "0.5", "--out", out)
    done = real_device.shufflectl(*words, *more, env={**cache, "COLUMNS": "160"})
    assert 0 == done.returncode, done.stderr
    (benchmark,) = read_suite(out).benchmarks
    assert ("ok", "android", "Debian adbd") == (
        benchmark.status,
        benchmark.target.kind,
        benchmark.target.model,
    )
    assert digest(paced) == benchmark.runner.sha256
    assert digest(exported) == benchmark.model.sha256
    assert benchmark.summary is not None
    assert pytest.approx(PACE * 1e9, rel=0.05) == benchmark.summary.median_ns
    assert benchmark.summary.interval_ns is not None
    low, high = (f"{end / 1e6:.4g}" for end in benchmark.summary.interval_ns)
    assert f"{low}-{high}" in done.stdout
    assert "95 % interval" in done.stdout
    rounds = [entry for entry in benchmark.rounds if entry.valid]
    assert 10 == len(rounds)
    for entry in rounds:
        assert 30 <= len(entry.samples_ns)
        assert entry.first_ns == entry.warmup_ns[0]
        assert 0 < (entry.peak_rss_bytes or 0) < 1 << 30
        assert entry.delegation is not None
        assert ("xnnpack", 1) == (entry.delegation.accelerator, entry.delegation.partitions)
        assert entry.delegation.replaced == entry.delegation.total
        assert entry.before is not None
        temperatures = set(entry.before.temperatures.values())
        assert {31.5, 41.0} <= temperatures
        assert 84.2 not in temperatures  # what Android remembers, not what it measures
    assert [] == real_device.left()


def test_two_files_take_turns_on_the_device(
    real_device: RealDevice, paced: Path, exported: Path, tmp_path: Path
) -> None:
    copy, out = tmp_path / 'it\'s "the same".tflite', tmp_path / "result.json"
    shutil.copy(exported, copy)
    done = real_device.shufflectl(
        *("bench", copy, "--baseline", exported, "--device", "android", "--runner", paced),
        *(*QUICK, "--rounds", "6", "--tolerance", "5%", "--out", out),
    )
    assert 0 == done.returncode, done.stderr
    (comparison,) = json.loads(out.read_text())["comparisons"]
    assert ("paired", "pass") == (comparison["mode"], comparison["verdict"])
    assert pytest.approx(1, abs=0.05) == comparison["ratio"]
    assert [] == real_device.left()


def test_a_damaged_file_is_an_error_and_leaves_nothing(
    real_device: RealDevice, runner: Path, exported: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.tflite"
    cut.write_bytes(exported.read_bytes()[:100_000])
    done = real_device.shufflectl("bench", cut, "--device", "android", "--runner", runner, *QUICK)
    assert 3 == done.returncode, done.stderr
    assert "cut.tflite" in done.stderr
    assert "Traceback" not in done.stderr
    assert [] == real_device.left()


def test_a_runner_without_its_library_says_so(
    real_device: RealDevice, runner: Path, exported: Path, tmp_path: Path
) -> None:
    alone = tmp_path / NAME
    shutil.copy(runner, alone)
    done = real_device.shufflectl("bench", exported, "--device", "android", "--runner", alone, *QUICK)
    assert 7 == done.returncode, done.stderr
    assert "libLiteRt.so" in done.stderr
    assert [] == real_device.left()
