"""Codes and compressed weights in the reference runtime: coremltools' own arithmetic, and files that lie."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shufflectl.converters.coreml import toolkit
from shufflectl.converters.quiet import quiet
from shufflectl.deploy.runtimes.coreml_reference import CoreMLReference, program
from shufflectl.deploy.runtimes.coreml_reference.compressed import MAX_WEIGHTS, decompressed, unpacked
from shufflectl.deploy.runtimes.coreml_reference.operation import Declared, Operation
from shufflectl.deploy.runtimes.coreml_reference.package import read_model
from shufflectl.deploy.runtimes.coreml_reference.program import read_program
from shufflectl.errors import ArtifactError, DataError, UnsupportedOperatorError
from support.coreml import execute, package
from support.nets import tiny_graph

MODEL = "Data/com.apple.CoreML/model.mlmodel"
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def kit() -> toolkit.Toolkit:
    return toolkit.load()


def converted(
    kit: toolkit.Toolkit, build: Callable[[Any, Any], Any], shape: Any, target: str, path: Path
) -> Path:
    """Convert a program as it is written: no pass changes it."""
    mb, ct = kit.mb, kit.ct
    with quiet():

        @mb.program(input_specs=[mb.TensorSpec(shape=shape)], opset_version=getattr(ct.target, target))
        def program(x: Any) -> Any:
            return mb.identity(x=build(mb, x), name="y")

        model = ct.convert(
            program,
            convert_to="mlprogram",
            skip_model_load=True,
            minimum_deployment_target=getattr(ct.target, target),
            pass_pipeline=ct.PassPipeline.EMPTY,
        )
        model.save(str(path))
    return path


# --- what Apple's packages hold ---------------------------------------------------------------------

CODES = RNG.integers(-127, 128, (6, 4), dtype=np.int8)
SCALES = RNG.uniform(0.01, 0.1, 6).astype(np.float32)


def affine(mb: Any) -> Any:
    zero = np.arange(-3, 3, dtype=np.int8)
    return mb.constexpr_affine_dequantize(
        quantized_data=CODES, zero_point=zero, scale=SCALES, axis=np.int32(-2)
    )


def affine_unsigned(mb: Any) -> Any:
    return mb.constexpr_affine_dequantize(
        quantized_data=(CODES.astype(np.int16) + 128).astype(np.uint8),
        zero_point=np.uint8(128),
        scale=np.float32(0.05),
        axis=np.int32(0),
    )


def blockwise(mb: Any) -> Any:
    scale = RNG.uniform(0.01, 0.1, (3, 2)).astype(np.float32)
    offset = RNG.integers(-5, 6, (3, 2), dtype=np.int8)
    return mb.constexpr_blockwise_shift_scale(data=CODES, scale=scale, offset=offset)


def packed(bits: int) -> Callable[[Any], Any]:
    def build(mb: Any) -> Any:
        places = RNG.integers(0, 1 << bits, 24, dtype=np.uint8)
        flags = np.unpackbits(places[:, None], axis=1, bitorder="little")[:, :bits]
        return mb.constexpr_lut_to_dense(
            indices=np.packbits(flags, bitorder="little"),
            lut=RNG.standard_normal(1 << bits).astype(np.float32),
            shape=np.array([6, 4], np.uint32),
        )

    return build


def narrow(bits: int, groups: int = 1, length: int = 1) -> Callable[[Any], Any]:
    def build(mb: Any) -> Any:
        types = toolkit.load().mil.types
        kind = types.nptype_from_builtin(types.string_to_builtin(f"uint{bits}"))
        places = RNG.integers(0, 1 << bits, (6, 4 // length), dtype=np.uint8).astype(kind)
        table = RNG.standard_normal((groups, 1, 1 << bits, length)).astype(np.float32)
        axis = {} if length == 1 else {"vector_axis": np.int32(1)}
        return mb.constexpr_lut_to_dense(indices=places, lut=table, **axis)

    return build


def four_bits(mb: Any) -> Any:
    types = toolkit.load().mil.types
    kind = types.nptype_from_builtin(types.string_to_builtin("int4"))
    data = RNG.integers(-8, 8, (6, 4), dtype=np.int8).astype(kind)
    return mb.constexpr_blockwise_shift_scale(data=data, scale=np.full((6, 1), 0.25, np.float32))


WEIGHTS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "a scale and a zero point a row": ("iOS16", affine),
    "one scale of unsigned codes": ("iOS16", affine_unsigned),
    **{f"places of {bits} bits in bytes": ("iOS16", packed(bits)) for bits in (1, 2, 4, 6, 8)},
    "blocks": ("iOS18", blockwise),
    "codes of 4 bits": ("iOS18", four_bits),
    **{f"places of {bits} bits": ("iOS18", narrow(bits)) for bits in (1, 2, 3, 4, 6, 8)},
    "a table for each group": ("iOS18", narrow(2, groups=3)),
    "tables of vectors": ("iOS18", narrow(2, groups=2, length=2)),
}


@pytest.mark.parametrize("label", WEIGHTS)
def test_compressed_weights_are_what_coremltools_makes_of_them(
    label: str, kit: toolkit.Toolkit, tmp_path: Path
) -> None:
    target, weights = WEIGHTS[label]
    expected: list[NDArray[Any]] = []

    def build(mb: Any, x: Any) -> Any:
        made = weights(mb)
        expected.append(made.op.materialized_val_inference())
        return mb.linear(x=x, weight=made)

    path = converted(kit, build, (4, 4), target, tmp_path / "w.mlpackage")
    found = execute(path, {"x": np.eye(4, dtype=np.float32)})["y"]
    np.testing.assert_array_equal(expected[0].astype(np.float32).T, found)


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
@pytest.mark.parametrize("kind", ["codes", "palette"])
def test_packages_that_coremltools_compresses_compute_what_it_unpacks(
    kind: str, target: str, kit: toolkit.Toolkit, tmp_path: Path
) -> None:
    ct, optimize = kit.ct, kit.ct.optimize.coreml
    plain = package(tiny_graph(), tmp_path, precision="fp16", minimum_deployment_target=target)
    with quiet():
        model = ct.models.MLModel(str(plain), skip_model_load=True)
        if kind == "codes":
            op = optimize.OpLinearQuantizerConfig(mode="linear", weight_threshold=0)
            small = optimize.linear_quantize_weights(model, optimize.OptimizationConfig(global_config=op))
        else:
            op = optimize.OpPalettizerConfig(mode="uniform", nbits=6, weight_threshold=64)
            small = optimize.palettize_weights(model, optimize.OptimizationConfig(global_config=op))
        small.save(str(tmp_path / "small.mlpackage"))
        optimize.decompress_weights(small).save(str(tmp_path / "large.mlpackage"))
    x = {"image": np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)}
    found, wanted, before = (
        execute(path, x)["logits"]
        for path in (tmp_path / "small.mlpackage", tmp_path / "large.mlpackage", plain)
    )
    np.testing.assert_array_equal(wanted, found)
    assert (found != before).any()


@pytest.mark.parametrize("kind", ["int8", "uint8"])
@pytest.mark.parametrize("axis", [None, 1])
def test_codes_are_rounded_as_coremltools_does(
    kind: str, axis: int | None, kit: toolkit.Toolkit, tmp_path: Path
) -> None:
    # Halves go to even, and what is beyond the last code ends there.
    x = np.array([[0.25, 0.75, 1.25, -0.25], [70.0, -70.0, 3.3, np.inf]], np.float32)
    count = None if axis is None else x.shape[axis]
    scale = np.float32(0.5) if count is None else np.float32([0.5, 0.25, 0.125, 2.0])
    dtype = np.dtype(kind).type
    zero = dtype(3) if count is None else np.array([0, 1, 2, 3], dtype)
    where = {} if axis is None else {"axis": np.int32(axis)}
    expected: list[NDArray[Any]] = []

    def build(mb: Any, value: Any) -> Any:
        given = {"scale": scale, "zero_point": zero, **where}
        expected.append(mb.quantize(input=x, output_dtype=kind, **given).val)
        codes = mb.quantize(input=value, output_dtype=kind, name="codes", **given)
        return mb.dequantize(input=codes, **given)

    path = converted(kit, build, x.shape, "iOS17", tmp_path / "q.mlpackage")
    found = execute(path, {"x": x}, ("codes",))
    assert dtype == found["codes"].dtype
    np.testing.assert_array_equal(expected[0], found["codes"])
    numbers = (expected[0].astype(np.float32) - zero) * scale
    np.testing.assert_array_equal(numbers, found["y"])


def test_codes_can_be_moved(kit: toolkit.Toolkit, tmp_path: Path) -> None:
    def build(mb: Any, x: Any) -> Any:
        codes = mb.quantize(input=x, output_dtype="int8", scale=np.float32(0.5))
        codes = mb.reshape(x=mb.transpose(x=codes, perm=[1, 0]), shape=[2, 3])
        codes = mb.slice_by_index(x=mb.expand_dims(x=codes, axes=[0]), begin=[0, 0, 1], end=[1, 2, 3])
        codes = mb.gather(x=mb.squeeze(x=codes, axes=[0]), indices=[1, 0], axis=0)
        return mb.dequantize(input=codes, scale=np.float32(0.5))

    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    path = converted(kit, build, x.shape, "iOS17", tmp_path / "m.mlpackage")
    expected = x.T.reshape(2, 3)[:, 1:][[1, 0]]
    np.testing.assert_array_equal(expected, execute(path, {"x": x})["y"])


# --- properties -------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.data())
def test_numbers_of_any_width_come_out_of_bytes_as_they_went_in(data: st.DataObject) -> None:
    bits = data.draw(st.integers(1, 8))
    numbers = np.array(data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=40)), np.uint8)
    flags = np.unpackbits(numbers[:, None], axis=1, bitorder="little")[:, :bits]
    np.testing.assert_array_equal(
        numbers, unpacked(np.packbits(flags, bitorder="little"), bits, numbers.size)
    )


def test_many_numbers_are_unpacked_in_pieces() -> None:
    numbers = np.random.default_rng(1).integers(0, 64, (1 << 20) + 5, dtype=np.uint8)
    flags = np.unpackbits(numbers[:, None], axis=1, bitorder="little")[:, :6]
    np.testing.assert_array_equal(numbers, unpacked(np.packbits(flags, bitorder="little"), 6, numbers.size))


# --- files that lie ---------------------------------------------------------------------------------

TABLE = np.arange(16, dtype=np.float32)
BYTES = np.zeros(12, np.uint8)
ROWS = np.array([6, 4], np.uint32)
BAD: dict[str, tuple[str, dict[str, Any], tuple[int, ...], str]] = {
    "too few bytes": (
        "lut_to_dense",
        {"indices": BYTES[:11], "lut": TABLE, "shape": ROWS},
        (6, 4),
        "11 bytes for 24 places of 4 bits",
    ),
    "another shape": (
        "lut_to_dense",
        {"indices": BYTES, "lut": TABLE, "shape": ROWS},
        (4, 6),
        r"shape \[4, 6\] and has \[6, 4\]",
    ),
    "a table of 15": ("lut_to_dense", {"indices": BYTES, "lut": TABLE[:15], "shape": ROWS}, (6, 4), "table"),
    "an empty table": ("lut_to_dense", {"indices": BYTES, "lut": TABLE[:0], "shape": ROWS}, (6, 4), "table"),
    "more numbers than there is room for": (
        "lut_to_dense",
        {"indices": BYTES, "lut": TABLE, "shape": np.array([1 << 14, 1 << 14], np.uint32)},
        (1 << 14, 1 << 14),
        "asks for a tensor",
    ),
    "vectors that make more than there is room for": (
        "lut_to_dense",
        {"indices": np.zeros((1 << 14, 1), np.uint8), "lut": np.zeros((1, 1, 2, 1 << 14), np.float32)},
        (1 << 14, 1 << 14),
        "asks for a tensor",
    ),
    "a place outside the table": (
        "lut_to_dense",
        {"indices": np.full((2, 2), 3, np.uint8), "lut": np.zeros((1, 1, 2, 1), np.float32)},
        (2, 2),
        "reads outside a table of 2 entries",
    ),
    "an axis that does not exist": (
        "affine_dequantize",
        {"quantized_data": CODES, "zero_point": np.int8(0), "scale": SCALES, "axis": np.int32(7)},
        (6, 4),
        "axis 7",
    ),
    "scales that do not fit": (
        "affine_dequantize",
        {"quantized_data": CODES, "zero_point": np.int8(0), "scale": SCALES[:5], "axis": np.int32(0)},
        (6, 4),
        r"\[5\] numbers for axis 0",
    ),
    "blocks that do not fit": (
        "blockwise_shift_scale",
        {"data": CODES, "scale": np.ones((4, 1), np.float32)},
        (6, 4),
        r"\[4, 1\] blocks",
    ),
    "no codes": ("affine_dequantize", {"scale": SCALES}, (6, 4), "no parameter quantized_data"),
}


@pytest.mark.parametrize("label", BAD)
def test_weights_that_do_not_make_sense_are_refused_in_one_sentence(label: str) -> None:
    kind, operands, shape, message = BAD[label]
    inputs = {
        name: [value if isinstance(value, np.ndarray) else np.asarray(value)]
        for name, value in operands.items()
    }
    operation = Operation(f"constexpr_{kind}", inputs, [Declared("w", "FLOAT32", shape)])
    with pytest.raises(ArtifactError, match=message):
        decompressed(operation, MAX_WEIGHTS)


def test_few_bytes_that_many_operations_unpack_are_refused(kit: toolkit.Toolkit, tmp_path: Path) -> None:
    path = converted(
        kit, lambda mb, x: mb.linear(x=x, weight=packed(1)(mb)), (4, 4), "iOS16", tmp_path / "b.mlpackage"
    )
    spec, _ = read_model(path)
    function = spec.mlProgram.functions["main"]
    operations = function.block_specializations[function.opset].operations
    index = next(i for i, op in enumerate(operations) if op.type.startswith("constexpr_"))
    first = operations[index]
    size = MAX_WEIGHTS // 2 + 8
    dims = first.outputs[0].type.tensorType.dimensions
    dims[0].constant.size, dims[1].constant.size = size // 8, 8
    held = first.attributes["indices"]
    held.type.tensorType.dimensions[0].constant.size = size // 8
    held.immediateValue.tensor.bytes.values = bytes(size // 8)
    held.ClearField("blobFileValue") if held.HasField("blobFileValue") else None
    shape = first.attributes["shape"].immediateValue.tensor
    shape.bytes.values = np.array([size // 8, 8], np.uint32).tobytes()
    again = type(first).FromString(first.SerializeToString())
    again.outputs[0].name = "again"
    operations.insert(index, again)
    (path / MODEL).write_bytes(spec.SerializeToString())
    with pytest.raises(ArtifactError, match="asks for a tensor"), CoreMLReference().load(path):
        pass


def shared(kit: toolkit.Toolkit, path: Path) -> Path:
    """Return a package whose operations all read one matrix."""

    def build(mb: Any, x: Any) -> Any:
        weight = mb.const(val=np.eye(4, dtype=np.float16), name="w")
        y = mb.cast(x=x, dtype="fp16")
        for _ in range(3):
            y = mb.linear(x=y, weight=weight)
        return mb.cast(x=y, dtype="fp32")

    return converted(kit, build, (4, 4), "iOS16", path)


def test_what_many_operations_read_is_held_once(kit: toolkit.Toolkit, tmp_path: Path) -> None:
    spec, folder = read_model(shared(kit, tmp_path / "s.mlpackage"))
    matrices = [op.tensor("weight") for op in read_program(spec, folder).operations if op.type == "linear"]
    assert 3 == len(matrices)
    assert 1 == len({matrix.data_ptr() for matrix in matrices})


def test_a_constant_that_is_declared_again_and_again_is_refused(
    kit: toolkit.Toolkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "MAX_CONSTANTS", 400)
    path = shared(kit, tmp_path / "s.mlpackage")
    spec, folder = read_model(path)
    read_program(spec, folder)
    function = spec.mlProgram.functions["main"]
    operations = function.block_specializations[function.opset].operations
    first = next(op for op in operations if op.type == "const" and op.outputs[0].name == "w")
    for number in range(30):
        again = type(first).FromString(first.SerializeToString())
        again.outputs[0].name = f"again{number}"
        operations.insert(0, again)
    with pytest.raises(ArtifactError, match="a constant asks for a tensor"):
        read_program(spec, folder)


def test_flipped_bytes_of_a_model_with_codes_are_survived(kit: toolkit.Toolkit, tmp_path: Path) -> None:
    def build(mb: Any, x: Any) -> Any:
        made = mb.linear(x=x, weight=affine(mb))
        codes = mb.quantize(input=made, output_dtype="int8", scale=np.float32(0.5), zero_point=np.int8(3))
        moved = mb.dequantize(
            input=mb.transpose(x=codes, perm=[1, 0]), scale=np.float32(0.5), zero_point=np.int8(3)
        )
        return mb.linear(x=moved, weight=packed(4)(mb))

    x = np.eye(4, dtype=np.float32)
    path = converted(kit, build, x.shape, "iOS17", tmp_path / "f.mlpackage")
    original = (path / MODEL).read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(original), 200):
        data = bytearray(original)
        data[position] ^= int(rng.integers(1, 256))
        (path / MODEL).write_bytes(data)
        with contextlib.suppress(ArtifactError, DataError, UnsupportedOperatorError):
            execute(path, {"x": x})


def test_a_scale_of_zero_is_refused(kit: toolkit.Toolkit, tmp_path: Path) -> None:
    def build(mb: Any, x: Any) -> Any:
        codes = mb.quantize(input=x, output_dtype="int8", scale=np.float32([1, 0, 1, 1]), axis=np.int32(1))
        return mb.dequantize(input=codes, scale=np.float32(1))

    path = converted(kit, build, (2, 4), "iOS17", tmp_path / "z.mlpackage")
    with pytest.raises(ArtifactError, match="scale and a zero point"), CoreMLReference().load(path):
        pass
