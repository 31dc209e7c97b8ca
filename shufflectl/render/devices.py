"""The Android devices that are connected, as a table or as JSON."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shufflectl.console import Output
from shufflectl.render.words import UNKNOWN, escape, plain

if TYPE_CHECKING:
    from shufflectl.deploy.devices import Found

__all__ = ["devices"]

_COLUMNS = ("serial", "model", "SoC", "ABI", "SDK", "battery", "thermal", "problems")


def devices(output: Output, found: "Sequence[Found]") -> None:
    """Show every device."""
    if output.json:
        output.document({"schema": "shufflectl.devices/1", "devices": [item.to_json() for item in found]})
        return
    if not found:
        output.note("no Android device is connected: connect one with USB debugging on")
        return
    output.table("", _COLUMNS, [_row(item) for item in found], right=("SDK", "battery"))
    for item in found:
        for text, remedy in item.problems:
            advice = f": {escape(plain(remedy))}" if remedy else ""
            output.note(f"[yellow]{escape(plain(item.serial))}[/] {escape(plain(text))}{advice}")


def _row(item: "Found") -> list[str]:
    identity, condition = item.identity, item.condition
    words = [plain(item.serial)]
    if identity is None or condition is None:
        return [escape(words[0]), "", "", "", "", "", "", f"[bold red]{escape(plain(item.state))}[/]"]
    level = condition.battery.level
    hottest = max((t.celsius for t in condition.thermal.temperatures if t.kind == "skin"), default=None)
    words += [
        plain(identity.model),
        plain(identity.soc),
        identity.abis[0] if identity.abis else UNKNOWN,
        UNKNOWN if identity.sdk is None else str(identity.sdk),
        UNKNOWN if level is None else f"{level:.0f}\N{NO-BREAK SPACE}%",
        condition.thermal.word + ("" if hottest is None else f", {hottest:.0f}\N{NO-BREAK SPACE}°C"),
    ]
    verdict = f"[yellow]{len(item.problems)}[/]" if item.problems else "[green]none[/]"
    return [*(escape(word) for word in words), verdict]
