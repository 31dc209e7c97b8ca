"""tflite-runtime 2.14, the last release of TensorFlow Lite's own runtime, in an interpreter of its own.

Many devices in the field still run TensorFlow Lite rather than LiteRT, so a file should work there too. The
package wants Python 3.11 or older and numpy 1, and cannot share an environment with shufflectl's other
packages. The user names an interpreter that has it; a small program (`tflite_worker`) runs there and
answers over pipes. Nothing is pickled, every answer has a time limit, and a crash there is an error here.
"""

import contextlib
import json
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from shufflectl.deploy.runtimes import tflite_file
from shufflectl.deploy.runtimes.base import Arrays, Availability, Session, TensorSpec, check_inputs
from shufflectl.errors import ArtifactError, UnavailableError, UnsupportedOperatorError

__all__ = ["TfliteRuntime"]

_WORKER: Final = Path(__file__).with_name("tflite_worker.py")
_MAX_FRAME: Final = 2**32
_PROBE: Final = (
    "import json, sys\n"
    "try:\n"
    "    import numpy, tflite_runtime, tflite_runtime.interpreter\n"
    "    found = {'version': getattr(tflite_runtime, '__version__', '')}\n"
    "except Exception as e:\n"
    "    found = {'error': type(e).__name__ + ': ' + (str(e).strip().splitlines() or [''])[0]}\n"
    "print(json.dumps(found))\n"
)
# -I: neither PYTHONPATH nor the worker's folder, where tflite_runtime.py lies, may lend it modules
_ISOLATED: Final = ("-I",)


class _AnswerError(Exception):
    """The worker answers that a request failed."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class _Worker:
    """The program in the other interpreter.

    Args:
        python: The interpreter.
        timeout: The longest wait for one answer, in seconds.
    """

    def __init__(self, python: Path, timeout: float) -> None:
        self._timeout = timeout
        self._python = python
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the interpreter that the user named, our own program
                [str(python), *_ISOLATED, str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
            )
        except OSError as e:
            self._errors.close()
            raise UnavailableError(
                f"{python} cannot be started: {e.strerror or e}", hint="pass --runtime-python PATH"
            ) from e

    def ask(
        self, message: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> tuple[dict[str, Any], Arrays]:
        """Send a request and return the answer.

        Raises:
            _AnswerError: The request failed.
            ArtifactError: The program ended or did not answer in time.
        """
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(self._timeout, stop)
        timer.start()
        try:
            self._send(message, arrays)
            answer, result = self._receive()
        except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError) as e:
            self._process.kill()
            status = self._process.wait()
            if late.is_set():
                raise ArtifactError(f"tflite-runtime gave no answer within {self._timeout:g} s") from e
            said = f": {self._last_words()}" if self._last_words() else ""
            raise ArtifactError(
                f"tflite-runtime ended with status {status} on the file{said}",
                hint=f"check the interpreter: {self._python} -c 'import tflite_runtime.interpreter'",
            ) from e
        finally:
            timer.cancel()
        if not answer.get("ok"):
            raise _AnswerError(str(answer.get("kind", "")), str(answer.get("error", "")))
        return answer, result

    def close(self) -> None:
        """End the program."""
        with contextlib.suppress(OSError):
            self._stream(self._process.stdin).close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stream(self._process.stdout).close()
        self._errors.close()

    @staticmethod
    def _stream(stream: IO[bytes] | None) -> IO[bytes]:
        if stream is None:
            raise OSError("a pipe is missing")
        return stream

    def _send(self, message: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        stream = self._stream(self._process.stdin)
        entries = [{"name": n, "dtype": a.dtype.str, "shape": list(a.shape)} for n, a in arrays.items()]
        text = json.dumps({**message, "arrays": entries}).encode()
        stream.write(struct.pack(">Q", len(text)) + text)
        for array in arrays.values():
            stream.write(struct.pack(">Q", array.nbytes))
            stream.write(array.tobytes())
        stream.flush()

    def _receive(self) -> tuple[dict[str, Any], Arrays]:
        answer = json.loads(self._frame())
        arrays = {}
        for entry in answer.get("arrays", ()):
            array = np.frombuffer(self._frame(), np.dtype(entry["dtype"])).reshape(entry["shape"])
            arrays[str(entry["name"])] = array
        return answer, arrays

    def _frame(self) -> bytes:
        size = struct.unpack(">Q", self._exactly(8))[0]
        if size > _MAX_FRAME:
            raise ValueError(f"a frame of {size} bytes")
        return self._exactly(size)

    def _exactly(self, count: int) -> bytes:
        data = self._stream(self._process.stdout).read(count)
        if len(data) < count:
            raise EOFError
        return data

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read()[-4096:].decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""


class _Session:
    """A file that is open in the other interpreter."""

    def __init__(self, file: tflite_file.TfliteFile, worker: _Worker, threads: int) -> None:
        self._file = file
        self._worker = worker
        data = np.frombuffer(file.data, np.uint8)
        with self._errors("cannot be loaded"):
            answer, _ = worker.ask({"request": "load", "threads": threads}, {"file": data})
        self.inputs, self.outputs = (
            tuple(TensorSpec(e["name"], tuple(e["shape"]), np.dtype(e["dtype"])) for e in answer[key])
            for key in ("inputs", "outputs")
        )
        self.info = file.info
        self.trace = file.trace
        self.integers = file.integers

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        name = self._file.path.name
        try:
            yield
        except _AnswerError as e:
            if e.kind in ("ModuleNotFoundError", "ImportError"):
                raise UnavailableError(f"tflite-runtime does not load: {e}", hint=_install("PYTHON")) from e
            if e.kind == "no tensor":
                raise ArtifactError(f"{name} has no tensor {str(e)!r}") from e
            if self._file.custom:
                names = ", ".join(self._file.custom)
                raise UnsupportedOperatorError(names, "CUSTOM", "tflite-runtime") from e
            raise ArtifactError(f"{name} {what} by tflite-runtime: {e}", hint="export the model again") from e

    def run(self, inputs: Mapping[str, NDArray[Any]], taps: Sequence[str] = ()) -> Arrays:
        check_inputs(self.inputs, inputs)
        with self._errors("cannot be run"):
            return self._worker.ask({"request": "run", "taps": list(taps)}, inputs)[1]


def _install(python: object) -> str:
    return f"{python} -m pip install 'tflite-runtime==2.14.0' 'numpy<2' (Python 3.11 or older)"


class TfliteRuntime:
    """tflite-runtime in the interpreter that the user names.

    Args:
        python: An interpreter in whose environment tflite-runtime is installed.
        timeout: The longest wait for one answer, in seconds.
    """

    name = "tflite-runtime"
    format = "tflite"

    def __init__(self, python: Path, *, timeout: float = 600.0) -> None:
        self._python = python
        self._timeout = timeout

    def available(self) -> Availability:
        """Say whether the interpreter starts and has tflite-runtime."""
        python = self._python
        if not python.is_file():
            return Availability(
                ok=False, reason=f"{python} does not exist", remedy="pass --runtime-python PATH"
            )
        try:
            done = subprocess.run(  # noqa: S603 - the interpreter that the user named, our own program
                [str(python), *_ISOLATED, "-c", _PROBE],
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=min(self._timeout, 60),
                check=False,
            )
            found = json.loads(done.stdout.decode(errors="replace"))
            error = found.get("error", "")
        except subprocess.TimeoutExpired:
            return Availability(
                ok=False, reason=f"{python} gave no answer", remedy="pass --runtime-python PATH"
            )
        except (OSError, ValueError, AttributeError):
            reason = f"{python} is not a Python interpreter"
            return Availability(ok=False, reason=reason, remedy="pass --runtime-python PATH")
        if error:
            reason = f"tflite-runtime does not load in {python}: {error}"
            return Availability(ok=False, reason=reason, remedy=_install(python))
        return Availability(ok=True, version=str(found.get("version", "")))

    @contextlib.contextmanager
    def load(self, artifact: Path, *, threads: int = 1) -> Iterator[Session]:
        """Open a ``.tflite`` file in the other interpreter; see `Runtime.load`."""
        file = tflite_file.read(artifact)
        state = self.available()
        if not state.ok:
            raise UnavailableError(state.reason, hint=state.remedy)
        worker = _Worker(self._python, self._timeout)
        try:
            yield _Session(file, worker, threads)
        finally:
            worker.close()
