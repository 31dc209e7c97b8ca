"""The page of the quantisation table: what `scripts/quantisation_table.py` measured, as Markdown."""

import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peers.turns import ratios

from shufflectl.models import zoo

__all__ = ["TARGETS", "better", "conclusions", "identical", "page", "summary"]

TARGETS = ("onnx", "tflite", "coreml")
MARGIN = 0.3
"""dB below the better official file that are let pass: calibrations of one network differ by as much."""
SAME = 0.995
"""The share of codes that are the same, before the classifier."""
RATIO = 0.29
"""Of an int8 file's size to the fp32 file's."""

Record = dict[str, Any]


def summary(record: Record) -> str:
    """Return a record in one line."""
    parts = [f"{name} {row['sqnr']:.2f} dB {row['agreement']:.4f}" for name, row in record["targets"].items()]
    parts += [f"official {name} {row['sqnr']:.2f} dB" for name, row in record["official"].items()]
    before = record["codes"]["before"]
    parts.append(f"codes {identical(before):.4%}, {before['largest']}")
    return ", ".join(parts)


def identical(count: Mapping[str, int]) -> float:
    """Return the share of codes that are the same."""
    return 1 - count["different"] / count["elements"]


def better(record: Record) -> float | None:
    """Return the SQNR of the better official file; None where there is none."""
    return max((row["sqnr"] for row in record["official"].values()), default=None)


def page(records: Sequence[Record]) -> str:
    """Return the whole page."""
    order = list(zoo.names())
    rows = sorted(records, key=lambda r: (r["weights"] == "random:0", order.index(r["model"]), r["weights"]))
    lines = [
        "# Eight bits, model by model",
        "",
        "Made by `scripts/quantisation_table.py`; what the words mean is in [eight bits](quantisation.md).",
        "Every figure is on images that the network was not calibrated on, against torch in fp32.",
        "",
        *_versions(rows),
        "",
        f"{_models(rows)} of the {len(order)} models of the registry are here"
        + ("." if _models(rows) == len(order) else "; the others are unmeasured."),
        "",
        "- *top-1*: the share of images on which torch and the file name the same class.",
        "- *size*: the int8 file next to the fp32 file of the same target.",
        "- *parity*: the export's own verdict: every layer in codes, and the outputs.",
        "- *time*: the int8 file's next to the fp32 file's, ours both, with its 95 % interval: one thread,",
        "  in turns inside one process, a fresh process for each of 7 ratios. Core ML has no runtime here.",
        "- *gap*: our lowest less the better official one: ONNX Runtime's `quantize_static` (Q/DQ,",
        "  weights by channel, min-max) of torch's export, and ai-edge-quantizer's `static_wi8_ai8` of",
        "  litert-torch's export, calibrated on the same images. *ONNX Runtime* and *LiteRT*: the time of",
        "  our int8 file next to the official one's.",
        "",
    ]
    for title, group in (
        ("Trained networks", [r for r in rows if r["weights"] != "random:0"]),
        ("Random weights", [r for r in rows if r["weights"] == "random:0"]),
    ):
        if group:
            lines += [f"## {title}", "", *_setups(group), "", *_table(group), ""]
    lines += ["## Next to the official files", "", *_official_table(rows), ""]
    lines += ["## The same codes", "", *_codes_table(rows), "", "## In short", "", *conclusions(rows)]
    return "\n".join(lines) + "\n"


def _versions(rows: Sequence[Record]) -> list[str]:
    found = next((r["versions"] for r in rows if "versions" in r), {})
    packages = [f"{name} {version}" for part in found.values() for name, version in part.items()]
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return [f"{', '.join([*packages, system])}."]


def _setups(rows: Sequence[Record]) -> list[str]:
    found: dict[str, list[str]] = {}
    for row in rows:
        size, counts = row["size"], (row["calibrated"], row["tested"])
        text = f"{row['images']}, {size} x {size}: {counts[0]} to calibrate on, {counts[1]} to measure on"
        found.setdefault(text, []).append(f"`{row['model']}`")
    if len(found) == 1:
        return [f"Images: {next(iter(found))}."]
    return [f"- {text}: {', '.join(names)}." for text, names in found.items()]


def _head(texts: Sequence[str], numbers: Sequence[str]) -> list[str]:
    return [
        f"| {' | '.join((*texts, *numbers))} |",
        f"|{'---|' * len(texts)}{'---:|' * len(numbers)}",
    ]


def _table(rows: Sequence[Record]) -> list[str]:
    trained = any(row["accuracy"] is not None for row in rows)
    numbers = ["SQNR dB", "top-1", *(["accuracy", "in fp32"] if trained else []), "bytes", "size", "time"]
    lines = _head(["model", "weights", "target", "parity"], numbers)
    for row in rows:
        for target, found in row["targets"].items():
            cells = [f"`{row['model']}`", row["weights"], target, "pass" if found["passed"] else "FAIL"]
            cells += [f"{found['sqnr']:.2f}", f"{found['agreement']:.4f}"]
            if trained:
                cells += ["" if a is None else f"{a:.4f}" for a in (found["accuracy"], row["accuracy"])]
            cells += [f"{found['bytes']:,}", f"{found['ratio']:.3f}", _time(found, "fp32")]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _time(found: Record, other: str) -> str:
    estimate = ratios(found["medians_ms"], "int8", other)
    return "" if estimate is None else "{:.2f} ({:.2f}-{:.2f})".format(*estimate)


def _official_table(rows: Sequence[Record]) -> list[str]:
    numbers = ["quantize_static", "ai-edge-quantizer", *(f"ours, {t}" for t in TARGETS), "gap"]
    numbers += ["ONNX Runtime", "LiteRT"]
    lines = ["SQNR in dB; times of ours next to theirs.", "", *_head(["model", "weights"], numbers)]
    for row in rows:
        best = better(row)
        if best is None:
            continue
        own = [row["targets"][target]["sqnr"] for target in TARGETS]
        cells = [f"`{row['model']}`", row["weights"]]
        cells += [
            f"{row['official'][t]['sqnr']:.2f}" if t in row["official"] else "" for t in ("onnx", "tflite")
        ]
        cells += [*(f"{value:.2f}" for value in own), f"{min(own) - best:+.2f}"]
        cells += [_time(row["targets"][target], "official") for target in ("onnx", "tflite")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _codes_table(rows: Sequence[Record]) -> list[str]:
    numbers = [
        "tensors",
        "from the image",
        "largest",
        "by layer, TFLite",
        "by layer, ONNX",
        "largest",
        "logits",
    ]
    lines = [
        "Codes of every tensor before the classifier, as the kernels that are shipped compute them (LiteRT",
        "with XNNPACK, ONNX Runtime as it optimises), on 4 images: the share that is the same, and by how",
        "many steps the others are off at most.",
        "",
        "- *from the image*: TFLite against ONNX, both fed the image. What differs in one layer is what the",
        "  next one reads, so a single code early on may move many behind it.",
        "- *by layer*: each layer's codes against those that the graph in codes makes of the same file's",
        "  codes before it.",
        "",
        *_head(["model", "weights"], numbers),
    ]
    for row in rows:
        codes, layers = row["codes"], row["layers"]
        cells = [f"`{row['model']}`", row["weights"], str(codes["tensors"])]
        cells += [f"{identical(codes['before']):.3%}", str(codes["before"]["largest"])]
        cells += [f"{identical(layers[target]):.3%}" for target in ("tflite", "onnx")]
        cells += [str(max(found["largest"] for found in layers.values()))]
        cells += [f"{identical(codes['classifier']):.3%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def conclusions(rows: Sequence[Record]) -> list[str]:
    """Return what the figures come to, a line each; what misses a goal is named."""
    files = [(row, target, found) for row in rows for target, found in row["targets"].items()]
    passed = sum(found["passed"] for _, _, found in files)
    compared = [(row, best) for row in rows if (best := better(row)) is not None]
    return [
        f"- Parity: {passed} of {len(files)} files pass."
        + _named(f"{r['model']} ({r['weights']}, {t})" for r, t, f in files if not f["passed"]),
        f"- SQNR no more than {MARGIN} dB below the better official file: "
        + _share(
            (f"{r['model']} ({r['weights']}, {t})", f["sqnr"] >= best - MARGIN)
            for r, best in compared
            for t, f in r["targets"].items()
        ),
        f"- Codes by layer, {SAME:.1%} the same and none off by more than one: "
        + _share(
            (f"{r['model']} ({r['weights']}, {t})", _same(found))
            for r in rows
            for t, found in r["layers"].items()
        ),
        "- Codes from the image, likewise: "
        + _share((f"{r['model']} ({r['weights']})", _same(r["codes"]["before"])) for r in rows),
        f"- Size at most {RATIO} of fp32: "
        + _share((f"{r['model']} ({r['weights']}, {t})", f["ratio"] <= RATIO) for r, t, f in files),
    ]


def _same(count: Mapping[str, int]) -> bool:
    return identical(count) >= SAME and count["largest"] <= 1


def _share(verdicts: Iterable[tuple[str, bool]]) -> str:
    found = list(verdicts)
    return f"{sum(ok for _, ok in found)} of {len(found)}." + _named(name for name, ok in found if not ok)


def _named(names: Iterable[str]) -> str:
    found = list(names)
    return f" Not: {', '.join(found)}." if found else ""


def _models(rows: Sequence[Record]) -> int:
    return len({row["model"] for row in rows})
