"""Exported files over labelled images: accuracy, what explains a poor one, and folders that do not fit."""

import functools
import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from shufflectl.cli import app
from shufflectl.commands.options import OUTPUT
from shufflectl.converters.capture import capture
from shufflectl.converters.graph import Graph
from shufflectl.converters.metadata import ModelInfo
from shufflectl.converters.targets import TARGETS, EmitOptions
from shufflectl.deploy.evaluation.evaluate import evaluate
from shufflectl.deploy.evaluation.scores import Evaluation, FileScore
from shufflectl.deploy.options import ParityOptions
from shufflectl.errors import ArtifactError, DataError, GateError
from shufflectl.models import LoadedModel, load
from shufflectl.models.data import digits_test
from shufflectl.models.preprocess import DIGITS, IMAGENET, Preprocess

MODEL = "shufflenet_v2_x0_5"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLORS = ("red", "green", "blue")
SOME = ParityOptions(images=100)


class Brightest(nn.Module):
    """The channel with the largest mean: a classifier of red, green and blue images."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean([2, 3])


class Misread(nn.Module):
    """A network that reads NCHW as if it were NHWC."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        return self.inner(x.reshape(batch, height, width, channels).permute(0, 3, 1, 2))


@functools.cache
def digits() -> LoadedModel:
    return load(MODEL, weights="digits")


@functools.cache
def graph_of(module: nn.Module, size: int) -> Graph:
    return capture(module.eval(), (torch.zeros(1, 3, size, size),), name="net")


def emit(folder: Path, module: nn.Module, info: ModelInfo, *targets: str, size: int = 32) -> list[Path]:
    graph = graph_of(module, size).clone()
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for target in targets or TARGETS:
        path = folder / f"net{TARGETS[target].extension}"
        TARGETS[target].emit(graph, info, EmitOptions(), path)
        paths.append(path)
    return paths


def info(**changes: Any) -> ModelInfo:
    """Return the description of the bundled model, with what a user got wrong."""
    loaded = digits()
    right = ModelInfo(MODEL, "digits", loaded.weights_sha256, loaded.preprocess, loaded.labels)
    return replace(right, **changes)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The bundled model in three formats."""
    return emit(tmp_path_factory.mktemp("dist"), digits().module, info())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The held-out digits as a folder of PNG files, a sub-folder a digit."""
    return write_digits(tmp_path_factory.mktemp("photos"), tuple("0123456789"))


@pytest.fixture(autouse=True)
def _fresh_output() -> Any:
    yield
    OUTPUT.json = OUTPUT.verbose = False


def write_digits(folder: Path, names: tuple[str, ...], count: int | None = None) -> Path:
    data = digits_test(32, count)
    for index, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
        (folder / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / names[label] / f"{index:03}.png")
    return folder


def write_colors(folder: Path, count: int = 20) -> Path:
    rng = np.random.default_rng(0)
    for channel, name in enumerate(COLORS):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 100, (8, 8, 3), np.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def only(found: Evaluation) -> FileScore:
    (model,) = found.models
    (file,) = model.files
    return file


def cli(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)], env={"COLUMNS": "160"})


def validated(text: str) -> Any:
    schema = resources.files("shufflectl.deploy").joinpath("schemas/evaluate-1.schema.json")
    document = json.loads(text)
    jsonschema.validate(document, json.loads(schema.read_text("utf-8")))
    return document


def test_a_folder_of_digits_reaches_the_models_accuracy_in_every_format(
    dist: list[Path], photos: Path
) -> None:
    seen: list[tuple[int, int]] = []
    found = evaluate(dist, data=str(photos), notify=lambda _what, done, total: seen.append((done, total)))
    (model,) = found.models
    assert (360, 10, (), ()) == (found.images, found.classes, found.damaged, found.refused)
    assert (32, 10, "names") == (model.input_size, model.outputs, model.classes_by)
    assert model.reference is not None
    assert (360, 357) == (model.reference.images, model.reference.top1)
    assert {"net.onnx", "net.tflite", "net.mlpackage"} == {file.artifact.file for file in model.files}
    for file in model.files:
        assert (360, 357, 360) == (file.score.images, file.score.top1, file.agreement)
        assert 357 <= (file.score.top5 or 0) <= 360
        assert ("file", None, False) == (file.preprocess_from, file.explanation, file.explained)
        assert file.score.images_per_second > 0
    assert (352, 360) in seen


def test_the_bundled_images_give_the_same_as_their_files(dist: list[Path], photos: Path) -> None:
    folder, bundled = (only(evaluate(dist[:1], data=data)) for data in (str(photos), "digits"))
    assert folder.score.top1 == bundled.score.top1


@pytest.mark.parametrize(
    ("preprocess", "targets"),
    [(Preprocess(), tuple(TARGETS)), (Preprocess(scale=1.0), ("onnx",)), (IMAGENET, ("tflite",))],
)
def test_missing_or_other_normalisation_is_named(
    preprocess: Preprocess, targets: tuple[str, ...], tmp_path: Path
) -> None:
    paths = emit(tmp_path, digits().module, info(preprocess=preprocess), *targets)
    (model,) = evaluate(paths, data="digits", options=SOME).models
    assert model.reference is not None
    assert model.reference.share > 0.95
    for file in model.files:
        assert file.score.share < 0.6
        assert file.agreement_share is not None
        assert file.agreement_share < 0.6
        assert file.explanation is not None
        assert "images scaled to -1 to 1" == file.explanation.cause
        assert file.explanation.would_be > 0.95


def test_an_input_that_is_read_in_the_other_layout_is_named(tmp_path: Path) -> None:
    for path in emit(tmp_path, Misread(digits().module), info(), "onnx", "tflite"):
        file = only(evaluate([path], data="digits", options=SOME))
        assert file.explanation is not None
        assert "images in NHWC order fed as if they were NCHW" == file.explanation.cause


def test_swapped_channels_are_named(tmp_path: Path) -> None:
    data = write_colors(tmp_path / "photos")
    wrong = ModelInfo("colors", "best.pt", "00", Preprocess("bgr"), COLORS)
    paths = emit(tmp_path / "dist", Brightest(), wrong, size=8)
    (model,) = evaluate(paths, data=str(data)).models
    assert model.reference is None
    for file in model.files:
        assert (60, 20, None, None) == (file.score.images, file.score.top1, file.score.top5, file.agreement)
        assert file.explanation is not None
        expected = "top-1 would be 1.00 with RGB images; it is 0.33 with BGR images (on 60 images)"
        assert expected == file.explanation.sentence
    right = emit(tmp_path / "right", Brightest(), replace(wrong, preprocess=Preprocess()), "onnx", size=8)
    assert 60 == only(evaluate(right, data=str(data))).score.top1


def test_files_that_do_not_decode_are_named_and_left_out(dist: list[Path], tmp_path: Path) -> None:
    folder = write_digits(tmp_path / "photos", tuple("0123456789"), 30)
    whole = next((folder / "0").iterdir()).read_bytes()
    (folder / "3" / "half.png").write_bytes(whole[: len(whole) // 2])
    (folder / "4" / "page.jpg").write_text("<html>")
    found = evaluate(dist, data=str(folder))
    assert 30 == found.images
    assert {"3/half.png", "4/page.jpg"} == {entry.file for entry in found.damaged}
    assert {30} == {file.score.images for file in found.models[0].files}
    result = cli(dist[0], "--data", folder)
    assert 0 == result.exit_code
    assert "2 not decoded" in result.output
    assert "4/page.jpg: not an image" in result.output


def test_a_folder_where_nothing_decodes_is_an_error(dist: list[Path], tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "\x1b[31m.png").write_text("")
    with pytest.raises(DataError, match="none of the 1 images") as caught:
        evaluate(dist[:1], data=str(tmp_path))
    assert caught.value.hint.startswith("7/\\x1b[31m.png: not an image")


def test_a_folder_without_images_is_bad_input(dist: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds an image"):
        evaluate(dist[:1], data=str(tmp_path))
    assert 3 == DataError.exit_code


def test_some_of_the_classes_are_enough(dist: list[Path], photos: Path, tmp_path: Path) -> None:
    for name in "37":
        (tmp_path / name).symlink_to(photos / name)
    found = evaluate(dist[:1], data=str(tmp_path), follow_links=True)
    assert 2 == found.classes
    assert only(found).score.share > 0.9


def test_names_fit_whatever_their_case_and_joins(tmp_path: Path) -> None:
    named = info(labels=tuple(f"Number-{word}" for word in WORDS))
    (path,) = emit(tmp_path / "dist", digits().module, named, "onnx")
    folder = write_digits(tmp_path / "photos", tuple(f"number {word}" for word in WORDS), 60)
    found = evaluate([path], data=str(folder))
    assert "names" == found.models[0].classes_by
    assert only(found).score.share > 0.9


def test_folders_of_other_names_are_matched_in_sorted_order(tmp_path: Path) -> None:
    (path,) = emit(tmp_path / "dist", digits().module, info(labels=()), "onnx")
    folder = write_digits(tmp_path / "photos", tuple(f"n{index}" for index in range(10)), 60)
    found = evaluate([path], data=str(folder))
    assert "order" == found.models[0].classes_by
    assert only(found).score.share > 0.9


def test_classes_in_another_order_are_named(tmp_path: Path) -> None:
    (path,) = emit(tmp_path / "dist", digits().module, info(labels=()), "onnx")
    found = only(evaluate([path], data=str(write_digits(tmp_path / "photos", WORDS))))
    assert found.score.share < 0.3
    assert found.explanation is not None
    assert found.explanation.cause.startswith("folders and outputs were in one order: most images of 'eight'")
    assert found.explanation.would_be > 0.98


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat", "dog"), "has 2 classes (cat, dog), and"),
        (("0", "1", "cat"), "has a class 'cat', which is none of"),
    ],
)
def test_classes_that_do_not_fit_are_an_error(
    names: tuple[str, ...], message: str, dist: list[Path], tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    with pytest.raises(DataError) as caught:
        evaluate(dist[:1], data=str(tmp_path))
    assert message in caught.value.message
    assert "name the folders after the model's classes" in caught.value.hint


def test_a_class_whose_name_is_not_unique_is_refused(tmp_path: Path) -> None:
    twice = ModelInfo("cranes", "best.pt", "00", Preprocess(), ("crane", "heron", "crane"))
    (path,) = emit(tmp_path / "dist", Brightest(), twice, "onnx", size=8)
    for name in ("crane", "heron"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name / "0.png")
    with pytest.raises(DataError, match="two classes of the name 'crane'"):
        evaluate([path], data=str(tmp_path / "photos"))


def test_a_file_of_another_tool_is_fed_as_imagenet_with_a_note(tmp_path: Path) -> None:
    data = write_colors(tmp_path / "photos", 4)
    (path,) = emit(tmp_path / "dist", Brightest(), ModelInfo("colors"), "onnx", size=8)
    proto = onnx.load(path)
    del proto.metadata_props[:]
    onnx.save(proto, path)
    # Sorted, the folders are blue, green, red: the reverse of the outputs.
    found = only(evaluate([path], data=str(data)))
    assert ("assumed", IMAGENET, 4) == (found.preprocess_from, found.preprocess, found.score.top1)
    result = cli(path, "--data", data)
    assert "does not say how it is fed" in result.output
    assert "matched in sorted order" in result.output


def test_codes_of_a_file_of_another_tool_are_taken_for_pixels_unless_more_is_known(tmp_path: Path) -> None:
    data = write_colors(tmp_path / "photos", 4)
    (path,) = emit(tmp_path / "dist", Brightest(), ModelInfo("colors"), "onnx", size=8)
    proto = onnx.load(path)
    del proto.metadata_props[:]
    graph = proto.graph
    # uint8 codes at the border: the network sees (code - 128) / 64.
    given = graph.input[0].name
    for node in graph.node:
        node.input[:] = ["real" if name == given else name for name in node.input]
    graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", [given, "scale", "zero"], ["real"]))
    graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1 / 64), "scale"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.uint8(128), "zero"))
    onnx.save(proto, path)
    found = only(evaluate([path], data=str(data)))
    assert ("assumed", 4) == (found.preprocess_from, found.score.top1)
    assert (1 / 64, (2.0, 2.0, 2.0)) == (found.preprocess.scale, found.preprocess.mean)
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    codes = found.preprocess.apply(pixels)[0, 0] * 64 + 128
    np.testing.assert_array_equal(pixels[0, :, :, 0], codes)
    result = cli(path, "--data", data)
    assert "does not say how it is fed" in result.output
    assert "ImageNet" not in result.output


def test_outputs_that_are_not_finite_are_wrong_and_counted(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean([2, 3]) * torch.tensor([1.0, float("nan"), 1.0])

    data = write_colors(tmp_path / "photos", 2)
    (path,) = emit(tmp_path, Broken(), ModelInfo("colors", labels=COLORS), "onnx", size=8)
    score = only(evaluate([path], data=str(data))).score
    assert (6, 0, 6) == (score.images, score.top1, score.nonfinite)


def test_what_is_no_classifier_is_refused(tmp_path: Path, photos: Path) -> None:
    (path,) = emit(tmp_path, nn.Conv2d(3, 10, 3), ModelInfo("map", labels=tuple("0123456789")), "onnx")
    with pytest.raises(ArtifactError, match="not one figure a class"):
        evaluate([path], data=str(photos))


def test_the_gate_fails_with_its_own_exit_code_and_the_explanation(tmp_path: Path) -> None:
    (path,) = emit(tmp_path, digits().module, info(preprocess=Preprocess()), "onnx")
    found = evaluate([path], data="digits", min_top1=0.9, options=SOME)
    with pytest.raises(GateError, match=r"top-1 is below 0\.9: net\.onnx has 0\.\d+") as caught:
        found.raise_for_failure()
    assert "images scaled to -1 to 1" in caught.value.hint
    assert 5 == caught.value.exit_code


def test_the_command_prints_one_document(dist: list[Path], photos: Path) -> None:
    result = cli(*dist, "--data", photos, "--images", "50", "--min-top1", "0.9", "--json")
    assert 0 == result.exit_code
    document = validated(result.stdout)
    assert (True, 0.9, 50) == (document["passed"], document["min_top1"], document["data"]["images"])
    (model,) = document["models"]
    assert "torch" == model["reference"]["name"]
    assert {**DIGITS.to_json(), "from": "file"} == model["files"][0]["preprocess"]


def test_a_poor_result_is_a_document_too_and_the_sentence_is_shown(tmp_path: Path) -> None:
    (path,) = emit(tmp_path, digits().module, info(preprocess=Preprocess()), "onnx")
    result = cli(path, "--data", "digits", "--images", "100", "--min-top1", "0.9", "--json")
    document = validated(result.stdout)
    assert not document["passed"]
    assert "images scaled to -1 to 1" == document["models"][0]["files"][0]["explanation"]["cause"]
    OUTPUT.json = False
    shown = cli(path, "--data", "digits", "--images", "100").output
    assert "net.onnx: top-1 would be" in shown
    assert "with images scaled to -1 to 1; it is" in shown


def test_an_interrupt_closes_the_files_and_leaves_nothing(
    dist: list[Path], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def interrupt(what: str, done: int, _total: int) -> None:
        if what.startswith("evaluating") and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(dist, data=str(photos), notify=interrupt)
    assert [] == list(tmp_path.iterdir())
