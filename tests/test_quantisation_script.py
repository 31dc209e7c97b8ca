"""The table of int8 figures, without any real network: its counts, its page, what it calls a miss."""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from converters.quantize.nets import images, runner
from converters.rewrite.nets import captured
from shufflectl.converters.metadata import ModelInfo
from shufflectl.converters.quantize.calibrate import calibrate
from shufflectl.converters.quantize.recipe import Recipe
from shufflectl.converters.rewrite.choose import Candidate
from shufflectl.converters.rewrite.lowering import Options
from shufflectl.converters.targets import TARGETS, EmitOptions
from shufflectl.deploy import runtimes
from shufflectl.deploy.quantization import Quantized
from shufflectl.models import create
from support.nets import tiny_graph

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a module of the scripts, which are no package."""
    monkeypatch.syspath_prepend(str(SCRIPTS / "peers"))
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


def record(sqnr: float = 33.0, ratio: float = 0.28, different: int = 0, largest: int = 0) -> dict[str, Any]:
    """Return a model's figures; the better official file has 32.5 dB."""
    file = {"sqnr": sqnr, "agreement": 1.0, "accuracy": None, "bytes": 1000, "ratio": ratio}
    turns = [{"fp32": 2.0, "int8": ms, "official": 1.25} for ms in (1.0, 0.9, 1.1)]
    count = {"elements": 1000, "different": different, "largest": largest}
    return {
        "model": "shufflenet_v2_x1_0",
        "weights": "random:0",
        "size": 64,
        "images": "smooth noise",
        "calibrated": 16,
        "tested": 16,
        "accuracy": None,
        "targets": {
            t: file | {"passed": True, "reasons": [], "medians_ms": turns if t != "coreml" else []}
            for t in ("onnx", "tflite", "coreml")
        },
        "layers": {"onnx": count | {"different": 0, "largest": 0}, "tflite": count},
        "codes": {"tensors": 3, "before": count, "classifier": count},
        "official": {"onnx": file | {"sqnr": 32.5}, "tflite": file | {"sqnr": 20.0}},
    }


def test_codes_are_counted_before_the_classifier_and_behind_it(load: Any) -> None:
    first = {
        "a": np.asarray([1, 2, 3, -128], np.int16),
        "logits": np.asarray([5], np.int16),
        "b": np.zeros(1),
    }
    second = {"a": np.asarray([1, 2, 5, 127], np.int16), "logits": np.asarray([4], np.int16)}
    found = load("quantisation_table").compare_codes([(first, second), (first, first)])
    assert {"elements": 9, "different": 2, "largest": 255} == found["before"]
    assert {"elements": 2, "different": 1, "largest": 1} == found["classifier"]


def test_page_compares_the_lowest_of_ours_with_the_better_official_file(load: Any) -> None:
    text = load("peers.quantisation_page").page([record()])
    row = "| `shufflenet_v2_x1_0` | random:0 | 32.50 | 20.00 | 33.00 | 33.00 | 33.00 | +0.50 |"
    assert row in text


def test_page_shows_times_next_to_fp32_and_to_the_official_file(load: Any) -> None:
    text = load("peers.quantisation_page").page([record()])
    assert "| onnx | pass | 33.00 | 1.0000 | 1,000 | 0.280 | 0.50 (0.45-0.55) |" in text
    assert "| coreml | pass | 33.00 | 1.0000 | 1,000 | 0.280 |  |" in text
    assert "| +0.50 | 0.80 (0.72-0.88) | 0.80 (0.72-0.88) |" in text


def test_a_model_that_meets_every_goal_is_not_named(load: Any) -> None:
    lines = load("peers.quantisation_page").conclusions([record(sqnr=32.3)])
    assert all("Not:" not in line for line in lines)


@pytest.mark.parametrize(
    ("miss", "line"),
    [
        ({"sqnr": 32.1}, "SQNR"),
        ({"ratio": 0.30}, "Size"),
        ({"different": 6, "largest": 1}, "Codes"),
        ({"different": 1, "largest": 2}, "Codes"),
    ],
)
def test_a_goal_that_is_missed_names_the_model(load: Any, miss: dict[str, Any], line: str) -> None:
    lines = load("peers.quantisation_page").conclusions([record(**miss)])
    named = [text for text in lines if "Not: shufflenet_v2_x1_0" in text]
    assert named
    assert all(text.startswith(f"- {line}") for text in named)


@pytest.mark.parametrize(("target", "form"), [("onnx", "fold-split"), ("tflite", "fold")])
def test_inner_codes_are_those_of_the_kernels_that_make_the_outputs(
    load: Any, tmp_path: Path, target: str, form: str
) -> None:
    graph = tiny_graph()
    found = calibrate(graph, runner(images(graph, 8)), Recipe(), source="noise", images=8, seed=0)
    quantized = Quantized(graph, found)
    path = tmp_path / f"tiny{TARGETS[target].extension}"
    emitted, _ = quantized.form(Candidate(form, Options()))
    TARGETS[target].emit(emitted, ModelInfo("tiny", precision="int8"), EmitOptions("int8"), path)
    image = np.random.default_rng(7).standard_normal((1, 3, 32, 32), dtype=np.float32)
    (codes,) = load("peers.inner_codes").inner_codes(path, image)
    with runtimes.choose(target, ()).load(path) as session:
        view = next(v for v in session.trace.values() if v.name == session.inputs[0].name)
        (logits,) = session.run({session.inputs[0].name: view.to_file(image)}).values()
    assert len(codes) > 10
    assert (1, 8, 4, 4) == codes["stage2.0.branch2.4"].shape
    scale = quantized.in_codes["logits"]
    assert np.array_equal(logits, scale.values(codes["logits"].astype(np.int8)))


class Residual(nn.Module):
    """Six residual units, of which each other one ends with a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 1), nn.Linear(16, 4)
        self.units = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for place, unit in enumerate(self.units):
            x = x + unit(x)
            x = x.relu() if place % 2 else x
        return self.head(x.mean((2, 3)))


def test_sums_are_the_same_codes_in_the_kernels_of_both_runtimes(load: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = captured(Residual(), size=32)
    found = calibrate(graph, runner(images(graph, 4)), Recipe(), source="noise", images=4, seed=0)
    emitted, _ = Quantized(graph, found).form(Candidate("native", Options()))
    paths = []
    for target in ("onnx", "tflite"):
        paths.append(tmp_path / f"residual{TARGETS[target].extension}")
        TARGETS[target].emit(emitted, ModelInfo("residual", precision="int8"), EmitOptions("int8"), paths[-1])
    image = np.random.default_rng(7).standard_normal((1, 3, 32, 32), dtype=np.float32)
    first, second = (next(load("peers.inner_codes").inner_codes(path, image)) for path in paths)
    sums = [name for name in first.keys() & second.keys() if first[name].shape[1:] == (16, 32, 32)]
    assert len(sums) >= 6
    for name in first.keys() & second.keys():
        assert np.array_equal(first[name], second[name]), name


def test_converters_get_the_size_and_the_classes_of_what_is_measured(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])  # the module adds to it
    weights = tmp_path / "weights.pt"
    torch.save(create("shufflenet_v2_x0_5", num_classes=7).state_dict(), weights)
    module, (image,) = load("network").network("shufflenet_v2_x0_5@64", weights)
    assert (1, 3, 64, 64) == image.shape
    assert (1, 7) == module(image).shape
