"""Rounds on a phone, with the real adb client: what a runner left is read, what spoils a round is seen."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shufflectl.benchmarks.android import AndroidExecutor, AndroidOptions, Cooling, open_executor, store
from shufflectl.benchmarks.executor import Job
from shufflectl.benchmarks.results import Delegation, Warmup, read_suite
from shufflectl.errors import (
    ArtifactError,
    DeviceError,
    DeviceLostError,
    ShufflectlError,
    UnavailableError,
    UnstableError,
    UsageError,
)
from support.adb_daemon import Daemon, Phone, program
from support.adb_server import WAITS, AdbServer
from support.tflite_files import Op, tflite_bytes

pytestmark = pytest.mark.integration

COOLING = Cooling(seconds=0.3, poll=0.05)
QUICK = replace(WAITS, command=3, slack=2, transfer=3, farewell=3)
GOOD = """
echo "Replacing 31 out of 31 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 1 partitions for x."
echo "count=9 first=99 curr=9 min=9 max=99 avg=20 std=9 p5=9 median=9 p95=99"
echo "count=50 first=8622 curr=8726 min=8268 max=9464 avg=8708.66 std=193 p5=8407 median=8705 p95=8982"
echo "Inference timings in us: Init: 355447, First inference: 45401, Warmup (avg): 9, Inference (avg): 8"
"""
ALL = "# Inference timings in us: \n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "it's a $(model).tflite"
    path.write_bytes(b"TFL3" * 1000)
    return path


@pytest.fixture
def opened(adb_server: AdbServer, daemon: Daemon, tmp_path: Path) -> Callable[..., AndroidExecutor]:
    """Make an executor whose runner is a script."""

    def make(script: str = GOOD, **options: Any) -> AndroidExecutor:
        path = tmp_path / "benchmark_model"
        path.write_bytes(program(ALL + script))
        settings = AndroidOptions(**{"cooling": COOLING, "timeout": 20, **options})
        return open_executor(daemon.serial, str(path), options=settings, client=adb_server.client(QUICK))

    return make


def job(*models: Path, **changes: Any) -> Job:
    settings: dict[str, Any] = {"block": 0, "seed": 1, "warmup": Warmup(), "min_iterations": 50}
    return Job(artifacts=models, min_seconds=0.5, **{**settings, **changes})


def gone(daemon: Daemon) -> bool:
    deadline = time.monotonic() + 10
    while daemon.phone.left and time.monotonic() < deadline:
        time.sleep(0.02)
    return daemon.phone.left == []


def test_a_round_is_measured(opened: Callable[..., AndroidExecutor], daemon: Daemon, model: Path) -> None:
    executor = opened()
    with executor.open([model]):
        executor.settle()
        (measured,) = executor.run(job(model, threads=4))
    assert (8_705_000.0, "") == (measured.median_ns, measured.spoiled)
    assert Delegation("xnnpack", 31, 31, 1) == measured.delegation
    assert measured.before is not None
    assert (0, 31.5, 80.0) == (
        measured.before.thermal_status,
        measured.before.temperatures["SKIN"],
        measured.before.battery_percent,
    )
    assert gone(daemon)


def test_a_result_names_the_phone_and_the_runner(opened: Callable[..., AndroidExecutor], model: Path) -> None:
    executor = opened()
    with executor.open([model]):
        executor.run(job(model))
    target, runner = executor.target, executor.runner
    assert ("android", "Maker Phone 9", "Chips C1000", 34, "arm64-v8a", 8) == (
        target.kind,
        target.model,
        target.soc,
        target.sdk,
        target.abi,
        target.cores,
    )
    assert (16, 64, "tflite") == (len(target.serial_hash), len(runner.sha256), runner.name)
    assert ("./runner", "--graph=model0.tflite") == runner.argv[:2]


def test_a_runner_that_is_not_named_is_the_only_one_that_the_phone_runs(
    adb_server: AdbServer, daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHUFFLECTL_CACHE", str(tmp_path / "cache"))

    def chosen() -> str:
        executor = open_executor(daemon.serial, None, client=adb_server.client(QUICK))
        return executor.runner.sha256

    def add(name: str, machine: int) -> str:
        path = tmp_path / name
        path.write_bytes(program(f"{ALL}# {name}", machine=machine))
        return store.add(name, str(path)).sha256

    with pytest.raises(UsageError, match="no program is there") as empty:
        chosen()
    assert "shufflectl runner build" in empty.value.hint
    assert "shufflectl runner add" in empty.value.hint
    add("for-a-computer", 62)
    with pytest.raises(UsageError, match=r"which runs arm64-v8a.*for-a-computer \(x86_64\)"):
        chosen()
    assert add("for-phones", 183) == chosen()
    add("another", 183)
    with pytest.raises(UsageError, match="which program") as several:
        chosen()
    assert "another, for-phones" in several.value.hint


class Fever:
    """Makes a phone hot when a runner starts, and cool again at the second look after it.

    The first look is at what the round was like, the second at whether the next one may begin.
    """

    def __init__(self, phone: Phone, heat: Callable[[], None], cool: Callable[[], None]) -> None:
        self.start, self.heat, self.cool = phone.start, heat, cool
        self.looks = 0
        phone.start = self  # type: ignore[method-assign, assignment]

    def __call__(self, command: str) -> Any:
        if "--graph" in command:
            self.heat()
            self.looks = 0
        elif "thermalservice" in command:
            self.looks += 1
            if self.looks == 2:
                self.cool()
        return self.start(command)


@pytest.mark.parametrize("fault", ["hot", "capped"])
def test_a_phone_that_spoils_every_round_is_reported_unstable(
    adb_server: AdbServer, daemon: Daemon, tmp_path: Path, run_cli: Any, fault: str
) -> None:
    phone = daemon.phone
    heat, cool, words = {
        "hot": (lambda: phone.thermal(3), phone.thermal, "the phone is hot (thermal status severe)"),
        "capped": (
            lambda: phone.clock(7, 2_800_000, cap=900_000),
            lambda: phone.clock(7, 2_800_000),
            "core 7 is capped to 900 MHz of 2800 MHz",
        ),
    }[fault]
    Fever(phone, heat, cool)
    tool, file, shape = tmp_path / "benchmark_model", tmp_path / "m.tflite", [1, 8, 8, 3]
    tool.write_bytes(program(ALL + GOOD))
    file.write_bytes(tflite_bytes([Op("ABS", ["x"], ["y"])], {"x": shape, "y": shape}, outputs=["y"]))
    argv = ("bench", file, "--device", f"android:{daemon.serial}", "--runner", tool, "--rounds", "2")
    done = run_cli(*argv, "--out", tmp_path / "result.json", env=adb_server.env)
    assert 6 == done.status, done.stderr
    assert words in " ".join(done.stderr.split())
    (benchmark,) = read_suite(tmp_path / "result.json").benchmarks
    assert ("unstable", (words,)) == (benchmark.status, benchmark.reasons)
    assert [(False, words)] * 8 == [(entry.valid, entry.reason) for entry in benchmark.rounds]
    assert benchmark.summary is None
    assert gone(daemon)


@pytest.mark.parametrize(
    ("affinity", "threads", "masks"), [("big", 1, ["f0"]), ("4,5", 1, ["30"]), ("", 1, []), ("none", 1, [])]
)
def test_a_round_runs_on_the_cores_that_were_asked_for(
    opened: Callable[..., AndroidExecutor],
    daemon: Daemon,
    model: Path,
    affinity: str,
    threads: int,
    masks: list[str],
) -> None:
    executor = opened()
    with executor.open([model]):
        executor.run(job(model, affinity=affinity, threads=threads))
    log = daemon.phone.root / "etc/taskset.log"
    assert set(masks) == set(log.read_text().split() if log.exists() else [])


def test_cores_that_the_system_takes_away_in_silence_are_an_error(
    opened: Callable[..., AndroidExecutor], daemon: Daemon, model: Path
) -> None:
    daemon.phone.put("etc/cpuset", "30\n")
    executor = opened()
    with pytest.raises(DeviceError, match="cores 4, 5 instead of 4, 5, 6, 7"), executor.open([model]):
        executor.run(job(model, affinity="big"))
    assert gone(daemon)


class TestHeat:
    """A hot or capped phone spoils a round, and is waited for."""

    def test_before_anything_is_measured(
        self, opened: Callable[..., AndroidExecutor], daemon: Daemon, model: Path
    ) -> None:
        daemon.phone.thermal(1)
        with pytest.raises(UnstableError, match=r"did not get ready .*thermal status light"):
            opened().open([model]).__enter__()
        assert gone(daemon)

    @pytest.mark.parametrize(
        ("heat", "words"),
        [
            (lambda phone: phone.thermal(2), "thermal status moderate"),
            (lambda phone: phone.clock(7, 2_800_000, cap=1_747_200), "core 7 is capped to 1747 MHz of 2800"),
        ],
    )
    def test_between_rounds(
        self,
        opened: Callable[..., AndroidExecutor],
        daemon: Daemon,
        model: Path,
        heat: Callable[[Phone], None],
        words: str,
    ) -> None:
        executor = opened()
        with executor.open([model]):
            heat(daemon.phone)
            with pytest.raises(UnstableError, match=words):
                executor.run(job(model))
        assert gone(daemon)

    @pytest.mark.parametrize(
        ("script", "words"),
        [
            ('sed -i "s/Status: 0/Status: 3/" "$PHONE/etc/dumpsys.thermalservice"\n', "severe"),
            (
                'echo 900000 > "$PHONE/sys/devices/system/cpu/cpu4/cpufreq/scaling_max_freq"\n',
                "core 4 is capped",
            ),
        ],
    )
    def test_in_a_round(
        self, opened: Callable[..., AndroidExecutor], model: Path, script: str, words: str
    ) -> None:
        executor = opened(script + GOOD)
        with executor.open([model]):
            (measured,) = executor.run(job(model))
        assert words in measured.spoiled
        assert 8_705_000.0 == measured.median_ns

    def test_a_cap_on_cores_that_are_not_measured_does_not_count(
        self, opened: Callable[..., AndroidExecutor], daemon: Daemon, model: Path
    ) -> None:
        executor = opened()
        with executor.open([model]):
            daemon.phone.clock(0, 1_800_000, cap=1_000_000)
            (measured,) = executor.run(job(model, affinity="big"))
        assert "" == measured.spoiled

    def test_a_warm_phone_is_waited_for(
        self, opened: Callable[..., AndroidExecutor], daemon: Daemon, model: Path
    ) -> None:
        executor = opened(cooling=Cooling(seconds=10, poll=0.05))
        with executor.open([model]):
            daemon.phone.thermal(skin=41.0)
            threading.Timer(0.5, daemon.phone.thermal).start()
            begun = time.monotonic()
            executor.settle()
        assert time.monotonic() - begun >= 0.4

    def test_a_phone_that_stays_warm_is_unstable(
        self, opened: Callable[..., AndroidExecutor], daemon: Daemon, model: Path
    ) -> None:
        executor = opened()
        with executor.open([model]):
            daemon.phone.thermal(skin=41.0)
            with pytest.raises(UnstableError, match=r"SKIN is at 41\.0 °C, the limit is 38 °C"):
                executor.settle()


class TestFaults:
    """What a phone or a runner does wrong is a sentence with a hint, and the folder is gone."""

    @pytest.mark.parametrize(
        ("script", "accelerator", "kind", "words"),
        [
            ("kill -9 $$", "cpu", DeviceError, "killed the tflite runner"),
            ("head -c 3000 /dev/urandom", "cpu", UnavailableError, "no line 'Inference timings"),
            ("", "cpu", UnavailableError, "no line 'Inference timings"),
            (
                "echo 'WARN: Unconsumed cmdline flags: --num_runs=50'\n" + GOOD,
                "cpu",
                UnavailableError,
                "ignored",
            ),
            ("echo 'ERROR: Failed to load model' >&2; exit 1", "cpu", ArtifactError, "Failed to load model"),
            (GOOD, "gpu", UnavailableError, "does not say that the accelerator"),
            ("echo 'Failed to apply GPU delegate.'\n" + GOOD, "gpu", UnavailableError, "Failed to apply GPU"),
            (GOOD.replace("XNNPack", "Gpu").replace("31 out", "7 out"), "gpu", UnavailableError, "7 of 31"),
            ("yes 'too much'", "cpu", DeviceError, "printed more than"),
        ],
    )
    def test_a_runner(
        self,
        opened: Callable[..., AndroidExecutor],
        daemon: Daemon,
        model: Path,
        script: str,
        accelerator: str,
        kind: type[ShufflectlError],
        words: str,
    ) -> None:
        executor = opened(script)
        with pytest.raises(kind, match=words) as caught, executor.open([model]):
            executor.run(job(model, accelerator=accelerator))
        assert kind is type(caught.value)
        assert caught.value.hint
        assert gone(daemon)

    def test_a_runner_that_hangs(
        self, opened: Callable[..., AndroidExecutor], daemon: Daemon, model: Path
    ) -> None:
        executor = opened("sleep 49", timeout=1)
        with pytest.raises(DeviceError, match="did not end within 1 s"), executor.open([model]):
            executor.run(job(model))
        assert gone(daemon)

    def test_a_cable_that_is_pulled_in_a_round(
        self, opened: Callable[..., AndroidExecutor], daemon: Daemon, model: Path
    ) -> None:
        executor = opened("sleep 49")
        daemon.faults.drop = "--graph"
        with pytest.raises(DeviceLostError), executor.open([model]):
            executor.run(job(model))
        assert gone(daemon)

    def test_a_cable_that_is_pulled_between_rounds(
        self, opened: Callable[..., AndroidExecutor], daemon: Daemon, model: Path
    ) -> None:
        executor = opened()

        def pull() -> None:
            executor.run(job(model))
            daemon.break_connections()
            assert gone(daemon)
            executor.run(job(model))

        with pytest.raises(DeviceLostError, match="lost"), executor.open([model]):
            pull()

    @pytest.mark.parametrize(
        ("spoil", "kind", "words"),
        [
            (lambda d: d.phone.battery(5), UnstableError, "battery is at 5 %"),
            (lambda d: d.phone.thermal(override=True), UnstableError, "fixed by hand"),
            (lambda d: setattr(d.faults, "no_space", True), DeviceError, "storage is full"),
            (lambda d: setattr(d.faults, "corrupt", True), DeviceError, "as something else"),
            (
                lambda d: d.phone.put("etc/df", "F B U A\n/dev 9 9 0 100% /data\n"),
                DeviceError,
                "free on /data",
            ),
            (
                lambda d: d.phone.put("etc/getprop", "[ro.product.cpu.abilist]: [x86_64]\n"),
                DeviceError,
                "for arm64-v8a, and",
            ),
        ],
    )
    def test_a_phone(
        self,
        opened: Callable[..., AndroidExecutor],
        daemon: Daemon,
        model: Path,
        spoil: Callable[[Daemon], object],
        kind: type[ShufflectlError],
        words: str,
    ) -> None:
        executor = opened()
        spoil(daemon)
        with pytest.raises(kind, match=words) as caught:
            executor.open([model]).__enter__()
        assert kind is type(caught.value)
        assert gone(daemon)

    def test_a_fixed_performance_mode_that_does_nothing(
        self, opened: Callable[..., AndroidExecutor], daemon: Daemon, model: Path
    ) -> None:
        with pytest.raises(DeviceError, match="no clock's limits moved"):
            opened(fixed_performance=True).open([model]).__enter__()
        assert gone(daemon)
        assert "enabled false" in (daemon.phone.root / "etc/cmd.log").read_text()

    def test_files_that_the_runner_does_not_take(
        self, opened: Callable[..., AndroidExecutor], daemon: Daemon, tmp_path: Path
    ) -> None:
        onnx = tmp_path / "a.onnx"
        onnx.write_bytes(b"x")
        for path in (onnx, tmp_path / "missing.tflite"):
            with pytest.raises(ArtifactError):
                opened().open([path]).__enter__()
        assert gone(daemon)

    def test_a_job_that_the_runner_cannot_do(
        self, opened: Callable[..., AndroidExecutor], model: Path
    ) -> None:
        executor = opened()
        with executor.open([model]):
            with pytest.raises(UsageError, match="does not run on 'npu'"):
                executor.run(job(model, accelerator="npu"))
            with pytest.raises(UsageError, match="holds one model"):
                executor.run(job(model, model))
            with pytest.raises(UsageError, match="no list of cores"):
                executor.run(job(model, affinity="small"))
