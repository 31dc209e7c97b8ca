"""Which files run where, and against what; without running any."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from shufflectl.benchmarks import android
from shufflectl.benchmarks import bench as module
from shufflectl.benchmarks.bench import BenchOptions, Device, bench
from shufflectl.benchmarks.compare import compare_suites
from shufflectl.benchmarks.options import in_order, parse_cores, parse_share, parse_threads
from shufflectl.benchmarks.report.page import render
from shufflectl.benchmarks.results import RunnerInfo, Suite, threads_in_words
from shufflectl.errors import ArtifactError, InputError, UsageError
from support.fake_executor import FakeExecutor, constant
from support.results import benchmark
from support.tflite_files import Op, tflite_bytes

PHONE = Device("android")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1,3,8,8] x) => (float[1,3,8,8] y) { y = Relu(x) }'
    )
    onnx.save(model, tmp_path / "m.onnx")
    shape = [1, 8, 8, 3]
    data = tflite_bytes([Op("ABS", ["x"], ["y"])], {"x": shape, "y": shape}, outputs=["y"])
    (tmp_path / "m.tflite").write_bytes(data)
    (tmp_path / "n.tflite").write_bytes(data)
    return tmp_path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The runners that were opened, of fake phones."""
    calls: list[tuple[Any, ...]] = []

    def open_executor(serial: str | None, runner: str | None, *, options: Any, notify: Any) -> FakeExecutor:
        calls.append((serial, runner, options.fixed_performance))
        notify("pushing")
        executor = FakeExecutor(constant)
        executor.runner = RunnerInfo(runner or "tflite", can_pair=runner == "shufflectl")
        return executor

    monkeypatch.setattr(android, "open_executor", open_executor)
    return calls


def run(*paths: Path, **options: Any) -> Any:
    return bench(paths, BenchOptions(**{"rounds": 6, "device": PHONE, **options}), lambda *_: None)


def test_a_runner_gets_the_files_that_it_takes(folder: Path, opened: list[Any]) -> None:
    found = run(folder, runners=("shufflectl", "onnxruntime"), fixed_performance=True)
    assert [("m.tflite", "shufflectl"), ("n.tflite", "shufflectl"), ("m.onnx", "onnxruntime")] == [
        (b.name, b.runner.name) for b in found.suite.benchmarks
    ]
    assert [(None, "shufflectl", True), (None, "onnxruntime", True)] == opened
    assert [("m.onnx", "no runner takes .onnx files")] == list(run(folder, runners=("tflite",)).skipped)


def test_a_file_that_was_named_is_never_left_out(folder: Path, opened: list[Any]) -> None:
    with pytest.raises(ArtifactError, match="no runner takes"):
        run(folder / "m.onnx", folder / "m.tflite", runners=("tflite",))
    with pytest.raises(UsageError, match="runs none"):
        run(folder / "m.onnx", runners=("onnxruntime", "tflite"))


def test_a_runner_that_holds_two_models_pairs_and_another_does_not(folder: Path, opened: list[Any]) -> None:
    files = (folder / "n.tflite",)
    for runner, mode in (("shufflectl", "paired"), ("tflite", "unpaired")):
        found = run(*files, runners=(runner,), baseline=folder / "m.tflite", tolerance=0.03)
        assert [mode] == [c.mode for c in found.suite.comparisons]
        assert ["pass"] == [c.verdict for c in found.suite.comparisons]
    with pytest.raises(UsageError, match="cannot hold two models"):
        run(*files, runners=("tflite",), baseline=folder / "m.tflite", mode="paired")


def test_a_runner_that_is_not_named_is_chosen_where_the_phone_is_known(
    folder: Path, opened: list[Any]
) -> None:
    run(folder / "m.tflite")
    assert [(None, None, False)] == opened


def test_a_serial_number_is_passed_on(folder: Path, opened: list[Any]) -> None:
    run(folder / "m.tflite", device=Device.parse("android:emulator-5554"), runners=("tflite",))
    assert "emulator-5554" == opened[0][0]


@pytest.mark.parametrize("text", ["", "phone", "android:", "local:", "local:x", "Android"])
def test_devices_that_do_not_exist(text: str) -> None:
    with pytest.raises(UsageError, match="no device"):
        Device.parse(text)


@pytest.mark.parametrize(("text", "share"), [("3%", 0.03), ("0.03", 0.03), (" 0 % ", 0.0), ("0", 0.0)])
def test_tolerances(text: str, share: float) -> None:
    assert share == pytest.approx(parse_share(text))


@pytest.mark.parametrize("text", ["", "%", "3%%", "3% x", "-1%", "nan", "inf", "1e9", "three"])
def test_what_is_no_tolerance(text: str) -> None:
    with pytest.raises(UsageError, match="no tolerance"):
        parse_share(text)


@pytest.mark.parametrize("text", ["", "0", "-1", "1,1", "1,", "1.5", "x", "1 2", "²", "99999999999"])
def test_what_is_no_number_of_threads(text: str) -> None:
    with pytest.raises(UsageError, match="thread"):
        parse_threads(text)
    assert (1, 4) == parse_threads("1, 4")


@pytest.mark.parametrize("text", [",", "0,", "-1", "0 1", "x", "0,big", "²", "9999999"])
def test_what_is_no_list_of_cores(text: str) -> None:
    with pytest.raises(UsageError, match="no list of cores"):
        parse_cores(text)


@pytest.mark.parametrize("text", ["0,0", "1,0,01"])
def test_a_core_that_is_named_twice_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="twice"):
        parse_cores(text)


def test_cores_are_held_in_rising_order_and_words_as_they_are() -> None:
    assert ("4,10", "4,10", "big", "none", "") == tuple(map(in_order, ("10,4", " 4, 10", "big", "none", "")))


def test_a_result_holds_the_cores_in_order_and_the_same_set_compares(folder: Path, opened: list[Any]) -> None:
    suites = [run(folder / "m.tflite", runners=("tflite",), affinity=text).suite for text in ("7,4", "4,7")]
    assert ["4,7", "4,7"] == [suite.benchmarks[0].config.affinity for suite in suites]
    assert 1 == len(compare_suites(*suites, None))


def test_a_runtime_that_chooses_its_threads_is_measured_once_and_has_none_recorded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(name: str, **_: Any) -> FakeExecutor:
        executor = FakeExecutor(constant)
        executor.runner = RunnerInfo("coreml" if name == "onnxruntime" else name, can_pair=True)
        return executor

    monkeypatch.setattr(module, "create", create)
    local: dict[str, Any] = {"device": Device(), "threads": (1, 2)}
    found = run(folder / "m.onnx", folder / "m.tflite", **local).suite
    assert [("coreml", None), ("litert", 1), ("litert", 2)] == [
        (b.runner.name, b.config.threads) for b in found.benchmarks
    ]
    alone = [run(folder / "m.onnx", device=Device()).suite for _ in range(2)]
    (comparison,) = compare_suites(*alone, None)
    assert comparison.threads is None
    with pytest.raises(UsageError, match="coreml chooses its threads itself"):
        run(folder / "m.onnx", **local)


def test_a_number_of_threads_is_not_the_choice_of_a_runtime() -> None:
    sides = [benchmark("a.onnx", 1e6) for _ in range(2)]
    chosen = replace(sides[0], config=replace(sides[0].config, threads=None))
    with pytest.raises(InputError, match="different numbers of threads: the runtime's choice and 2"):
        compare_suites(Suite("", "", (chosen,)), Suite("", "", (sides[1],)), None)


def test_what_nobody_chose_is_said_in_words_and_read_again() -> None:
    entry = benchmark("a.onnx", 1e6)
    result = Suite("", "", (replace(entry, config=replace(entry.config, threads=None)),))
    assert result == Suite.from_json(json.loads("".join(result.to_text())))
    assert "chosen by the runtime" in render([("r", result)])
    assert "threads chosen by the runtime" == threads_in_words(None)
    assert ("1 thread", "2 threads") == (threads_in_words(1), threads_in_words(2))
