"""One round on this machine: opens files in one runtime, warms up, and times runs; started by `executor`.

A program of its own that imports nothing but the standard library, numpy and the one runtime, so that what
else shufflectl needs takes no memory, no threads and no start-up time here, and so that it also works in the
environment of tflite-runtime; it keeps to what Python 3.8 executes.

It takes a request as JSON and prints a reply as JSON. Only the runtime's call is timed:
inputs are set once. With two files they take turns, in random order within each turn, and each timed run
follows untimed ones of the same file, which bring its weights back into the caches: what is timed is a file's
steady state and not the company it keeps.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

FAST, SLOW = 0.1, 0.02
"""Weights of a run in the moving averages that tell whether runs are steady."""

MAX_SAMPLES = 100_000
"""Of one file in one process: what a reply holds is bounded, however fast a model is."""


class Session(NamedTuple):
    """A file that is open in a runtime."""

    run: Callable[[], object]
    delegation: dict[str, Any] | None


class FileError(Exception):
    """A runtime cannot open or run a file; the message names it."""


class Steady:
    """Whether the times of runs have stopped to fall, by the rule of androidx.benchmark.

    Args:
        rule: As `results.Warmup`.
    """

    def __init__(self, rule: dict[str, Any]) -> None:
        self.rule = rule
        self.runs, self.alike = 0, 0
        self.fast = self.slow = 0.0

    def add(self, taken: int) -> None:
        """Note the time of one more run."""
        self.runs += 1
        if self.runs == 1:
            self.fast = self.slow = float(taken)
        self.fast += FAST * (taken - self.fast)
        self.slow += SLOW * (taken - self.slow)
        near = abs(self.fast - self.slow) <= self.rule["tolerance"] * self.slow
        self.alike = self.alike + 1 if near else 0

    def reached(self) -> bool:
        """Say whether the averages agree for long enough."""
        return bool(self.runs >= self.rule["min_iterations"] and self.alike >= self.rule["window"])


def array(shape: list[Any], dtype: Any, name: str) -> Any:
    """Return an input: random, and the same in every process."""
    import numpy as np

    sizes = [1 if axis == 0 and not (isinstance(n, int) and n > 0) else n for axis, n in enumerate(shape)]
    if not all(isinstance(n, int) and n > 0 for n in sizes):
        raise ValueError(f"input {name!r} has no fixed size: {list(shape)}")
    kind, random_state = np.dtype(dtype), np.random.RandomState(0)
    if kind.kind == "f":
        return random_state.standard_normal(sizes).astype(kind)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        return random_state.randint(max(limits.min, -128), min(limits.max, 255) + 1, sizes).astype(kind)
    return np.zeros(sizes, kind)


class OnnxRuntime:
    """ONNX Runtime on its CPU execution provider."""

    types: ClassVar[dict[str, str]] = {
        "tensor(float)": "float32",
        "tensor(float16)": "float16",
        "tensor(double)": "float64",
        "tensor(bool)": "bool",
    }

    def __init__(self, threads: int, files: int) -> None:
        import onnxruntime

        self.api = onnxruntime
        self.options = onnxruntime.SessionOptions()
        self.options.log_severity_level = 4
        self.options.inter_op_num_threads = 1
        self.options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        self.options.intra_op_num_threads = threads
        if threads > 1 and files > 1:
            # A session's own workers spin for more than 50 ms after a run, in the other file's time.
            onnxruntime.set_global_thread_pool_sizes(threads, 1)
            self.options.use_per_session_threads = False

    def open(self, path: str) -> Session:
        """Open a file."""
        session = self.api.InferenceSession(path, self.options, providers=["CPUExecutionProvider"])
        if session.get_providers() != ["CPUExecutionProvider"]:
            raise ValueError(f"it would run on {session.get_providers()}")
        binding = session.io_binding()
        for entry in session.get_inputs():
            dtype = self.types.get(entry.type) or entry.type[len("tensor(") : -1]
            value = array(entry.shape, dtype, entry.name)
            binding.bind_ortvalue_input(entry.name, self.api.OrtValue.ortvalue_from_numpy(value))
        for entry in session.get_outputs():
            binding.bind_output(entry.name, "cpu")
        return Session(lambda: session.run_with_iobinding(binding), None)


class Lite:
    """LiteRT or tflite-runtime, with the XNNPACK delegate that their interpreter applies by default."""

    def __init__(self, threads: int, module: str) -> None:
        import importlib

        self.api = importlib.import_module(module)
        self.threads = threads

    def open(self, path: str) -> Session:
        """Open a file."""
        interpreter = self.api.Interpreter(model_path=path, num_threads=self.threads)
        details = interpreter.get_input_details()
        for detail in details:
            signature = detail.get("shape_signature", detail["shape"])
            wanted = [int(n) for n in (signature if len(signature) else detail["shape"])]
            if any(n < 0 for n in wanted):
                sizes = [1 if axis == 0 and n < 0 else n for axis, n in enumerate(wanted)]
                array(sizes, "bool", detail["name"])  # refuses what has no fixed size
                interpreter.resize_tensor_input(detail["index"], sizes, strict=True)
        interpreter.allocate_tensors()
        for detail in interpreter.get_input_details():
            value = array([int(n) for n in detail["shape"]], detail["dtype"], detail["name"])
            interpreter.set_tensor(detail["index"], value)
        return Session(interpreter.invoke, self.delegation(interpreter))

    @staticmethod
    def delegation(interpreter: Any) -> dict[str, Any] | None:
        """Return what the delegate took; None where this release does not say."""
        if not hasattr(interpreter, "_get_ops_details"):
            return None
        operators = interpreter._get_ops_details()  # noqa: SLF001 - the one way to see them
        own = [op for op in operators if op["op_name"] != "DELEGATE"]
        makers = {int(t): op for op in own for t in op["outputs"]}
        taken: set[int] = set()
        partitions = [op for op in operators if op["op_name"] == "DELEGATE"]
        for partition in partitions:
            pending, sources = {int(t) for t in partition["outputs"]}, {int(t) for t in partition["inputs"]}
            while pending:
                maker = makers.get(pending.pop())
                if maker is not None and maker["index"] not in taken:
                    taken.add(maker["index"])
                    pending |= {int(t) for t in maker["inputs"]} - sources
        return {
            "accelerator": "xnnpack",
            "replaced": len(taken),
            "total": len(own),
            "partitions": len(partitions),
        }


class CoreML:
    """Core ML on the CPU, through coremltools; Core ML chooses its threads itself."""

    def __init__(self) -> None:
        import coremltools

        self.api = coremltools

    def open(self, path: str) -> Session:
        """Open a package."""
        model = self.api.models.MLModel(path, compute_units=self.api.ComputeUnit.CPU_ONLY)
        types = {65552: "float16", 65568: "float32", 65600: "float64", 131104: "int32"}  # ArrayFeatureType
        feeds = {}
        for entry in model.get_spec().description.input:
            kind = entry.type.multiArrayType
            if not kind.shape:
                raise ValueError(f"input {entry.name!r} is no array of fixed size")
            feeds[entry.name] = array(list(kind.shape), types.get(kind.dataType, "float32"), entry.name)
        return Session(lambda: model.predict(feeds), None)


def runtime(name: str, threads: int, files: int) -> Any:
    """Return the runtime of that name."""
    if name == "onnxruntime":
        return OnnxRuntime(threads, files)
    if name == "litert":
        return Lite(threads, "ai_edge_litert.interpreter")
    if name == "tflite-runtime":
        return Lite(threads, "tflite_runtime.interpreter")
    if name == "coreml":
        return CoreML()
    raise ValueError(f"no runtime {name!r}")


def processor_time() -> dict[str, float] | None:
    """Return the CPU time of the system and of this process so far, in seconds; None where it is not told."""
    try:
        with Path("/proc/stat").open(encoding="ascii") as stream:
            ticks = [int(word) / os.sysconf("SC_CLK_TCK") for word in stream.readline().split()[1:9]]
        waited = 0
        for thread in Path("/proc/self/task").iterdir():
            with (thread / "schedstat").open(encoding="ascii") as stream:
                waited += int(stream.read().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    user, nice, system, idle, iowait, irq, softirq, steal = ticks
    return {
        "all": sum(ticks),
        "busy": user + nice + system + irq + softirq,
        "stolen": steal,
        "waited": waited / 1e9,
        "own": time.process_time(),
        "clock": time.monotonic(),
        "idle": idle + iowait,
    }


def noise(begin: dict[str, float] | None, end: dict[str, float] | None) -> dict[str, float]:
    """Return what others took of the machine between two moments, as shares."""
    if begin is None or end is None:
        return {}
    spent = {key: end[key] - begin[key] for key in begin}
    if spent["all"] <= 0 or spent["clock"] <= 0:
        return {}
    return {
        "stolen": min(1.0, max(0.0, spent["stolen"] / spent["all"])),
        "others": min(1.0, max(0.0, (spent["busy"] - spent["own"]) / spent["all"])),
        "waited": max(0.0, spent["waited"] / spent["clock"]),
    }


def peak_memory() -> int | None:
    """Return the most memory that this program held, in bytes.

    Not by getrusage on Linux: there it also counts what the process held before it became this program.
    """
    try:
        with Path("/proc/self/status").open(encoding="ascii", errors="replace") as stream:
            for line in stream:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    if sys.platform == "darwin":
        import resource

        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return None


def timed(run: Callable[[], object]) -> int:
    """Run once and return the nanoseconds that it took."""
    begun = time.perf_counter_ns()
    run()
    return time.perf_counter_ns() - begun


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Do what a request asks for."""
    if request["affinity"]:
        os.sched_setaffinity(0, request["affinity"])
    order = random.Random(request["seed"])  # noqa: S311 - the order of runs is no secret
    paths: list[str] = request["artifacts"]
    engine = runtime(request["runtime"], request["threads"], len(paths))
    found: list[dict[str, Any]] = [{} for _ in paths]
    sessions: list[Any] = [None for _ in paths]
    gc.collect()
    gc.disable()
    for place in order.sample(range(len(paths)), len(paths)):
        name = Path(paths[place]).name
        try:
            begun = time.perf_counter_ns()
            sessions[place] = engine.open(paths[place])
            init = time.perf_counter_ns() - begun
            first = timed(sessions[place].run)
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise FileError(f"{name}: {lines[0][:500]}") from error
        found[place] = {"init_ns": init, "first_ns": first, "warmup_ns": [first], "samples_ns": []}
        found[place]["delegation"] = sessions[place].delegation
    settle = request["settle"] if len(paths) > 1 else 0

    def turn() -> list[int]:
        taken = [0] * len(paths)
        for place in order.sample(range(len(paths)), len(paths)):
            run = sessions[place].run
            for _ in range(settle):
                run()
            taken[place] = timed(run)
        return taken

    rule = request["warmup"]
    detectors = [Steady(rule) for _ in paths]
    begun_at = time.monotonic()
    before = processor_time()
    while True:
        for place, taken in enumerate(turn()):
            found[place]["warmup_ns"].append(taken)
            detectors[place].add(taken)
        elapsed = time.monotonic() - begun_at
        steady = all(detector.reached() for detector in detectors)
        full = len(found[0]["warmup_ns"]) >= MAX_SAMPLES
        if full or (steady and elapsed >= rule["min_seconds"]) or elapsed >= rule["max_seconds"]:
            break
    timing_at = time.monotonic()
    while True:
        for place, taken in enumerate(turn()):
            found[place]["samples_ns"].append(taken)
        count = len(found[0]["samples_ns"])
        enough = count >= request["min_iterations"]
        if count >= MAX_SAMPLES or (enough and time.monotonic() - timing_at >= request["min_seconds"]):
            break
    ended_at = time.monotonic()
    for place, entry in enumerate(found):
        entry["steady"] = detectors[place].reached()
    return {
        "results": found,
        "measured_s": ended_at - begun_at,
        "noise": noise(before, processor_time()),
        "peak_rss_bytes": peak_memory(),
    }


def main() -> None:
    """Answer the one request."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a native library prints must not mix with the reply
    request = json.loads(sys.argv[1])
    try:
        reply = measure(request)
    except FileError as error:
        reply = {"error": "file", "message": str(error)}
    except ImportError as error:
        reply = {"error": "import", "message": str(error)}
    except Exception as error:  # noqa: BLE001 - the same
        reply = {"error": "other", "message": f"{type(error).__name__}: {error}"}
    with answers:
        json.dump(reply, answers)
    # Native libraries' worker threads may not end with the interpreter; there is nothing left to do here.
    os._exit(0)


if __name__ == "__main__":
    main()
