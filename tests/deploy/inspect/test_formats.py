"""The formats of one model agree with one another, with torch and with the paper."""

import json
import warnings
from pathlib import Path

import pytest
import torch

from shufflectl.converters.graph import Graph
from shufflectl.converters.tflite.grow import grow
from shufflectl.deploy.inspect import Summary, summarize, summarize_graph
from shufflectl.models.count import count
from support.nets import ShuffleNetV2

TARGETS = ("onnx", "coreml", "tflite")
KINDS = [f"{target}-{kind}" for target in TARGETS for kind in ("fp32", "fp16", "dynamic")]


def folded_parameters(module: torch.nn.Module) -> int:
    """Parameters when every batch norm has become its convolution's bias."""
    norms = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    return sum(p.numel() for p in module.parameters()) - sum(m.num_features for m in norms)


@pytest.mark.parametrize("kind", KINDS)
def test_multiply_adds_are_those_of_torch(
    kind: str, artifacts: dict[str, Path], module: torch.nn.Module, graph: Graph
) -> None:
    expected = count(module, 32).multiply_adds
    if kind.startswith("tflite"):
        # One row and one column more in front of the pooling spare a copy: converters/tflite/grow.py.
        grown = summarize_graph(grow(graph), "grown").multiply_adds
        assert grown is not None
        assert expected < grown < 1.12 * expected
        expected = grown
    assert expected == summarize(artifacts[kind]).multiply_adds


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_those_of_torch_after_folding(
    kind: str, artifacts: dict[str, Path], module: torch.nn.Module
) -> None:
    assert folded_parameters(module) == summarize(artifacts[kind]).parameters


@pytest.mark.parametrize("kind", KINDS)
def test_every_operator_is_known(kind: str, artifacts: dict[str, Path]) -> None:
    summary = summarize(artifacts[kind])
    assert () == summary.unknown
    assert None not in {summary.memory_access, summary.memory_bytes}


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_is_what_the_emitter_was_given(kind: str, artifacts: dict[str, Path]) -> None:
    metadata = summarize(artifacts[kind]).metadata
    assert metadata is not None
    assert ("tiny", ("a", "b")) == (metadata.name, metadata.labels)


@pytest.mark.parametrize("kind", KINDS)
def test_the_summary_is_json(kind: str, artifacts: dict[str, Path]) -> None:
    data = json.loads(json.dumps(summarize(artifacts[kind]).to_json(), allow_nan=False))
    assert "shufflectl.inspect/1" == data["schema"]
    assert sum(data["histogram"].values()) == len(data["operators"])


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("onnx-fp32", (1, 3, 32, 32)),
        ("coreml-fp32", (1, 3, 32, 32)),
        ("tflite-fp32", (1, 32, 32, 3)),
        ("onnx-dynamic", (None, 3, 32, 32)),
        ("coreml-dynamic", (None, 3, 32, 32)),
        ("tflite-dynamic", (None, 32, 32, 3)),
    ],
)
def test_inputs_are_as_declared(kind: str, shape: tuple[int | None, ...], artifacts: dict[str, Path]) -> None:
    (image,) = summarize(artifacts[kind]).inputs
    assert ("image", shape, "float32") == (image.name, image.shape, image.dtype)


@pytest.mark.parametrize("target", TARGETS)
def test_the_guidelines_are_the_same_for_every_precision(target: str, artifacts: dict[str, Path]) -> None:
    full, half = (summarize(artifacts[f"{target}-{kind}"]) for kind in ("fp32", "fp16"))
    assert [f.figure for f in full.findings[:3]] == [f.figure for f in half.findings[:3]]


def test_g1_to_g3_agree_across_formats(graph: Graph, artifacts: dict[str, Path]) -> None:
    def figures(summary: Summary) -> list[float | None]:
        return [finding.figure for finding in summary.findings[:3]]

    assert figures(summarize_graph(graph, "")) == figures(summarize(artifacts["onnx-fp32"]))
    assert figures(summarize_graph(graph, "")) == figures(summarize(artifacts["coreml-fp32"]))
    assert figures(summarize_graph(grow(graph), "")) == figures(summarize(artifacts["tflite-fp32"]))


def test_half_precision_halves_what_core_ml_moves(artifacts: dict[str, Path]) -> None:
    def convolutions(kind: str) -> int:
        return sum(o.memory_bytes or 0 for o in summarize(artifacts[kind]).operators if o.type == "conv")

    assert convolutions("coreml-fp32") == 2 * convolutions("coreml-fp16")


def test_the_size_is_that_on_disk(artifacts: dict[str, Path]) -> None:
    package = artifacts["coreml-fp32"]
    files = sum(p.stat().st_size for p in package.rglob("*") if p.is_file())
    assert files == summarize(package).bytes
    assert artifacts["onnx-fp32"].stat().st_size == summarize(artifacts["onnx-fp32"]).bytes


@pytest.mark.parametrize(("target", "rank"), [("onnx", 5), ("coreml", 4), ("tflite", 5)])
def test_the_largest_rank_is_the_shuffles_unless_core_ml_fuses_it(
    target: str, rank: int, artifacts: dict[str, Path]
) -> None:
    largest = summarize(artifacts[f"{target}-fp32"]).largest_rank
    assert largest is not None
    assert rank == largest.rank


def test_a_graph_is_summarised_like_its_onnx_file(graph: Graph, artifacts: dict[str, Path]) -> None:
    def figures(summary: Summary) -> tuple[object, ...]:
        return summary.operators, summary.findings, summary.largest_rank, summary.inputs

    summary = summarize_graph(graph, "tiny")
    assert figures(summarize(artifacts["onnx-fp32"])) == figures(summary)
    assert ("graph", None, "tiny") == (summary.format, summary.bytes, summary.name)


def test_summarising_leaves_the_graph_alone(graph: Graph) -> None:
    before = graph.to_bytes()
    summarize_graph(graph, "tiny")
    assert before == graph.to_bytes()


def test_fragmentation_counts_the_operators_of_the_units(artifacts: dict[str, Path]) -> None:
    # Two stages, each a downsampling unit (2 + 3 convolutions) and a basic unit (3).
    details = summarize(artifacts["onnx-fp32"]).findings[2].details
    assert (4, 16, 2, 5) == tuple(details[k] for k in ("blocks", "operators", "branches", "worst_operators"))


def test_the_papers_figures_of_a_foreign_file(tmp_path: Path) -> None:
    # Table 8 of the paper: 146 M FLOPs, 2.3 M parameters. torch's exporter knows no pass of ours.
    path = tmp_path / "v2.onnx"
    module = ShuffleNetV2((4, 8, 4), (24, 116, 232, 464, 1024), 1000).eval()
    with torch.no_grad(), warnings.catch_warnings():
        # What torch's exporter says about torch is not what is tested.
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (torch.zeros(1, 3, 224, 224),), path, dynamo=True, verbose=False)
    summary = summarize(path)
    assert summary.multiply_adds is not None
    assert summary.parameters is not None
    assert pytest.approx(146, rel=0.01) == summary.multiply_adds / 1e6
    assert pytest.approx(2.3, abs=0.05) == summary.parameters / 1e6


@pytest.mark.parametrize("kind", ["onnx-fp32", "tflite-fp32"])
def test_a_file_of_ours_says_who_wrote_it(kind: str, artifacts: dict[str, Path]) -> None:
    assert summarize(artifacts[kind]).producer.startswith("shufflectl")
