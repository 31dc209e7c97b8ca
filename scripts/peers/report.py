"""Statistics and tables of the latency comparison."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from peers.engines import AGAIN, AUTO, CODES, ENGINES, MODELS, NHWC, OFFICIAL, OURS
from peers.environments import OWN

_GOALS = {
    ("onnxruntime", "shufflenet_v2_x1_0"): 0.82,
    ("litert", "shufflenet_v2_x1_0"): 0.92,
    **{(e, m): 0.96 for e in OURS for m in ("shufflenet_v1_g3_x1_0", "shufflenet_v1_g8_x1_0")},
}
_ACROSS_GOAL = 0.90
_INT8_GOALS = {"onnxruntime": 0.70, "litert": 0.87}
"""Of ShuffleNet V2 x1.0."""

Estimate = tuple[float, float, float]
Record = dict[str, Any]


def bootstrap(observations: Sequence[float]) -> Estimate:
    """Return the median of observations and its 95% percentile bootstrap interval."""
    values = np.asarray(observations)
    draws = np.random.default_rng(0).integers(0, len(values), (10_000, len(values)))
    low, high = np.percentile(np.median(values[draws], axis=1), [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)


def _medians(record: Record) -> dict[str, float]:
    """Return each file's median in ms."""
    return {label: float(np.median(values)) / 1e6 for label, values in record["samples_ns"].items()}


def _ratios(records: Sequence[Record], top: str, bottom: str) -> Estimate | None:
    pairs = [
        (found[top], found[bottom]) for r in records if top in (found := _medians(r)) and bottom in found
    ]
    return bootstrap([a / b for a, b in pairs]) if pairs else None


def _grouped(records: Iterable[Record], *keys: str) -> dict[tuple[Any, ...], list[Record]]:
    found: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        found.setdefault(tuple(record[key] for key in keys), []).append(record)
    return dict(sorted(found.items(), key=lambda item: [_position(k) for k in item[0]]))


def _position(key: object) -> Any:
    """Return where a name stands in the lists of this program; what is in none comes last."""
    known = (*ENGINES, *MODELS)
    return key if isinstance(key, int) else (known.index(key) if key in known else len(known))


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    value, low, high = estimate
    return f"{value:.3f} ({low:.3f}-{high:.3f})"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _head(cells: Sequence[str], texts: int = 1) -> list[str]:
    return [_row(cells), f"|{'---|' * texts}{'---:|' * (len(cells) - texts)}"]


def pairs_report(document: Record) -> str:
    """Return the section of comparisons within a runtime, as Markdown."""
    lines = _preamble(document, OURS, document["pairs"])
    lines += ["", *_goal_lines(document)]
    for (engine, threads), records in _grouped(document["pairs"], "engine", "threads").items():
        labels = list(dict.fromkeys(label for r in records for label in r["samples_ns"]))
        order = (AGAIN, NHWC, *document["protocol"]["forms"])
        columns = [label for label in order if label in labels]
        lines += ["", f"### {ENGINES[engine].title}, {_count(threads, 'thread')}", ""]
        lines += _head(["model", "official, ms", *columns])
        for (model,), group in _grouped(records, "model").items():
            files = document["files"][model][ENGINES[engine].ours]
            cells = [f"`{model}`", f"{np.median([_medians(r)[OFFICIAL] for r in group]):.2f}"]
            for label in columns:
                same = files.get(label, {}).get("same_as", "")
                cells.append(f"= {same}" if same else _cell(_ratios(group, label, OFFICIAL)))
            lines.append(_row(cells))
    lines += ["", "`auto` is", ""]
    for engine in OURS:
        for what, names in _what_auto_is(document, ENGINES[engine].ours).items():
            lines.append(f"- {ENGINES[engine].title}: {what} for {', '.join(f'`{n}`' for n in names)}.")
    return "\n".join(lines)


def _what_auto_is(document: Record, target: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for model, targets in document["files"].items():
        found.setdefault(targets[target][AUTO]["what"], []).append(model)
    return found


def _goal_lines(document: Record) -> list[str]:
    """Return the table of goals; all are for one thread."""
    lines = _head(["`auto` / official, one thread", "ratio (95% interval)", "goal", "met"])
    for (engine, model), records in _grouped(
        (r for r in document["pairs"] if r["threads"] == 1), "engine", "model"
    ).items():
        goal = _GOALS.get((engine, model), 1.0)
        for base in (OFFICIAL, NHWC):
            estimate = _ratios(records, AUTO, base)
            if estimate is None:
                continue
            what = f"{ENGINES[engine].title}, `{model}`" + (
                " (official with NHWC image)" if base == NHWC else ""
            )
            lines.append(_row([what, _cell(estimate), f"{goal:.2f}", met(estimate, goal)]))
    return lines


def met(estimate: Estimate, goal: float) -> str:
    """Say whether a goal is met: the whole interval must meet or miss it."""
    _, low, high = estimate
    return "yes" if high <= goal else "no" if low > goal else "undecided"


def int8_report(document: Record) -> str:
    """Return the section of int8 files within a runtime, as Markdown."""
    lines = _preamble(document, OURS, document["int8"])
    lines += [
        "",
        *_head(["runtime, model, threads", "official, ms", "file", "file / official", "goal", "met"]),
    ]
    for (engine, model, threads), records in _grouped(document["int8"], "engine", "model", "threads").items():
        base = f"{np.median([_medians(r)[OFFICIAL] for r in records]):.2f}"
        goal = _INT8_GOALS[engine] if (model, threads) == ("shufflenet_v2_x1_0", 1) else None
        for label in (AGAIN, NHWC, AUTO, CODES):
            estimate = _ratios(records, label, OFFICIAL)
            if estimate is None:
                continue
            what = f"{ENGINES[engine].title}, `{model}`, {threads}"
            judged = goal if label in (AUTO, CODES) else None
            verdict = ["", ""] if judged is None else [f"{judged:.2f}", met(estimate, judged)]
            lines.append(_row([what, base, label, _cell(estimate), *verdict]))
    return "\n".join(lines)


def runtimes_report(document: Record) -> str:
    """Return the section of comparisons across runtimes, as Markdown."""
    lines = _preamble(document, tuple(document["settings"]), document["runtimes"])
    mine = {engine: f"{engine}: auto" for engine in OURS}
    for (model, threads), records in _grouped(document["runtimes"], "model", "threads").items():
        lines += ["", f"### `{model}`, {_count(threads, 'thread')}", ""]
        lines += _head(
            ["runtime", "file", "ms (95% interval)", *(f"our {ENGINES[e].title} file / it" for e in OURS)], 2
        )
        medians = [_medians(r) for r in records]
        labels = sorted(medians[0], key=lambda name: float(np.median([m[name] for m in medians])))
        for label in labels:
            engine, _, file = label.partition(": ")
            times = bootstrap([m[label] for m in medians])
            ratios = ["" if label == mine[e] else _cell(_ratios(records, mine[e], label)) for e in OURS]
            cells = [ENGINES[engine].title, "ours" if file == AUTO else file]
            lines.append(_row([*cells, _cell(times), *ratios]))
        others = [label for label in labels if not ENGINES[label.partition(": ")[0]].ours]
        best = others[0]
        estimate = _ratios(records, mine["litert"], best)
        if estimate is not None and model == "shufflenet_v2_x1_0":
            title = ENGINES[best.partition(": ")[0]].title
            verdict = met(estimate, _ACROSS_GOAL)
            what = f"Our LiteRT file / the best of the others ({title})"
            lines += ["", f"{what}: {_cell(estimate)}; goal {_ACROSS_GOAL:.2f}, met: {verdict}."]
    return "\n".join(lines)


def profile_report(document: Record) -> str:
    """Return the section of profiles, as Markdown."""
    lines = _preamble(document, OURS)
    for (engine, model), records in _grouped(document["profile"], "engine", "model").items():
        lines += ["", f"### {ENGINES[engine].title}, `{model}`, one thread", ""]
        kinds: dict[str, float] = {}
        for record in records:
            for kind, (_, spent) in record["operators"].items():
                kinds[kind] = max(kinds.get(kind, 0.0), spent)
        lines += _head(["operator", *(f"{r['label']}, µs (count)" for r in records)])
        for kind in sorted(kinds, key=lambda k: -kinds[k]):
            cells = []
            for record in records:
                count, spent = record["operators"].get(kind, (0, 0.0))
                cells.append(f"{spent:.0f} ({count})" if count else "")
            lines.append(_row([kind, *cells]))
        totals = [sum(spent for _, spent in record["operators"].values()) for record in records]
        lines.append(_row(["all", *(f"{total:.0f}" for total in totals)]))
    return "\n".join(lines)


def coreml_report(document: Record) -> str:
    """Return the section of Core ML operations, as Markdown."""
    found = document["versions"]["coremltools"]
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    lines = [f"Made with `scripts/benchmark_latency.py`, {text}."]
    for model, labels in document["coreml"].items():
        lines += ["", *_head([f"operations, `{model}`", *labels])]
        kinds = sorted({kind for counts in labels.values() for kind in counts})
        lines += [_row([kind, *(str(counts.get(kind, "")) for counts in labels.values())]) for kind in kinds]
    return "\n".join(lines)


REPORTS: dict[str, Callable[[Record], str]] = {
    "pairs": pairs_report,
    "int8": int8_report,
    "runtimes": runtimes_report,
    "profile": profile_report,
    "coreml": coreml_report,
}


def _preamble(document: Record, engines: Iterable[str], records: Sequence[Record] = ()) -> list[str]:
    """Return where, with what and how the records were measured."""
    packages = [
        f"{package} {document['versions'][environment][package]}"
        for environment, package in dict.fromkeys(
            (ENGINES[e].environment, package) for e in engines for package in ENGINES[e].packages
        )
    ]
    exporters = document["versions"][OWN]
    packages += [f"{name} {exporters[name]}" for name in ("torch", "onnxsim", "shufflectl")]
    packages += [
        f"litert-torch {v['litert-torch']}" for v in document["versions"].values() if "litert-torch" in v
    ]
    lines = [
        f"Measured with `scripts/benchmark_latency.py` on {document['machine']}.",
        "",
        f"{', '.join(packages)}.",
    ]
    if records:
        p = document["protocol"]
        loads = [record["load"] for record in records]
        runs, turns = _count(p["iterations"], "timed run"), _count(p["warmup"], "turn")
        lines += [
            "",
            f"{_count(p['processes'], 'process')}, {runs} of a file in each after {turns} of warm-up;",
            f"{_count(p['settle'], 'untimed run')} before each timed one. The machine's load average, these",
            f"processes included: {np.median(loads):.1f} in the middle, {max(loads):.1f} at the most.",
        ]
    return lines


def _count(number: int, what: str) -> str:
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{number} {what if number == 1 else plural}"
