"""Every device that adb sees: what it is, how it is, and what keeps it from being measured."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shufflectl.deploy.devices.adb import Adb, Attached
from shufflectl.deploy.devices.device import AndroidDevice
from shufflectl.deploy.devices.preflight import problems
from shufflectl.deploy.devices.state import DeviceState, Identity
from shufflectl.errors import DeviceError

__all__ = ["Found", "survey"]


@dataclass(frozen=True)
class Found:
    """One device.

    Attributes:
        serial: What names it to adb, and to ``--device android:SERIAL``.
        state: What adb says about it; ``device`` when it can be used.
        identity: Which device it is; None where it does not let us in.
        condition: How it is now; None likewise.
        problems: What keeps it from being measured, and what to do about it.
    """

    serial: str
    state: str
    identity: Identity | None
    condition: DeviceState | None
    problems: tuple[tuple[str, str], ...]

    @property
    def usable(self) -> bool:
        """Whether it can be measured now."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return the device as JSON values."""
        identity, condition = self.identity, self.condition
        return {
            "serial": self.serial,
            "state": self.state,
            "usable": self.usable,
            "model": identity and identity.model,
            "soc": identity and identity.soc,
            "abis": list(identity.abis) if identity else [],
            "sdk": identity and identity.sdk,
            "android": identity and identity.release,
            "fingerprint": identity and identity.fingerprint,
            "battery": condition
            and {
                "level_percent": condition.battery.level,
                "celsius": condition.battery.celsius,
                "powered": condition.battery.powered,
                "saver": condition.saving,
            },
            "thermal": condition
            and {
                "status": condition.thermal.status,
                "word": condition.thermal.word,
                "overridden": condition.thermal.overridden,
                "temperatures": [
                    {"name": t.name, "kind": t.kind, "celsius": t.celsius, "status": t.status}
                    for t in condition.thermal.temperatures
                ],
            },
            "problems": [{"text": text, "remedy": remedy} for text, remedy in self.problems],
        }


def survey(adb: Adb, notify: Callable[[str], None] = lambda _: None) -> tuple[Found, ...]:
    """Look at every device that is connected.

    Args:
        adb: The client.
        notify: Told what is being looked at.

    Raises:
        DeviceError: The adb server does not answer. A device that does not is one with a problem.
    """
    notify("adb devices")
    found = []
    for item in adb.devices():
        notify(f"device {item.serial}")
        found.append(_look(adb, item))
    return tuple(found)


def _look(adb: Adb, item: Attached) -> Found:
    if item.problem:
        return Found(item.serial, item.words, None, None, ((item.problem, item.remedy),))
    try:
        wrong: list[tuple[str, str]] = []
        if "shell_v2" not in adb.features(item.serial):
            wrong.append(("its daemon does not tell exit statuses (no shell_v2)", "update its Android"))
            return Found(item.serial, item.words, None, None, tuple(wrong))
        device = AndroidDevice(adb, item.serial)
        identity, condition = device.identity, device.snapshot()
    except DeviceError as error:
        return Found(item.serial, item.words, None, None, ((error.message, error.hint),))
    wrong += [(problem.text, problem.remedy) for problem in problems(condition)]
    return Found(item.serial, item.words, identity, condition, tuple(wrong))
