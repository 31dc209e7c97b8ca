#!/usr/bin/env python3
"""Export every model of the registry to every target and precision, and write docs/parity-table.md.

usage: python scripts/parity_table.py [--only PREFIX] [--images N] [--jobs N] [--cache FILE]

Each model runs in a process of its own. Rows are kept in the cache file as they come, so that an interrupted
run goes on where it stopped; the table is written from all rows of the cache that belong to this version.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from shufflectl import __version__
from shufflectl.models import zoo

PAGE = Path(__file__).resolve().parent.parent / "docs" / "parity-table.md"
COLUMNS = (
    "model",
    "weights",
    "target",
    "precision",
    "bytes",
    "ops",
    "rank",
    "parts",
    "max \\|Δ\\|",
    "SQNR dB",
    "top-1",
)


def export(name: str, images: int) -> dict[str, Any]:
    """Export one model as a user does, and return the document that the command prints."""
    weights = "digits" if "digits" in zoo.variant(name).weights else "random:0"
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                *(
                    sys.executable,
                    "-m",
                    "shufflectl",
                    "export",
                    name,
                    "--weights",
                    weights,
                    "--target",
                    "all",
                ),
                *(
                    "--precision",
                    "fp32",
                    "--precision",
                    "fp16",
                    "--images",
                    str(images),
                    "--out",
                    folder,
                    "--json",
                ),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        partitions = {file.name: xnnpack(file) for file in sorted(Path(folder).glob("*.tflite"))}
    try:
        document = json.loads(done.stdout)
    except ValueError:
        document = {"error": {"message": done.stderr[-2000:]}}
    seconds = round(time.monotonic() - begun, 1)
    return {
        "name": name,
        "weights": weights,
        "status": done.returncode,
        "seconds": seconds,
        "partitions": partitions,
        "document": document,
    }


def xnnpack(file: Path) -> int | None:
    """Return how many partitions XNNPACK makes of a TFLite file in LiteRT."""
    command = [sys.executable, "-m", "shufflectl", "inspect", str(file), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: int | None = json.loads(done.stdout)["runtime"]["delegates"]["xnnpack"]["measured"]["partitions"]
    return found


def line(row: dict[str, Any], artifact: dict[str, Any]) -> str:
    """Return one row of the table."""
    figures = artifact["comparison"]
    cells = [
        row["name"],
        row["weights"],
        artifact["target"],
        artifact["precision"],
        f"{artifact['bytes']:,}",
        str(artifact["operators"]),
        str(artifact["largest_rank"]),
        str(row["partitions"].get(artifact["file"], "")),
        f"{figures['max_abs']:.1e}",
        str(figures["sqnr_db"]),
        f"{figures['top1']['agreement']:.4g}",
        "pass" if artifact["passed"] else "FAIL",
    ]
    return "| " + " | ".join(cells) + " |"


def page(rows: list[dict[str, Any]], images: int) -> str:
    """Return the whole page."""
    lines = [
        "# Parity of every model",
        "",
        "Made by `scripts/parity_table.py`: `shufflectl export MODEL --target all --precision fp32",
        f"--precision fp16` for every model of the registry, compared with torch on {images} real and 8",
        "random images. The figures are those of the worse of the two kinds. Limits: [parity](parity.md).",
        "*parts* is the number of partitions that XNNPACK makes of a file in LiteRT, measured.",
        "",
        f"shufflectl {__version__}, {platform.system()} {platform.machine()},",
        f"Python {platform.python_version()}.",
        "",
        "| " + " | ".join(COLUMNS) + " | |",
        "|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        lines += [line(row, artifact) for artifact in row["document"].get("artifacts", [])]
    failed = [row["name"] for row in rows if row["status"] != 0]
    lines += [
        "",
        f"{len(rows)} models, {len(rows) - len(failed)} pass." + (f" Failing: {failed}." if failed else ""),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what the cache does not have, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="names that start with this")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("build/parity-table.jsonl"))
    options = parser.parse_args()
    options.cache.parent.mkdir(parents=True, exist_ok=True)
    known = {}
    if options.cache.exists():
        known = {
            r["name"]: r for r in map(json.loads, options.cache.read_text().splitlines()) if r["status"] == 0
        }
    wanted = [name for name in zoo.names() if name.startswith(options.only)]
    missing = [name for name in wanted if name not in known]
    with ThreadPoolExecutor(options.jobs) as pool, options.cache.open("a") as cache:
        for row in pool.map(lambda name: export(name, options.images), missing):
            known[row["name"]] = row
            cache.write(json.dumps(row) + "\n")
            cache.flush()
            error = row["document"].get("error", {}).get("message", "")
            print(f"{row['name']:32} exit {row['status']} {row['seconds']:6.1f} s {error}", flush=True)
    rows = [known[name] for name in zoo.names() if name in known]
    PAGE.write_text(page(rows, options.images), encoding="utf-8")
    print(f"wrote {PAGE}")
    sys.exit(any(row["status"] != 0 for row in rows))


if __name__ == "__main__":
    main()
