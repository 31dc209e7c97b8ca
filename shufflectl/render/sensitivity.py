"""What layers cost in int8, as a table, a figure, or JSON."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from shufflectl.console import Output
from shufflectl.render.words import escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from shufflectl.deploy.sensitivity import Sensitivity

__all__ = ["draw", "figure", "shown"]

_SHOWN: Final = 15
_BAR: Final = "#2f6db5"
_ROW: Final = 0.19
"""Inches."""


def shown(output: Output, found: "Sensitivity", plot: Path | None) -> None:
    """Show the layers that cost most."""
    if output.json:
        output.document(found.to_json())
        return
    title = (
        f"{found.model} in int8: {found.sqnr:.1f} dB on {found.images} images of {found.source}; "
        "the layers that cost most"
    )
    rows = [
        [escape(entry.layer), entry.kind, str(entry.weights), f"{entry.alone:.1f}", f"{entry.cost:.2f}"]
        for entry in found.ranking[:_SHOWN]
    ]
    output.table(
        title,
        ["layer", "kind", "weights", "alone dB", "cost dB"],
        rows,
        right=["weights", "alone dB", "cost dB"],
    )
    left = len(found.costs) - len(rows)
    if left > 0:
        output.text(f"{left} further layers cost less; --json lists all")
    output.text(
        "alone: the SQNR with this layer alone in codes; cost: what the whole gains where it stays in floats"
    )
    if plot is not None:
        output.text(f"drawn to {escape(str(plot))}")


def draw(found: "Sensitivity", path: Path) -> None:
    """Draw every layer's cost, in the order of the network.

    Raises:
        OutputError: The file cannot be written.
    """
    from shufflectl.deploy.drawing import save

    save(path, lambda: figure(found))


def figure(found: "Sensitivity") -> "Figure":
    """Return the figure: a bar a layer, the input's at the top."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(found.costs)
    drawn = Figure(figsize=(9.0, 1.4 + _ROW * count), layout="constrained", facecolor="white")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots()
    axes.barh(range(count), [entry.cost for entry in found.costs], color=_BAR, height=0.7)
    labels = [f"{entry.layer}  {entry.kind}" for entry in found.costs]
    axes.set_yticks(range(count), labels, parse_math=False)
    axes.set_ylim(count - 0.4, -0.6)
    axes.axvline(0.0, color="#555555", linewidth=0.8)
    axes.set_xlabel("cost: dB that the output gains where this layer stays in floats")
    axes.set_title(
        f"{found.model} in int8: {found.sqnr:.1f} dB on {found.images} images of {found.source}",
        parse_math=False,
    )
    axes.tick_params(axis="y", labelsize=7)
    return drawn
