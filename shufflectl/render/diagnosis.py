"""What works on this machine, as tables or as JSON."""

from typing import TYPE_CHECKING

from shufflectl.console import Output
from shufflectl.render.words import escape

if TYPE_CHECKING:
    from shufflectl.deploy.doctor import Diagnosis

__all__ = ["diagnosis"]


def diagnosis(output: Output, found: "Diagnosis") -> None:
    """Show what works on this machine."""
    if output.json:
        output.document(found.to_json())
        return
    colours = {"ok": "green", "missing": "yellow", "broken": "bold red", "absent": "dim"}
    output.table("machine", ["", ""], [[name, escape(value)] for name, value in found.machine.items()])
    for group in ("package", "runtime", "target", "device"):
        rows = [
            [escape(c.name), f"[{colours[c.state]}]{c.state}[/]", escape(c.detail), escape(c.remedy)]
            for c in found.checks
            if c.group == group
        ]
        output.table(f"{group}s", ["name", "state", "detail", "how to get it"], rows)
