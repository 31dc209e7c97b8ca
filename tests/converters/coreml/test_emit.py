"""The package as a whole: interface, passes, names, metadata, determinism, refusals."""

import csv
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shufflectl.converters.capture import capture
from shufflectl.converters.coreml import toolkit
from shufflectl.converters.coreml.emit import MAX_BATCH, emit
from shufflectl.converters.coreml.names import Namer
from shufflectl.converters.graph import Graph
from shufflectl.converters.metadata import METADATA_KEY, TRACE_KEY, ModelInfo
from shufflectl.converters.quiet import quiet
from shufflectl.converters.targets import DEPLOYMENT_TARGETS, TARGETS, EmitOptions
from shufflectl.converters.trace import Trace
from shufflectl.deploy.runtimes.coreml_reference import CoreMLReference
from shufflectl.deploy.runtimes.coreml_reference.package import read_model
from shufflectl.errors import DataError, GraphError, MissingDependencyError, OutputError, UsageError
from shufflectl.models.preprocess import IMAGENET
from support.coreml import INFO, differences, execute, onnx_values, package, sqnr
from support.graphs import graph_from_text
from support.nets import example, tiny_v2

IMAGE = {"image": example().numpy()}


def census(path: Path) -> Counter[str]:
    spec, _ = read_model(path)
    function = spec.mlProgram.functions["main"]
    return Counter(op.type for op in function.block_specializations[function.opset].operations)


def digests(path: Path) -> dict[str, str]:
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# --- the main job -----------------------------------------------------------------------------------


def test_a_shufflenet_agrees_with_onnx_runtime_at_every_layer(tiny: Graph, tmp_path: Path) -> None:
    found = differences(tiny, package(tiny, tmp_path), IMAGE)
    assert [] == [(name, db) for name, db in found.items() if db < 100]


def test_fp16_computes_in_fp16_at_every_layer(tiny: Graph, tiny_fp16: Path) -> None:
    found = differences(tiny, tiny_fp16, IMAGE)
    assert [] == [(name, db) for name, db in found.items() if not 40 < db < 90 and name != "image"]


def test_channel_shuffles_become_interleaved_concats(tiny: Graph, tiny_fp16: Path) -> None:
    assert {"Concat": 4, "Transpose": 4} == {
        k: v for k, v in Counter(n.op_type for n in tiny.nodes).items() if k in ("Concat", "Transpose")
    }
    found = census(tiny_fp16)
    assert (4, 0, 0) == (found["concat"], found["transpose"], found["reshape"])
    spec, _ = read_model(tiny_fp16)
    block = spec.mlProgram.functions["main"].block_specializations["CoreML6"]
    constants = {op.outputs[0].name: op for op in block.operations if op.type == "const"}
    for op in block.operations:
        if op.type == "concat":
            flag = constants[op.inputs["interleave"].arguments[0].name].attributes["val"]
            assert [True] == list(flag.immediateValue.tensor.bools.values)


def test_the_trace_names_every_tensor_but_those_inside_a_shuffle(tiny: Graph, tiny_fp16: Path) -> None:
    with CoreMLReference().load(tiny_fp16) as session:
        traced = set(session.trace)
    lost = {str(out.name) for node in tiny.nodes for out in node.outputs} - traced
    inside = {
        str(n.outputs[0].name)
        for n in tiny.nodes
        if n.op_type in ("Concat", "Transpose") or n.outputs[0].name.endswith(".reshape")
    }
    assert inside == lost


def test_the_interface_keeps_the_graphs_names(tiny_fp16: Path) -> None:
    with CoreMLReference().load(tiny_fp16) as session:
        assert [("image", (1, 3, 32, 32), np.float32)] == [(s.name, s.shape, s.dtype) for s in session.inputs]
        assert [("logits", (1, 10), np.float32)] == [(s.name, s.shape, s.dtype) for s in session.outputs]


def test_a_dynamic_batch_is_a_flexible_shape(tmp_path: Path) -> None:
    graph = capture(tiny_v2(), (example(),), name="tiny", dynamic_batch=True)
    path = package(graph, tmp_path)
    batch = {"image": example(batch=3).numpy()}
    spec, _ = read_model(path)
    sizes = spec.description.input[0].type.multiArrayType.shapeRange.sizeRanges
    assert [(1, MAX_BATCH), (3, 3), (32, 32), (32, 32)] == [(s.lowerBound, s.upperBound) for s in sizes]
    with CoreMLReference().load(path) as session:
        assert (None, 3, 32, 32) == session.inputs[0].shape
        assert (None, 10) == session.outputs[0].shape
        with pytest.raises(DataError, match=r"takes \[1 to 1024, 3, 32, 32\]"):
            session.run({"image": np.broadcast_to(np.float32(0), (MAX_BATCH + 1, 3, 32, 32))})
    found = differences(graph, path, batch)
    assert [] == [(name, db) for name, db in found.items() if db < 100]


# --- options ----------------------------------------------------------------------------------------

SHUFFLE = """g (float[1,4,6,6] x) => (float[1,4,6,6] y, float[1,4] z) {
  r = Reshape(x, s) t = Transpose<perm=[0,2,1,3,4]>(r) y = Reshape(t, u) z = ReduceMean<keepdims=0>(y, a)
}"""
CONSTANTS = {
    "s": np.array([1, 2, 2, 6, 6], np.int64),
    "u": np.array([1, 4, 6, 6], np.int64),
    "a": np.array([2, 3], np.int64),
}


def shuffle_graph() -> Graph:
    return graph_from_text(SHUFFLE, CONSTANTS)


@pytest.mark.parametrize("half_io", [False, True])
def test_nhwc_inputs_and_outputs(half_io: bool, tmp_path: Path) -> None:
    path = package(shuffle_graph(), tmp_path, layout="nhwc", precision="fp16", half_io=half_io)
    with CoreMLReference().load(path) as session:
        kind = np.float16 if half_io else np.float32
        assert [("x", (1, 6, 6, 4), kind)] == [(s.name, s.shape, s.dtype) for s in session.inputs]
        assert [("y", (1, 6, 6, 4), kind), ("z", (1, 4), kind)] == [
            (s.name, s.shape, s.dtype) for s in session.outputs
        ]
        assert (0, 2, 3, 1) == session.trace["x"].axes
        x = np.random.default_rng(0).standard_normal((1, 4, 6, 6)).astype(kind)
        result = session.run({"x": session.trace["x"].to_file(x)})
        reference = onnx_values(shuffle_graph(), {"x": x.astype(np.float32)})
        assert sqnr(reference["y"], session.trace["y"].to_logical(result["y"])) > 60
        assert sqnr(reference["z"], result["z"]) > 55


@pytest.mark.parametrize("target", DEPLOYMENT_TARGETS)
def test_each_deployment_target(target: str, tiny: Graph, tmp_path: Path) -> None:
    path = package(tiny, tmp_path, precision="fp16", minimum_deployment_target=target)
    spec, _ = read_model(path)
    assert 6 + DEPLOYMENT_TARGETS.index(target) == spec.specificationVersion
    assert sqnr(onnx_values(tiny, IMAGE)["logits"], execute(path, IMAGE)["logits"]) > 40


@pytest.mark.parametrize(
    ("given_name", "hint"), [("ios16", "iOS16"), ("iOS61", "iOS16"), ("android", "iOS15")]
)
def test_an_unknown_deployment_target_is_refused_with_a_suggestion(
    given_name: str, hint: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="unknown Core ML deployment target") as caught:
        package(shuffle_graph(), tmp_path, minimum_deployment_target=given_name)
    assert hint in caught.value.hint


def test_half_inputs_need_ios16(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="iOS 16"):
        package(shuffle_graph(), tmp_path, precision="fp16", half_io=True, minimum_deployment_target="iOS15")


# --- metadata ---------------------------------------------------------------------------------------


def test_metadata_is_in_core_mls_own_fields(tmp_path: Path) -> None:
    info = ModelInfo(
        "net",
        weights="digits",
        weights_sha256="0" * 64,
        preprocess=IMAGENET,
        labels=("tench, Tinca tinca", "école"),
        description="A test.",
        author="Someone",
        version="1.2",
        license="MIT",
    )
    spec, _ = read_model(package(shuffle_graph(), tmp_path, info))
    metadata = spec.description.metadata
    custom = metadata.userDefined
    assert ("A test.", "Someone", "1.2", "MIT") == (
        metadata.shortDescription,
        metadata.author,
        metadata.versionString,
        metadata.license,
    )
    assert info == ModelInfo.from_json(json.loads(custom[METADATA_KEY]))
    assert ["x", "y", "z"] == [n for n in Trace.from_json(custom[TRACE_KEY]) if n in "xyz"]
    assert list(info.labels) == next(csv.reader([custom["classes"]]))
    assert custom["preprocessing"].startswith("RGB; (pixel * 0.00392156863 - [0.485")
    assert "com.github.apple.coremltools.version" in custom
    assert [] == [key for key in custom if "date" in key]
    assert "mlProgram" == spec.WhichOneof("Type")


# --- determinism and structure ----------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
from shufflectl.converters.coreml import toolkit
toolkit.load(lean=True)
from shufflectl.converters.graph import Graph
from shufflectl.converters.metadata import ModelInfo
from shufflectl.converters.targets import TARGETS, EmitOptions
graph = Graph.from_bytes(Path(sys.argv[1]).read_bytes())
TARGETS["coreml"].emit(graph, ModelInfo("test"), EmitOptions(precision="fp16"), Path(sys.argv[2]))
found = sorted({"torch", "sklearn"} & {name for name, module in sys.modules.items() if module is not None})
print(found, "sklearn" in sys.modules)
"""


def test_the_same_bytes_in_another_process_with_another_hash_seed(
    tiny: Graph, tiny_fp16: Path, tmp_path: Path
) -> None:
    (tmp_path / "graph.onnx").write_bytes(tiny.to_bytes())
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "graph.onnx"), str(tmp_path / "other.mlpackage")],
        env={**os.environ, "PYTHONHASHSEED": "4242"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr)
    # A lean process has neither imported the frameworks nor kept them hidden.
    assert "[] False\n" == done.stdout
    assert digests(tiny_fp16) == digests(tmp_path / "other.mlpackage")


def test_the_same_bytes_after_an_emission_that_failed(tmp_path: Path) -> None:
    first = package(shuffle_graph(), tmp_path)
    bad = graph_from_text(
        "g (float[2,3] x) => (float[] o) { a = Relu(x) b = Relu(a) o = Reshape(b, s) }",
        {"s": np.array([1, 1, 1, 1, 2, 3], np.int64)},
    )
    with pytest.raises(GraphError):
        package(bad, tmp_path)
    assert digests(first) == digests(package(shuffle_graph(), tmp_path))


def test_coremltools_opens_the_package(tiny_fp16: Path) -> None:
    kit = toolkit.load()
    with quiet():
        model = kit.ct.models.MLModel(str(tiny_fp16), skip_model_load=True)
        assert ["image"] == [feature.name for feature in model.get_spec().description.input]
        assert (Path(model.weights_dir) / "weight.bin").is_file()


def test_the_package_is_laid_out_as_apples(tiny_fp16: Path) -> None:
    assert {
        "Manifest.json",
        "Data/com.apple.CoreML/model.mlmodel",
        "Data/com.apple.CoreML/weights/weight.bin",
    } == set(digests(tiny_fp16))
    manifest = json.loads((tiny_fp16 / "Manifest.json").read_text())
    entries = manifest["itemInfoEntries"]
    assert "1.0.0" == manifest["fileFormatVersion"]
    assert "com.apple.CoreML/model.mlmodel" == entries[manifest["rootModelIdentifier"]]["path"]
    assert {"com.apple.CoreML"} == {entry["author"] for entry in entries.values()}


# --- names ------------------------------------------------------------------------------------------


def test_names_that_look_like_those_of_passes_still_trace_truthfully(tmp_path: Path) -> None:
    text = """g (float[1,4] x) => (float[1,4] o) {
      a = Sigmoid(x)
      a_cast_fp16 = Tanh(a)
      fp16 = Exp(a_cast_fp16)
      x_to_fp16 = Mul(fp16, a)
      o = Add(x_to_fp16, x)
    }"""
    graph = graph_from_text(text)
    x = {"x": np.linspace(-2, 2, 4, dtype=np.float32).reshape(1, 4)}
    found = differences(graph, package(graph, tmp_path, precision="fp16"), x)
    assert {"x", "a", "a_cast_fp16", "fp16", "x_to_fp16", "o"} == set(found)
    assert min(found.values()) > 55


@settings(deadline=None)
@given(st.lists(st.text(min_size=1, max_size=12), unique=True, max_size=20))
def test_names_are_legal_and_unique(names: list[str]) -> None:
    namer = Namer()
    made = [namer.tensor(name) for name in names]
    made += [namer.helper(name, "role") for name in made]
    assert len(made) == len(set(made))
    assert all(name.isascii() and name.isidentifier() and name[0].isalpha() for name in made)
    assert made[: len(names)] == [namer.tensor(name) for name in names]


# --- graphs at random -------------------------------------------------------------------------------

UNITS = {
    "conv": "{o} = Conv<pads=[1,1,1,1]>({a}, w)",
    "depthwise": "{o} = Conv<group=4, pads=[1,1,1,1]>({a}, d)",
    "relu": "{o} = Relu({a})",
    "swish": "{o}g = HardSigmoid({a}) {o} = Mul({a}, {o}g)",
    "add": "{o} = Add({a}, {b})",
    "shuffle": "{o}r = Reshape({a}, s) {o}t = Transpose<perm=[0,2,1,3,4]>({o}r) {o} = Reshape({o}t, u)",
    "join": "{o}h, {o}i = Split<axis=1, num_outputs=2>({a}) {o} = Concat<axis=1>({o}i, {o}h)",
    "interleave": "{o}h, {o}i = Split<axis=1, num_outputs=2>({a}) {o}c = Concat<axis=1>({o}h, {o}i) "
    "{o}r = Reshape({o}c, s) {o}t = Transpose<perm=[0,2,1,3,4]>({o}r) {o} = Reshape({o}t, u)",
    "pool": "{o} = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>({a})",
    "gather": "{o} = Gather<axis=1>({a}, p)",
    "bias": "{o} = Add({a}, c)",
    "scale": "{o} = Mul({a}, c)",
}


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_random_graphs_agree_and_trace_truthfully(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tensors, lines = ["x"], []
    for index in range(data.draw(st.integers(2, 8))):
        unit = data.draw(st.sampled_from(sorted(UNITS)))
        names = {key: data.draw(st.sampled_from(tensors[-3:])) for key in "ab"}
        lines.append(UNITS[unit].format(o=f"m.{index}".replace(".", "_"), **names))
        tensors.append(f"m_{index}")
    body = " ".join(lines) + f" y = Sigmoid({tensors[-1]})"
    rng = np.random.default_rng(0)
    constants: dict[str, Any] = {
        "w": rng.standard_normal((4, 4, 3, 3)).astype(np.float32) / 6,
        "d": rng.standard_normal((4, 1, 3, 3)).astype(np.float32) / 3,
        "c": rng.standard_normal((4, 1, 1)).astype(np.float32),
        "s": np.array([1, 2, 2, 5, 5], np.int64),
        "u": np.array([1, 4, 5, 5], np.int64),
        "p": np.array([3, 0, 2, 1], np.int64),
    }
    text = f"g (float[1,4,5,5] x) => (float[1,4,5,5] y) {{ {body} }}"
    graph = graph_from_text(text, {k: v for k, v in constants.items() if f", {k})" in body})
    inputs = {"x": rng.standard_normal((1, 4, 5, 5)).astype(np.float32)}
    folder = tmp_path_factory.mktemp("random")
    full = differences(graph, package(graph, folder), inputs)
    half = differences(graph, package(graph, folder, precision="fp16"), inputs)
    assert [] == [(name, db) for name, db in full.items() if db < 100]
    assert [] == [(name, db) for name, db in half.items() if db < 30]


# --- what goes wrong --------------------------------------------------------------------------------


def test_an_output_that_cannot_be_written_leaves_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        emit(shuffle_graph(), INFO, EmitOptions(), tmp_path / "file" / "model.mlpackage")


def test_an_output_that_does_not_depend_on_the_input_is_refused(tmp_path: Path) -> None:
    graph = graph_from_text(
        "g (float[1] x) => (float[1] y, float[1] c) { y = Relu(x) }", {"c": np.zeros(1, np.float32)}
    )
    with pytest.raises(GraphError, match="does not depend"):
        package(graph, tmp_path)


def test_an_unfixed_image_size_is_refused(tmp_path: Path) -> None:
    graph = graph_from_text("g (float[1,3,H,8] x) => (float[1,3,H,8] y) { y = Relu(x) }")
    with pytest.raises(GraphError, match="besides the batch"):
        package(graph, tmp_path)


def test_without_coremltools_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(toolkit.importlib.util, "find_spec", lambda _: None)  # type: ignore[attr-defined]
    with pytest.raises(MissingDependencyError) as caught:
        package(shuffle_graph(), tmp_path)
    assert "shufflectl[coreml]" in caught.value.hint


def test_emitting_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    package(shuffle_graph(), tmp_path, precision="fp16")
    assert ("", "") == tuple(capfd.readouterr())


def test_the_table_of_targets_knows_the_emitter(tmp_path: Path) -> None:
    path = tmp_path / "a.mlpackage"
    TARGETS["coreml"].emit(shuffle_graph(), INFO, EmitOptions(), path)
    assert path.is_dir()


# --- mutations --------------------------------------------------------------------------------------


def conv_weight(spec: Any, name: str) -> Any:
    """Return the blob of the weight of the convolution whose result has that name in the program."""
    function = spec.mlProgram.functions["main"]
    operations = function.block_specializations[function.opset].operations
    conv = next(op for op in operations if op.outputs[0].name == name)
    weight = conv.inputs["weight"].arguments[0].name
    return next(op for op in operations if op.outputs[0].name == weight).attributes["val"]


@pytest.mark.parametrize("mutation", ["delete a column", "swap two channels", "move the padding"])
def test_a_mutation_shows_first_at_its_layer(mutation: str, tiny: Graph, tmp_path: Path) -> None:
    path = package(tiny, tmp_path)
    with CoreMLReference().load(path) as session:
        layer = "stage3.0.branch2.4" if mutation == "move the padding" else "stage3.1.branch2.1"
        name = session.trace[layer].name
    model, weights = (path / "Data/com.apple.CoreML" / p for p in ("model.mlmodel", "weights/weight.bin"))
    spec, _ = read_model(path)
    if mutation == "move the padding":
        function = spec.mlProgram.functions["main"]
        operations = function.block_specializations[function.opset].operations
        conv = next(op for op in operations if op.outputs[0].name == name)
        pad = next(op for op in operations if op.outputs[0].name == conv.inputs["pad"].arguments[0].name)
        assert [1, 1, 1, 1] == list(pad.attributes["val"].immediateValue.tensor.ints.values)
        # coremltools shares equal constants: the layer gets one of its own.
        own = type(pad).FromString(pad.SerializeToString())
        own.outputs[0].name = "moved"
        own.attributes["val"].immediateValue.tensor.ints.values[:] = [0, 2, 0, 2]
        conv.inputs["pad"].arguments[0].name = "moved"
        operations.insert(0, own)
    else:
        value = conv_weight(spec, name)
        shape = [d.constant.size for d in value.type.tensorType.dimensions]
        data = bytearray(weights.read_bytes())
        record = value.blobFileValue.offset
        start = int.from_bytes(data[record + 16 : record + 24], "little")
        matrix = np.frombuffer(data, np.float32, int(np.prod(shape)), start).reshape(shape)
        if mutation == "delete a column":
            matrix[:, 3] = 0
        else:
            matrix[[2, 5]] = matrix[[5, 2]]
        weights.write_bytes(data)
    model.write_bytes(spec.SerializeToString(deterministic=True))
    found = differences(tiny, path, IMAGE)
    assert layer == next(name for name, db in found.items() if db < 60)
