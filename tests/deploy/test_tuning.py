"""The file that export takes, which may come from anywhere."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shufflectl.deploy.options import ExportRequest
from shufflectl.deploy.tuning import Source, Tuning, read_tuning
from shufflectl.errors import InputError, UsageError

DOCUMENT: dict[str, Any] = {
    "schema": "shufflectl.tuning/1",
    "created": "2026-01-31T12:00:00Z",
    "tool": "shufflectl 0.1.0",
    "model": "net",
    "weights": "random:0",
    "weights_sha256": "a" * 64,
    "inputs": [{"name": "image", "shape": [1, 3, 32, 32]}],
    "fold_preprocess": False,
    "input_type": "float",
    "output_stride": None,
    "features": [],
    "io": "float",
    "calibration": "",
    "target": "onnx",
    "precision": "fp32",
    "device": {
        "kind": "local",
        "model": "",
        "soc": "",
        "sdk": None,
        "abi": "",
        "fingerprint": "",
        "serial_hash": "",
        "os": "",
        "cpu": "Example CPU",
        "cores": 2,
        "memory_bytes": None,
        "virtual": None,
    },
    "runner": {
        "name": "onnxruntime",
        "version": "1",
        "sha256": "",
        "argv": [],
        "provides_samples": True,
        "can_pair": True,
    },
    "config": {
        "accelerator": "cpu",
        "threads": 1,
        "affinity": "",
        "precision": "fp32",
        "mode": "paired",
        "rounds": 12,
        "warmup": {
            "min_iterations": 1,
            "min_seconds": 0.1,
            "window": 1,
            "tolerance": 0.04,
            "max_seconds": 1.0,
        },
        "min_iterations": 1,
        "min_seconds": 0.1,
        "settle": 1,
        "seed": 0,
    },
    "seed": 0,
    "budget_s": 180.0,
    "elapsed_s": 100.0,
    "races": [
        {
            "threads": 1,
            "candidates": [],
            "rungs": [],
            "winner": "fold, align 8, nchw",
            "auto": "native, nchw",
            "proofs": [],
            "choice": {
                "form": {
                    "form": "fold",
                    "align": 8,
                    "max_concat": 0,
                    "merge": 0,
                    "carry": 0,
                    "layout": "nhwc",
                },
                "sha256": "b" * 64,
                "threads": 1,
                "tuned": True,
                "why": "it is faster",
            },
            "native_ns": 2.0,
            "choice_ns": 1.0,
            "state": {"rounds": 1, "load_1m": None, "others": None, "stolen": None, "waited": None},
        }
    ],
    "chosen": 0,
}


def changed(path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    *parents, last = path.split(".")
    place: Any = document
    for key in parents:
        place = place[int(key) if key.isdigit() else key]
    place[last] = value
    return document


def request(*tunings: Tuning, **rest: Any) -> ExportRequest:
    given: dict[str, Any] = {
        "targets": ["onnx"],
        "precisions": ["fp32"],
        "batch": "1",
        "layout": None,
        **rest,
    }
    return ExportRequest.parse(model="shufflenet_v2_x0_5", tunings=tunings, **given)


def test_what_it_chose_is_what_export_takes() -> None:
    made = request(Tuning.from_json(DOCUMENT, "t.json"), targets=["onnx", "tflite"])
    choice = made.choice("onnx", "fp32")
    assert "fold, align 8" == choice.candidate.label
    assert "nhwc" == made.emit_options("fp32", "onnx").layout
    assert request(targets=["tflite"]).choice("tflite", "fp32") == made.choice("tflite", "fp32")
    assert made.emit_options("fp32", "tflite").layout is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", "shufflectl.tuning/2"),
        ("schema", "shufflectl.bench/1"),
        ("schema", None),
        ("weights_sha256", "../../x"),
        ("target", "exe"),
        ("chosen", 1),
        ("chosen", -1),
        ("races", []),
        ("inputs", []),
        ("inputs.0.shape", ["x"]),
        ("input_type", "int4"),
        ("io", "int4"),
        ("calibration", "../../x"),
        ("features", "stage2"),
        ("races.0.choice.form.form", "no-such-form"),
        ("races.0.choice.form.align", 0),
        ("races.0.choice.form.align", 10**9),
        ("races.0.choice.form.align", True),
        ("races.0.choice.form.merge", 8.5),
        ("races.0.choice.form.layout", "hwcn"),
        ("races.0.choice.form.form", "rank4"),  # which does not pad
        ("races.0.choice.extra", 1),
        ("elapsed_s", float("inf")),
    ],
)
def test_what_is_no_tuning_is_refused(path: str, value: Any) -> None:
    with pytest.raises(InputError):
        Tuning.from_json(changed(path, value), "t.json")


@pytest.mark.parametrize(
    "data", [b"", b"[", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000, b'{"a": NaN}', b'{"a": 1, "a": 2}']
)
def test_a_file_that_is_something_else_is_one_sentence(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_tuning(path)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 500


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "no.json", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_tuning(path)


def test_a_file_is_known_by_its_name_and_digest(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(DOCUMENT), encoding="utf-8")
    found = read_tuning(path)
    assert "t.json" == found.name
    assert 64 == len(found.sha256)


IMAGE = ("image", (1, 3, 32, 32))
MEASURED = Source("net", "a" * 64, (IMAGE,))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"model": "other"}, "was measured for net, not for other"),
        ({"weights_sha256": "c" * 64}, "SHA-256 aaaaaaaaaaaa (random:0), and these are cccccccccccc"),
        (
            {"inputs": (("image", (1, 3, 64, 64)),)},
            "with inputs of image 1x3x32x32, not of image 1x3x64x64",
        ),
        ({"inputs": (("image", ("batch", 3, 32, 32)),)}, "not of image batchx3x32x32"),
        ({"inputs": (IMAGE, ("size", (2,)))}, "not of image 1x3x32x32, size 2"),
        (
            {"fold_preprocess": True},
            "files whose callers prepare the images, not with files that prepare their images themselves",
        ),
        ({"input_type": "uint8"}, "with float images, not with uint8 ones"),
        ({"output_stride": 16}, "with an output stride of the network's own, not of 16"),
        ({"features": ("stage2", "stage4")}, "with the logits as outputs, not with stage2, stage4"),
        ({"io": "int8"}, "with files that take and give floats, not int8 codes"),
        ({"calibration": "d" * 64}, "with none (SHA-256), not with the calibration dddddddddddd"),
    ],
)
def test_it_is_only_for_what_was_measured(given: dict[str, Any], says: str) -> None:
    tuning = Tuning.from_json(DOCUMENT, "t.json")
    tuning.check(MEASURED)
    with pytest.raises(InputError) as caught:
        tuning.check(replace(MEASURED, **given))
    assert caught.value.message.startswith("t.json was measured ")
    assert says in caught.value.message


def test_another_calibration_is_refused_with_the_way_to_the_same_one() -> None:
    document = {**DOCUMENT, "precision": "int8", "calibration": "d" * 64}
    tuning = Tuning.from_json(document, "t.json")
    tuning.check(replace(MEASURED, calibration="d" * 64))
    with pytest.raises(InputError, match="the calibration dddddddddddd") as caught:
        tuning.check(replace(MEASURED, calibration="e" * 64))
    assert "--calibration" in caught.value.hint


def test_what_was_measured_survives_json() -> None:
    source = Source(
        "n", "a" * 64, (IMAGE, ("mask", (1, 8))), True, "uint8", 16, ("stage2",), "int8", "c" * 64
    )
    assert source == Tuning.from_json({**DOCUMENT, **source.to_json()}, "t.json").source


@pytest.mark.parametrize(
    "rest",
    [
        {"targets": ["tflite"]},
        {"precisions": ["fp16"]},
        {"shuffle": "fold"},
        {"align": "8"},
        {"layout": "nchw"},
    ],
)
def test_options_that_contradict_it_are_refused(rest: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        request(Tuning.from_json(DOCUMENT, "t.json"), **rest)


def test_two_tunings_for_one_file_are_refused() -> None:
    tuning = Tuning.from_json(DOCUMENT, "t.json")
    with pytest.raises(UsageError, match="two tunings"):
        request(tuning, tuning)


def test_the_manifest_says_whether_the_file_is_the_one_that_was_measured() -> None:
    tuning = Tuning.from_json(DOCUMENT, "t.json")
    assert tuning.to_manifest("b" * 64)["tuning_measured_this_file"] is True
    assert tuning.to_manifest("c" * 64)["tuning_measured_this_file"] is False
