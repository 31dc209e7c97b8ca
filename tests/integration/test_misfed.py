"""`shufflectl check` names how a file would have to be fed, where that is what is wrong with it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from support import mutate

pytestmark = pytest.mark.integration

MODEL = "shufflenet_v2_x0_5"


def failed(run: Any, path: Path) -> str:
    """Return how the one file that was checked would have to be fed."""
    assert 4 == run.status, run.stdout + run.stderr
    (artifact,) = run.document["verifications"][0]["artifacts"]
    assert f"error: {path.name} {artifact['feeding']}" in run.stderr
    return str(artifact["feeding"])


@pytest.mark.parametrize(
    ("extension", "precision"), [("onnx", "fp32"), ("mlpackage", "fp16"), ("tflite", "fp16")]
)
def test_a_file_for_bgr_is_named(
    extension: str, precision: str, digits_dist: Path, tmp_path: Path, run_cli: Any
) -> None:
    path = tmp_path / f"{MODEL}-{precision}.{extension}"
    (shutil.copytree if extension == "mlpackage" else shutil.copy)(digits_dist / path.name, path)

    def bgr(weight: np.ndarray) -> np.ndarray:
        weight[:, :3] = weight[:, 2::-1].copy()  # an aligned file has further, empty columns
        return weight

    mutate.weight(path, "conv1.1", bgr)
    said = failed(run_cli("check", path, "--images", "4", "--json"), path)
    assert "agrees when it is fed BGR images instead of RGB images" == said


def reading(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], constants: dict[str, Any]) -> None:
    """Let what reads the image read what these nodes make of it."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == "image":
                node.input[index] = nodes[-1].output[0]
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *kept])
    graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())


def scaled(factor: float) -> Callable[[onnx.ModelProto], None]:
    """Return the change that normalises inside what the caller normalises too."""

    def change(model: onnx.ModelProto) -> None:
        nodes = [
            helper.make_node("Mul", ["image", "factor"], ["image.scaled"]),
            helper.make_node("Sub", ["image.scaled", "one"], ["image.normalised"]),
        ]
        reading(model.graph, nodes, {"factor": np.float32(factor), "one": np.float32(1)})

    return change


@pytest.mark.parametrize(
    ("change", "values"),
    [
        (scaled(2.0), "of 0 to 1, not normalised"),
        (scaled(1 / 127.5), "of 0 to 255, neither scaled nor normalised"),
    ],
    ids=["0 to 1", "0 to 255"],
)
def test_a_file_that_normalises_by_itself_is_named(
    change: Callable[[onnx.ModelProto], None], values: str, digits_dist: Path, tmp_path: Path, run_cli: Any
) -> None:
    path = tmp_path / f"{MODEL}-fp32.onnx"
    model = onnx.load(digits_dist / path.name)
    change(model)
    onnx.save(model, path)
    expected = f"agrees when it is fed images {values} instead of images scaled to -1 to 1"
    assert expected == failed(run_cli("check", path, "--images", "4", "--json"), path)


def test_a_file_that_takes_the_other_layouts_order_is_named(tmp_path: Path, run_cli: Any) -> None:
    out = tmp_path / "dist"
    arguments = ["--weights", "digits", "--target", "onnx", "--layout", "nhwc", "--images", "4", "--out", out]
    assert 0 == run_cli("export", MODEL, *arguments).status
    path = out / f"{MODEL}-fp32.onnx"
    model = onnx.load(path)
    (turn,) = (n for n in model.graph.node if n.op_type == "Transpose" and n.input[0] == "image")
    size = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    shape = np.asarray([size[axis] for axis in (0, 3, 1, 2)])
    model.graph.initializer.append(numpy_helper.from_array(shape, "nchw.shape"))
    turn.CopyFrom(helper.make_node("Reshape", ["image", "nchw.shape"], list(turn.output), turn.name))
    onnx.save(model, path)
    said = failed(run_cli("check", path, "--images", "4", "--json"), path)
    assert "agrees when it is fed images in NCHW order fed as if they were NHWC" == said


def test_another_defect_is_not_blamed_on_the_images(digits_dist: Path, tmp_path: Path, run_cli: Any) -> None:
    path = tmp_path / f"{MODEL}-fp32.onnx"
    shutil.copy(digits_dist / path.name, path)
    mutate.weight(path, "stage3.2.branch2.1", mutate.zero_column(7))
    run = run_cli("check", path, "--images", "4", "--json")
    assert 4 == run.status
    assert run.document["verifications"][0]["artifacts"][0]["feeding"] is None
