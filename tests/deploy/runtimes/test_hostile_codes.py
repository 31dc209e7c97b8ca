"""Scales and zero points that make no sense: a sentence where a file is refused, and never a traceback."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from converters.rewrite.random_nets import Net
from deploy.runtimes.test_tflite_file import FUZZ, packed, refused
from shufflectl.converters.metadata import ModelInfo
from shufflectl.converters.rewrite.choose import Candidate
from shufflectl.converters.rewrite.lowering import Options
from shufflectl.converters.targets import TARGETS, EmitOptions
from shufflectl.deploy.runtimes import tflite_file
from shufflectl.deploy.runtimes.onnx_integers import onnx_integers
from support.integers import Coded, coded
from support.tflite import model_of


@pytest.fixture(scope="module")
def made() -> Coded:
    net = Net(3, batch=1)
    x = net.act(net.conv(net.input(3, 8), 8))
    net.outputs.append(net.classify(net.excite(net.depthwise(x)), 4))
    return coded(net.finish())


Fields = dict[str, Any]


def grid(**fields: Any) -> Callable[[Any], None]:
    """Change the grid of the convolution's weights."""

    def change(model: Any) -> None:
        graph = model.subgraphs[0]
        tensor = next(t for t in graph.tensors if tuple(t.shape) == (8, 1, 1, 3))
        for key, value in fields.items():
            setattr(tensor.quantization, key, value)

    return change


def rows(count: int, value: float = 0.1) -> Fields:
    return {"scale": np.full(count, value, np.float32), "zeroPoint": np.zeros(count, np.int64)}


HOSTILE: dict[str, tuple[Fields, str]] = {
    "fewer scales than rows": (rows(7), "7 scales"),
    "more scales than rows": (rows(9), "9 scales"),
    "a million scales": (rows(10**6), "1000000 scales"),
    "no zero points": ({"zeroPoint": np.zeros(0, np.int64)}, "0 zero points"),
    "no scales": ({"scale": np.zeros(0, np.float32)}, "0 scales"),
    "fewer zero points": ({"zeroPoint": np.zeros(3, np.int64)}, "3 zero points"),
    "NaN": (rows(8, float("nan")), "no positive number"),
    "infinity": (rows(8, float("inf")), "no positive number"),
    "zero": (rows(8, 0.0), "no positive number"),
    "negative": (rows(8, -1.0), "no positive number"),
    "a zero point of another type": ({"zeroPoint": np.full(8, 32512)}, "zero point that its type"),
    "axis beyond the shape": ({"quantizedDimension": 4}, "8 scales"),
    "negative axis": ({"quantizedDimension": -1}, "8 scales"),
    "another axis": ({"quantizedDimension": 3}, "8 scales"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_grids_of_tflite_are_refused(case: str, made: Coded, tmp_path: Path) -> None:
    fields, words = HOSTILE[case]
    model = model_of(made.data)
    grid(**fields)(model)
    assert words in refused(tmp_path, packed(model))


def test_weights_with_one_scale_and_a_bias_with_many_are_read(made: Coded, tmp_path: Path) -> None:
    model = model_of(made.data)
    grid(**rows(1))(model)
    path = tmp_path / "m.tflite"
    path.write_bytes(packed(model))
    assert any("another scale" in flaw for flaw in tflite_file.read(path).integers.flaws.values())


def test_mutated_int8_files_never_end_the_process(made: Coded, tmp_path: Path) -> None:
    source = tmp_path / "sound.tflite"
    source.write_bytes(made.data)
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, source, tmp_path / "m.tflite", "0", "400"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr)
    assert 30 < int(done.stdout) < 400


@pytest.fixture(scope="module")
def proto(made: Coded, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    path = tmp_path_factory.mktemp("hostile") / "net.onnx"
    graph, _ = made.quantized.form(Candidate("native", Options()))
    TARGETS["onnx"].emit(graph, ModelInfo("net", precision="int8"), EmitOptions("int8"), path)
    return onnx.load(path)


def held(array: Any) -> Callable[[onnx.TensorProto], None]:
    return lambda tensor: tensor.CopyFrom(numpy_helper.from_array(np.asarray(array), tensor.name))


def elsewhere(tensor: onnx.TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


CONSTANTS: dict[str, Callable[[onnx.TensorProto], None]] = {
    "a matrix": held(np.ones((2, 3), np.float32)),
    "nothing": held(np.ones(0, np.float32)),
    "integers": held(np.ones(1, np.int64)),
    "text": held(np.asarray(["a"], object)),
    "NaN": held(np.float32(np.nan)),
    "zero": held(np.float32(0)),
    "three": held(np.ones(3, np.float32)),
    "bytes of all zero points": held(np.zeros((3, 4), np.uint8)),
    "cut short": lambda tensor: setattr(tensor, "raw_data", b"\0"),
    "of no type": lambda tensor: setattr(tensor, "data_type", 99),
    "elsewhere": elsewhere,
}


@pytest.mark.parametrize("case", CONSTANTS)
@pytest.mark.parametrize("role", [1, 2])
@pytest.mark.parametrize("place", range(4))
def test_hostile_constants_of_onnx_have_no_grid(
    place: int, role: int, case: str, proto: onnx.ModelProto
) -> None:
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    node = [n for n in copy.graph.node if n.op_type == "DequantizeLinear"][place]
    CONSTANTS[case](next(t for t in copy.graph.initializer if t.name == node.input[role]))
    with np.errstate(all="ignore"):
        onnx_integers(copy)


@pytest.mark.parametrize("kind", ["QuantizeLinear", "DequantizeLinear", "Conv", "Gemm"])
@pytest.mark.parametrize("left", [0, 1, 2])
def test_nodes_that_lack_inputs_or_outputs_have_no_grid(left: int, kind: str, proto: onnx.ModelProto) -> None:
    for fields in ("input", "output"):
        copy = onnx.ModelProto.FromString(proto.SerializeToString())
        for node in copy.graph.node:
            if node.op_type == kind:
                del getattr(node, fields)[left:]
        onnx_integers(copy)
