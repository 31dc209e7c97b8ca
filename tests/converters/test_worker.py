"""The emitter in a process of its own gives what the emitter gives here, errors included."""

from pathlib import Path

import numpy as np
import pytest

from shufflectl.converters.graph import Graph, TensorRecord
from shufflectl.converters.metadata import ModelInfo
from shufflectl.converters.targets import TARGETS, EmitOptions
from shufflectl.converters.worker import EmitterProcess
from shufflectl.errors import ShufflectlError, UnsupportedOperatorError
from support.graphs import graph_from_text

INFO = ModelInfo(name="small", labels=("a", "b"))


@pytest.fixture
def graph() -> Graph:
    weight = np.random.default_rng(0).standard_normal((4, 3, 1, 1), np.float32)
    return graph_from_text(
        "g (float[1,3,4,4] image, float[4,3,1,1] w) => (float[1,4,4,4] y) { y = Conv (image, w) }",
        {"w": weight},
    )


def test_a_file_from_the_process_is_the_file_from_here(graph: Graph, tmp_path: Path) -> None:
    TARGETS["onnx"].emit(graph, INFO, EmitOptions(), tmp_path / "here.onnx")
    with EmitterProcess("onnx") as process:
        process.emit(graph, INFO, EmitOptions(), tmp_path / "there.onnx")
        process.emit(graph, INFO, EmitOptions("fp16"), tmp_path / "half.onnx")
    assert (tmp_path / "here.onnx").read_bytes() == (tmp_path / "there.onnx").read_bytes()
    assert (tmp_path / "half.onnx").exists()


def test_an_error_keeps_its_kind_its_words_and_its_fields(tmp_path: Path) -> None:
    einsum = graph_from_text(
        'g (float[1,3] image) => (float[3,1] y) { [odd] y = Einsum <equation = "ij->ji"> (image) }'
    )
    with EmitterProcess("tflite") as process, pytest.raises(UnsupportedOperatorError) as caught:
        process.emit(einsum, INFO, EmitOptions(), tmp_path / "x.tflite")
    assert ("odd", "Einsum") == (caught.value.node, caught.value.operator)
    assert [] == list(tmp_path.iterdir())


def test_a_process_that_dies_is_one_clear_error(graph: Graph, tmp_path: Path) -> None:
    process = EmitterProcess("onnx")
    process._process.kill()
    process._process.wait()
    with pytest.raises(ShufflectlError, match="ended unexpectedly"):
        process.emit(graph, INFO, EmitOptions(), tmp_path / "x.onnx")


def test_nothing_of_the_current_folder_is_imported(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code runs for an explicit module:factory alone."""
    marker = tmp_path / "marker"
    for name in ("onnx", "numpy", "coremltools"):
        (tmp_path / f"{name}.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    with EmitterProcess("onnx") as process:
        process.emit(graph, INFO, EmitOptions(), tmp_path / "x.onnx")
    assert (tmp_path / "x.onnx").exists()
    assert not marker.exists()


def test_records_travel_with_the_graph(graph: Graph) -> None:
    graph.records["y"] = TensorRecord("original", (3, 2, 1, 0))
    graph.records["z"] = TensorRecord("plain")
    copy = Graph.from_bytes(graph.to_bytes())
    assert graph.records == copy.records
    assert not copy.to_proto().metadata_props
