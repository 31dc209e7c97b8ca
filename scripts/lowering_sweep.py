#!/usr/bin/env python3
"""Export every model of the registry in every form to every target and layout, and write what became of it.

usage: python scripts/lowering_sweep.py [--models PREFIX ...] [--forms FORM ...] [--targets TARGET ...]
                                        [--jobs N] [--cache FILE] [--latency FILE] [--page-only]

Each file (fp32, 224 x 224, batch 1) is compared with torch on the same random images. A form that gives the
same graph as another gives the same files, so a result is kept under the digests of the graph and of the
emitter's code: an interrupted run goes on where it stopped, and a run after a change redoes what the change
touches. Writes docs/lowering-table.md, and the table of ShuffleNet V2 x1.0 in docs/lowerings.md.
"""

import argparse
import gc
import hashlib
import json
import multiprocessing
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from peers.engines import ENGINES, OFFICIAL, OURS
from peers.report import bootstrap

from shufflectl.converters.rewrite.choose import candidates
from shufflectl.converters.rewrite.lowering import LOWERINGS, Options
from shufflectl.converters.targets import TARGETS
from shufflectl.models import zoo

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "lowering-table.md"
FORMS_PAGE = ROOT / "docs" / "lowerings.md"
EXAMPLE = "shufflenet_v2_x1_0"
COLUMNS = (("Concat",), ("Slice", "Split"), ("Transpose",), ("Gather",), ("Conv",))
LAYOUTS = ("nchw", "nhwc")
IMAGES = 2
RUNTIMES = tuple((engine, ENGINES[engine].title) for engine in OURS)
"""The runtimes of the latency columns, and what the page calls them."""
UNCHANGED = "nothing to lower"
"""What scripts/peers/own_files.py calls a form that leaves the graph as it was."""

Row = dict[str, Any]


def forms(targets: Iterable[str]) -> dict[Any, list[str]]:
    """Return every form that is worth measuring for a target, with the targets, in the order of LOWERINGS."""
    found: dict[Any, list[str]] = {}
    for target in targets:
        for candidate in candidates(target, "fp32"):
            found.setdefault(candidate, []).append(target)
    names = list(LOWERINGS)
    order = sorted(
        found, key=lambda c: (names.index(c.form), c.options.max_concat, c.options.align, c.options.merge)
    )
    return {candidate: found[candidate] for candidate in order}


def emitter_digest(target: str) -> str:
    """Return the digest of the code that makes a graph a file, and of that which compares it."""
    package = ROOT / "shufflectl"
    files = [*(package / "converters").glob("*.py"), *(package / "converters" / target).rglob("*.py")]
    files += [package / "deploy" / "parity" / f"{name}.py" for name in ("limits", "metrics", "nway", "ports")]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


class Cache:
    """Rows of JSON, each under a key, of which the last counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.rows: dict[str, Row] = {row["key"]: row for row in map(json.loads, lines)}

    def add(self, key: str, row: Row) -> None:
        """Keep a row, at once."""
        self.rows[key] = row = {"key": key, **row}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def sweep(name: str, args: argparse.Namespace) -> None:
    """Lower and export one model, and keep the rows."""
    import numpy as np
    import torch

    from shufflectl.converters.rewrite.analyze import analyze
    from shufflectl.deploy.export import captured, describe
    from shufflectl.deploy.parity.nway import Member
    from shufflectl.models import load

    torch.set_num_threads(1)
    cache = Cache(args.cache)
    begun = time.monotonic()
    model = load(name, weights="random:0")
    size = zoo.variant(name).input_size
    graph = captured(model, size, 1)
    images = np.random.default_rng(0).standard_normal((IMAGES, 3, size, size), dtype=np.float32)
    inputs = {"random": images}
    reference = Member.from_module("torch", model.module).recorded(inputs)
    outputs = reference.run(images)
    shuffled = any(site.shuffles for site in analyze(graph).sites)
    print(f"{name}: captured in {time.monotonic() - begun:.1f} s", flush=True)
    emitters = {target: emitter_digest(target) for target in args.targets}
    for candidate, targets in forms(TARGETS).items():
        form = candidate.form
        if (args.forms and form not in args.forms) or (form != "native" and not shuffled):
            continue
        gc.collect()  # the last form's graph refers to itself
        begun = time.monotonic()
        lowered, report = candidate.apply(graph)
        seconds = time.monotonic() - begun
        digest = hashlib.sha256(lowered.to_bytes()).hexdigest()[:16]
        title = candidate.label
        cache.add(
            f"{name} {title}",
            {
                "model": name,
                "form": title,
                "targets": targets,
                "graph": digest,
                "seconds": round(seconds, 2),
                "operators": report.operators_after,
                "bytes": report.bytes_after,
                "rank": report.rank_after,
                "sites": Counter(site.form for site in report.sites),
            },
        )
        print(f"{name} {title}: rewritten in {seconds:.1f} s", flush=True)
        for target in (t for t in targets if t in args.targets):
            for layout in LAYOUTS:
                key = f"{digest} {target} {layout} {emitters[target]}"
                if cache.rows.get(key, {}).get("passed"):
                    continue
                row = _file(lowered, describe(model), TARGETS[target], layout, inputs, outputs)
                cache.add(key, {"model": name, "form": title, "target": target, "layout": layout, **row})
                verdict = "pass" if row["passed"] else f"FAIL {row.get('error', '')}"
                print(f"  {target} {layout}: {verdict} {row.get('sqnr')} dB {row['seconds']} s", flush=True)


def _file(graph: Any, info: Any, target: Any, layout: Any, inputs: Any, outputs: Any) -> Row:
    """Write one file and compare it with what torch gave."""
    from shufflectl.converters.targets import EmitOptions
    from shufflectl.deploy import runtimes
    from shufflectl.deploy.inspect import summarize
    from shufflectl.deploy.parity.nway import Member, check_parity
    from shufflectl.errors import ShufflectlError

    begun = time.monotonic()
    row: Row = {"passed": False}
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
        path = Path(folder) / f"model{target.extension}"
        try:
            target.emit(graph, info, EmitOptions(layout=layout), path)
            row["emit"] = round(time.monotonic() - begun, 2)
            summary = summarize(path)
            rank = summary.largest_rank
            row |= {"bytes": summary.bytes, "operators": len(summary.operators), "rank": rank and rank.rank}
            with runtimes.choose(target.name).load(path) as session:
                member = Member.from_session("file", "fp32", session).recorded(inputs)
            torch = Member("torch", "fp32", lambda _: outputs)
            report = check_parity(torch, [member], inputs)
        except ShufflectlError as error:
            row["error"] = error.message
        else:
            worst = report.worst("file").comparison
            row |= {"passed": report.passed, "sqnr": round(worst.sqnr, 1), "max_abs": worst.max_abs}
    row["seconds"] = round(time.monotonic() - begun, 2)
    return row


# The pages.


def _latencies(path: Path) -> dict[tuple[str, str, str], tuple[float, float, float]]:
    """Return ratios to the official export at one thread with their intervals, by model, form and runtime.

    Args:
        path: What ``scripts/benchmark_latency.py --json`` wrote; it need not exist.
    """
    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found: dict[tuple[str, str, str], tuple[float, float, float]] = {}
    for (engine, model), ratios in _ratios(r for r in document.get("pairs", ()) if r["threads"] == 1).items():
        for form, file in document["files"][model][ENGINES[engine].ours].items():
            measured = ratios.get(file["same_as"] or form)
            if measured:
                title = "native" if file["what"] == UNCHANGED else file["what"]
                found[model, title, engine] = bootstrap(measured)
    return found


def _ratios(records: Iterable[Row]) -> dict[tuple[str, str], dict[str, list[float]]]:
    """Return each process's ratio of medians to the official export, by runtime and model, then by file."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for record in records:
        medians = {label: median(samples) for label, samples in record["samples_ns"].items()}
        ratios = found.setdefault((record["engine"], record["model"]), {})
        for label, value in medians.items():
            ratios.setdefault(label, []).append(value / medians[OFFICIAL])
    return found


def _verdicts(cache: Cache, row: Row, digests: dict[str, str]) -> list[Row]:
    """Return the results of a form's files, for the code as it stands; a file that is missing fails."""
    results = []
    for target in row["targets"]:
        for layout in LAYOUTS:
            found = cache.rows.get(f"{row['graph']} {target} {layout} {digests[target]}")
            results.append(found or {"target": target, "layout": layout, "passed": False, "missing": True})
    return results


def page(
    cache: Cache, latencies: dict[tuple[str, str, str], tuple[float, float, float]], digests: dict[str, str]
) -> str:
    """Return the page of all models."""
    titles = [candidate.label for candidate in forms(digests)]
    names = " | ".join(name for _, name in RUNTIMES)
    lines = [
        "# Every model in every form",
        "",
        "Made by `scripts/lowering_sweep.py`: each model of the registry in each form of",
        "[lowerings](lowerings.md) that is worth measuring for a target, written to ONNX, Core ML and",
        f"TFLite in both layouts (fp32, 224 x 224, batch 1), compared with torch on {IMAGES} random images.",
        "",
        "Operators and MB are those of the graph; MB are what its data movement reads and writes for one",
        "image, *x native* is the ratio of that to the form that torch wrote, and *rank* the largest in any",
        "TFLite file. Forms that come to the same graph share a line. The columns of latency are ratios to",
        "the official export in the same runtime, at one thread, with 95 % confidence intervals, where",
        "[they were measured](latency.md).",
        "",
        f"| model | form | operators | MB moved | x native | rank | {names} | files that pass | SQNR dB |",
        "|---|---|---:|---:|---:|---:|" + "---:|" * (len(RUNTIMES) + 2),
    ]
    failed: list[str] = []
    models = files = missing = 0
    for name in zoo.names():
        rows = [cache.rows[f"{name} {t}"] for t in titles if f"{name} {t}" in cache.rows]
        if not rows:
            continue
        models += 1
        base = next((row["bytes"] for row in rows if row["form"] == "native"), 0)
        same: dict[str, list[Row]] = {}
        for row in rows:
            same.setdefault(row["graph"], []).append(row)
        for alike in same.values():
            row = alike[0]
            verdicts = [v for r in alike for v in _verdicts(cache, r, digests)]
            verdicts = list({(v["target"], v["layout"]): v for v in verdicts}.values())
            good = [v for v in verdicts if v["passed"]]
            files += len(verdicts)
            failed += [
                f"{name}, {row['form']}, {v['target']} {v['layout']}: {v.get('error', 'beyond its limits')}"
                for v in verdicts
                if not v["passed"] and not v.get("missing")
            ]
            missing += sum(v.get("missing", False) for v in verdicts)
            found = [
                [latencies[key] for r in alike if (key := (name, r["form"], runtime)) in latencies]
                for runtime, _ in RUNTIMES
            ]
            ranks = [v["rank"] for v in good if v["target"] == "tflite"]
            cells = [
                name,
                " = ".join(r["form"] for r in alike),
                str(sum(row["operators"].values())),
                f"{row['bytes'] / 1e6:.2f}",
                f"{row['bytes'] / base:.2f}" if base else "",
                str(max(ranks, default="")),
                *("{:.3f} ({:.3f}-{:.3f})".format(*m[0]) if m else "" for m in found),
                f"{len(good)} of {len(verdicts)}",
                f"{min((v['sqnr'] for v in verdicts if 'sqnr' in v), default=0):.0f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    total = f"{models} models, {files} files."
    if missing:
        total += f" {missing} are not made yet by the code as it stands."
    lines += ["", total + (" Failing:" if failed else " Every file that was made passes."), ""]
    lines += [f"- {text}" for text in failed]
    return "\n".join(lines).rstrip() + "\n"


def forms_table(cache: Cache, targets: Iterable[str]) -> str | None:
    """Return the table of one model's operators in the forms; None where it was not swept."""
    wanted = [c for c in forms(targets) if c.options in (Options(), Options(align=16, merge=16))]
    rows = [cache.rows[key] for c in wanted if (key := f"{EXAMPLE} {c.label}") in cache.rows]
    if len(rows) < len(wanted):
        return None
    lines = [
        f"Made by `scripts/lowering_sweep.py` for {EXAMPLE} (224 x 224, batch 1, fp32).",
        "",
        "| form | " + " | ".join(", ".join(types) for types in COLUMNS) + " | MB moved |",
        "|---|" + "---:|" * (len(COLUMNS) + 1),
    ]
    for row in rows:
        cells = [str(sum(row["operators"].get(t, 0) for t in types) or "") for types in COLUMNS]
        lines.append(f"| {row['form']} | " + " | ".join(cells) + f" | {row['bytes'] / 1e6:.1f} |")
    return "\n".join(lines)


def write_pages(args: argparse.Namespace) -> bool:
    """Write both pages from the cache; return whether every file that was made passes."""
    cache = Cache(args.cache)
    digests = {target: emitter_digest(target) for target in TARGETS}
    PAGE.write_text(page(cache, _latencies(args.latency), digests), encoding="utf-8")
    table = forms_table(cache, TARGETS)
    if table is not None:
        begin, end = "<!-- table:begin -->", "<!-- table:end -->"
        text = FORMS_PAGE.read_text(encoding="utf-8")
        new = f"{begin}\n{table}\n{end}"
        FORMS_PAGE.write_text(
            re.sub(f"{begin}.*?{end}", lambda _: new, text, flags=re.DOTALL), encoding="utf-8"
        )
    print(f"wrote {PAGE}")
    swept = [row for row in cache.rows.values() if "graph" in row]
    return all(v["passed"] for row in swept for v in _verdicts(cache, row, digests))


def main() -> None:
    """Run what the cache does not have, then write the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=[""], help="names, or what they start with")
    parser.add_argument("--forms", nargs="*", default=[], choices=list(LOWERINGS))
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "lowering-sweep.jsonl")
    parser.add_argument("--latency", type=Path, default=ROOT / "build" / "latency.json")
    parser.add_argument("--page-only", action="store_true", help="write the pages from the cache")
    args = parser.parse_args()
    wanted = [name for name in zoo.names() if name.startswith(tuple(args.models))]
    wanted.sort(key=lambda name: zoo.variant(name).parameters)  # the last one takes as long as all others
    stopped = False
    if not args.page_only:
        # A process each: what a model needs of memory is given back.
        with multiprocessing.get_context("spawn").Pool(args.jobs, maxtasksperchild=1) as pool:
            for name, done in [(n, pool.apply_async(sweep, (n, args))) for n in wanted]:
                try:
                    done.get()
                except Exception as error:  # noqa: BLE001 - one model's failure leaves the others be
                    stopped = True
                    print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    passed = write_pages(args)
    sys.exit(stopped or not passed)


if __name__ == "__main__":
    main()
