"""Tuning over an executor that runs nothing: what is raced, proved, chosen and written."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from shufflectl.benchmarks import android
from shufflectl.benchmarks.bench import Device
from shufflectl.benchmarks.executor import Job, Measured
from shufflectl.benchmarks.results import RunnerInfo, Target
from shufflectl.benchmarks.tune import TuneOptions, parse_budget, tune
from shufflectl.console import Output
from shufflectl.converters.quantize.recipe import Recipe
from shufflectl.converters.rewrite.choose import Candidate, candidates
from shufflectl.deploy import forms
from shufflectl.deploy.calibration_options import CalibrationOptions
from shufflectl.deploy.digests import digest
from shufflectl.deploy.export import export
from shufflectl.deploy.options import ExportRequest, ParityOptions
from shufflectl.deploy.tuning import Tuning
from shufflectl.errors import InputError, UnavailableError, UnstableError, UsageError
from shufflectl.render.tuning import tuned
from support.fake_executor import FakeExecutor
from support.nets import tiny_graph

PHONE = Target("android", model="Example Phone 8", soc="SoC 1", serial_hash="ab" * 8, cores=8)
FACTORY: dict[str, Any] = {"model": "support.nets:tiny_v2", "inputs": ["image=1x3x32x32"]}


@pytest.fixture(autouse=True)
def few_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Race five forms in place of twenty: native, the default, and these."""

    def few(target: str, precision: str) -> tuple[Candidate, ...]:
        return tuple(c for c in candidates(target, precision) if c.form in ("rank4", "gather", "conv"))

    monkeypatch.setattr(forms, "candidates", few)


@cache
def speed(sha256: str) -> int:
    """Return the time of a file in ns, as good as drawn by lot: 1 to 2 ms."""
    return 1_000_000 + int(sha256[:8], 16) % 1_000_000


def by_lot(job: Job) -> list[Measured]:
    return [
        Measured(samples_ns=(speed(digest(path)) // job.threads,) * 5, measured_s=0.0)
        for path in job.artifacts
    ]


def gather_is_fast(job: Job) -> list[Measured]:
    """Return the times of a runtime that gathers twice as fast as it does anything else."""
    gathers = [any(n.op_type == "Gather" for n in onnx.load(path).graph.node) for path in job.artifacts]
    return [Measured(samples_ns=(1000 if fast else 2000,) * 5, measured_s=0.0) for fast in gathers]


def alike(job: Job) -> list[Measured]:
    return [Measured(samples_ns=(1000 + job.seed % 3,) * 5, measured_s=0.0) for _ in job.artifacts]


def request(target: str = "onnx", precision: str = "fp32", **changes: Any) -> ExportRequest:
    given = {
        **FACTORY,
        "targets": [target],
        "precisions": [precision],
        "batch": "1",
        "layout": "nchw",
        "parity": ParityOptions(images=1, random_images=1),
    }
    return ExportRequest.parse(**{**given, **changes})


def executor(
    answer: Callable[[Job], Sequence[Measured]] = by_lot, *, name: str = "fake", can_pair: bool = True
) -> FakeExecutor:
    made = FakeExecutor(answer)
    made.runner = RunnerInfo(name, "1", can_pair=can_pair)
    return made


def raced(place: FakeExecutor, wanted: ExportRequest, **options: Any) -> dict[str, Any]:
    """Return the document of a tuning, which export takes."""
    found = tune(wanted, TuneOptions(**options), lambda *_: None, executor=place)
    document = found.to_json()
    Tuning.from_json(document, "t.json")
    return document


def fastest(race: dict[str, Any]) -> str:
    """Return the form whose file takes least time, of those that were measured."""
    native, *others = race["candidates"]
    measured = [native, *(entry for entry in others if entry["ratios"])]
    return str(min(measured, key=lambda entry: speed(entry["sha256"]))["name"])


def test_every_number_of_threads_has_a_race_and_the_fastest_of_all_is_chosen() -> None:
    place = executor()
    document = raced(place, request(), threads=(1, 2))
    assert {1, 2} == {job.threads for job in place.jobs}
    assert [1, 2] == [race["threads"] for race in document["races"]]
    assert 1 == document["chosen"]
    for race in document["races"]:
        assert fastest(race) == race["winner"]
        assert race["choice"]["threads"] == race["threads"]
    first, second = (race["choice_ns"] for race in document["races"])
    assert second == pytest.approx(first / 2, abs=1)


def test_the_winner_is_proved_in_rounds_of_its_own_and_is_what_export_takes() -> None:
    document = raced(executor(gather_is_fast), request())
    (race,) = document["races"]
    winner = next(entry for entry in race["candidates"] if entry["name"] == race["winner"])
    assert "gather, nchw" == winner["name"]
    assert [("native", "winner"), ("auto", "winner"), ("native", "auto")] == [
        (proof["baseline"], proof["candidate"]) for proof in race["proofs"]
    ]
    assert [[0.5] * 12, [0.5] * 12, [1.0] * 12] == [proof["ratios"] for proof in race["proofs"]]
    choice = Tuning.from_json(document, "t.json").choice
    assert (True, winner["sha256"], "gather") == (choice.tuned, choice.sha256, choice.candidate.form)
    assert "gather, nchw takes 0.500 (0.500 to 0.500) of the default's time" in choice.why


def test_where_nothing_is_shown_to_be_faster_the_default_stays() -> None:
    (race,) = raced(executor(alike), request())["races"]
    assert not race["choice"]["tuned"]
    auto = next(entry for entry in race["candidates"] if entry["name"] == race["auto"])
    assert auto["sha256"] == race["choice"]["sha256"]
    assert "stays" in race["choice"]["why"] or "is the fastest form found" in race["choice"]["why"]


def test_a_runner_that_holds_one_model_compares_processes() -> None:
    place = executor(can_pair=False)
    document = raced(place, request())
    assert {1} == {len(job.artifacts) for job in place.jobs}
    assert "absolute" == document["config"]["mode"]
    assert {"unpaired"} == {proof["mode"] for proof in document["races"][0]["proofs"]}


def test_half_precision_is_held_against_the_same_model() -> None:
    document = raced(executor(), request("tflite", "fp16", layout="nhwc"))
    assert ("tflite", "fp16", "fp16") == (
        document["target"],
        document["precision"],
        document["config"]["precision"],
    )
    errors = [entry["max_rel"] for entry in document["races"][0]["candidates"] if entry["sha256"]]
    assert len(errors) > 3
    assert all(1e-6 < error < 0.05 for error in errors)


@pytest.mark.parametrize(("target", "layout"), [("onnx", "nchw"), ("tflite", "nhwc")])
def test_int8_is_calibrated_once_compared_and_what_export_takes(
    tmp_path: Path, target: str, layout: str
) -> None:
    pictures = tmp_path / "noise.npz"
    np.savez(pictures, image=np.random.default_rng(0).standard_normal((16, 3, 32, 32), np.float32))
    calibration = CalibrationOptions(str(pictures), images=16)
    wanted = request(target, "int8", layout=layout, calibration=calibration)
    found = tune(wanted, TuneOptions(), lambda *_: None, executor=executor())
    document = found.to_json()
    assert ("int8", "int8") == (document["precision"], document["config"]["precision"])
    assert document["calibration"] == hashlib.sha256(found.calibration or b"").hexdigest()
    written = [entry for entry in document["races"][0]["candidates"] if entry["sha256"]]
    assert len(written) > 3
    assert all(entry["sqnr"] > 15 for entry in written)
    tuning = Tuning.from_json(document, "t.json")
    again = replace(wanted, tunings=(tuning,), out=tmp_path / "dist", layout=None)
    result = export(again)
    assert result.passed
    assert [document["races"][0]["choice"]["sha256"]] == [entry.sha256 for entry in result.results]
    other = replace(again, calibration=replace(calibration, recipe=Recipe(equalise=0)), out=tmp_path / "no")
    with pytest.raises(InputError, match="was measured with the calibration"):
        export(other)
    assert not (tmp_path / "no").exists()


def test_core_ml_is_tuned_with_the_threads_that_it_chooses() -> None:
    place = executor(name="coreml")
    document = raced(place, request("coreml"))
    (race,) = document["races"]
    assert race["threads"] is race["choice"]["threads"] is document["config"]["threads"] is None
    assert fastest(race) == race["winner"]
    assert {".mlpackage"} == {path.suffix for job in place.jobs for path in job.artifacts}
    with pytest.raises(UsageError, match="coreml chooses its threads itself"):
        raced(place, request("coreml"), threads=(2,))


def test_an_onnx_file_is_tuned_and_its_inputs_are_recorded(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(tiny_graph().to_proto(), path)
    document = raced(executor(), request(model=str(path), inputs=[]))
    assert "net" == document["model"]
    shapes = [entry["shape"] for entry in document["inputs"]]
    assert [[1, 3, 32, 32]] == shapes
    assert fastest(document["races"][0]) == document["races"][0]["winner"]


def test_what_files_take_is_recorded() -> None:
    changes = {"preprocess": "imagenet", "fold_preprocess": True, "input_type": "uint8"}
    document = raced(executor(), request(**changes))
    assert (True, "uint8", None, []) == tuple(
        document[key] for key in ("fold_preprocess", "input_type", "output_stride", "features")
    )


def test_a_phone_is_named_in_the_file_and_on_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    place = executor(name="litert")
    place.target = PHONE
    found = tune(request(), TuneOptions(device=Device("android")), lambda *_: None, executor=place)
    document = found.to_json()
    assert ("android", "Example Phone 8") == (document["device"]["kind"], document["device"]["model"])
    assert "Example Phone 8" == Tuning.from_json(document, "t.json").device
    tuned(Output(), found, document, Path("t.json"))
    assert "run with litert 1 on Example Phone 8" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("runner", "opened"), [(None, "litert"), ("mine", "mine")])
def test_a_phone_is_opened_with_the_runner_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, runner: str | None, opened: str
) -> None:
    calls = []

    def open_executor(serial: str | None, name: str) -> FakeExecutor:
        calls.append((serial, name))
        raise UnavailableError("no phone")

    monkeypatch.setattr(android, "open_executor", open_executor)
    options = TuneOptions(device=Device("android", "emulator-5554"), runner=runner)
    with pytest.raises(UnavailableError, match="no phone"):
        tune(request(), options, lambda *_: None)
    assert [("emulator-5554", opened)] == calls


def test_a_device_that_is_lost_ends_the_race() -> None:
    def lost(job: Job) -> list[Measured]:
        if job.block or len(place.jobs) > 5:
            raise UnavailableError("unplugged")
        return by_lot(job)

    place = executor(lost)
    with pytest.raises(UnavailableError, match="unplugged"):
        raced(place, request())
    assert not place.is_open


def test_an_interrupt_ends_the_race() -> None:
    def interrupted(job: Job) -> list[Measured]:
        if len(place.jobs) > 5:
            raise KeyboardInterrupt
        return by_lot(job)

    place = executor(interrupted)
    with pytest.raises(KeyboardInterrupt):
        raced(place, request())


def test_without_time_nothing_is_chosen() -> None:
    with pytest.raises(UnstableError, match="no form could be measured"):
        raced(executor(), request(), budget_s=1e-6)


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        ({"targets": ["onnx", "tflite"], "layout": None}, {}, "one target"),
        ({"precisions": ["fp32", "fp16"]}, {}, "one target and one precision"),
        ({"batch": "dynamic"}, {}, "no one time"),
        ({}, {"affinity": "0,0"}, "twice"),
    ],
)
def test_what_cannot_be_tuned_is_refused(changes: dict[str, Any], options: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        raced(executor(), request(**changes), **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"runner": "x"}, "for phones"),
        ({"accelerator": "gpu"}, "on the CPU"),
        ({"runtime": "litert"}, "does not run .onnx files"),
        ({"device": Device("android"), "runtime": "litert"}, "of this machine"),
    ],
)
def test_a_place_that_does_not_fit_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        tune(request(), TuneOptions(**options), lambda *_: None)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("3m", 180), ("1.5h", 5400), (" 2m ", 120)])
def test_budgets(text: str, seconds: float) -> None:
    assert seconds == parse_budget(text)


@pytest.mark.parametrize("text", ["", "3", "m", "0s", "-1m", "nanm", "infh", "9999h", "3 minutes"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(UsageError, match="no time to spend"):
        parse_budget(text)
