"""Results as files: JSON with everything, CSV with every run."""

import csv
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

from shufflectl.benchmarks.results import Suite
from shufflectl.errors import OutputError

__all__ = ["COLUMNS", "rows", "write_csv", "write_json"]

COLUMNS: Final = (
    "artifact",
    "runner",
    "threads",
    "accelerator",
    "mode",
    "round",
    "block",
    "order",
    "valid",
    "phase",
    "run",
    "ns",
)
_HINT: Final = "choose another place for it"


def write_json(suite: Suite, path: Path) -> None:
    """Write a result as the document of ``schemas/bench-1.schema.json``; it appears whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """

    def write(stream: IO[str]) -> None:
        stream.writelines(suite.to_text())
        stream.write("\n")

    _write(path, write)


def write_csv(suite: Suite, path: Path) -> None:
    """Write one row a run, warm-up included; the file appears whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """

    def write(stream: IO[str]) -> None:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows(suite))

    _write(path, write)


def rows(suite: Suite) -> Iterator[tuple[object, ...]]:
    """Yield a row for each run that a suite holds, as `COLUMNS` says."""
    for benchmark in suite.benchmarks:
        config = benchmark.config
        head = (benchmark.name, benchmark.runner.name, config.threads, config.accelerator, config.mode)
        for entry in benchmark.rounds:
            place = (entry.index, entry.block, entry.order, str(entry.valid).lower())
            for phase, runs in (("warmup", entry.warmup_ns), ("timed", entry.samples_ns)):
                for number, taken in enumerate(runs):
                    yield (*head, *place, phase, number, taken)


def _write(path: Path, write: Callable[[IO[str]], None]) -> None:
    try:
        handle, name = tempfile.mkstemp(prefix=".shufflectl-", dir=path.parent)
        staged = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
            umask = os.umask(0)
            os.umask(umask)
            staged.chmod(0o666 & ~umask)
            staged.replace(path)
        finally:
            staged.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}", hint=_HINT) from error
