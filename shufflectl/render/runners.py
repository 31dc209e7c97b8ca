"""The programs that measure on phones, as a table or as JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shufflectl.console import Output
from shufflectl.render.words import escape, plain

if TYPE_CHECKING:
    from shufflectl.benchmarks.android.store import Program

__all__ = ["added", "built", "removed", "runners"]

_SCHEMA = "shufflectl.runners/1"


def runners(output: Output, programs: "Sequence[Program]") -> None:
    """Show what is in the cache."""
    if output.json:
        output.document({"schema": _SCHEMA, "runners": [program.to_json() for program in programs]})
        return
    if not programs:
        output.note("the cache holds no runner: add one with shufflectl runner add")
        return
    rows = [
        [
            escape(plain(text))
            for text in (
                item.name,
                item.kind,
                item.abi,
                item.sha256[:12],
                ", ".join(path.name for path in item.libraries),
                item.source,
            )
        ]
        for item in programs
    ]
    output.table("", ("name", "kind", "ABI", "SHA-256", "libraries", "from"), rows)


def added(output: Output, program: "Program") -> None:
    """Show what was added."""
    if output.json:
        output.document({"schema": _SCHEMA, "runners": [program.to_json()]})
        return
    output.text(
        f"{escape(program.name)}: {program.kind} for {escape(plain(program.abi))}, SHA-256 {program.sha256}"
    )


def built(output: Output, program: Path, sha256: str) -> None:
    """Show what was built."""
    if output.json:
        output.document({"schema": _SCHEMA, "built": str(program), "sha256": sha256, "runners": []})
        return
    output.text(f"built {escape(plain(str(program)))}, SHA-256 {sha256}")


def removed(output: Output, name: str) -> None:
    """Show what was removed."""
    if output.json:
        output.document({"schema": _SCHEMA, "removed": name, "runners": []})
        return
    output.text(f"removed {escape(name)}")
