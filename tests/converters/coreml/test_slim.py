"""Programs with codes hold nothing twice, and compute what coremltools' own text of them does."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.proto import MIL_pb2 as mil

from converters.coreml.test_codes import int8, scaled
from converters.quantize.nets import images
from shufflectl.converters.coreml import emit as emit_module
from shufflectl.converters.coreml import slim as slim_module
from shufflectl.converters.graph import Graph
from shufflectl.deploy.runtimes.coreml_reference import CoreMLReference
from shufflectl.deploy.runtimes.coreml_reference.package import read_model
from support.coreml import package
from support.nets import tiny_graph

KEYS = ("quantized_data", "scale", "zero_point")
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


@pytest.fixture(scope="module")
def graph() -> Graph:
    return scaled(tiny_graph())


@pytest.fixture(scope="module")
def slim(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return int8(graph, tmp_path_factory.mktemp("slim"))


@pytest.fixture(scope="module")
def full(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the package as coremltools writes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emit_module, "shorten", lambda *_: {})
        patch.setattr(emit_module, "slim_weights", lambda *_: None)
        return int8(graph, tmp_path_factory.mktemp("full"))


def operations(path: Path) -> Any:
    function = read_model(path)[0].mlProgram.functions["main"]
    return function.block_specializations[function.opset].operations


def test_only_constants_are_fewer(slim: Path, full: Path) -> None:
    def kinds(path: Path) -> Counter[str]:
        return Counter(op.type for op in operations(path) if op.type != "const")

    assert kinds(full) == kinds(slim)
    assert [op.type for op in operations(full) if op.type != "const"] == [
        op.type for op in operations(slim) if op.type != "const"
    ]


def test_no_two_constants_are_equal(slim: Path, full: Path) -> None:
    def values(path: Path) -> list[bytes]:
        return [op.attributes["val"].SerializeToString() for op in operations(path) if op.type == "const"]

    assert len(set(values(slim))) == len(values(slim)) < len(values(full)) / 2


def test_the_numbers_are_the_same(graph: Graph, slim: Path, full: Path) -> None:
    feeds = {str(graph.inputs[0].name): images(graph, 1)[0]}
    results = []
    for path in (full, slim):
        with CoreMLReference().load(path) as session:
            names = {session.trace[name].name: name for name in session.trace}
            taps = sorted(names)
            found = session.run(feeds, taps=taps)
            results.append({names[tap]: found[tap] for tap in taps})
    first, second = results
    assert first.keys() == second.keys()
    assert len(first) > 10
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


def test_coremltools_loads_what_is_left_and_finds_the_same_constants(slim: Path, full: Path) -> None:
    ct = pytest.importorskip("coremltools")
    from coremltools.converters.mil.frontend.milproto.load import load

    programs = []
    for path in (full, slim):
        model = ct.models.MLModel(str(path), skip_model_load=True)
        programs.append(load(model.get_spec(), 8, file_weights_dir=model.weights_dir))

    def held(program: Any) -> list[tuple[np.ndarray, ...]]:
        found = program.functions["main"].find_ops(op_type="constexpr_affine_dequantize")
        return [
            tuple(op.inputs[key].val for key in ("quantized_data", "scale", "zero_point")) for op in found
        ]

    first, second = map(held, programs)
    assert len(first) == len(second) > 5
    for one, other in zip(first, second, strict=True):
        for left, right in zip(one, other, strict=True):
            np.testing.assert_array_equal(left, right)
            assert left.dtype == right.dtype


def test_names_are_unique_and_short_but_for_tensors_of_the_graph(graph: Graph, slim: Path) -> None:
    outputs = [out.name for op in operations(slim) for out in op.outputs]
    assert len(set(outputs)) == len(outputs)
    real = {str(v.name).replace(".", "_") for node in graph.nodes for v in node.outputs}
    others = [name for name in outputs if name not in real]
    assert [] == [name for name in others if len(name) > 5]
    assert len(real & set(outputs)) > 10
    for op in operations(slim):
        assert list(op.attributes["name"].immediateValue.tensor.strings.values) == [op.outputs[0].name]


def test_everything_that_is_read_is_made_before(slim: Path) -> None:
    made = {"image"}
    for op in operations(slim):
        for argument in op.inputs.values():
            assert {binding.name for binding in argument.arguments} <= made
        made |= {out.name for out in op.outputs}


def test_the_weight_file_counts_its_blobs_and_is_aligned(slim: Path, full: Path) -> None:
    data = (slim / WEIGHTS).read_bytes()
    places = {
        value.blobFileValue.offset
        for op in operations(slim)
        for value in op.attributes.values()
        if value.WhichOneof("value") == "blobFileValue"
    }
    assert len(places) == int.from_bytes(data[:4], "little")
    for place in places:
        start = int.from_bytes(data[place + 16 : place + 24], "little")
        assert (0, place + 64) == (place % 64, start)
    assert len(data) < (full / WEIGHTS).stat().st_size


def test_only_halves_and_codes_are_held_as_bytes(slim: Path) -> None:
    held = Counter(
        mil.DataType.Name(value.type.tensorType.dataType)
        for op in operations(slim)
        for value in op.attributes.values()
        if value.immediateValue.tensor.WhichOneof("value") == "bytes"
    )
    assert held["FLOAT16"] > 0
    assert {"FLOAT16", "INT8", "UINT8"} >= held.keys()  # the others have fields of their own in MIL


def test_a_vector_of_single_precision_stays_in_the_weight_file() -> None:
    value = mil.Value()
    value.type.tensorType.dataType = mil.FLOAT32
    value.type.tensorType.dimensions.add().constant.size = 2
    assert not slim_module._is_vector_of_bytes(value)


def test_packages_in_floats_are_as_coremltools_writes_them(tmp_path: Path) -> None:
    path = package(tiny_graph(), tmp_path, precision="fp16")
    assert any(out.name.endswith("_cast_fp16") for op in operations(path) for out in op.outputs)
