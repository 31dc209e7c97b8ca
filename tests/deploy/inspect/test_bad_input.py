"""Damaged, hostile and foreign files: one sentence and a hint, or a summary with gaps; never a crash."""

import json
import shutil
import sys
from pathlib import Path

import hypothesis.strategies as st
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper

from shufflectl.deploy.inspect import Summary, summarize
from shufflectl.errors import ArtifactError, MissingDependencyError

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refusal(path: Path) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        summarize(path)
    error = caught.value
    assert error.hint
    assert "\n" not in error.message
    return error


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.onnx", "a.tflite", "a.mlpackage", "a.bin", "a"])
def test_a_missing_file_does_not_exist(name: str, tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / name).message


@pytest.mark.parametrize("name", ["a.onnx", "a.tflite"])
def test_an_empty_file_is_empty(name: str, tmp_path: Path) -> None:
    assert refusal(written(tmp_path / name, b"")).message.endswith("is empty")


@pytest.mark.parametrize("name", ["a.onnx", "a.tflite"])
def test_a_folder_is_no_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    assert "is a folder" in refusal(tmp_path / name).message


def test_a_file_is_no_package(tmp_path: Path) -> None:
    assert "is a file" in refusal(written(tmp_path / "a.mlpackage", b"x")).message


def test_a_folder_of_artifacts_suggests_one(tmp_path: Path, artifacts: dict[str, Path]) -> None:
    shutil.copy(artifacts["onnx-fp32"], tmp_path / "a.onnx")
    assert str(tmp_path / "a.onnx") in refusal(tmp_path).hint


def test_an_empty_package_has_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "a.mlpackage").mkdir()
    assert "manifest" in refusal(tmp_path / "a.mlpackage").message


def test_a_mistyped_suffix_suggests_the_right_one(tmp_path: Path) -> None:
    assert ".tflite" in refusal(written(tmp_path / "a.tflit", b"x")).hint


@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"PK\x03\x04" + bytes(40), "zip archive"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"<!doctype html><html>", "HTML"),
    ],
    ids=["lfs", "zip", "pickle", "html"],
)
def test_a_file_of_another_kind_is_named(data: bytes, kind: str, suffix: str, tmp_path: Path) -> None:
    assert kind in refusal(written(tmp_path / f"a{suffix}", data)).message


def test_a_tflite_file_is_no_onnx_file(tmp_path: Path, artifacts: dict[str, Path]) -> None:
    shutil.copy(artifacts["tflite-fp32"], tmp_path / "a.onnx")
    assert "is a TFLite file" in refusal(tmp_path / "a.onnx").message


def test_an_onnx_file_is_no_tflite_file(tmp_path: Path, artifacts: dict[str, Path]) -> None:
    shutil.copy(artifacts["onnx-fp32"], tmp_path / "a.tflite")
    assert "not a TFLite file" in refusal(tmp_path / "a.tflite").message


@pytest.mark.parametrize("target", ["onnx", "tflite"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(
    target: str, kept: float, tmp_path: Path, artifacts: dict[str, Path]
) -> None:
    data = artifacts[f"{target}-fp32"].read_bytes()
    assert "truncated" in refusal(written(tmp_path / f"a.{target}", data[: int(len(data) * kept)])).message


@pytest.fixture
def package(tmp_path: Path, artifacts: dict[str, Path]) -> Path:
    return Path(shutil.copytree(artifacts["coreml-fp32"], tmp_path / "a.mlpackage"))


def test_a_package_without_its_weights_is_refused(package: Path) -> None:
    shutil.rmtree(package / "Data" / "com.apple.CoreML" / "weights")
    assert "weights are missing" in refusal(package).message


def test_a_package_with_truncated_weights_is_refused(package: Path) -> None:
    (weights,) = package.rglob("weight.bin")
    weights.write_bytes(weights.read_bytes()[:-200])
    assert "truncated" in refusal(package).message


def test_a_package_with_a_damaged_model_is_refused(package: Path) -> None:
    (model,) = package.rglob("model.mlmodel")
    model.write_bytes(model.read_bytes()[:-100])
    assert "damaged" in refusal(package).message


def test_a_manifest_that_leaves_the_package_is_refused(package: Path) -> None:
    manifest = package / "Manifest.json"
    data = json.loads(manifest.read_text())
    data["itemInfoEntries"][data["rootModelIdentifier"]]["path"] = "../../../etc/passwd"
    manifest.write_text(json.dumps(data))
    assert "leaves the package" in refusal(package).message


def spoil(data: bytes, changes: list[tuple[float, int]]) -> bytes:
    spoiled = bytearray(data)
    for where, byte in changes:
        spoiled[int(where * (len(data) - 1))] = byte
    return bytes(spoiled)


CHANGES = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=12)


@pytest.mark.parametrize("target", ["onnx", "tflite"])
@given(changes=CHANGES)
@FUZZ
def test_a_spoiled_file_is_summarised_or_refused(
    target: str, changes: list[tuple[float, int]], tmp_path: Path, artifacts: dict[str, Path]
) -> None:
    data = spoil(artifacts[f"{target}-fp32"].read_bytes(), changes)
    survives(written(tmp_path / f"a.{target}", data))


@given(changes=CHANGES, start=st.floats(0, 0.2))
@FUZZ
def test_a_tflite_file_with_spoiled_tables_is_summarised_or_refused(
    changes: list[tuple[float, int]], start: float, tmp_path: Path, artifacts: dict[str, Path]
) -> None:
    # Most bytes are weights; the tables that refer to them are what a parser stumbles over.
    data = artifacts["tflite-fp32"].read_bytes()
    size = len(data) // 4
    begin = int(start * len(data))
    spoiled = data[:begin] + spoil(data[begin : begin + size], changes) + data[begin + size :]
    survives(written(tmp_path / "a.tflite", spoiled))


@given(changes=CHANGES)
@FUZZ
def test_a_package_with_a_spoiled_program_is_summarised_or_refused(
    changes: list[tuple[float, int]], tmp_path: Path, artifacts: dict[str, Path]
) -> None:
    package = tmp_path / "a.mlpackage"
    if not package.exists():
        shutil.copytree(artifacts["coreml-fp32"], package)
    (source,) = artifacts["coreml-fp32"].rglob("model.mlmodel")
    (model,) = package.rglob("model.mlmodel")
    model.write_bytes(spoil(source.read_bytes(), changes))
    survives(package)


def survives(path: Path) -> None:
    try:
        summary = summarize(path)
    except ArtifactError:
        return
    json.dumps(summary.to_json(), allow_nan=False)


def test_an_onnx_file_may_not_read_outside_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "secret").write_bytes(bytes(16))
    path = external(tmp_path / "model" / "a.onnx", "../secret", 16)
    assert "outside of its folder" in refusal(path).message


def test_an_onnx_file_may_not_read_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "secret").write_bytes(bytes(16))
    (tmp_path / "model" / "w").symlink_to(tmp_path / "secret")
    assert "outside of its folder" in refusal(external(tmp_path / "model" / "a.onnx", "w", 16)).message


def test_missing_external_weights_are_named(tmp_path: Path) -> None:
    assert "'w', which is missing" in refusal(external(tmp_path / "a.onnx", "w", 16)).message


def test_truncated_external_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(bytes(8))
    assert "truncated" in refusal(external(tmp_path / "a.onnx", "w", 16)).message


def test_external_weights_count_as_the_models_size(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(bytes(16))
    path = external(tmp_path / "a.onnx", "w", 16)
    assert path.stat().st_size + 16 == summarize(path).bytes


def external(path: Path, location: str, length: int) -> Path:
    """Write an ONNX file with one weight, [4] in fp32, kept elsewhere."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": str(length)}.items():
        weight.external_data.add(key=key, value=value)
    return save(path, [helper.make_node("Mul", ["x", "w"], ["y"])], [weight])


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto] | None = None,
    shape: list[int | str | None] | None = None,
) -> Path:
    dims = [4] if shape is None else shape
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights or [],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("acme", 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets).SerializeToString())
    return path


def test_an_unknown_operator_leaves_gaps(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Warp", ["x"], ["w"], name="warp", domain="acme"),
        helper.make_node("Relu", ["w"], ["y"], name="relu"),
    ]
    summary = summarize(save(tmp_path / "a.onnx", nodes))
    assert ("warp", "relu") == summary.unknown
    assert (None, None) == (summary.multiply_adds, summary.memory_access)
    assert ["acme.Warp", "Relu"] == [o.type for o in summary.operators]
    assert (None,) == summary.operators[0].output_shapes


def test_a_free_image_size_leaves_gaps_and_a_free_batch_does_not(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="relu")]

    def relu(shape: list[int | str | None]) -> Summary:
        return summarize(save(tmp_path / "a.onnx", nodes, shape=shape))

    assert 2 * 3 * 8 * 8 == relu(["n", 3, 8, 8]).memory_access
    assert (None, 3, 8, 8) == relu(["n", 3, 8, 8]).inputs[0].shape
    assert None is relu(["n", 3, "h", "w"]).memory_access


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.onnx", [helper.make_node("Relu", ["x"], ["y"], name="relu")])
    path.write_bytes(path.read_bytes().replace(b"relu", b"re\xff\xfe"))
    assert "not text" in refusal(path).message


def test_a_graph_that_is_nested_deeply_is_refused(tmp_path: Path) -> None:
    # Length-delimited fields in one another, deeper than protobuf reads.
    body = b""
    for _ in range(3000):
        body = b"\x3a" + varint(len(body)) + body
    refusal(written(tmp_path / "a.onnx", b"\x08\x0a" + body))


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def test_a_shape_beyond_any_memory_is_unknown(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="relu")]
    summary = summarize(save(tmp_path / "a.onnx", nodes, shape=[2**62, 2**62]))
    assert None is summary.memory_access


@pytest.mark.parametrize(("target", "package"), [("tflite", "ai-edge-litert"), ("coreml", "coremltools")])
def test_a_missing_package_names_its_extra(
    target: str, package: str, artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = artifacts[f"{target}-fp32"]
    if target == "coreml":
        from shufflectl.deploy.runtimes.coreml_reference import protos

        protos.message_modules.cache_clear()
        monkeypatch.setattr(protos, "proto_folder", lambda: None)
    else:
        monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
        monkeypatch.delitem(sys.modules, "ai_edge_litert.schema_py_generated", raising=False)
    with pytest.raises(MissingDependencyError) as caught:
        summarize(path)
    assert (package, target) == (caught.value.package, caught.value.extra)
