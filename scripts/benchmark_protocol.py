"""What our latency measurements are worth, into docs/measuring.md.

Sections:

- intervals: how often intervals of several methods leave out the truth; simulated, ten processes.
- simulated: equal files called different, and a 5% slowdown found; simulated processes through the protocol.
- real: a file against itself, many times, on this machine.
- agreement: our median against that of the runtimes' own tools and of our runner in C, in fresh processes in
  turns.
- overhead: what a call spends outside of measuring.
- memory: the most memory that measuring and writing a result take, against the number of rounds; simulated
  rounds of the length that real ones have at default settings.

The simulations take seconds. The others need a machine that does nothing else; each takes minutes.

Usage: python scripts/benchmark_protocol.py SECTION... [--onnx FILE] [--tflite FILE] [--docs]
"""

import argparse
import json
import math
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from shufflectl.benchmarks.bench import BenchOptions, bench
from shufflectl.benchmarks.compare import paired, unpaired
from shufflectl.benchmarks.executor import Job, Measured
from shufflectl.benchmarks.local.executor import LocalExecutor
from shufflectl.benchmarks.local.own import OwnExecutor, find
from shufflectl.benchmarks.output import write_csv, write_json
from shufflectl.benchmarks.protocol import Group, Subject, measure
from shufflectl.benchmarks.results import Config, ModelFile, RunnerInfo, Snapshot, Suite, Target, Warmup
from shufflectl.benchmarks.runner import built
from shufflectl.benchmarks.statistics import median, median_interval, ratio_of_samples

DOCS = Path(__file__).resolve().parent.parent / "docs" / "measuring.md"
PROCESSES = 0.019
"""How much medians of processes vary, relative; runs within one by `RUNS`. Measured: docs/measuring.md."""
RUNS = 0.057
RATIOS = 0.01 / 0.6745
"""Standard deviation of ratios of which the middle half lies within 1%."""
ROUNDS = 10
BLOCKS = 15
"""Processes of each program in `agreement`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sections", nargs="+", choices=list(SECTIONS))
    parser.add_argument("--onnx", type=Path, help="an .onnx file of shufflenet_v2_x1_0")
    parser.add_argument("--tflite", type=Path, help="a .tflite file of shufflenet_v2_x1_0")
    parser.add_argument("--docs", action="store_true", help="write the tables into docs/measuring.md")
    arguments = parser.parse_args()
    for section in arguments.sections:
        text = SECTIONS[section](arguments)
        print(text, flush=True)
        if arguments.docs:
            _publish(section, text)


def _publish(section: str, text: str) -> None:
    begin, end = f"<!-- {section}:begin -->", f"<!-- {section}:end -->"
    pattern = re.compile(f"{begin}.*?{end}", re.DOTALL)
    page = pattern.sub(lambda _: f"{begin}\n\n{text}\n\n{end}", DOCS.read_text(encoding="utf-8"))
    DOCS.write_text(page, encoding="utf-8")


def intervals(_: argparse.Namespace) -> str:
    """Rates of wrong intervals, by method and by how the figures are distributed."""
    draw = np.random.default_rng(0)
    trials = 10_000
    normal = draw.normal(0, 0.019, (trials, ROUNDS))
    noisy = normal + np.where(draw.random((trials, ROUNDS)) < 0.1, draw.exponential(0.1, (trials, ROUNDS)), 0)
    picks = draw.integers(0, ROUNDS, (2000, ROUNDS))

    def bootstrap(figure: Callable[..., np.ndarray], values: np.ndarray) -> float:
        ends = np.array([np.quantile(figure(row[picks], axis=1), (0.025, 0.975)) for row in values])
        return float(np.mean((ends[:, 0] > 0) | (ends[:, 1] < 0)))

    def student(values: np.ndarray) -> float:
        half = 2.2622 * values.std(axis=1, ddof=1) / math.sqrt(ROUNDS)
        return float(np.mean(np.abs(values.mean(axis=1)) > half))

    def ordered(values: np.ndarray) -> float:
        found = [median_interval(list(np.exp(row))) for row in values]
        return sum(i is not None and not i[0] <= 1 <= i[1] for i in found) / len(found)

    methods: list[tuple[str, Callable[[np.ndarray], float]]] = [
        ("percentile bootstrap of the median", lambda v: bootstrap(np.median, v)),
        ("percentile bootstrap of the mean logarithm", lambda v: bootstrap(np.mean, v)),
        ("Student's t of the logarithms", student),
        ("order statistics (used)", ordered),
    ]
    intro = (
        f"Share of {trials} simulated sets of {ROUNDS} figures whose 95 % interval leaves out the median of "
        "what they were drawn from. Disturbed: one figure in ten is too long, by 10 % on average."
    )
    lines = [
        intro,
        "",
        "| method | normal | disturbed |",
        "|---|---:|---:|",
    ]
    lines += [f"| {name} | {run(normal):.1%} | {run(noisy):.1%} |" for name, run in methods]
    return "\n".join(lines)


class Simulated:
    """An executor whose processes and runs vary as real ones do."""

    def __init__(self, seed: int, slowdown: float) -> None:
        self.draw = random.Random(seed)  # noqa: S311 - a simulation
        self.slowdown = slowdown
        self.runner = RunnerInfo("simulated", can_pair=True)
        self.target = Target("local")

    @contextmanager
    def open(self, _: Sequence[Path]) -> Iterator[None]:
        """Hold nothing."""
        yield

    def settle(self) -> None:
        """Wait for nothing."""

    def run(self, job: Job) -> tuple[Measured, ...]:
        """Return the runs of one process."""
        process = math.exp(self.draw.gauss(0, PROCESSES))
        found = []
        for path in job.artifacts:
            level = 2e6 * process * (1 + self.slowdown * (path.name == "b"))
            if len(job.artifacts) == 2:
                level *= math.exp(self.draw.gauss(0, RATIOS / math.sqrt(2)))
            runs = tuple(int(level * math.exp(self.draw.gauss(0, RUNS))) for _ in range(120))
            found.append(Measured(samples_ns=runs))
        return tuple(found)


def simulated(_: argparse.Namespace) -> str:
    """A/A and a slowdown of 5%, paired and unpaired, through the protocol."""
    config = Config("cpu", 1, "", "fp32", "paired", ROUNDS, Warmup(), 30, 2.0, 1, 0)
    subjects = tuple(Subject(name, Path(name), ModelFile(name, "", "onnx", 1)) for name in "ab")
    rows = []
    for mode in ("paired", "unpaired"):
        for slowdown, count in ((0.0, 200), (0.0, 2000), (0.05, 200), (0.05, 2000)):
            different = failed = 0
            for seed in range(count):
                chosen = replace(config, mode="paired" if mode == "paired" else "absolute", seed=seed)
                group = Group(Simulated(seed, slowdown), chosen, subjects, ((0, 1),))
                sides = measure([group], notify=lambda *_: None).benchmarks
                found = (
                    paired(sides[0], sides[1], (0, 1), 0.03)
                    if mode == "paired"
                    else unpaired(sides[0], sides[1], 0.03)
                )
                if found is None or found.interval is None:
                    raise SystemExit("a simulation gave no interval")
                different += not found.interval[0] <= 1 <= found.interval[1]
                failed += found.verdict == "fail"
            rows.append(
                f"| {mode} | {slowdown:.0%} | {count} | {different / count:.1%} | {failed / count:.1%} |"
            )
    intro = (
        f"Simulated, {ROUNDS} rounds: process medians vary by {PROCESSES:.1%}, runs by {RUNS:.1%}, half of "
        "the paired ratios lie within ±1 %."
    )
    head = (
        intro,
        "",
        "| mode | true slowdown | comparisons | called different | FAIL at `--tolerance 3%` |",
        "|---|---:|---:|---:|---:|",
    )
    return "\n".join((*head, *rows))


def real(arguments: argparse.Namespace) -> str:
    """Files against themselves."""
    rows = []
    for file in (arguments.onnx, arguments.tflite):
        ratios, different, widths, count = [], 0, [], 20
        for seed in range(count):
            options = BenchOptions(
                baseline=file, seed=seed, min_seconds=0.25, warmup=Warmup(max_seconds=1.0), min_iterations=10
            )
            (found,) = bench([file], options, lambda *_: None).suite.comparisons
            if found.interval is None:
                raise SystemExit("a comparison gave no interval")
            ratios.append(found.ratio)
            widths.append((found.interval[1] - found.interval[0]) / 2)
            different += not found.interval[0] <= 1 <= found.interval[1]
        rows.append(
            f"| {file.suffix[1:]} | {count} | {different} | {min(ratios):.4f}-{max(ratios):.4f} | "
            f"±{median(widths):.1%} |"
        )
    intro = (
        f"A file of `shufflenet_v2_x1_0` against itself, paired, {ROUNDS} rounds, `--min-seconds 0.25` "
        f"(a quarter of a second in place of 2.5, so that 40 comparisons end in minutes); {_machine()}."
    )
    head = (
        intro,
        "",
        "| file | comparisons | called different | ratios | middle half-width of the interval |",
        "|---|---:|---:|---:|---:|",
    )
    return "\n".join((*head, *rows))


_PLAIN_PROGRAM = """
import sys, time, statistics, json
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
entry = session.get_inputs()[0]
feed = {entry.name: np.random.default_rng(0).standard_normal(entry.shape).astype(np.float32)}
taken = []
for _ in range(700):
    begun = time.perf_counter_ns()
    session.run(None, feed)
    taken.append(time.perf_counter_ns() - begun)
print(json.dumps(statistics.median(taken[200:])))
"""


def _plain(job: Job) -> float:
    (file,) = job.artifacts
    done = subprocess.run(
        [sys.executable, "-I", "-c", _PLAIN_PROGRAM, str(file)], capture_output=True, text=True, check=True
    )
    return float(json.loads(done.stdout))


def _litert_tool(job: Job) -> float:
    (file,) = job.artifacts
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.json"
        tool = [sys.executable, "-I", "-m", "ai_edge_litert.tools.benchmark_litert_model"]
        options = [f"--model={file}", "--num_runs=500", "--warmup_runs=200", f"--result_json={result}"]
        subprocess.run([*tool, *options], capture_output=True, check=True)
        found = json.loads(result.read_text(encoding="utf-8"))
    return float(_find(found, "median")) * 1e6


def _find(document: object, word: str) -> float:
    """Return the one figure whose name begins so, in ms."""
    if isinstance(document, dict):
        for key, value in document.items():
            if word in key and isinstance(value, (int, float)):
                return float(value)
            inner = _find(value, word)
            if not math.isnan(inner):
                return inner
    return math.nan


def agreement(arguments: argparse.Namespace) -> str:
    """Our median against other programs', in fresh processes in turns."""
    own = OwnExecutor(find(str(built())))
    rows = _agreement(
        "onnxruntime", arguments.onnx, {"ONNX Runtime, `session.run` timed from Python": _plain}
    )
    with own.open([arguments.tflite]):
        others: dict[str, Callable[[Job], float]] = {
            "`ai_edge_litert.tools.benchmark_litert_model`": _litert_tool,
            "our runner in C (`--runtime litert-c`)": lambda job: median(own.run(job)[0].samples_ns),
        }
        rows += _agreement("litert", arguments.tflite, others)
    intro = (
        "Our median against that of other programs: `shufflenet_v2_x1_0`, one thread, "
        f"{BLOCKS} fresh processes of each in turns; {_machine()}. LiteRT's tool gives two decimals of a "
        "millisecond."
    )
    head = (
        intro,
        "",
        "| other program | its median, ms | ours, ms | ours / its (95 % interval) |",
        "|---|---:|---:|---:|",
    )
    return "\n".join((*head, *rows))


def _agreement(runtime: str, file: Path, others: Mapping[str, Callable[[Job], float]]) -> list[str]:
    """Return a row for each other program; all of them, and ours, take turns in each block."""
    order = random.Random(0)  # noqa: S311 - the order of processes is no secret
    executor = LocalExecutor(runtime)
    programs = {"": lambda job: median(executor.run(job)[0].samples_ns), **others}
    found: dict[str, list[float]] = {name: [] for name in programs}
    with executor.open([file]):
        for block in range(BLOCKS):
            job = Job((file,), block, block, Warmup(), 30, 1.5)
            for name in order.sample(list(programs), len(programs)):
                found[name].append(programs[name](job))
    ours = found.pop("")
    rows = []
    for name, theirs in found.items():
        ratio, interval = ratio_of_samples(theirs, ours)
        low, high = interval or (math.nan, math.nan)
        rows.append(
            f"| {name} | {median(theirs) / 1e6:.3f} | {median(ours) / 1e6:.3f} "
            f"| {ratio:.3f} ({low:.3f}-{high:.3f}) |"
        )
    return rows


def overhead(arguments: argparse.Namespace) -> str:
    """What a call spends outside of measuring, from its start to its end."""
    rows = []
    for file in (arguments.onnx, arguments.tflite):
        for mode, more in (("absolute", []), ("paired", ["--baseline", str(file)])):
            argv = [sys.executable, "-m", "shufflectl", "bench", str(file), *more, "--json"]
            begun = time.monotonic()
            done = subprocess.run(argv, capture_output=True, text=True, check=True)
            whole = time.monotonic() - begun
            suite = json.loads(done.stdout)
            measured = suite["elapsed_s"] * (1 - suite["overhead"])
            rows.append(
                f"| {file.suffix[1:]} | {mode} | {whole:.1f} | {measured:.1f} | {whole / measured - 1:.1%} |"
            )
    head = (
        f"`shufflectl bench` at default settings, one file of `shufflenet_v2_x1_0`; {_machine()}.",
        "",
        "| file | mode | whole call, s | warm-up and timed runs, s | more than these |",
        "|---|---|---:|---:|---:|",
    )
    return "\n".join((*head, *rows))


_TIMED, _WARMUP = 1500, 600
"""Runs of a default round of `shufflenet_v2_x1_0`: 2.5 s of 1.6 ms, and a warm-up of a second."""

_MEMORY = """
import sys, tempfile
sys.path.insert(0, sys.argv[1])
import benchmark_protocol
print(benchmark_protocol.peak(int(sys.argv[2])))
"""


class Long(Simulated):
    """Processes that run as often as real ones at default settings, on a machine of two cores."""

    def run(self, job: Job) -> tuple[Measured, ...]:
        """Return the runs of one process."""
        state = Snapshot(0.5, "performance", {"0": 1, "1": 1}, {"0": 1, "1": 1}, stolen=0.0, others=0.0)

        def runs(count: int) -> tuple[int, ...]:
            return tuple(int(1.6e6 * math.exp(self.draw.gauss(0, RUNS))) for _ in range(count))

        return tuple(
            Measured(10**7, 10**7, runs(_WARMUP), True, runs(_TIMED), before=state, after=state)
            for _ in job.artifacts
        )


def peak(rounds: int) -> int:
    """Measure and write a result; return the most memory that this process held, in kB."""
    config = Config("cpu", 1, "", "fp32", "absolute", rounds, Warmup(), 30, 2.5, 1, 0)
    subject = Subject("a", Path("a"), ModelFile("a", "0" * 64, "onnx", 1))
    found = measure([Group(Long(0, 0.0), config, (subject,))], notify=lambda *_: None)
    suite = Suite("2026-01-31T12:00:00Z", "x", found.benchmarks)
    with tempfile.TemporaryDirectory() as scratch:
        write_json(suite, Path(scratch) / "result.json")
        write_csv(suite, Path(scratch) / "runs.csv")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory(_: argparse.Namespace) -> str:
    """Peak memory against the number of rounds."""
    counts = (10, 100, 1000, 4000)
    found = []
    for count in counts:
        argv = [sys.executable, "-c", _MEMORY, str(Path(__file__).parent), str(count)]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        found.append(int(done.stdout))
    slope = (found[-1] - found[0]) / (counts[-1] - counts[0])
    rows = [f"| {count} | {kilobytes / 1024:.1f} |" for count, kilobytes in zip(counts, found, strict=True)]
    intro = (
        f"Simulated rounds of {_TIMED} timed and {_WARMUP} warm-up runs, measured by the protocol, "
        "summarised, written as JSON and as CSV."
    )
    head = (
        intro,
        "",
        "| rounds | peak memory, MiB |",
        "|---:|---:|",
    )
    return "\n".join((*head, *rows, "", f"That is {slope:.1f} KiB a round."))


def _machine() -> str:
    from shufflectl.benchmarks.local.machine import target

    found = target()
    kind = ", virtual machine" if found.virtual else ""
    return f"{found.cpu}, {found.cores} cores{kind}"


SECTIONS: dict[str, Callable[[argparse.Namespace], str]] = {
    "intervals": intervals,
    "simulated": simulated,
    "real": real,
    "agreement": agreement,
    "overhead": overhead,
    "memory": memory,
}

if __name__ == "__main__":
    main()
