"""Small files that declare more than there is memory: one sentence, from a process that stays small."""

import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

pytestmark = pytest.mark.integration

ALLOWED = 300 << 20
"""Bytes above what the command takes for a missing file; each file here stands for 1 GiB or more."""


def measured(folder: Path, *argv: str) -> tuple[int, str, int]:
    """Return exit status, standard error and peak resident bytes of a call of the command line."""
    log = folder / "stderr.txt"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "shufflectl", *argv], stdout=subprocess.DEVNULL, stderr=stderr
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, log.read_text("utf-8"), usage.ru_maxrss * 1024


def exporting(path: Path, folder: Path) -> tuple[str, ...]:
    """Return the command that exports a checkpoint or an ONNX file."""
    given = (str(path),) if path.suffix == ".onnx" else ("--weights", str(path))
    return ("export", *given, "--target", "onnx", "--out", str(folder / "out"))


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Peak bytes of exports whose file is missing, by suffix."""
    folder = tmp_path_factory.mktemp("usual")
    found = {}
    for suffix in (".pt", ".onnx"):
        status, _, found[suffix] = measured(folder, *exporting(folder / f"absent{suffix}", folder))
        assert 3 == status
    return found


def zip_bomb(folder: Path) -> Path:
    path = folder / "bomb.pt"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("archive/data.pkl", "w", force_zip64=True) as stream,
    ):
        for _ in range(64):
            stream.write(bytes(16 << 20))
    assert path.stat().st_size < 8 << 20
    return path


def repeated(folder: Path) -> Path:
    """Write one number, with strides of 0 in place of 64 GiB of them."""
    path = folder / "repeated.pt"
    torch.save({"conv1.0.weight": torch.zeros(1).expand(1 << 34)}, path)
    return path


def long_header(folder: Path) -> Path:
    path = folder / "tensor.safetensors"
    header = b'{"fc.weight":{"dtype":"F32","shape":[68719476736],"data_offsets":[0,274877906944]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    return path


def _onnx(path: Path, nodes: list[onnx.NodeProto], constants: list[TensorProto]) -> Path:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    opset = [helper.make_opsetid("", 17)]
    path.write_bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())
    return path


def declared_weight(folder: Path) -> Path:
    tensor = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[1 << 18, 3, 256, 256], raw_data=bytes(64)
    )
    return _onnx(folder / "weight.onnx", [helper.make_node("Conv", ["image", "w"], ["y"])], [tensor])


def computed_constant(folder: Path) -> Path:
    shape = numpy_helper.from_array(np.array([1, 3, 40_000, 40_000]), "shape")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["huge"]),
        helper.make_node("ReduceMean", ["huge"], ["mean"], axes=[2, 3]),
        helper.make_node("Add", ["image", "mean"], ["y"]),
    ]
    return _onnx(folder / "constant.onnx", nodes, [shape])


def expanded(folder: Path) -> Path:
    shape = numpy_helper.from_array(np.array([1, 3, 90_000, 90_000]), "shape")
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[2, 3]),
        helper.make_node("Expand", ["mean", "shape"], ["y"]),
    ]
    return _onnx(folder / "expand.onnx", nodes, [shape])


def _external(folder: Path, name: str, location: str, length: int) -> Path:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[length // 4 // 3, 3, 1, 1])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return _onnx(folder / name, [helper.make_node("Conv", ["image", "w"], ["y"])], [tensor])


def sparse_weights(folder: Path) -> Path:
    with (folder / "w.bin").open("wb") as stream:
        stream.truncate(48 << 30)  # a hole: it takes no room on the disk
    return _external(folder, "sparse.onnx", "w.bin", 48 << 30)


def outside(folder: Path) -> Path:
    (folder.parent / "secret.bin").write_bytes(bytes(48))
    return _external(folder, "outside.onnx", "../secret.bin", 48)


def endless(folder: Path) -> Path:
    (folder / "zero.bin").symlink_to("/dev/zero")
    return _external(folder, "endless.onnx", "zero.bin", 48 << 30)


@pytest.mark.parametrize(
    "make",
    [
        zip_bomb,
        repeated,
        long_header,
        declared_weight,
        computed_constant,
        expanded,
        sparse_weights,
        outside,
        endless,
    ],
)
def test_it_is_refused_and_memory_stays_bounded(
    make: Callable[[Path], Path], tmp_path: Path, usual: dict[str, int]
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    path = make(folder)
    status, said, peak = measured(folder, *exporting(path, folder))
    assert 3 == status, said
    assert path.name in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) <= 2, said
    assert peak < usual[".onnx" if path.suffix == ".onnx" else ".pt"] + ALLOWED
    assert not (folder / "out").exists()
