"""Damaged and malicious TFLite files: one clear error, and never the end of the process."""

import random
import subprocess
import sys

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from shufflectl.deploy.runtimes import tflite_file
from shufflectl.errors import ArtifactError
from support.tflite import emit_bytes, graph_of, model_of

RNG = np.random.default_rng(3)
BODY = (
    "a = Conv<group=2,pads=[1,1,1,1]>(x, w) p = PRelu(a, s) g = Gather<axis=1>(p, i) "
    "m = MaxPool<kernel_shape=[2,2],strides=[2,2]>(g) k, l = Split<axis=1,num_outputs=2>(m) "
    "c = Concat<axis=1>(l, k) f = Flatten(c) y = Gemm<transB=1>(f, d)"
)
WEIGHTS = {
    "w": RNG.standard_normal((8, 4, 3, 3)).astype(np.float32),
    "s": RNG.standard_normal((8, 1, 1)).astype(np.float32),
    "i": np.array([3, 1, 0, 2]),
    "d": RNG.standard_normal((3, 80)).astype(np.float32),
}


@pytest.fixture(scope="module")
def sound():
    return emit_bytes(graph_of(BODY, WEIGHTS), precision="fp16")


def packed(model):
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def refused(tmp_path, data):
    path = tmp_path / "m.tflite"
    path.write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        tflite_file.read(path)
    assert caught.value.hint
    return caught.value.message


def test_sound_file_is_read(sound, tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(sound)
    file = tflite_file.read(path)
    assert ("test", sound) == (file.info.name, file.data)
    assert "y" in file.trace


def test_missing_file(tmp_path):
    with pytest.raises(ArtifactError, match=r"m\.tflite does not exist"):
        tflite_file.read(tmp_path / "m.tflite")


def test_folder(tmp_path):
    with pytest.raises(ArtifactError, match="is a folder"):
        tflite_file.read(tmp_path)


def test_unreadable_file(tmp_path):
    path = tmp_path / "m.tflite"
    path.symlink_to(path)
    with pytest.raises(ArtifactError, match=r"cannot be read|does not exist"):
        tflite_file.read(path)


@pytest.mark.parametrize("data", [b"TFL3", b"\x08\0\0\0ONNX" + b"\0" * 64, b"\x80\x04" * 50])
def test_file_of_another_kind(data, tmp_path):
    assert "not a TFLite file" in refused(tmp_path, data)


def test_empty_file(tmp_path):
    assert refused(tmp_path, b"").endswith("is empty")


def test_truncated_file(sound, tmp_path):
    for length in range(8, len(sound) - 16, 97):
        assert "m.tflite" in refused(tmp_path, sound[:length])


def change_operator(code, **options):
    def change(model):
        graph = model.subgraphs[0]
        for op in graph.operators:
            if model.operatorCodes[op.opcodeIndex].builtinCode == code:
                for key, value in options.items():
                    setattr(op if hasattr(op, key) else op.builtinOptions, key, value)
                return
        raise AssertionError(f"no operator {code}")

    return change


def change_tensor(name, **fields):
    def change(model):
        (tensor,) = (t for t in model.subgraphs[0].tensors if t.name == name.encode())
        for key, value in fields.items():
            setattr(tensor, key, value)

    return change


def swap_operators(model):
    model.subgraphs[0].operators.reverse()


def external(model):
    model.externalBufferGroups = [schema.ExternalBufferGroupT(name="/etc/passwd")]


OP = schema.BuiltinOperator
DAMAGE = {
    "another schema": (lambda m: setattr(m, "version", 4), "version 4"),
    "no graph": (lambda m: setattr(m, "subgraphs", []), "no graph"),
    "weights elsewhere": (external, "other files"),
    "tensor that does not exist": (change_operator(OP.CONV_2D, inputs=[0, 999, 1]), "999"),
    "output that does not exist": (change_operator(OP.CONV_2D, outputs=[-1]), "-1"),
    "operator code that does not exist": (change_operator(OP.CONV_2D, opcodeIndex=77), "77"),
    "buffer that does not exist": (change_tensor("x", buffer=4000), "4000"),
    "stride of zero": (change_operator(OP.CONV_2D, strideW=0), "stride"),
    "dilation of zero": (change_operator(OP.CONV_2D, dilationHFactor=0), "dilation"),
    "window of zero": (change_operator(OP.MAX_POOL_2D, filterHeight=0), "below one"),
    "unknown padding": (change_operator(OP.MAX_POOL_2D, padding=9), "padding"),
    "missing options": (
        change_operator(OP.MAX_POOL_2D, builtinOptionsType=0, builtinOptions=None),
        "options",
    ),
    "parts that are not outputs": (change_operator(OP.SPLIT, numSplits=900), "parts"),
    "negative shape": (change_tensor("y", shape=[1, -3]), "impossible shape"),
    "huge shape": (change_tensor("y", shape=[2**30, 2**30]), "512 MiB"),
    "a shape of gigabytes": (change_tensor("y", shape=[2**15, 2**13]), "512 MiB"),
    "weights that do not fit": (change_tensor("w", shape=[8, 3, 3, 900]), "shapes"),
    "constant cut short": (change_tensor("w/fp16", shape=[8, 3, 3, 5]), "bytes of data"),
    "tensor read before it is made": (swap_operators, "before it is made"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage(case, sound, tmp_path):
    change, word = DAMAGE[case]
    model = model_of(sound)
    change(model)
    assert word in refused(tmp_path, packed(model))


def test_control_flow_is_refused(sound, tmp_path):
    model = model_of(sound)
    model.operatorCodes[0].builtinCode = OP.WHILE
    assert "WHILE" in refused(tmp_path, packed(model))


@pytest.mark.parametrize(
    "text", [b"{", b"[]", b'{"name": 1}', b"\xff", b'{"y": {"axes": [0, 0]}}', b"[" * 100_000]
)
@pytest.mark.parametrize("key", ["shufflectl.info", "shufflectl.trace"])
def test_damaged_metadata(text, key, sound, tmp_path):
    model = model_of(sound)
    (entry,) = (m for m in model.metadata if m.name == key.encode())
    model.buffers[entry.buffer].data = np.frombuffer(text, np.uint8)
    if key == "shufflectl.trace" and text == b'{"name": 1}':
        text = b""
    assert "metadata" in refused(tmp_path, packed(model))


FUZZ = """
import random, sys
from pathlib import Path
import numpy as np
from shufflectl.deploy.runtimes.litert import LiteRT
from shufflectl.errors import ArtifactError, ShufflectlError
source, path = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
refused = 0
for seed in range(*map(int, sys.argv[3:])):
    rng, data = random.Random(seed), bytearray(source)
    for _ in range(rng.choice((1, 1, 2, 4))):
        data[rng.randrange(len(data))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    path.write_bytes(data)
    try:
        with LiteRT().load(path) as session:
            session.run({s.name: np.ones(s.shape, s.dtype) for s in session.inputs})
    except ShufflectlError:
        refused += 1
print(refused)
"""


def test_mutated_files_never_end_the_process(sound, tmp_path):
    source = tmp_path / "sound.tflite"
    source.write_bytes(sound)
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, source, tmp_path / "m.tflite", "0", "300"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr)
    assert 30 < int(done.stdout) < 300


def test_random_bytes_are_refused(tmp_path):
    rng = random.Random(0)
    for _ in range(200):
        refused(tmp_path, b"\x10\0\0\0TFL3" + rng.randbytes(300))
