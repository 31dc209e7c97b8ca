"""Writing figures: with matplotlib, where it is installed, and without its global state.

matplotlib is imported only when a figure is wanted. It is used through its objects: nothing of pyplot, no
display, and none of a user's matplotlibrc. The same figure gives the same bytes.
"""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from shufflectl.deploy.publish import check_writable, write_file
from shufflectl.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SUFFIXES", "check_plot", "save"]

SUFFIXES: Final = (".png", ".svg", ".pdf")

_DPI: Final = 150
_STYLE: Final[dict[str, Any]] = {
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.grid.axis": "x",
    "axes.axisbelow": True,
    "grid.color": "#e2e2e2",
    "font.size": 9,
    "ytick.labelsize": 8.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "ytick.left": False,
    "svg.hashsalt": "shufflectl",
}


def check_plot(path: Path) -> None:
    """See before long work that the figure can be drawn and written.

    Raises:
        UsageError: The file's name does not say a format, or its folder does not exist.
        OutputError: The folder cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"a figure is not written as {path.suffix or path.name!r}",
            hint=f"end the name in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}",
        )
    if not path.parent.is_dir():
        raise UsageError(
            f"the folder {path.parent} does not exist", hint=f"create it: mkdir -p {path.parent}"
        )
    check_writable(path)
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "plot", "drawing a figure") from error


def save(path: Path, draw: "Callable[[], Figure]") -> None:
    """Draw a figure and write it in the format that the file's name says; it appears whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    import matplotlib as mpl

    kind = path.suffix.lower()[1:]
    dates = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    data = io.BytesIO()
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        with warnings.catch_warnings():
            # A name may hold characters that the font has not; the figure shows boxes in their place.
            warnings.filterwarnings("ignore", message="Glyph")
            draw().savefig(data, format=kind, dpi=_DPI, metadata=dates[kind])
    write_file(path, data.getvalue(), "--plot")
