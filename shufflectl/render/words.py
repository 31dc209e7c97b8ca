"""Words and figures as every table shows them."""

from collections.abc import Sequence

__all__ = ["FAIL", "PASS", "UNKNOWN", "escape", "number", "plain", "shape"]

PASS = "[green]pass[/]"  # noqa: S105 - a verdict
FAIL = "[bold red]FAIL[/]"
UNKNOWN = "?"


def escape(text: str) -> str:
    """Return text in which nothing is markup."""
    from rich.markup import escape as escape_markup

    return escape_markup(text)


def plain(text: str) -> str:
    """Return a file's name without what would steer the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def shape(shape: Sequence[int | None] | None) -> str:
    """Return a shape as ``1x3x224x224``."""
    return UNKNOWN if shape is None else escape("x".join(UNKNOWN if d is None else str(d) for d in shape))


def number(value: int | None) -> str:
    """Return a number with separators of thousands."""
    return UNKNOWN if value is None else f"{value:,}"
