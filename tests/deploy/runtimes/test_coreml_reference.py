"""The reference runtime: Apple's conversions, arithmetic, inner tensors, packages that nobody vouches for."""

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shufflectl.converters.coreml import toolkit
from shufflectl.converters.coreml.package import write_package
from shufflectl.converters.metadata import METADATA_KEY, TRACE_KEY
from shufflectl.converters.quiet import quiet
from shufflectl.deploy.runtimes.coreml import CoreML
from shufflectl.deploy.runtimes.coreml_reference import CoreMLReference, protos
from shufflectl.deploy.runtimes.coreml_reference.blob import BlobFile
from shufflectl.deploy.runtimes.coreml_reference.operations.table import EXACT, OPERATIONS
from shufflectl.deploy.runtimes.coreml_reference.package import read_model
from shufflectl.errors import (
    ArtifactError,
    DataError,
    MissingDependencyError,
    UnavailableError,
    UnsupportedOperatorError,
)
from support.coreml import execute, package, sqnr
from support.graphs import graph_from_text
from support.nets import example, tiny_v2


@pytest.fixture(scope="module")
def kit() -> toolkit.Toolkit:
    return toolkit.load()


def converted(kit: toolkit.Toolkit, program: Any, path: Path, **options: Any) -> Path:
    """Convert with coremltools alone, as its users do."""
    ct = kit.ct
    options.setdefault("minimum_deployment_target", ct.target.iOS16)
    with quiet():
        model = ct.convert(program, convert_to="mlprogram", skip_model_load=True, **options)
        model.save(str(path))
    return path


# --- Apple's own conversion -------------------------------------------------------------------------


@pytest.mark.parametrize("half", [False, True])
def test_what_coremltools_converts_from_torch_runs(half: bool, kit: toolkit.Toolkit, tmp_path: Path) -> None:
    net, image = tiny_v2(), example()
    # Not torch.jit.trace: coremltools 9 stumbles over the sizes that it records, with numpy 2.4.
    with quiet():
        exported = torch.export.export(net, (image,)).run_decompositions({})
    precision = kit.ct.precision.FLOAT16 if half else kit.ct.precision.FLOAT32
    path = converted(
        kit,
        exported,
        tmp_path / "official.mlpackage",
        inputs=[kit.ct.TensorType(name="image", shape=image.shape, dtype=np.float32)],
        outputs=[kit.ct.TensorType(name="logits", dtype=np.float32)],
        compute_precision=precision,
    )
    with torch.inference_mode():
        expected = net(image).numpy()
    (actual,) = execute(path, {"image": image.numpy()}).values()
    assert sqnr(expected, actual) > (40 if half else 110)
    with CoreMLReference().load(path) as session:
        assert session.info is None
        assert 0 == len(session.trace)


SAMPLE = np.linspace(-2.5, 2.5, 48, dtype=np.float32).reshape(1, 4, 3, 4)

ONE_OPERATION: dict[str, Callable[[Any, Any], Any]] = {
    "abs": lambda mb, x: mb.abs(x=x),
    "ceil": lambda mb, x: mb.ceil(x=x),
    "clip": lambda mb, x: mb.clip(x=x, alpha=-1.0, beta=0.5),
    "cos": lambda mb, x: mb.cos(x=x),
    "elu": lambda mb, x: mb.elu(x=x, alpha=0.7),
    "erf": lambda mb, x: mb.erf(x=x),
    "exp2": lambda mb, x: mb.exp2(x=x),
    "expand_dims": lambda mb, x: mb.expand_dims(x=x, axes=[-1]),
    "floor": lambda mb, x: mb.floor(x=x),
    "floor_div": lambda mb, x: mb.floor_div(x=x, y=np.float32(0.7)),
    "gather": lambda mb, x: mb.gather(x=x, indices=[1, -1], axis=1),
    "gelu": lambda mb, x: mb.gelu(x=x, mode="EXACT"),
    "gelu tanh": lambda mb, x: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
    "inverse": lambda mb, x: mb.inverse(x=x, epsilon=0.1),
    "leaky_relu": lambda mb, x: mb.leaky_relu(x=x, alpha=0.3),
    "linear_activation": lambda mb, x: mb.linear_activation(x=x, alpha=0.3, beta=1.5),
    "log": lambda mb, x: mb.log(x=mb.square(x=x), epsilon=0.5),
    "maximum": lambda mb, x: mb.maximum(x=x, y=np.float32(0.2)),
    "pad reflect": lambda mb, x: mb.pad(x=x, pad=[2, 1, 0, 3], mode="reflect"),
    "pad replicate": lambda mb, x: mb.pad(x=x, pad=[2, 1, 0, 3], mode="replicate"),
    "pixel_shuffle": lambda mb, x: mb.pixel_shuffle(x=x, upscale_factor=2),
    "pow": lambda mb, x: mb.pow(x=x, y=np.float32(3)),
    "reduce_l1_norm": lambda mb, x: mb.reduce_l1_norm(x=x, axes=[1]),
    "reduce_l2_norm": lambda mb, x: mb.reduce_l2_norm(x=x, axes=[-1], keep_dims=True),
    "reduce_min": lambda mb, x: mb.reduce_min(x=x, axes=[2, 3]),
    "reduce_sum_square": lambda mb, x: mb.reduce_sum_square(x=x, axes=[0, 1]),
    "round": lambda mb, x: mb.round(x=x),
    "rsqrt": lambda mb, x: mb.rsqrt(x=mb.square(x=x), epsilon=0.1),
    "select": lambda mb, x: mb.select(cond=mb.greater(x=x, y=np.float32(0.3)), a=x, b=mb.square(x=x)),
    "sigmoid_hard": lambda mb, x: mb.sigmoid_hard(x=x, alpha=0.3, beta=0.4),
    "sign": lambda mb, x: mb.sign(x=x),
    "silu": lambda mb, x: mb.silu(x=x),
    "sin": lambda mb, x: mb.sin(x=x),
    "slice_by_size": lambda mb, x: mb.slice_by_size(x=x, begin=[0, 1, 0, 1], size=[1, 2, -1, 3]),
    "softmax": lambda mb, x: mb.softmax(x=x, axis=1),
    "softplus": lambda mb, x: mb.softplus(x=x),
    "softsign": lambda mb, x: mb.softsign(x=x),
    "square": lambda mb, x: mb.square(x=x),
    "squeeze": lambda mb, x: mb.squeeze(x=x, axes=[0]),
    "stack": lambda mb, x: mb.stack(values=[x, x], axis=1),
    "tile": lambda mb, x: mb.tile(x=x, reps=[1, 2, 1, 3]),
    "transpose": lambda mb, x: mb.transpose(x=x, perm=[0, 3, 1, 2]),
}  # fmt: skip


@pytest.fixture(scope="module")
def value_inference(kit: toolkit.Toolkit, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Each operation of `ONE_OPERATION` by coremltools' own numpy code, and by the reference runtime."""
    mb = kit.mb
    spec = [mb.TensorSpec(shape=SAMPLE.shape)]
    expected: dict[str, NDArray[Any]] = {}

    @mb.program(input_specs=spec, opset_version=kit.ct.target.iOS16)
    def program(x: Any) -> Any:
        outputs = []
        for index, (label, build) in enumerate(ONE_OPERATION.items()):
            value = build(mb, mb.const(val=SAMPLE)).val
            if value is not None:
                expected[label] = value
            outputs.append(mb.identity(x=build(mb, x), name=f"out{index}"))
        return tuple(outputs)

    # No passes: each operation arrives as it was written.
    path = converted(
        kit,
        program,
        tmp_path_factory.mktemp("ops") / "ops.mlpackage",
        pass_pipeline=kit.ct.PassPipeline.EMPTY,
    )
    found = execute(path, {"x": SAMPLE})
    return {label: (expected.get(label), found[f"out{index}"]) for index, label in enumerate(ONE_OPERATION)}


@pytest.mark.parametrize("label", ONE_OPERATION)
def test_an_operation_agrees_with_coremltools(label: str, value_inference: dict[str, Any]) -> None:
    by_hand = {
        "stack": np.stack([SAMPLE, SAMPLE], 1),
        "silu": SAMPLE / (1 + np.exp(-SAMPLE)),
        "pixel_shuffle": torch.pixel_shuffle(torch.from_numpy(SAMPLE), 2).numpy(),
        "reduce_l1_norm": np.abs(SAMPLE).sum(1),
        "reduce_l2_norm": np.sqrt(np.square(SAMPLE).sum(-1, keepdims=True)),
    }
    expected, actual = value_inference[label]
    expected = by_hand.get(label, expected)
    assert expected is not None
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("mode", ["DEFAULT", "STRICT_ALIGN_CORNERS", "OFFSET_CORNERS", "UNALIGN_CORNERS"])
def test_resize_bilinear_samples_what_its_documentation_lists(
    mode: str, kit: toolkit.Toolkit, tmp_path: Path
) -> None:
    # The grids that coremltools documents for Xin = 2 and the interval [0, 1].
    documented = {
        "UNALIGN_CORNERS": [0, 0.1, 0.5, 0.9, 1],
        "STRICT_ALIGN_CORNERS": [0, 0.25, 0.5, 0.75, 1],
        "DEFAULT": [0, 0.4, 0.8, 1, 1],
        "OFFSET_CORNERS": [0.1, 0.3, 0.5, 0.7, 0.9],
    }
    mb = kit.mb

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 1, 1, 2))], opset_version=kit.ct.target.iOS16)
    def program(x: Any) -> Any:
        return mb.resize_bilinear(
            x=x, target_size_height=1, target_size_width=5, sampling_mode=mode, name="y"
        )

    path = converted(kit, program, tmp_path / "r.mlpackage", compute_precision=kit.ct.precision.FLOAT32)
    result = execute(path, {"x": np.array([0, 1], np.float32).reshape(1, 1, 1, 2)})
    np.testing.assert_allclose(result["y"].reshape(-1), documented[mode], atol=1e-6)


@pytest.mark.parametrize(("mode", "align"), [("bilinear", True), ("bilinear", False), ("nearest", None)])
def test_upsampling_that_coremltools_converts_from_torch(
    mode: str, align: bool | None, kit: toolkit.Toolkit, tmp_path: Path
) -> None:
    net = torch.nn.Upsample(scale_factor=2, mode=mode, align_corners=align)
    x = example(5)
    with quiet():
        traced = torch.jit.trace(net, x)
    path = converted(
        kit,
        traced,
        tmp_path / "up.mlpackage",
        inputs=[kit.ct.TensorType(name="x", shape=x.shape)],
        compute_precision=kit.ct.precision.FLOAT32,
    )
    (actual,) = execute(path, {"x": x.numpy().astype(np.float32)}).values()
    np.testing.assert_allclose(actual, net(x).numpy(), atol=1e-5)


def test_exact_operations_exist() -> None:
    assert set() == EXACT - set(OPERATIONS)


# --- arithmetic -------------------------------------------------------------------------------------


def test_fp16_rounds_each_stored_value_once_and_accumulates_in_fp32(tmp_path: Path) -> None:
    # 2048 + 1 is not an fp16 value; summed in fp32 with 2 more it is 2051, which rounds to 2052.
    weight = np.array([[2048, 1, 2]], np.float32)
    graph = graph_from_text(
        "g (float[1,3] x) => (float[1,1] y) { a = Gemm<transB=1>(x, w) b = Relu(a) y = Add(b, c) }",
        {"w": weight, "c": np.float32([[1]])},
    )
    path = package(graph, tmp_path, precision="fp16")
    ones = np.ones((1, 3), np.float32)
    with CoreMLReference().load(path) as session:
        result = session.run({"x": ones}, [session.trace["a"].name])
        assert 2052.0 == float(result[session.trace["a"].name][0, 0])
        assert np.float16 == result[session.trace["a"].name].dtype
    # 2052 + 1 is halfway between 2052 and 2054: to even.
    assert 2052.0 == float(result["y"][0, 0])


def test_fp16_overflows_to_infinity(tmp_path: Path) -> None:
    graph = graph_from_text("g (float[1,2] x) => (float[1,2] y) { a = Mul(x, x) y = Relu(a) }")
    path = package(graph, tmp_path, precision="fp16")
    result = execute(path, {"x": np.array([[300, 2]], np.float32)})
    assert [float("inf"), 4.0] == result["y"].reshape(-1).tolist()


def test_a_run_changes_neither_inputs_nor_later_runs(tmp_path: Path) -> None:
    text = "g (float[1,4] x) => (float[2,2] y, float[1,4] z) { y = Reshape(x, s) z = Add(x, x) }"
    graph = graph_from_text(text, {"s": np.array([2, 2], np.int64)})
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    with CoreMLReference().load(package(graph, tmp_path)) as session:
        first = session.run({"x": x})
        first["y"][:] = 9
        second = session.run({"x": x})
    assert [[0, 1, 2, 3]] == x.tolist()
    assert [[0, 1], [2, 3]] == second["y"].tolist()
    assert [[0, 2, 4, 6]] == second["z"].tolist()


def test_the_number_of_threads_is_set_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    graph = graph_from_text("g (float[1,4] x) => (float[1,4] y) { y = Relu(x) }")
    with CoreMLReference().load(package(graph, tmp_path), threads=before + 1) as session:
        session.run({"x": np.zeros((1, 4), np.float32)})
    assert before == torch.get_num_threads()


# --- what a caller gets wrong -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    graph = graph_from_text(
        "g (float[1,3,5,5] x) => (float[1,4,3,3] y) { a = Conv(x, w) y = Sigmoid(a) }", {"w": weight}
    )
    return package(graph, tmp_path_factory.mktemp("small"), precision="fp16")


X = np.zeros((1, 3, 5, 5), np.float32)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "'x' is missing"),
        ({"x": X[0]}, "the model takes float32"),
        ({"x": X.astype(np.float64)}, "is float64"),
        ({"x": X, "z": X}, "no input 'z'"),
        ({"x": np.zeros((2, 3, 5, 5), np.float32)}, r"is float32 \[2, 3, 5, 5\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    inputs: dict[str, NDArray[Any]], message: str, small: Path
) -> None:
    with CoreMLReference().load(small) as session, pytest.raises(DataError, match=message):
        session.run(inputs)


def test_a_tap_that_does_not_exist_is_refused(small: Path) -> None:
    with CoreMLReference().load(small) as session, pytest.raises(ArtifactError, match="no tensor 'nothing'"):
        session.run({"x": X}, ["nothing"])


def test_a_tap_may_be_an_input_or_an_output(small: Path) -> None:
    result = execute(small, {"x": X}, ("x", "y"))
    assert {"x", "y"} == set(result)
    assert X.tolist() == result["x"].tolist()


# --- packages that nobody vouches for ---------------------------------------------------------------

MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


def edited(small: Path, folder: Path, change: Callable[[Any], object]) -> Path:
    """Return a copy whose ``Model`` message is changed."""
    spec, _ = read_model(small)
    change(spec)
    path = folder / "edited.mlpackage"
    write_package(path, spec.SerializeToString(deterministic=True), small / WEIGHTS)
    return path


def block(spec: Any) -> Any:
    function = spec.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


def operation(spec: Any, kind: str) -> Any:
    return next(op for op in block(spec).operations if op.type == kind)


def blob(spec: Any) -> Any:
    return next(
        op.attributes["val"]
        for op in block(spec).operations
        if op.type == "const" and op.attributes["val"].WhichOneof("value") == "blobFileValue"
    )


def file_damage(name: str, data: bytes | None, at: int = 0) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        target = path / name
        if data is None:
            target.unlink()
        elif at:
            content = bytearray(target.read_bytes())
            content[at : at + len(data)] = data
            target.write_bytes(content)
        else:
            target.write_bytes(data)

    return damage


def manifest(path_of_model: object) -> bytes:
    return json.dumps(
        {"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": path_of_model}}}
    ).encode()


DAMAGED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no manifest": (file_damage("Manifest.json", None), "manifest of the package is missing"),
    "empty manifest": (file_damage("Manifest.json", b""), "not the manifest"),
    "deep manifest": (file_damage("Manifest.json", b"[" * 100_000), "not the manifest"),
    "manifest of a list": (file_damage("Manifest.json", b"[]"), "not the manifest"),
    "manifest without a path": (file_damage("Manifest.json", manifest(3)), "not the manifest"),
    "path upwards": (file_damage("Manifest.json", manifest("../../secret")), "leaves the package"),
    "absolute path": (file_damage("Manifest.json", manifest("/etc/passwd")), "leaves the package"),
    "huge manifest": (file_damage("Manifest.json", b" " * (1 << 20) + b"{}"), "too large"),
    "no model": (file_damage(MODEL, None), "model of the package is missing"),
    "model of noise": (file_damage(MODEL, bytes(range(256)) * 8), "damaged"),
    "empty model": (file_damage(MODEL, b""), "kind unknown"),
    "no weights": (file_damage(WEIGHTS, None), "weights of the package are missing"),
    "empty weights": (file_damage(WEIGHTS, b""), "truncated"),
    "short weights": (file_damage(WEIGHTS, struct.pack("<II56x", 1, 2)), "lies outside the file"),
    "weights of another version": (file_damage(WEIGHTS, struct.pack("<I", 9), 4), "storage version"),
    "no sentinel": (file_damage(WEIGHTS, bytes(4), 64), "mark of a blob"),
    "wrong type": (file_damage(WEIGHTS, struct.pack("<I", 2), 68), "data type 2"),
    "wrong size": (file_damage(WEIGHTS, struct.pack("<Q", 2**63), 72), "bytes, and the program wants"),
    "data outside": (file_damage(WEIGHTS, struct.pack("<Q", 2**63), 80), "ends at byte"),
}


@pytest.mark.parametrize("label", DAMAGED)
def test_a_damaged_package_is_refused_in_one_sentence(label: str, small: Path, tmp_path: Path) -> None:
    damage, message = DAMAGED[label]
    path = tmp_path / "copy.mlpackage"
    shutil.copytree(small, path)
    damage(path)
    with pytest.raises(ArtifactError, match=message) as caught, CoreMLReference().load(path):
        pass
    assert "\n" not in caught.value.message
    assert caught.value.hint or label == "huge manifest"


@pytest.mark.parametrize("part", ["Data", MODEL, WEIGHTS, "Manifest.json"])
def test_symbolic_links_are_not_followed(part: str, small: Path, tmp_path: Path) -> None:
    path = tmp_path / "copy.mlpackage"
    shutil.copytree(small, path)
    moved = tmp_path / "outside"
    shutil.move(path / part, moved)
    (path / part).symlink_to(moved)
    with pytest.raises(ArtifactError, match=r"symbolic link|missing"), CoreMLReference().load(path):
        pass


def test_a_missing_path_and_a_file_are_told_apart(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match="does not exist"),
        CoreMLReference().load(tmp_path / "none.mlpackage"),
    ):
        pass
    (tmp_path / "file.mlmodel").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="is a file"), CoreMLReference().load(tmp_path / "file.mlmodel"):
        pass


def rename_weights(name: str) -> Callable[[Any], object]:
    return lambda spec: setattr(blob(spec).blobFileValue, "fileName", name)


def widen(spec: Any) -> None:
    for kind in ("conv", "sigmoid"):
        dims = operation(spec, kind).outputs[0].type.tensorType.dimensions
        for dim in dims:
            dim.constant.size = 1 << 40


def drop_input(spec: Any) -> None:
    del operation(spec, "conv").inputs["x"]


def stranger(spec: Any) -> None:
    operation(spec, "sigmoid").inputs["x"].arguments[0].name = "nowhere"


def twice(spec: Any) -> None:
    operation(spec, "sigmoid").outputs[0].name = operation(spec, "conv").outputs[0].name


def other_shape(spec: Any) -> None:
    operation(spec, "conv").outputs[0].type.tensorType.dimensions[1].constant.size = 5


def other_offset(spec: Any) -> None:
    blob(spec).blobFileValue.offset = 2**63


EDITED: dict[str, tuple[Callable[[Any], object], type[Exception], str]] = {
    "weights elsewhere": (rename_weights("/etc/passwd"), ArtifactError, "outside its package"),
    "weights upwards": (rename_weights("@model_path/../../x"), ArtifactError, "leaves the package"),
    "offset outside": (other_offset, ArtifactError, "lies outside the file"),
    "huge shape": (widen, ArtifactError, "asks for a tensor"),
    "no operand": (drop_input, ArtifactError, "no parameter x"),
    "unknown operand": (stranger, ArtifactError, "nothing has computed"),
    "one name twice": (twice, ArtifactError, "two tensors of the name"),
    "no function": (lambda s: s.mlProgram.functions.pop("main"), ArtifactError, "no function 'main'"),
    "no block": (
        lambda s: s.mlProgram.functions["main"].block_specializations.pop("CoreML6"),
        ArtifactError,
        "no block",
    ),
    "no output": (lambda s: block(s).outputs.pop(), ArtifactError, "no tensor for its outputs"),
    "other interface": (
        lambda s: setattr(s.description.output[0], "name", "z"),
        ArtifactError,
        "no output 'z'",
    ),
    "picture without colours": (
        lambda s: s.description.input[0].type.imageType.SetInParent(),
        ArtifactError,
        "only arrays and pictures are executed",
    ),
    "damaged trace": (
        lambda s: s.description.metadata.userDefined.update({TRACE_KEY: "[]"}),
        ArtifactError,
        "metadata",
    ),
    "damaged metadata": (
        lambda s: s.description.metadata.userDefined.update({METADATA_KEY: '{"name": 1}'}),
        ArtifactError,
        "metadata",
    ),
    "neural network": (lambda s: s.neuralNetwork.SetInParent(), ArtifactError, "kind neuralNetwork"),
    "classifier": (lambda s: s.pipelineClassifier.SetInParent(), ArtifactError, "kind pipelineClassifier"),
    "unknown operation": (
        lambda s: setattr(operation(s, "sigmoid"), "type", "lstm"),
        UnsupportedOperatorError,
        "coreml-reference cannot take operator lstm",
    ),
    "weights to unpack": (
        lambda s: setattr(operation(s, "sigmoid"), "type", "constexpr_sparse_to_dense"),
        UnsupportedOperatorError,
        "constexpr_sparse_to_dense",
    ),
}


@pytest.mark.parametrize("label", EDITED)
def test_a_hostile_program_is_refused_in_one_sentence(label: str, small: Path, tmp_path: Path) -> None:
    change, kind, message = EDITED[label]
    path = edited(small, tmp_path, change)
    with pytest.raises(kind, match=message), CoreMLReference().load(path):
        pass


def test_a_result_that_is_not_as_declared_is_refused(small: Path, tmp_path: Path) -> None:
    path = edited(small, tmp_path, other_shape)
    with (
        CoreMLReference().load(path) as session,
        pytest.raises(ArtifactError, match="declares a result of shape"),
    ):
        session.run({"x": X})


def test_every_flipped_byte_of_the_model_is_survived(small: Path, tmp_path: Path) -> None:
    # A damaged file may still be a valid one; anything else must be one of the package's own errors.
    original = (small / MODEL).read_bytes()
    path = tmp_path / "copy.mlpackage"
    shutil.copytree(small, path)
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(original), 150):
        data = bytearray(original)
        data[position] ^= int(rng.integers(1, 256))
        (path / MODEL).write_bytes(data)
        try:
            with CoreMLReference().load(path) as session:
                session.run({"x": X})
        except (ArtifactError, DataError, UnsupportedOperatorError):
            continue


def test_blobs_are_read_as_apples_writer_wrote_them(tmp_path: Path) -> None:
    from coremltools.libmilstoragepython import _BlobStorageWriter

    rng = np.random.default_rng(0)
    arrays = {
        "float": rng.standard_normal(7).astype(np.float32),
        "int8": rng.integers(-128, 127, 5).astype(np.int8),
        "uint8": rng.integers(0, 255, 5).astype(np.uint8),
        "int16": rng.integers(-9, 9, 3).astype(np.int16),
        "uint16": rng.integers(0, 9, 3).astype(np.uint16),
        "int32": rng.integers(-9, 9, 3).astype(np.int32),
        "uint32": rng.integers(0, 9, 3).astype(np.uint32),
    }
    half = rng.standard_normal(9).astype(np.float16)
    path = tmp_path / "weight.bin"
    writer = _BlobStorageWriter(str(path))
    offsets = {name: getattr(writer, f"write_{name}_data")(array) for name, array in arrays.items()}
    offset = writer.write_fp16_data(half.view(np.uint16))
    del writer
    with BlobFile(path) as file:
        assert half.tolist() == file.read(offset, half.dtype, (3, 3)).reshape(-1).tolist()
        for name, array in arrays.items():
            assert array.tolist() == file.read(offsets[name], array.dtype, array.shape).tolist()


# --- without coremltools' slow import, and without coremltools -------------------------------------

SCRIPT = """
import sys, warnings
warnings.simplefilter("error")
from pathlib import Path
import numpy as np
from shufflectl.deploy.runtimes.coreml_reference import CoreMLReference
with CoreMLReference().load(Path(sys.argv[1])) as session:
    session.run({"x": np.zeros((1, 3, 5, 5), np.float32)})
print("coremltools" in sys.modules)
"""


def test_a_package_runs_without_importing_coremltools(small: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(small)], capture_output=True, text=True, timeout=120, check=False
    )
    assert ("False\n", "") == (done.stdout, done.stderr)


def test_coremltools_and_the_reader_share_their_message_classes(kit: toolkit.Toolkit, small: Path) -> None:
    spec, _ = read_model(small)
    with quiet():
        model = kit.ct.models.MLModel(str(small), skip_model_load=True)
    assert type(spec) is type(model.get_spec())


def test_without_coremltools_the_runtime_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, small: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    protos.message_modules.cache_clear()
    state = CoreMLReference().available()
    assert (False, "pip install 'shufflectl[coreml]'") == (
        state.ok,
        state.remedy.removeprefix("install it with: "),
    )
    with pytest.raises(MissingDependencyError), CoreMLReference().load(small):
        pass


def test_apples_runtime_says_that_it_is_for_macos(monkeypatch: pytest.MonkeyPatch, small: Path) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    state = CoreML().available()
    assert (False, "") == (state.ok, state.remedy)
    assert "macOS" in state.reason
    with pytest.raises(UnavailableError, match="macOS") as caught, CoreML().load(small):
        pass
    assert "coreml-reference" in caught.value.hint


EVERYTHING = """g (float[1,4,6,6] x) => (float[] o) {
  a = Conv<pads=[1,1,1,1]>(x, w) b = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(a)
  c, d = Split<axis=1, num_outputs=2>(b) e = Concat<axis=1>(d, c) f = Pad(e, p) g = Slice(f, s, t, q)
  h = AveragePool<kernel_shape=[2,2]>(g) i = Gather<axis=1>(h, r) j = Transpose<perm=[0,2,3,1]>(i)
  k = Resize<mode="linear">(j, "", u) l = Softmax(k) m = ReduceMean<keepdims=0>(l, v) o = Flatten(m)
}"""


def numbers(spec: Any) -> list[tuple[Any, str, int | None]]:
    """Return every number of a program that shapes depend on, as an object, a field and an index."""
    places: list[tuple[Any, str, int | None]] = []
    for op in block(spec).operations:
        for out in op.outputs:
            places += [(d.constant, "size", None) for d in out.type.tensorType.dimensions]
        if op.type == "const" and op.attributes["val"].WhichOneof("value") == "immediateValue":
            tensor = op.attributes["val"].immediateValue.tensor
            if tensor.WhichOneof("value") == "ints":
                places += [(tensor.ints, "values", i) for i in range(len(tensor.ints.values))]
    return places


def test_no_number_of_a_program_crashes_the_runtime(tmp_path: Path) -> None:
    constants: dict[str, NDArray[Any]] = {
        "w": np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32),
        "p": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "s": np.array([1]),
        "t": np.array([4]),
        "q": np.array([1]),
        "r": np.array([2, 0]),
        "u": np.array([1, 1, 2, 2], np.float32),
        "v": np.array([1]),
    }
    path = package(graph_from_text(EVERYTHING, constants), tmp_path, precision="fp16")
    x = {"x": np.zeros((1, 4, 6, 6), np.float32)}
    assert {"o"} == set(execute(path, x))
    original = (path / MODEL).read_bytes()
    spec, _ = read_model(path)
    rng = np.random.default_rng(0)
    outcomes = {"ran": 0, "refused": 0}
    for _ in range(300):
        spec.ParseFromString(original)
        places = numbers(spec)
        owner, name, index = places[int(rng.integers(len(places)))]
        number = int(rng.choice([-(2**31), -7, -1, 0, 1, 2, 3, 100, 100_000, 2**31 - 1]))
        if index is not None:
            getattr(owner, name)[index] = number
        else:
            setattr(owner, name, abs(number))
        (path / MODEL).write_bytes(spec.SerializeToString())
        try:
            execute(path, x)
            outcomes["ran"] += 1
        except (ArtifactError, UnsupportedOperatorError):
            outcomes["refused"] += 1
    assert 0 not in outcomes.values()
