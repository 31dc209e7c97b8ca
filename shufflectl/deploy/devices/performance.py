"""Android's fixed-performance mode: lower clocks that a phone can hold (API 30 and later).

``cmd power set-fixed-performance-mode-enabled`` says that it worked on phones where it does nothing, so it is
believed only when the limits of the clocks moved. It is turned off by the keeper of the
`Workspace` (`FAREWELL`), so in every ending.
"""

import time
from typing import Final

from shufflectl.deploy.devices.device import AndroidDevice
from shufflectl.deploy.devices.state import Core
from shufflectl.errors import DeviceError

__all__ = ["FAREWELL", "fix_clocks"]

FAREWELL: Final = ("cmd", "power", "set-fixed-performance-mode-enabled", "false")
"""What turns it off."""

_SINCE: Final = 30
_SETTLE_S: Final = 2.0
_POLL_S: Final = 0.2
_HINT: Final = "measure without --fixed-performance"


def fix_clocks(device: AndroidDevice, *, patience: float = _SETTLE_S) -> tuple[Core, ...]:
    """Turn the mode on, and return the cores with the limits that it set.

    Args:
        device: The device; its workspace must have been entered with `FAREWELL`.
        patience: How long the limits may take to move, in seconds.

    Raises:
        DeviceError: The device is too old for the mode, refuses it, or hides or keeps its clocks.
    """
    sdk = device.identity.sdk
    if sdk is not None and sdk < _SINCE:
        raise DeviceError(
            f"{device.serial} has no fixed-performance mode: its API level is {sdk}, and {_SINCE} is needed",
            hint=_HINT,
        )
    before = device.snapshot().cores
    if not before:
        raise DeviceError(
            f"{device.serial} hides its clocks, so that fixed-performance mode cannot be verified",
            hint=_HINT,
        )
    ran = device.shell("cmd power set-fixed-performance-mode-enabled true")
    if ran.status != 0 or "Failed" in ran.stderr + ran.stdout:
        said = (ran.stderr + ran.stdout).strip().splitlines()
        raise DeviceError(
            f"{device.serial} refuses fixed-performance mode: {said[0][:200] if said else ran.status}",
            hint=_HINT,
        )
    deadline = time.monotonic() + patience
    while True:
        after = device.snapshot().cores
        if _limits(after) != _limits(before):
            return after
        if time.monotonic() >= deadline:
            raise DeviceError(
                f"{device.serial} says that it is in fixed-performance mode, but no clock's limits moved",
                hint=_HINT,
            )
        time.sleep(_POLL_S)


def _limits(cores: tuple[Core, ...]) -> list[tuple[int, int | None, int | None]]:
    return [(core.index, core.min_khz, core.cap_khz) for core in cores]
