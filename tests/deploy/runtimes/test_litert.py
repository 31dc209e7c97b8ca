"""LiteRT as a runtime: sessions, taps, dynamic batch, silence, errors."""

import subprocess
import sys

import flatbuffers
import numpy as np
import pytest

from shufflectl.deploy.runtimes.litert import LiteRT
from shufflectl.errors import ArtifactError, DataError, MissingDependencyError, UnsupportedOperatorError
from support.tflite import emit_bytes, graph_of, model_of, reference

W = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
BODY = "c = Conv<pads=[1,1,1,1]>(x, w) r = Relu(c) m = GlobalAveragePool(r) y = Flatten(m)"


@pytest.fixture(scope="module")
def graph():
    return graph_of(BODY, {"w": W}, ("batch", 3, 8, 6))


@pytest.fixture(scope="module")
def artifact(graph, tmp_path_factory):
    path = tmp_path_factory.mktemp("litert") / "m.tflite"
    path.write_bytes(emit_bytes(graph))
    return path


def image(batch=1):
    return np.random.default_rng(batch).standard_normal((batch, 8, 6, 3)).astype(np.float32)


def wanted(graph, x):
    return reference(graph, {"x": x.transpose(0, 3, 1, 2)})["y"]


def test_available_says_its_version():
    state = LiteRT().available()
    assert state.ok
    assert state.version.startswith("2.")


def test_session_declares_inputs_and_outputs(artifact):
    with LiteRT().load(artifact) as session:
        (x,), (y,) = session.inputs, session.outputs
        assert ("x", (None, 8, 6, 3), np.float32) == (x.name, x.shape, x.dtype)
        assert ("y", (None, 4), np.float32) == (y.name, y.shape, y.dtype)
        assert "test" == session.info.name
        assert (0, 2, 3, 1) == session.trace["r"].axes


@pytest.mark.parametrize("threads", [1, 2])
def test_batches_of_any_size_one_after_another(artifact, graph, threads):
    with LiteRT().load(artifact, threads=threads) as session:
        for batch in (1, 5, 2, 2, 1):
            x = image(batch)
            np.testing.assert_allclose(wanted(graph, x), session.run({"x": x})["y"], rtol=1e-5, atol=1e-6)


def test_taps_are_inner_tensors_of_the_same_run(artifact, graph):
    with LiteRT().load(artifact) as session:
        for batch in (1, 3):
            x = image(batch)
            found = session.run({"x": x}, taps=["r"])
            assert {"y", "r"} == set(found)
            assert (batch, 8, 6, 4) == found["r"].shape
            np.testing.assert_allclose(found["y"], found["r"].mean((1, 2)), rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(wanted(graph, x), found["y"], rtol=1e-5, atol=1e-6)


def test_results_do_not_change_with_the_next_run(artifact):
    with LiteRT().load(artifact) as session:
        first = session.run({"x": image()})["y"]
        kept = first.copy()
        session.run({"x": image() * 2})
        np.testing.assert_array_equal(kept, first)


def test_input_that_is_not_contiguous(artifact, graph):
    x = image(2)
    with LiteRT().load(artifact) as session:
        found = session.run({"x": np.asfortranarray(x)})["y"]
    np.testing.assert_allclose(wanted(graph, x), found, rtol=1e-5, atol=1e-6)


def test_unknown_tap(artifact):
    with LiteRT().load(artifact) as session, pytest.raises(ArtifactError, match="no tensor 'nowhere'"):
        session.run({"x": image()}, taps=["nowhere"])


@pytest.mark.parametrize(
    ("inputs", "word"),
    [
        ({}, "missing"),
        ({"x": image(), "z": image()}, "no input 'z'"),
        ({"x": image().transpose(0, 3, 1, 2)}, r"takes float32 \[any, 8, 6, 3\]"),
        ({"x": image()[0]}, r"is float32 \[8, 6, 3\]"),
        ({"x": image()[:0]}, r"is float32 \[0, 8, 6, 3\]"),
        ({"x": image().astype(np.float64)}, "float64"),
    ],
)
def test_input_that_does_not_fit(artifact, inputs, word):
    with LiteRT().load(artifact) as session, pytest.raises(DataError, match=word):
        session.run(inputs)


def test_custom_operator_is_named(artifact, tmp_path):
    model = model_of(artifact.read_bytes())
    model.operatorCodes[0].builtinCode = model.operatorCodes[0].deprecatedBuiltinCode = 32
    model.operatorCodes[0].customCode = "FlexErf"
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    path = tmp_path / "m.tflite"
    path.write_bytes(bytes(builder.Output()))
    with pytest.raises(UnsupportedOperatorError, match="FlexErf"), LiteRT().load(path):
        pass


def test_operator_of_a_version_that_does_not_exist(artifact, tmp_path):
    model = model_of(artifact.read_bytes())
    model.operatorCodes[0].version = 99
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    path = tmp_path / "m.tflite"
    path.write_bytes(bytes(builder.Output()))
    with pytest.raises(ArtifactError, match=r"cannot be loaded by LiteRT: .*version"), LiteRT().load(path):
        pass


def test_missing_file(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"), LiteRT().load(tmp_path / "m.tflite"):
        pass


def test_missing_package(artifact, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    state = LiteRT().available()
    assert (False, "ai-edge-litert is not installed") == (state.ok, state.reason)
    with pytest.raises(MissingDependencyError), LiteRT().load(artifact):
        pass


QUIET = """
import logging, sys
from pathlib import Path
import numpy as np
from shufflectl.deploy.runtimes.litert import LiteRT
if len(sys.argv) > 2:
    logging.getLogger("shufflectl").setLevel(logging.DEBUG)
with LiteRT().load(Path(sys.argv[1])) as session:
    session.run({"x": np.ones((3, 8, 6, 3), np.float32)}, taps=["r"])
print("end", file=sys.stderr)
"""


def test_nothing_reaches_the_terminal(artifact):
    done = subprocess.run([sys.executable, "-c", QUIET, artifact], capture_output=True, text=True, check=True)
    assert ("", "end\n") == (done.stdout, done.stderr)


def test_verbose_lets_it_through(artifact):
    argv = [sys.executable, "-c", QUIET, artifact, "-v"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert "XNNPACK" in done.stderr
