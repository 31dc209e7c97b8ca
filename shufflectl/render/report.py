"""What a report holds, in a line or as JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shufflectl.console import Output, human_bytes
from shufflectl.render.words import escape, plain

if TYPE_CHECKING:
    from shufflectl.benchmarks.results import Suite

__all__ = ["reported"]


def reported(output: Output, results: Sequence[tuple[str, "Suite"]], path: Path, size: int) -> None:
    """Say what was written."""
    benchmarks = [entry for _, suite in results for entry in suite.benchmarks]
    if output.json:
        output.document(
            {
                "schema": "shufflectl.report/1",
                "html": str(path),
                "bytes": size,
                "results": [source for source, _ in results],
                "benchmarks": [{"name": entry.name, "status": entry.status} for entry in benchmarks],
            }
        )
        return
    doubtful = sum(entry.status != "ok" for entry in benchmarks)
    said = f"{len(benchmarks)} benchmark{'' if len(benchmarks) == 1 else 's'}"
    if doubtful:
        said += f", [yellow]{doubtful} of them not ok[/]"
    interrupted = sum(suite.interrupted for _, suite in results)
    if interrupted:
        said += f", [yellow]{interrupted} of the measurements interrupted[/]"
    output.text(f"{said} in {escape(plain(str(path)))} ({human_bytes(size)})")
