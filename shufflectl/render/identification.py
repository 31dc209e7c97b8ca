"""What a checkpoint is, as a table or as JSON."""

from typing import TYPE_CHECKING

from shufflectl.console import Output
from shufflectl.render.words import escape

if TYPE_CHECKING:
    from shufflectl.models.checkpoints.identify import Identification

__all__ = ["identified"]


def identified(output: Output, found: "Identification") -> None:
    """Show what a checkpoint is, or what it nearly is."""
    if output.json:
        output.document(found.to_json())
        return
    if found.match is not None:
        output.text(f"[bold]{escape(found.file.path.name)}[/]  {escape(found.match.variant.name)}")
        rows = [[f.what, escape(f.value), escape(f.why)] for f in found.match.findings]
        output.table("", ["", "", "as"], rows)
        return
    rows = [
        [escape(candidate.variant.name), candidate.layout.name, what, escape(which)]
        for candidate in found.candidates
        for what, which in candidate.summary
    ]
    if rows:
        output.table("the nearest networks, and what does not fit", ["model", "layout", "tensors", ""], rows)
