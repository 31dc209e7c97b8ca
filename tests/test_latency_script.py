"""The latency comparison, without any clock: its statistics, its order of runs, its floor, its tables."""

import importlib
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shufflectl.converters.capture import capture
from shufflectl.converters.graph import Graph
from shufflectl.models import create
from support.graphs import graph_from_text

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a module of the scripts, which are no package."""
    monkeypatch.syspath_prepend(str(SCRIPTS / "peers"))
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


def document(ours: float) -> dict[str, Any]:
    """Return what three processes measured: the official file takes 2 ms, ours that many times as long."""
    samples = {
        "official": [1_900_000, 2_000_000, 2_100_000],
        "official again": [2_000_000] * 3,
        "auto": [int(2_000_000 * ours)] * 3,
    }
    file = {"file": "0.onnx", "same_as": "", "what": "fold"}
    versions = {
        "this": dict.fromkeys(("onnxruntime", "ai-edge-litert", "torch", "onnxsim", "shufflectl"), "1")
    }
    record = {
        "model": "shufflenet_v2_x1_0",
        "engine": "onnxruntime",
        "threads": 1,
        "samples_ns": samples,
        "load": 1.0,
    }
    return {
        "machine": "a machine",
        "versions": versions,
        "protocol": {
            "processes": 3,
            "iterations": 3,
            "warmup": 1,
            "settle": 1,
            "forms": ["auto", "native"],
        },
        "files": {
            "shufflenet_v2_x1_0": {
                target: {"auto": file, "native": {"file": "", "same_as": "auto", "what": "native"}}
                for target in ("onnx", "tflite")
            }
        },
        "pairs": [record | {"process": number} for number in range(3)],
    }


def test_interval_of_equal_observations_is_a_point(load: Any) -> None:
    assert (0.9, 0.9, 0.9) == load("peers.report").bootstrap([0.9] * 7)


def test_interval_holds_the_median_and_stays_within_the_observations(load: Any) -> None:
    value, low, high = load("peers.report").bootstrap([0.8, 0.9, 1.0, 1.1, 1.2, 0.7, 1.3])
    assert 1.0 == value
    assert 0.7 <= low < value < high <= 1.3


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [((0.80, 0.90), "yes"), ((0.91, 0.95), "no"), ((0.85, 0.95), "undecided")],
)
def test_goal_is_judged_by_the_whole_interval(load: Any, interval: tuple[float, float], verdict: str) -> None:
    assert verdict == load("peers.report").met((0.9, *interval), 0.9)


def test_table_gives_the_ratio_and_the_goal(load: Any) -> None:
    text = load("peers.report").pairs_report(document(0.5))
    assert "| `shufflenet_v2_x1_0` | 2.00 | 1.000 (1.000-1.000) | 0.500 (0.500-0.500) |" in text
    assert "| ONNX Runtime, `shufflenet_v2_x1_0` | 0.500 (0.500-0.500) | 0.82 | yes |" in text


def test_slower_file_misses_its_goal(load: Any) -> None:
    text = load("peers.report").pairs_report(document(1.1))
    assert "| ONNX Runtime, `shufflenet_v2_x1_0` | 1.100 (1.100-1.100) | 0.82 | no |" in text


def test_each_file_is_fed_and_settled_before_every_timed_run(load: Any) -> None:
    timing = load("timing")
    events: list[tuple[str, str]] = []

    def session(label: str) -> Any:
        return timing.Session(
            lambda: events.append((label, "run")),
            lambda: np.zeros(1),
            lambda: events.append((label, "feed")),
        )

    order = random.Random(0)
    samples = timing.measure({n: session(n) for n in "ab"}, order, 3, 5, 2)
    assert {"a": 5, "b": 5} == {label: len(values) for label, values in samples.items()}
    assert Counter({(label, kind): 8 * 3 for label in "ab" for kind in ("run", "feed")}) == Counter(events)
    turns = [events[i : i + 6] for i in range(0, len(events), 6)]
    assert all([kind for _, kind in turn] == ["feed", "run"] * 3 for turn in turns)
    assert all(1 == len({label for label, _ in turn}) for turn in turns)
    assert {"a", "b"} == {turn[0][0] for turn in turns[::2]}


def kinds(graph: Graph) -> Counter[str]:
    """Return how often each operator occurs."""
    return Counter(node.op_type for node in graph.nodes)


def test_floor_keeps_the_arithmetic_and_hardly_any_copy(load: Any) -> None:
    name = "shufflenet_v2_x0_5"
    graph = capture(create(name), (torch.zeros(1, 3, 64, 64),), name=name)
    found = kinds(load("floor").floor(graph))
    assert kinds(graph)["Conv"] == found["Conv"]
    assert 3 == found["Concat"]  # one at the end of each stage
    assert not {"Transpose", "Split", "Slice", "Gather"} & set(found)


def test_floor_leaves_a_shuffle_of_one_tensor_out(load: Any) -> None:
    graph = graph_from_text(
        """g (float[1,4,2,2] image) => (float[1,4,2,2] y)
        <int64[5] wide = {1, 2, 2, 2, 2}, int64[4] back = {1, 4, 2, 2}> {
            a = Relu (image)
            b = Reshape (a, wide)
            c = Transpose <perm = [0, 2, 1, 3, 4]> (b)
            d = Reshape (c, back)
            y = Sigmoid (d)
        }"""
    )
    assert {"Relu": 1, "Sigmoid": 1} == kinds(load("floor").floor(graph))


def test_floor_refuses_channel_counts_that_do_not_add_up(load: Any) -> None:
    graph = graph_from_text(
        """g (float[1,4,2,2] image) => (float[1,3,2,2] y)
        <int64[3] some = {2, 0, 3}> {
            a = Relu (image)
            b = Gather <axis = 1> (a, some)
            y = Sigmoid (b)
        }"""
    )
    with pytest.raises(ValueError, match="3 channels"):
        load("floor").floor(graph)
