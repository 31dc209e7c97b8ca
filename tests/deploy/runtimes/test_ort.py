"""ONNX Runtime: results, taps, and files that mean harm or are broken."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from shufflectl.converters.metadata import METADATA_KEY, TRACE_KEY, ModelInfo
from shufflectl.converters.onnx.emit import emit
from shufflectl.converters.targets import EmitOptions
from shufflectl.deploy.runtimes.ort import OnnxRuntime
from shufflectl.errors import ArtifactError, DataError, InputError, UnsupportedOperatorError
from support.graphs import graph_from_text
from support.nets import example, tiny_graph, tiny_v2

INFO = ModelInfo("tiny", labels=("a", "b"))
TEXT = "g (float[1,3,4,4] x) => (float[1,3,4,4] y) { s = Mul (x, w)  r = Relu (s)  y = Add (r, s) }"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ort") / "tiny.onnx"
    emit(tiny_graph(), INFO, EmitOptions(), path)
    return path


def proto(array: np.ndarray | None = None) -> onnx.ModelProto:
    w = np.arange(48, dtype=np.float32).reshape(1, 3, 4, 4) if array is None else array
    return graph_from_text(TEXT, {"w": w}).to_proto()


def saved(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def refused(path: Path, match: str, error: type[InputError] = ArtifactError) -> None:
    with pytest.raises(error, match=match) as caught, OnnxRuntime().load(path):
        pass
    assert "\n" not in caught.value.message
    assert caught.value.hint or error is UnsupportedOperatorError


def test_onnx_runtime_is_available() -> None:
    state = OnnxRuntime().available()
    assert state.ok
    assert state.version


def test_a_file_declares_itself(tiny: Path) -> None:
    with OnnxRuntime().load(tiny) as session:
        assert [("image", (1, 3, 32, 32), np.float32)] == [(s.name, s.shape, s.dtype) for s in session.inputs]
        assert [("logits", (1, 10), np.float32)] == [(s.name, s.shape, s.dtype) for s in session.outputs]
        assert INFO == session.info
        assert "stage2.0.concat" in session.trace


def test_a_symbolic_dimension_is_not_fixed(tmp_path: Path) -> None:
    emit(tiny_graph(dynamic_batch=True), INFO, EmitOptions(), tmp_path / "d.onnx")
    with OnnxRuntime().load(tmp_path / "d.onnx") as session:
        assert (None, 3, 32, 32) == session.inputs[0].shape
        for batch in (1, 3):
            assert (batch, 10) == session.run({"image": example(32, batch).numpy()})["logits"].shape


def test_a_run_gives_what_torch_gives(tiny: Path) -> None:
    x = example(seed=9)
    with OnnxRuntime().load(tiny) as session:
        actual = session.run({"image": x.numpy()})
    assert ["logits"] == list(actual)
    np.testing.assert_allclose(actual["logits"], tiny_v2()(x).detach().numpy(), atol=2e-5)


def test_a_run_takes_an_array_of_any_strides(tiny: Path) -> None:
    x = example(seed=9).numpy()
    strided = np.asfortranarray(x)
    with OnnxRuntime().load(tiny, threads=2) as session:
        np.testing.assert_array_equal(
            session.run({"image": strided})["logits"], session.run({"image": x})["logits"]
        )


def test_every_traced_tensor_can_be_tapped(tiny: Path) -> None:
    with OnnxRuntime().load(tiny) as session:
        names = [view.name for view in session.trace.values()]
        found = session.run({"image": example().numpy()}, taps=names)
    assert set(names) == set(found)
    shapes = {str(v.name): tuple(v.shape) for n in tiny_graph().nodes for v in n.outputs}
    assert shapes == {name: found[name].shape for name in shapes}


def test_taps_are_the_tensors_the_file_describes_and_not_fused_ones(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 4)).astype(np.float32)
    w = np.random.default_rng(1).normal(size=(1, 3, 4, 4)).astype(np.float32)
    with OnnxRuntime().load(saved(proto(w), tmp_path / "m.onnx")) as session:
        found = session.run({"x": x}, taps=["s", "r", "x", "y"])
        np.testing.assert_array_equal(found["x"], x)
        np.testing.assert_array_equal(found["s"], x * w)
        np.testing.assert_array_equal(found["r"], np.maximum(x * w, 0))
        np.testing.assert_array_equal(found["y"], np.maximum(x * w, 0) + x * w)
        assert {"y", "r"} == set(session.run({"x": x}, taps=["r"]))
        assert {"y"} == set(session.run({"x": x}))


def test_a_tap_that_does_not_exist_is_refused(tiny: Path) -> None:
    with OnnxRuntime().load(tiny) as session, pytest.raises(ArtifactError, match="no tensor 'nonsense'"):
        session.run({"image": example().numpy()}, taps=["nonsense"])


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ({}, "'image' is missing"),
        ({"image": np.zeros((1, 3, 31, 32), np.float32)}, r"takes float32 \[1, 3, 32, 32\]"),
        ({"image": np.zeros((3, 32, 32), np.float32)}, r"is float32 \[3, 32, 32\]"),
        ({"image": np.zeros((1, 3, 32, 32), np.float64)}, "is float64"),
        ({"image": np.zeros((1, 3, 32, 32), np.float32), "x": np.zeros(1)}, "no input 'x'"),
    ],
    ids=["missing", "size", "rank", "type", "unknown"],
)
def test_inputs_that_do_not_fit_are_refused(tiny: Path, inputs: dict[str, np.ndarray], match: str) -> None:
    with OnnxRuntime().load(tiny) as session, pytest.raises(DataError, match=match) as caught:
        session.run(inputs)
    assert caught.value.hint


def test_a_foreign_file_runs_without_info_and_trace(tmp_path: Path) -> None:
    with OnnxRuntime().load(saved(proto(), tmp_path / "m.onnx")) as session:
        assert session.info is None
        assert 0 == len(session.trace)
        assert (1, 3, 4, 4) == session.run({"x": np.ones((1, 3, 4, 4), np.float32)})["y"].shape


def test_nothing_reaches_the_terminal(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = onnx.load(tiny)
    broken.graph.node[0].op_type = "Softplus2"
    with OnnxRuntime().load(tiny) as session:
        session.run({"image": example().numpy()}, taps=["conv1.2"])
    refused(saved(broken, tmp_path / "b.onnx"), "ONNX Runtime cannot load")
    assert ("", "") == tuple(capfd.readouterr())


def test_a_missing_file_is_one_error(tmp_path: Path) -> None:
    refused(tmp_path / "none.onnx", "does not exist")


def test_a_folder_is_not_an_onnx_file(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(64), "is a TFLite file"),
        (b"PK\x03\x04" + bytes(64), "not an ONNX file"),
        (b"hello, world\n" * 9, "not an ONNX file"),
    ],
    ids=["empty", "tflite", "zip", "text"],
)
def test_a_file_of_another_kind_is_refused(content: bytes, match: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    refused(path, match)


@pytest.mark.parametrize("part", [0.02, 0.3, 0.5, 0.9])
def test_a_truncated_file_is_refused(tiny: Path, part: float, tmp_path: Path) -> None:
    data = tiny.read_bytes()
    graph_end = len(onnx.load(tiny).graph.SerializeToString())
    path = tmp_path / "m.onnx"
    path.write_bytes(data[: int(graph_end * part)])
    refused(path, "damaged")


def test_a_flipped_byte_never_ends_in_anything_but_an_input_error(tiny: Path, tmp_path: Path) -> None:
    data = tiny.read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "m.onnx"
    x = example().numpy()
    for position in rng.integers(0, len(data), 60):
        damaged = bytearray(data)
        damaged[position] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            with OnnxRuntime().load(path) as session:
                session.run({"image": x})
        except InputError as error:
            assert "\n" not in error.message  # noqa: PT017 - an error is one of two right outcomes


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (METADATA_KEY, "{"),
        (METADATA_KEY, "[]"),
        (METADATA_KEY, "{}"),
        (METADATA_KEY, json.dumps({"name": "m", "preprocess": {"color": "cmyk"}})),
        (METADATA_KEY, "[" * 100_000),
        (TRACE_KEY, "null"),
        (TRACE_KEY, '{"a": 3}'),
        (TRACE_KEY, '{"a": {"axes": [0, 0]}}'),
    ],
)
def test_malformed_metadata_is_a_damaged_file(key: str, value: str, tmp_path: Path) -> None:
    model = proto()
    model.metadata_props.add(key=key, value=value)
    refused(saved(model, tmp_path / "m.onnx"), "metadata cannot be read")


def external(model: onnx.ModelProto, **fields: str) -> onnx.ModelProto:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in fields.items():
        tensor.external_data.add(key=key, value=value)
    return model


def test_external_data_beside_the_file_is_read(tmp_path: Path) -> None:
    w = np.arange(48, dtype=np.float32)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(b"1234" + w.tobytes())
    path = saved(external(proto(), location="sub/w.bin", offset="4", length="192"), tmp_path / "m.onnx")
    with OnnxRuntime().load(path) as session:
        found = session.run({"x": np.ones((1, 3, 4, 4), np.float32)}, taps=["s"])
    np.testing.assert_array_equal(found["s"].ravel(), w)


@pytest.mark.parametrize(
    "location",
    ["../secret.bin", "sub/../../secret.bin", "ABSOLUTE", "link.bin", "", "..\\secret.bin", "C:\\x", "sub"],
)
def test_external_data_outside_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(192))
    folder = tmp_path / "artifact"
    (folder / "sub").mkdir(parents=True)
    (folder / "link.bin").symlink_to(secret)
    location = str(secret) if location == "ABSOLUTE" else location
    refused(saved(external(proto(), location=location), folder / "m.onnx"), "outside of its folder|missing")


def test_external_data_under_a_name_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = saved(external(proto(), location="w.bin"), tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes().replace(b"w.bin", b"\xff.bin"))
    refused(path, "outside of its folder|no protobuf message")


def test_external_data_hidden_in_an_attribute_is_refused_too(tmp_path: Path) -> None:
    model = proto()
    tensor = onnx.TensorProto(name="k", data_type=onnx.TensorProto.FLOAT, dims=[1])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")
    node = onnx.helper.make_node("Constant", [], ["k"], name="k")
    node.attribute.append(onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR, t=tensor))
    model.graph.node.insert(0, node)
    refused(saved(model, tmp_path / "m.onnx"), "outside of its folder")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"location": "none.bin"}, "is missing"),
        ({"location": "w.bin", "offset": "100", "length": "192"}, "truncated"),
        ({"location": "w.bin", "offset": "-4"}, "truncated"),
        ({"location": "w.bin", "offset": "many"}, "not a number"),
        ({"location": "w.bin", "length": "8"}, "damaged|cannot load"),
    ],
    ids=["missing", "long", "negative", "no number", "short"],
)
def test_damaged_external_data_is_refused(fields: dict[str, str], match: str, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(192))
    refused(saved(external(proto(), **fields), tmp_path / "m.onnx"), match)


def test_a_file_beyond_the_limit_of_protobuf_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with path.open("wb") as file:
        os.truncate(file.fileno(), 2**31)
    refused(path, "2 GiB")


def test_a_weight_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    model = proto()
    model.graph.initializer[0].dims[:] = [2**20, 2**20]
    refused(saved(model, tmp_path / "m.onnx"), "more than")


def test_a_small_file_that_unpacks_to_a_huge_tensor_is_refused(tmp_path: Path) -> None:
    model = graph_from_text(
        "g (float[1] x) => (float[1] y) { y = Relu (x) }", {"n": np.asarray([2**17, 2**17], np.int64)}
    ).to_proto()
    model.graph.node.insert(0, onnx.helper.make_node("ConstantOfShape", ["n"], ["big"], name="big"))
    refused(saved(model, tmp_path / "m.onnx"), "'big'")


def test_an_operator_without_a_kernel_is_named(tmp_path: Path) -> None:
    model = graph_from_text("g (double[1,1,2,2] x) => (double[1,1,2,2] y) { y = Mish (x) }").to_proto()
    path = saved(model, tmp_path / "m.onnx")
    with pytest.raises(InputError) as caught, OnnxRuntime().load(path):
        pass
    assert "\n" not in caught.value.message


def test_an_operator_of_an_unknown_domain_is_refused(tmp_path: Path) -> None:
    model = proto()
    model.graph.node[1].domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)
    refused(saved(model, tmp_path / "m.onnx"), "com.example")


def test_a_model_whose_output_is_not_a_tensor_is_refused(tmp_path: Path) -> None:
    text = "g (float[2] x) => (seq(float[2]) y) { y = SequenceConstruct (x, x) }"
    refused(
        saved(
            onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 20]>\n' + text), tmp_path / "m.onnx"
        ),
        "plain tensors|type",
    )


def test_the_weights_of_a_loaded_file_are_those_of_the_file(tiny: Path) -> None:
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(tiny).graph.initializer}
    np.testing.assert_array_equal(stored["fc.weight"], tiny_v2().state_dict()["fc.weight"].numpy())
