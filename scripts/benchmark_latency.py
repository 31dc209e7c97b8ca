"""How fast the models run: every form of their shuffles against the official exports and other runtimes.

Two sections are measured by default:

- pairs: within ONNX Runtime and LiteRT. Fresh processes, each of which holds the official export, our forms
  and the floor (the same convolutions, every copy left out), and runs them in turns, in random order. A
  process's ratio of medians to the official export is one observation; the interval is a 95% percentile
  bootstrap of the median over processes. The official export against itself is always among them.
- runtimes: across LiteRT, ONNX Runtime, ncnn, MNN, OpenVINO and ExecuTorch. Each round runs one fresh process
  a contestant, in random order; a round's ratio of medians is one observation.

And on request:

- int8 (`--only int8`): the same within ONNX Runtime and LiteRT for eight bits: our files against those of
  `quantize_static` and ai-edge-quantizer's static_wi8_ai8, calibrated on the same images.
- profile: where the time goes, by kind of operator.
- coreml: what is in our Core ML package and in coremltools' own, which only Apple's systems can run.

All files of a model hold the same random weights, and none is timed before its logits agree with torch's (the
floor's are wrong by design). The converters and runtimes live in environments that are built from pinned
requirements (in scripts/peers) under ``--env-dir``; files are kept under ``--work``, and made again when what
makes them changes.

Usage: python scripts/benchmark_latency.py [--env-dir FOLDER] [--work FOLDER] [--models NAME,...]
           [--forms auto,native,...] [--threads 1,2] [--only SECTION] [--json FILE] [--docs]
"""

import argparse
import itertools
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peers.engines import AUTO, ENGINES, FLOOR, MODELS, OFFICIAL, OURS
from peers.environments import OWN, PEERS, interpreters, versions
from peers.files import ROOT, Builder, call
from peers.report import REPORTS

DOCS = ROOT / "docs" / "latency.md"
SCHEMA = "shufflectl.latency/1"
SECTIONS = tuple(REPORTS)
ACROSS = ("shufflenet_v2_x1_0",)
FORMS = (
    AUTO,
    "native",
    "interleave",
    "two-stream",
    "commute",
    "fold",
    "fold-split:1",
    "fold-split:16",
    "fold-split:16:16",
    "fold-split:16:16:16",
)
TOLERANCE = 1e-4
"""The largest difference of a logit, relative to the largest logit; the runtimes come within 1e-5."""

CODE_TOLERANCE = 0.15
"""The same for int8, which is no more than a sign that it is the same network."""

Record = dict[str, Any]


def main() -> None:
    arguments = _parse()
    if arguments.report:
        _publish(json.loads(arguments.report.read_text(encoding="utf-8")), arguments)
        return
    sections = tuple(arguments.only or ("pairs", "runtimes"))
    engines = tuple(name for name in ENGINES if name in (*OURS, *arguments.engines))
    pythons = interpreters(arguments.env_dir, _environments(sections, engines))
    builder = Builder(arguments.work.expanduser().resolve(), pythons, arguments.forms)
    protocol = ("processes", "iterations", "warmup", "settle", "seed", "threads", "forms", "models", "across")
    document: Record = {
        "schema": SCHEMA,
        "machine": _machine(),
        "versions": _versions(pythons),
        "protocol": {name: getattr(arguments, name) for name in protocol},
        "settings": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(builder, arguments, Path(scratch))
        measured = _measure(sections, engines, builder, bench, arguments, document)
    if measured:
        _publish(document, arguments)


def _measure(
    sections: Sequence[str],
    engines: Sequence[str],
    builder: Builder,
    bench: "Bench",
    arguments: argparse.Namespace,
    document: Record,
) -> bool:
    """Fill the document section by section; return whether there is something to show.

    Everything is built and checked before anything is timed, and samples are saved after every round.
    """

    def save() -> None:
        if arguments.json:
            arguments.json.write_text(json.dumps(document) + "\n", encoding="utf-8")

    if "pairs" in sections:
        document["files"] = {model: builder.own(model) for model in arguments.models}
        for model, engine in itertools.product(arguments.models, OURS):
            bench.check(model, engine, builder.contestants(model, engine), document)
    if "runtimes" in sections:
        for model, engine in itertools.product(arguments.across, engines):
            bench.check(model, engine, builder.across(model, engine), document)
    if "int8" in sections:
        for model, engine in itertools.product(arguments.across, OURS):
            bench.check(model, engine, builder.in_codes(model, engine), document, CODE_TOLERANCE)
    if not arguments.processes:
        return False
    if "int8" in sections:
        document["int8"] = []
        bench.pairs(arguments.across, document, save, "int8")
    if "pairs" in sections:
        document["pairs"] = []
        bench.pairs(arguments.models, document, save)
    if "runtimes" in sections:
        document["runtimes"] = []
        bench.across(arguments.across, engines, document, save)
    if "profile" in sections:
        jobs = itertools.product(arguments.across, OURS)
        document["profile"] = [profile for job in jobs for profile in bench.profile(*job)]
    if "coreml" in sections:
        document["coreml"] = {model: builder.coreml(model) for model in arguments.across}
    save()
    return True


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = lambda text: tuple(part for part in text.split(",") if part)  # noqa: E731 - a type of this parser
    cache = Path("~/.cache")
    parser.add_argument(
        "--env-dir", type=Path, default=cache / "shufflectl-peers", help="where the environments are kept"
    )
    parser.add_argument(
        "--work", type=Path, default=cache / "shufflectl-latency", help="where built files are kept"
    )
    parser.add_argument("--models", type=names, default=MODELS, help="of the section pairs, with commas")
    parser.add_argument("--across", type=names, default=ACROSS, help="models of the other sections")
    parser.add_argument(
        "--engines", type=names, default=tuple(ENGINES), help="other runtimes to compare with, with commas"
    )
    parser.add_argument(
        "--forms", type=names, default=FORMS, help="auto, or NAME[:ALIGN[:MERGE[:CARRY]]]; with commas"
    )
    parser.add_argument(
        "--threads", type=lambda t: tuple(map(int, t.split(","))), default=(1, 2), help="with commas"
    )
    parser.add_argument(
        "--processes", type=int, default=7, help="observations of each comparison; 0 only builds and checks"
    )
    parser.add_argument("--iterations", type=int, default=120, help="timed runs of a file in each process")
    parser.add_argument("--warmup", type=int, default=20, help="turns that are thrown away")
    parser.add_argument("--settle", type=int, default=1, help="untimed runs before each timed one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=SECTIONS, help="a section; repeatable")
    parser.add_argument("--json", type=Path, help="where to write every sample")
    parser.add_argument(
        "--report", type=Path, metavar="JSON", help="measure nothing: print what is in such a file"
    )
    parser.add_argument("--docs", action="store_true", help=f"write the tables into {DOCS.relative_to(ROOT)}")
    arguments = parser.parse_args()
    unknown = set(arguments.engines) - set(ENGINES)
    if unknown:
        parser.error(f"no such runtime: {', '.join(sorted(unknown))}; there are {', '.join(ENGINES)}")
    arguments.forms = tuple(dict.fromkeys((AUTO, *arguments.forms, FLOOR)))
    return arguments


def _environments(sections: Iterable[str], engines: Iterable[str]) -> list[str]:
    """Return the environments that sections need."""
    others = [ENGINES[name].environment for name in engines]
    wanted = {
        "pairs": ["litert-torch"],
        "int8": ["litert-torch"],
        "runtimes": ["litert-torch", *(name for name in others if name != OWN)],
        "profile": ["litert-torch"],
        "coreml": ["coremltools"],
    }
    return [name for section in sections for name in wanted[section]]


class Bench:
    """Runs the contestants.

    Args:
        builder: Where their files come from.
        arguments: The command line.
        scratch: A folder for what passes between processes.
    """

    def __init__(self, builder: Builder, arguments: argparse.Namespace, scratch: Path) -> None:
        self._builder = builder
        self._arguments = arguments
        self._order = random.Random(arguments.seed)  # noqa: S311 - the order of contestants is no secret
        self._request = scratch / "request.json"
        self._reply = scratch / "reply.json"

    def _run(
        self, model: str, engine: str, files: Mapping[str, Path], threads: int, *, timed: bool = True
    ) -> Record:
        chosen = self._arguments
        request = {
            "files": {label: str(path) for label, path in files.items()},
            "reference": str(self._builder.reference(model)),
            "threads": threads,
            "seed": self._order.getrandbits(32),
            "warmup": chosen.warmup if timed else 0,
            "iterations": chosen.iterations if timed else 0,
            "settle": chosen.settle,
        }
        self._request.write_text(json.dumps(request), encoding="utf-8")
        self._reply.unlink(missing_ok=True)
        python = self._builder.python(ENGINES[engine].environment)
        command = [python, str(PEERS / f"run_{engine}.py"), str(self._request), str(self._reply)]
        load = os.getloadavg()[0]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            text = f"{done.stdout[-1000:]}{done.stderr[-3000:]}"
            raise SystemExit(f"{ENGINES[engine].title} failed on {model}:\n{text}")
        reply: Record = json.loads(self._reply.read_text(encoding="utf-8"))
        return reply | {"seed": request["seed"], "load": load}

    def check(
        self,
        model: str,
        engine: str,
        files: Mapping[str, Path],
        document: Record,
        tolerance: float = TOLERANCE,
    ) -> None:
        """Compare every file's logits with torch's, the floor's excepted.

        Raises:
            SystemExit: A file computes something else.
        """
        with np.load(self._builder.reference(model)) as arrays:
            wanted = arrays["logits"].ravel()
        for threads in self._arguments.threads:
            reply = self._run(model, engine, files, threads, timed=False)
            document["settings"][engine] = reply["settings"]
            for label, logits in reply["logits"].items():
                error = float(np.abs(np.asarray(logits) - wanted).max() / np.abs(wanted).max())
                if not error <= tolerance and label != FLOOR:
                    title = ENGINES[engine].title
                    raise SystemExit(f"{model}, {label}, {title}: a logit is off by {error:.1e}: not timed")

    def pairs(
        self, models: Sequence[str], document: Record, save: Callable[[], None], section: str = "pairs"
    ) -> None:
        """Measure within each runtime; fill the section of the document."""
        find = self._builder.in_codes if section == "int8" else self._builder.contestants
        jobs = list(itertools.product(models, OURS, self._arguments.threads))
        for number in range(self._arguments.processes):
            for model, engine, threads in self._order.sample(jobs, len(jobs)):
                files = find(model, engine)
                reply = self._run(model, engine, files, threads)
                document[section].append(_record(reply, model, threads, number) | {"engine": engine})
            save()
            print(f"{section} {number + 1}/{self._arguments.processes}", file=sys.stderr, flush=True)

    def across(
        self, models: Sequence[str], engines: Sequence[str], document: Record, save: Callable[[], None]
    ) -> None:
        """Measure across runtimes; fill ``document["runtimes"]``."""
        jobs = list(itertools.product(models, self._arguments.threads))
        for number in range(self._arguments.processes):
            for model, threads in self._order.sample(jobs, len(jobs)):
                entrants = [
                    (engine, label, path)
                    for engine in engines
                    for label, path in self._builder.across(model, engine).items()
                ]
                samples, load = {}, 0.0
                for engine, label, path in self._order.sample(entrants, len(entrants)):
                    reply = self._run(model, engine, {label: path}, threads)
                    samples[f"{engine}: {label}"] = reply["samples_ns"][label]
                    load = max(load, reply["load"])
                document["runtimes"].append(
                    {"model": model, "threads": threads, "round": number, "load": load, "samples_ns": samples}
                )
            save()
            print(f"runtimes {number + 1}/{self._arguments.processes}", file=sys.stderr, flush=True)

    def profile(self, model: str, engine: str) -> list[Record]:
        """Return the time of each kind of operator in the official file, ours and the floor, one thread."""
        files = self._builder.contestants(model, engine)
        reference = str(self._builder.reference(model))
        found = []
        for label in (OFFICIAL, AUTO, FLOOR):
            if label not in files:
                continue
            program = str(PEERS / f"profile_{engine}.py")
            command = [self._builder.python(OWN), program, str(files[label]), reference]
            text = call(command, f"profile of {label}, {model}, {ENGINES[engine].title}")
            found.append({"model": model, "engine": engine, "label": label, "operators": json.loads(text)})
        return found


def _record(reply: Record, model: str, threads: int, number: int) -> Record:
    return {
        "model": model,
        "threads": threads,
        "process": number,
        "seed": reply["seed"],
        "load": reply["load"],
        "samples_ns": reply["samples_ns"],
    }


def _machine() -> str:
    """Return the processor, its cores, vectors and governor, and the system."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    pairs = [line.partition(":") for line in lines]
    fields = {key.strip(): value.strip() for key, _, value in pairs}
    name = fields.get("model name") or platform.processor() or platform.machine()
    flags = fields.get("flags", "").split()
    vectors = next((text for flag, text in _VECTORS if flag in flags), "")
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    clock = governor.read_text(encoding="utf-8").strip() if governor.exists() else "not visible"
    virtual = "virtual machine, " if "hypervisor" in flags else ""
    parts = [name, f"{os.cpu_count()} cores", vectors, f"{virtual}clock governor {clock}"]
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return ", ".join(part for part in (*parts, system) if part)


_VECTORS = (("avx512f", "AVX-512"), ("avx2", "AVX2"), ("asimd", "Neon"))


def _versions(pythons: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    packages: dict[str, list[str]] = {
        OWN: ["shufflectl", "torch", "onnxscript", "onnxsim"],
        "litert-torch": ["litert-torch", "torch"],
        "coremltools": ["coremltools", "torch"],
        "runtimes": ["pnnx", "torch"],
        "executorch": ["torch"],
    }
    for engine in ENGINES.values():
        packages[engine.environment] += engine.packages
    return versions(pythons, {name: packages[name] for name in pythons})


def _publish(document: Record, arguments: argparse.Namespace) -> None:
    """Print the tables of the sections that were measured, and write them into the docs if asked."""
    for section, report in REPORTS.items():
        if section in document:
            text = report(document)
            print(f"## {section}\n\n{text}\n")
            if arguments.docs:
                _write_docs(section, text)


def _write_docs(section: str, text: str) -> None:
    page = DOCS.read_text(encoding="utf-8")
    begin, end = f"<!-- {section}:begin -->", f"<!-- {section}:end -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{DOCS} has lost its markers {begin} and {end}")
    DOCS.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
