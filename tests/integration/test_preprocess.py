"""Files that prepare their pixels themselves: exported, checked and evaluated with no further options."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from shufflectl.converters.graph import Graph
from shufflectl.deploy.runtimes.coreml_reference.runtime import CoreMLReference
from shufflectl.deploy.runtimes.litert import LiteRT, delegation
from shufflectl.deploy.runtimes.ort import OnnxRuntime
from shufflectl.models.preprocess import DIGITS, PIXELS
from support.graphs import graph_from_text

pytestmark = pytest.mark.integration

MODEL = "shufflenet_v2_x0_5"
EXTENSIONS = {"onnx": "onnx", "coreml": "mlpackage", "tflite": "tflite"}
LOADERS = {"onnx": OnnxRuntime(), "coreml": CoreMLReference(), "tflite": LiteRT()}


def export(run_cli: Any, out: Path, *argv: str | Path, **options: Any) -> Any:
    run = run_cli("export", *argv, "--out", out, "--images", "4", "--json", **options)
    assert 0 == run.status, run.stdout + run.stderr
    return run.document


def manifest(out: Path) -> Any:
    (record,) = json.loads((out / "manifest.json").read_text())["models"]
    return record


@pytest.fixture(scope="module")
def pixels_dist(tmp_path_factory: pytest.TempPathFactory, run_cli: Any) -> Path:
    out = tmp_path_factory.mktemp("pixels") / "dist"
    export(
        run_cli,
        out,
        MODEL,
        *("--weights", "digits", "--precision", "fp32,fp16", "--fold-preprocess", "--input-type", "uint8"),
    )
    return out


def test_the_manifest_says_what_each_file_takes(pixels_dist: Path) -> None:
    record = manifest(pixels_dist)
    assert ("weights", DIGITS.to_json()) == (
        record["input"]["preprocess_from"],
        record["input"]["preprocess"],
    )
    taken = {row["target"]: row["input"] for row in record["artifacts"]}
    for row in taken.values():
        assert ("rgb", 1.0, [0, 0, 0], "shift") == (row["color"], row["scale"], row["mean"], row["inside"])
    assert {"onnx": "uint8", "tflite": "uint8", "coreml": "image"} == {t: r["type"] for t, r in taken.items()}
    assert ("nhwc", "nchw") == (taken["tflite"]["layout"], taken["onnx"]["layout"])


@pytest.mark.parametrize("target", LOADERS)
def test_files_take_bytes_and_say_so(target: str, pixels_dist: Path) -> None:
    with LOADERS[target].load(pixels_dist / f"{MODEL}-fp32.{EXTENSIONS[target]}") as session:
        assert np.uint8 == session.inputs[0].dtype
        assert session.info is not None
        assert (PIXELS.values, DIGITS) == (session.info.expects.values, session.info.preprocess)
        assert "image" not in session.trace  # the prepared image is nowhere in the file


def test_core_ml_takes_a_picture(pixels_dist: Path) -> None:
    from coremltools.proto import Model_pb2

    data = (pixels_dist / f"{MODEL}-fp16.mlpackage/Data/com.apple.CoreML/model.mlmodel").read_bytes()
    (feature,) = Model_pb2.Model.FromString(data).description.input
    image = feature.type.imageType
    assert (32, 32, image.RGB) == (image.width, image.height, image.colorSpace)


def test_tflite_bytes_go_to_xnnpack_with_the_rest(pixels_dist: Path) -> None:
    for precision in ("fp32", "fp16"):
        found = delegation(pixels_dist / f"{MODEL}-{precision}.tflite")
        assert [found.operators] == [len(part) for part in found.partitions]


def test_check_and_evaluate_need_no_options(pixels_dist: Path, run_cli: Any) -> None:
    checked = run_cli("check", pixels_dist, "--images", "4", "--json")
    assert 0 == checked.status, checked.stderr
    loose = sorted(pixels_dist.glob(f"{MODEL}-fp32.*"))
    assert 0 == run_cli("check", *loose, "--images", "4").status
    run = run_cli(
        "evaluate", pixels_dist, "--data", "digits", "--images", "40", "--min-top1", "0.9", "--json"
    )
    assert 0 == run.status, run.stderr
    for row in run.document["models"][0]["files"]:
        assert (PIXELS.scale, "file", 40) == (
            row["preprocess"]["scale"],
            row["preprocess"]["from"],
            row["agreement"]["same"],
        )


def test_folded_and_plain_files_are_compared_with_one_another(
    pixels_dist: Path, digits_dist: Path, tmp_path: Path, run_cli: Any
) -> None:
    plain = tmp_path / "plain.onnx"
    plain.write_bytes((digits_dist / f"{MODEL}-fp32.onnx").read_bytes())
    run = run_cli("check", plain, pixels_dist / f"{MODEL}-fp32.tflite", "--images", "4", "--json")
    assert 0 == run.status, run.stderr
    (found,) = run.document["verifications"]
    assert 1 == len({row["candidate"] for row in found["parity"]["pairwise"]})


@pytest.mark.parametrize(
    "options",
    [
        ("--layout", "nhwc", "--shuffle", "native"),
        ("--layout", "nchw", "--target", "onnx,tflite", "--input-type", "uint8"),
        ("--batch", "dynamic"),
        ("--batch", "3", "--precision", "fp16", "--half-io", "--target", "onnx,coreml"),
        ("--shuffle", "fold-split", "--align", "8", "--target", "onnx,tflite", "--preprocess", "color=bgr"),
    ],
    ids=" ".join,
)
def test_it_goes_with_every_other_option(options: tuple[str, ...], tmp_path: Path, run_cli: Any) -> None:
    document = export(run_cli, tmp_path, MODEL, "--weights", "digits", "--fold-preprocess", *options)
    assert document["passed"]
    assert any("one Sub takes away" in note for note in document["notes"])


def test_without_a_mean_nothing_is_left_but_weights(tmp_path: Path, run_cli: Any) -> None:
    document = export(
        run_cli,
        tmp_path,
        MODEL,
        *("--weights", "digits", "--fold-preprocess", "--preprocess", "megvii", "--target", "onnx"),
    )
    record = manifest(tmp_path)
    assert ("option", "bgr") == (record["input"]["preprocess_from"], record["input"]["preprocess"]["color"])
    assert "weights" == record["artifacts"][0]["input"]["inside"]
    assert 0 == run_cli("check", tmp_path, "--images", "4").status  # with the preprocessing asked for
    assert any("in the weights of conv1" in note for note in document["notes"])


def test_pixels_of_a_network_that_takes_them_need_no_fold(tmp_path: Path, run_cli: Any) -> None:
    export(
        run_cli,
        tmp_path,
        MODEL,
        *("--weights", "digits", "--preprocess", "megvii", "--input-type", "uint8"),
    )
    taken = {row["target"]: row["input"] for row in manifest(tmp_path)["artifacts"]}
    assert {"bgr"} == {row["color"] for row in taken.values()}
    from coremltools.proto import Model_pb2

    data = (tmp_path / f"{MODEL}-fp32.mlpackage/Data/com.apple.CoreML/model.mlmodel").read_bytes()
    image = Model_pb2.Model.FromString(data).description.input[0].type.imageType
    assert image.BGR == image.colorSpace
    assert 0 == run_cli("check", tmp_path, "--images", "4").status


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("--input-type", "uint8"), 2, "takes no 8-bit pixels"),
        (("--input-type", "uint8", "--fold-preprocess", "--batch", "4"), 2, "one picture at a time"),
        (("--input-type", "int8"), 2, "unknown input type"),
        (("--preprocess", "imagnet"), 2, "unknown preprocessing"),
        (("--preprocess", "missing.json"), 3, "cannot be read"),
        (("--preprocess", "layout=nchw", "--layout", "nhwc"), 2, "contradict"),
    ],
)
def test_what_cannot_be_is_refused(
    options: tuple[str, ...], status: int, message: str, tmp_path: Path, run_cli: Any
) -> None:
    run = run_cli("export", MODEL, "--weights", "digits", "--out", tmp_path / "dist", *options)
    assert (status, True) == (run.status, message in run.stderr), run.stderr
    assert not (tmp_path / "dist").exists()


def saved(graph: Graph, path: Path) -> Path:
    onnx.save(graph.to_proto(), path)
    return path


def test_an_onnx_file_whose_first_operator_is_no_convolution(tmp_path: Path, run_cli: Any) -> None:
    weights = {"w": np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)}
    path = saved(
        graph_from_text(
            "g (float[N,3,16,16] image) => (float[N,4] y) {\n  r = LeakyRelu<alpha=0.5>(image)\n"
            "  c = Conv<pads=[1,1,1,1]>(r, w)\n  p = GlobalAveragePool(c)\n  y = Flatten(p)\n}",
            weights,
        ),
        tmp_path / "net.onnx",
    )
    out = tmp_path / "dist"
    document = export(
        run_cli,
        out,
        path,
        *("--fold-preprocess", "--input-type", "uint8", "--preprocess", "imagenet,color=bgr"),
    )
    assert {"operators"} == {row["input"]["inside"] for row in manifest(out)["artifacts"]}
    assert any("LeakyRelu" in note for note in document["notes"])
    assert not any("does not say how" in note for note in document["notes"])
    assert 0 == run_cli("check", out, "--model", path, "--images", "4").status
    with OnnxRuntime().load(out / "net-fp32.onnx") as session:
        assert session.trace["image"].name != session.inputs[0].name  # the prepared image is an inner tensor


def test_an_onnx_file_in_nhwc(tmp_path: Path, run_cli: Any) -> None:
    weights = {"w": np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)}
    path = saved(
        graph_from_text(
            "g (float[N,16,16,3] image) => (float[N,4] y) {\n  t = Transpose<perm=[0,3,1,2]>(image)\n"
            "  c = Conv<pads=[1,1,1,1]>(t, w)\n  p = GlobalAveragePool(c)\n  y = Flatten(p)\n}",
            weights,
        ),
        tmp_path / "net.onnx",
    )
    out = tmp_path / "dist"
    export(
        run_cli,
        out,
        path,
        *("--fold-preprocess", "--preprocess", "imagenet,color=bgr", "--target", "onnx,tflite"),
    )
    taken = [row["input"] for row in manifest(out)["artifacts"]]
    assert [("shift", "nhwc")] * 2 == [(row["inside"], row["layout"]) for row in taken]


def test_without_padding_the_mean_is_in_the_bias(tmp_path: Path, run_cli: Any) -> None:
    weights = {"w": np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)}
    path = saved(
        graph_from_text(
            "g (float[N,3,16,16] image) => (float[N,4] y) {\n  c = Conv<strides=[2,2]>(image, w)\n"
            "  r = Relu(c)\n  p = GlobalAveragePool(r)\n  y = Flatten(p)\n}",
            weights,
        ),
        tmp_path / "early.onnx",
    )
    out = tmp_path / "dist"
    export(run_cli, out, path, "--fold-preprocess", "--preprocess", "imagenet", "--precision", "fp32,fp16")
    assert {"weights"} == {row["input"]["inside"] for row in manifest(out)["artifacts"]}
    with OnnxRuntime().load(out / "early-fp32.onnx") as session:
        assert "Sub" not in {node.op_type for node in onnx.load(out / "early-fp32.onnx").graph.node}
        assert np.float32 == session.inputs[0].dtype


def test_a_network_without_images_is_refused(tmp_path: Path, run_cli: Any) -> None:
    path = saved(graph_from_text("g (float[1,5] x) => (float[1,5] y) { y = Relu(x) }"), tmp_path / "net.onnx")
    run = run_cli("export", path, "--fold-preprocess", "--out", tmp_path / "dist")
    assert (3, True) == (run.status, "no input is an image" in run.stderr)


def test_files_are_the_same_from_run_to_run(pixels_dist: Path, tmp_path: Path, run_cli: Any) -> None:
    argv = ("--weights", "digits", "--precision", "fp32,fp16", "--fold-preprocess", "--input-type", "uint8")
    export(run_cli, tmp_path, MODEL, *argv, env={"PYTHONHASHSEED": "12345"})
    for path in pixels_dist.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / path.relative_to(pixels_dist)).read_bytes()
