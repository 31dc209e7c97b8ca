"""tflite-runtime in an interpreter of its own: the real one, and stand-ins that misbehave."""

import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from shufflectl.converters.capture import capture
from shufflectl.deploy.runtimes.litert import LiteRT
from shufflectl.deploy.runtimes.tflite_runtime import TfliteRuntime
from shufflectl.errors import ArtifactError, DataError, UnavailableError
from support import nets
from support.tflite import emit_bytes, graph_of

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tflite-runtime")
    graph = capture(nets.tiny_v2(), (nets.example(),), name="tiny", dynamic_batch=True)
    for precision in ("fp32", "fp16"):
        (folder / f"{precision}.tflite").write_bytes(emit_bytes(graph, precision=precision))
    return folder


@pytest.mark.integration
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_agrees_with_litert(tflite_python, artifacts, precision):
    path = artifacts / f"{precision}.tflite"
    with LiteRT().load(path) as new, TfliteRuntime(tflite_python).load(path, threads=2) as old:
        assert (new.inputs, new.outputs, new.info) == (old.inputs, old.outputs, old.info)
        taps = [view.name for view in old.trace.values()]
        for batch in (1, 3):
            x = np.random.default_rng(batch).standard_normal((batch, 32, 32, 3)).astype(np.float32)
            for wanted in ([], taps):
                ours, theirs = new.run({"image": x}, taps=wanted), old.run({"image": x}, taps=wanted)
                assert set(ours) == set(theirs)
                for name, array in ours.items():
                    np.testing.assert_allclose(array, theirs[name], rtol=1e-4, atol=1e-4)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("body", "weights"),
    [
        ("y = Conv<group=2,pads=[1,1,1,1]>(x, w)", {"w": np.ones((4, 4, 3, 3), np.float32)}),
        ("g = Gelu(x) h = HardSwish(g) y = HardSigmoid(h)", {}),
        ("y = AveragePool<kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,1]>(x)", {}),
        ("y = MaxPool<kernel_shape=[3,3],pads=[1,0,0,1]>(x)", {}),
        ("y = Clip(x, lo, hi)", {"lo": np.float32(0), "hi": np.float32(1)}),
        ("y = MatMul(x, w)", {"w": np.ones((9, 4), np.float32)}),
        ('y = Resize<mode="linear">(x, , , s)', {"s": np.array([1, 8, 20, 18])}),
        ("y = Softmax<axis=2>(x)", {}),
    ],
)
def test_operators_run_there(tflite_python, tmp_path, body, weights):
    path = tmp_path / "m.tflite"
    path.write_bytes(emit_bytes(graph_of(body, weights)))
    x = {"x": np.random.default_rng(0).standard_normal((1, 10, 9, 8)).astype(np.float32)}
    with LiteRT().load(path) as new, TfliteRuntime(tflite_python).load(path) as old:
        np.testing.assert_allclose(new.run(x)["y"], old.run(x)["y"], rtol=1e-5, atol=1e-5)


@pytest.mark.integration
def test_errors_of_the_other_side(tflite_python, artifacts):
    with TfliteRuntime(tflite_python).load(artifacts / "fp32.tflite") as session:
        with pytest.raises(ArtifactError, match="no tensor 'nowhere'"):
            session.run({"image": np.ones((1, 32, 32, 3), np.float32)}, taps=["nowhere"])
        with pytest.raises(DataError, match=r"is float32 \[1, 3, 32, 32\]"):
            session.run({"image": np.ones((1, 3, 32, 32), np.float32)})
        assert (1, 10) == session.run({"image": np.ones((1, 32, 32, 3), np.float32)})["logits"].shape


def test_interpreter_that_does_not_exist(tmp_path):
    state = TfliteRuntime(tmp_path / "python").available()
    assert not state.ok
    assert "does not exist" in state.reason
    assert "--runtime-python" in state.remedy


def test_interpreter_without_the_package(artifacts):
    runtime = TfliteRuntime(Path(sys.executable))
    state = runtime.available()
    assert not state.ok
    assert "tflite-runtime" in state.reason
    assert "numpy<2" in state.remedy
    with pytest.raises(UnavailableError) as caught, runtime.load(artifacts / "fp32.tflite"):
        pass
    assert state.remedy == caught.value.hint


def stand_in(tmp_path, program):
    """A program in place of the interpreter that says it is fine and then runs ``program``."""
    path = tmp_path / "python"
    probe = 'case "$2" in -c) echo \'{"version": "2.14.0"}\'; exit 0;; esac\n'
    path.write_text(f"#!/bin/sh\n{probe}{program}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_program_that_is_no_interpreter(tmp_path):
    path = tmp_path / "python"
    path.write_text("#!/bin/sh\necho hello\n", encoding="utf-8")
    path.chmod(0o755)
    assert "is not a Python interpreter" in TfliteRuntime(path).available().reason
    path.chmod(0o644)
    assert "is not a Python interpreter" in TfliteRuntime(path).available().reason


def test_crash_is_an_error_with_the_last_words(artifacts, tmp_path):
    runtime = TfliteRuntime(stand_in(tmp_path, "echo 'fatal: kernel' >&2; kill -SEGV $$"))
    wanted = r"ended with status -11.*fatal: kernel"
    with pytest.raises(ArtifactError, match=wanted), runtime.load(artifacts / "fp32.tflite"):
        pass


def test_silence_is_an_error_after_the_time_limit(artifacts, tmp_path):
    runtime = TfliteRuntime(stand_in(tmp_path, "exec sleep 60"), timeout=0.5)
    wanted = r"no answer within 0\.5 s"
    with pytest.raises(ArtifactError, match=wanted), runtime.load(artifacts / "fp32.tflite"):
        pass


@pytest.mark.parametrize("answer", [r"\377\377\377\377\377\377\377\377", r"\0\0\0\0\0\0\0\002[]", "garbage"])
def test_nonsense_is_an_error(artifacts, tmp_path, answer):
    runtime = TfliteRuntime(stand_in(tmp_path, f"printf '{answer}'; cat > /dev/null"), timeout=5)
    with pytest.raises(ArtifactError, match="tflite-runtime"), runtime.load(artifacts / "fp32.tflite"):
        pass


def test_damaged_file_is_refused_before_the_other_interpreter_starts(tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(b"\x10\0\0\0TFL3" + b"\xff" * 64)
    with pytest.raises(ArtifactError, match="damaged"), TfliteRuntime(tmp_path / "none").load(path):
        pass


def test_worker_imports_nothing_of_ours():
    source = (
        Path(sys.modules[TfliteRuntime.__module__].__file__).with_name("tflite_worker.py").read_text("utf-8")
    )
    assert "import shufflectl" not in source
    assert "from shufflectl" not in source
