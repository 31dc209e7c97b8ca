"""How fast the tool itself is: start-up, graph to TFLite, and a whole export, side by side with its peers.

Three sections, each measured in one run, with contestants in random order within every round and a fresh
process for every sample:

- startup: ``shufflectl --help`` against the ``--help`` of the least Typer program. Goal: at most 2x.
- tflite: a captured graph to a TFLite file, against litert-torch's conversion of the module. Goal: 50x.
- export: ``shufflectl export --target all`` with parity, against torch.onnx, coremltools and litert-torch one
  after the other, each a process of its own. Goal: at most a third.

A round is the unit of the statistics: the interval is a 95% percentile bootstrap of the ratio of medians over
rounds. The peers live in environments that this script builds from pinned requirements (in ``scripts/peers``)
under ``--env-dir``; torch's own ONNX export runs in this environment.

Usage: python scripts/benchmark_export.py --env-dir ~/.cache/shufflectl-peers [--only SECTION] [--docs]
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from peers.environments import PEERS, interpreters, versions

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs" / "speed.md"
BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"
ENVIRONMENTS = ("litert-torch", "coremltools")
SECTIONS = ("startup", "tflite", "export")
SCHEMA = "shufflectl.speed/1"

Sample = dict[str, float]


@dataclass(frozen=True)
class Ratio:
    """A comparison.

    Attributes:
        section: Which section it belongs to.
        what: What is divided by what.
        value: The ratio of medians.
        low: The lower end of its 95% interval.
        high: The upper end.
        goal: What is asked for; empty where nothing is.
        met: Whether the whole interval meets the goal; None without a goal.
    """

    section: str
    what: str
    value: float
    low: float
    high: float
    goal: str = ""
    met: bool | None = None


def main() -> None:
    arguments = _parse()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        sections = arguments.only or SECTIONS
        wanted = {"startup": (), "tflite": ("litert-torch",), "export": ENVIRONMENTS}
        pythons = interpreters(arguments.env_dir, [name for section in sections for name in wanted[section]])
        weights = scratch / "weights.pt"
        if set(sections) & {"tflite", "export"}:
            _random_weights(arguments.model, weights)
        bench = Bench(arguments.model, weights, scratch, pythons)
        samples: dict[str, list[Sample]] = {}
        for section in sections:
            rounds = arguments.rounds or {"startup": 30, "tflite": 7, "export": 5}[section]
            samples[section] = bench.rounds(section, rounds)
    ratios = [ratio for section in sections for ratio in RATIOS[section](samples[section])]
    document = {
        "schema": SCHEMA,
        "model": arguments.model,
        "machine": _machine(),
        "versions": _versions(pythons),
        "samples_s": samples,
        "ratios": [asdict(ratio) for ratio in ratios],
    }
    text = figures(document, samples, ratios)
    print(text)
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if arguments.docs:
        _write_docs(text)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--env-dir", type=Path, required=True, help="where the peers' environments are kept")
    parser.add_argument("--model", default="shufflenet_v2_x1_0")
    parser.add_argument("--only", action="append", choices=SECTIONS, help="a section; repeatable")
    parser.add_argument("--rounds", type=int, help="rounds of each section (30, 7 and 5 by default)")
    parser.add_argument("--json", type=Path, help="where to write every sample")
    parser.add_argument(
        "--docs", action="store_true", help=f"write the figures into {DOCS.relative_to(ROOT)}"
    )
    return parser.parse_args()


class Bench:
    """The contestants.

    Args:
        model: The network's name.
        weights: Its checkpoint.
        scratch: An empty folder.
        pythons: The interpreter of each environment, by name.
    """

    def __init__(self, model: str, weights: Path, scratch: Path, pythons: Mapping[str, Path]) -> None:
        self._model = model
        self._weights = weights
        self._scratch = scratch
        self._pythons = pythons
        self._order = random.Random(0)  # noqa: S311 - the order of contestants is no secret
        self._count = 0

    def rounds(self, section: str, count: int) -> list[Sample]:
        """Run a section's contestants ``count`` times; the first start-ups are thrown away."""
        contestants: Mapping[str, Callable[[], Sample]] = {
            "startup": {"shufflectl": self._help, "typer": self._bare_help},
            "tflite": {"shufflectl": self._emit, "litert-torch": self._litert_torch_twice},
            "export": {
                "shufflectl": self._export,
                "torch.onnx": lambda: self._peer("onnx_torch", "this", ".onnx"),
                "coremltools": lambda: self._peer("coreml_coremltools", "coremltools", ".mlpackage"),
                "litert-torch": lambda: self._peer("tflite_litert_torch", "litert-torch", ".tflite"),
            },
        }[section]
        # Start-up takes so little that a first round would measure reading files from the disk.
        warmups = 1 if section == "startup" else 0
        results = []
        for index in range(warmups + count):
            sample: Sample = {}
            for name in self._order.sample(list(contestants), len(contestants)):
                for lap, seconds in contestants[name]().items():
                    sample[f"{name}: {lap}"] = seconds
            if index >= warmups:
                results.append(sample)
                print(f"{section} {len(results)}/{count}", file=sys.stderr)
        return results

    def _help(self) -> Sample:
        return _timed([sys.executable, "-m", "shufflectl", "--help"])

    def _bare_help(self) -> Sample:
        return _timed([sys.executable, str(PEERS / "bare_typer.py"), "--help"])

    def _emit(self) -> Sample:
        return self._peer("tflite_shufflectl", "this", ".tflite")

    def _litert_torch_twice(self) -> Sample:
        return self._peer("tflite_litert_torch", "litert-torch", ".tflite", "again")

    def _export(self) -> Sample:
        out = self._fresh("")
        command = [sys.executable, "-m", "shufflectl", "export", self._model, "--weights", str(self._weights)]
        taken = _timed([*command, "--target", "all", "--out", str(out)])
        made = sorted(path.suffix for path in out.iterdir())
        if made != [".json", ".mlpackage", ".onnx", ".tflite"]:
            raise SystemExit(f"the export left {made}")
        return taken

    def _peer(self, program: str, environment: str, suffix: str, *flags: str) -> Sample:
        """Run one of the peers' programs; its own laps, and the whole process."""
        out, laps = self._fresh(suffix), self._fresh(".json")
        python = self._pythons[environment]
        command = [
            str(python),
            str(PEERS / f"{program}.py"),
            self._model,
            str(self._weights),
            str(out),
            str(laps),
        ]
        taken = _timed([*command, *flags])
        if not out.exists():
            raise SystemExit(f"{program} wrote nothing")
        seconds: Sample = json.loads(laps.read_text(encoding="utf-8"))
        return {**seconds, **taken}

    def _fresh(self, suffix: str) -> Path:
        self._count += 1
        return self._scratch / f"{self._count}{suffix}"


def _timed(command: Sequence[str]) -> Sample:
    """Return the seconds that a process takes, from start to exit, and those of all cores it keeps busy."""
    busy = _busy()
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return {"whole": seconds, "processor time": _busy() - busy}


def _busy() -> float:
    """Return the processor seconds of the child processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _random_weights(model: str, path: Path) -> None:
    """Write a checkpoint with the random weights that ``random:0`` stands for."""
    code = (
        "import sys, torch\nfrom shufflectl.models import create\n"
        "torch.save(create(sys.argv[1], weights='random:0').state_dict(), sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", code, model, str(path)], check=True, cwd=ROOT)


def bootstrap(top: Sequence[float], bottom: Sequence[float]) -> tuple[float, float, float]:
    """Return the ratio of medians of paired samples, and its 95% percentile bootstrap interval over pairs."""
    pairs = np.array([top, bottom])
    draws = np.random.default_rng(0).integers(0, pairs.shape[1], (10_000, pairs.shape[1]))
    medians = np.median(pairs[:, draws], axis=2)
    low, high = np.percentile(medians[0] / medians[1], [2.5, 97.5])
    value = np.median(pairs[0]) / np.median(pairs[1])
    return float(value), float(low), float(high)


def _column(samples: Sequence[Sample], *names: str) -> list[float]:
    """Return, for each round, the sum of the named figures."""
    return [sum(sample[name] for name in names) for sample in samples]


def _startup_ratios(samples: Sequence[Sample]) -> list[Ratio]:
    value, low, high = bootstrap(_column(samples, "shufflectl: whole"), _column(samples, "typer: whole"))
    what = "`shufflectl --help` / bare Typer program's `--help`"
    return [Ratio("startup", what, value, low, high, "at most 2", high <= 2)]


def _tflite_ratios(samples: Sequence[Sample]) -> list[Ratio]:
    peer, own = "litert-torch: ", "shufflectl: "
    rows = [
        (
            "litert-torch / graph to TFLite, first call in a process",
            ("convert",),
            ("convert",),
            "at least 50",
        ),
        ("litert-torch / graph to TFLite, second call", ("convert again",), ("convert again",), ""),
        ("litert-torch / capture and graph to TFLite", ("convert",), ("capture", "convert"), ""),
        (
            "litert-torch / graph to TFLite, imports included",
            ("import", "convert"),
            ("import", "convert"),
            "",
        ),
    ]
    ratios = []
    for what, tops, bottoms, goal in rows:
        top = _column(samples, *(peer + name for name in tops))
        value, low, high = bootstrap(top, _column(samples, *(own + name for name in bottoms)))
        ratios.append(Ratio("tflite", what, value, low, high, goal, low >= 50 if goal else None))
    return ratios


def _export_ratios(samples: Sequence[Sample]) -> list[Ratio]:
    peers = _column(samples, "torch.onnx: whole", "coremltools: whole", "litert-torch: whole")
    value, low, high = bootstrap(_column(samples, "shufflectl: whole"), peers)
    what = "`shufflectl export --target all` with parity / the three official converters, without any check"
    busy = "torch.onnx: processor time", "coremltools: processor time", "litert-torch: processor time"
    work = bootstrap(_column(samples, "shufflectl: processor time"), _column(samples, *busy))
    return [
        Ratio("export", what, value, low, high, "at most 0.333", high <= 1 / 3),
        Ratio("export", f"{what}, processor time", *work),
    ]


RATIOS = {"startup": _startup_ratios, "tflite": _tflite_ratios, "export": _export_ratios}


def figures(
    document: Mapping[str, object], samples: Mapping[str, Sequence[Sample]], ratios: Sequence[Ratio]
) -> str:
    """Return the figures as Markdown."""
    lines = [
        f"Measured with `scripts/benchmark_export.py` on {document['machine']}, model `{document['model']}`.",
        "",
        f"{document['versions']}.",
        "",
        "| ratio of medians | value | 95% interval | goal | met |",
        "|---|---:|---:|---|---|",
    ]
    for ratio in ratios:
        met = {True: "yes", False: "no", None: ""}[ratio.met]
        interval = f"{_short(ratio.low)}-{_short(ratio.high)}"
        lines.append(f"| {ratio.what} | {_short(ratio.value)} | {interval} | {ratio.goal} | {met} |")
    lines += ["", "| seconds | median | least | most | rounds |", "|---|---:|---:|---:|---:|"]
    for section, rounds in samples.items():
        for name in rounds[0]:
            values = _column(rounds, name)
            cells = (statistics.median(values), min(values), max(values))
            lines.append(f"| {section}, {name} | {' | '.join(f'{v:.3f}' for v in cells)} | {len(values)} |")
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 20 else f"{value:.2f}"


def _machine() -> str:
    system = f"{platform.system()} {platform.machine()}"
    return f"{system}, {os.cpu_count()} cores, Python {platform.python_version()}"


def _versions(pythons: Mapping[str, Path]) -> str:
    names = {
        "this": ("shufflectl", "torch", "onnxscript", "typer"),
        "coremltools": ("coremltools", "torch"),
        "litert-torch": ("litert-torch", "torch"),
    }
    found = versions(pythons, {environment: names[environment] for environment in pythons})
    return "; ".join(
        ", ".join(f"{name} {version}" for name, version in packages.items()) for packages in found.values()
    )


def _write_docs(text: str) -> None:
    page = DOCS.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest or not page.count(END):
        raise SystemExit(f"{DOCS} has lost its markers {BEGIN} and {END}")
    DOCS.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
