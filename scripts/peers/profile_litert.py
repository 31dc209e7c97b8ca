"""Where LiteRT spends its time in a file, by kind of operator, one thread.

Usage: profile_litert.py FILE.tflite REFERENCE.npz

Prints JSON: for each kind the number of operators, and microseconds in one inference (each operator's median
over the runs). XNNPACK's operators have its names for them: a 1x1 convolution is a fully connected one. The
profiler itself takes time, so the sum is more than a run without.

The interpreter's Python class has no profiler, so this calls the C interface of the library that comes with
it: declarations are those of LiteRT's headers litert_compiled_model.h, litert_profiler.h and
litert_profiler_event.h; the option is what litert_runtime_options.cc writes.
"""

import ctypes
import json
import sys
from ctypes import byref, c_char_p, c_int, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import ai_edge_litert
import numpy as np
from numpy.typing import NDArray

WARMUP, RUNS = 20, 100
_CPU = 1  # kLiteRtHwAcceleratorCpu
_WRITE = 1  # kLiteRtTensorBufferLockModeWrite
_OPERATOR, _DELEGATED = 1 << 1, 1 << 3  # OPERATOR_ and DELEGATE_PROFILED_OPERATOR_INVOKE_EVENT
_OPTIONS = (
    (b"runtime_options_string", b"enable_profiling = true\n"),
    (b"xnnpack", b"num_threads = 1\n"),
)
_KEPT = ctypes.CFUNCTYPE(None, c_void_p)(lambda _: None)
"""What LiteRT calls to free an option's text: Python owns it."""


class _Layout(ctypes.Structure):
    _fields_ = (("packed", c_uint32), ("dimensions", c_int32 * 8), ("strides", c_uint32 * 8))


class _RankedType(ctypes.Structure):
    _fields_ = (("element", c_int32), ("layout", _Layout))


class _Event(ctypes.Structure):
    _fields_ = (
        ("tag", c_char_p),
        ("type", c_int32),
        ("start_us", c_uint64),
        ("elapsed_us", c_uint64),
        ("memory", c_size_t * 6),
        ("metadata", c_uint64 * 2),
        ("source", c_int32),
    )


class _Library:
    """The C library; a call that fails ends the program."""

    def __init__(self) -> None:
        path = Path(str(ai_edge_litert.__file__)).with_name("libLiteRt.so")
        self._library = ctypes.CDLL(str(path))

    def __call__(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise SystemExit(f"{name} failed with status {status}")

    def handle(self, name: str, *arguments: Any) -> c_void_p:
        """Return what a call puts where its last argument points."""
        made = c_void_p()
        self(name, *arguments, byref(made))
        return made


class _Compiled:
    """A file compiled for one thread with profiling."""

    def __init__(self, library: _Library, path: str) -> None:
        self._library = library
        self._environment = library.handle("LiteRtCreateEnvironment", 0, None)
        self._model = library.handle("LiteRtCreateModelFromFile", self._environment, path.encode())
        options = library.handle("LiteRtCreateOptions")
        library("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
        self._texts = [ctypes.create_string_buffer(text) for _, text in _OPTIONS]
        for (name, _), text in zip(_OPTIONS, self._texts, strict=True):
            library(
                "LiteRtAddOpaqueOptions",
                options,
                library.handle("LiteRtCreateOpaqueOptions", name, text, _KEPT),
            )
        self.model = library.handle("LiteRtCreateCompiledModel", self._environment, self._model, options)
        signature = library.handle("LiteRtGetModelSignature", self._model, c_size_t(0))
        self.entry = self._buffer(signature, "Input")
        self.result = self._buffer(signature, "Output")

    def _buffer(self, signature: c_void_p, side: str) -> c_void_p:
        """Return a buffer for the only input or output."""
        library, index = self._library, c_size_t(0)
        tensor = library.handle(f"LiteRtGetSignature{side}TensorByIndex", signature, index)
        kind = _RankedType()
        library("LiteRtGetRankedTensorType", tensor, byref(kind))
        if side == "Input":
            self.shape = tuple(kind.layout.dimensions[: kind.layout.packed & 0x7F])
        needs = library.handle(f"LiteRtGetCompiledModel{side}BufferRequirements", self.model, index, index)
        name = "LiteRtCreateManagedTensorBufferFromRequirements"
        return library.handle(name, self._environment, byref(kind), needs)

    def feed(self, image: NDArray[np.float32]) -> None:
        """Set the input."""
        address = c_void_p()
        self._library("LiteRtLockTensorBuffer", self.entry, byref(address), _WRITE)
        ctypes.memmove(address, image.ctypes.data, image.nbytes)
        self._library("LiteRtUnlockTensorBuffer", self.entry)

    def run(self) -> None:
        """Run it once."""
        one, zero = c_size_t(1), c_size_t(0)
        self._library(
            "LiteRtRunCompiledModel", self.model, zero, one, byref(self.entry), one, byref(self.result)
        )


def main(path: str, reference: str) -> None:
    library = _Library()
    compiled = _Compiled(library, path)
    array: NDArray[np.float32] = np.load(reference)["image"]
    if array.shape != compiled.shape:
        array = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    compiled.feed(array)
    profiler = library.handle("LiteRtCompiledModelGetProfiler", compiled.model)
    for _ in range(WARMUP):
        compiled.run()
    rounds = []
    for _ in range(RUNS):
        library("LiteRtResetProfiler", profiler)
        library("LiteRtStartProfiler", profiler)
        compiled.run()
        library("LiteRtStopProfiler", profiler)
        rounds.append(_events(library, profiler))
    first = [kind for kind, _ in rounds[0]]
    if any([kind for kind, _ in found] != first for found in rounds):
        raise SystemExit("the runs do not have the same operators")
    spent = np.median([[time for _, time in found] for found in rounds], axis=0)
    kinds: dict[str, tuple[int, float]] = {}
    for kind, time in zip(first, spent, strict=True):
        count, total = kinds.get(kind, (0, 0.0))
        kinds[kind] = (count + 1, total + float(time))
    print(json.dumps(kinds))


def _events(library: _Library, profiler: c_void_p) -> list[tuple[str, int]]:
    """Return the operators of the last run and the microseconds that each took."""
    count = c_int()
    library("LiteRtGetNumProfilerEvents", profiler, byref(count))
    events = (_Event * count.value)()
    library("LiteRtGetProfilerEvents", profiler, count, events)
    return [
        (event.tag.decode(), event.elapsed_us) for event in events if event.type in (_OPERATOR, _DELEGATED)
    ]


if __name__ == "__main__":
    main(*sys.argv[1:])
