"""Before anything is measured: which device, does it let us in, and would its figures mean anything."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shufflectl.deploy.devices import cores as masks
from shufflectl.deploy.devices.adb import Adb, Attached
from shufflectl.deploy.devices.device import AndroidDevice
from shufflectl.deploy.devices.state import DeviceState
from shufflectl.deploy.devices.workspace import ROOT
from shufflectl.errors import ArtifactError, DeviceError, UnstableError, UsageError, nearest

__all__ = [
    "MIN_BATTERY",
    "Problem",
    "attached",
    "find_device",
    "problems",
    "program_abi",
    "require_cores",
    "require_program",
    "require_quiet",
    "require_room",
    "require_tools",
]

MIN_BATTERY: Final = 20.0
"""Per cent; phones slow down before they run out."""

_TOOLS: Final = ("timeout", "sha256sum", "chmod", "mkdir", "rm", "mv", "cat", "ls", "grep", "df")

# ELF e_machine, and class, of each of Android's instruction sets.
_MACHINES: Final = {
    (2, 183): "arm64-v8a",
    (1, 40): "armeabi-v7a",
    (2, 62): "x86_64",
    (1, 3): "x86",
    (2, 243): "riscv64",
}


@dataclass(frozen=True)
class Problem:
    """Something that keeps a device from being measured, or its figures from meaning anything.

    Attributes:
        text: What is wrong.
        remedy: What to do about it.
        passes: Whether it goes away by itself, when the phone cools down.
    """

    text: str
    remedy: str
    passes: bool = False


def attached(adb: Adb, wanted: str = "") -> Attached:
    """Choose among the devices that are connected: the one that is named, or the only one.

    Raises:
        UsageError: There are several and none is named, or none has the name.
        DeviceError: There is none, or it lets nobody in.
    """
    found = adb.devices()
    if wanted:
        chosen = next((item for item in found if item.serial == wanted), None)
        if chosen is None:
            known = [item.serial for item in found]
            hint = nearest(wanted, known) if known else "adb devices lists none: connect it"
            raise UsageError(f"there is no device {wanted!r}", hint=hint)
    elif not found:
        raise DeviceError(
            "no Android device is connected",
            hint="connect one with USB debugging on (docs/android.md), and see that adb devices lists it",
        )
    else:
        usable = [item for item in found if item.state == "device"]
        if len(usable) > 1:
            serials = ", ".join(item.serial for item in usable)
            raise UsageError(
                f"{len(usable)} devices are connected: {serials}",
                hint=f"name one: --device android:{usable[0].serial}",
            )
        chosen = usable[0] if usable else found[0]
    if chosen.problem:
        raise DeviceError(f"{chosen.serial} cannot be used: {chosen.problem}", hint=chosen.remedy)
    return chosen


def find_device(adb: Adb, wanted: str = "") -> AndroidDevice:
    """Return a device that lets us in and tells commands' own exit statuses.

    Raises:
        UsageError: There are several and none is named, or none has the name.
        DeviceError: There is none, it lets nobody in, or its daemon is too old.
    """
    chosen = attached(adb, wanted)
    if "shell_v2" not in adb.features(chosen.serial):
        raise DeviceError(
            f"{chosen.serial} does not tell the exit status of commands (its daemon lacks shell_v2), "
            "so that a failed run would look like a good one",
            hint="Android 7 or later is needed; update the platform-tools of this computer as well",
        )
    return AndroidDevice(adb, chosen.serial)


def require_tools(device: AndroidDevice, extra: Sequence[str] = ()) -> None:
    """Make sure that the device has the programs that a measurement calls.

    Raises:
        DeviceError: Some are missing.
    """
    names = (*_TOOLS, *extra)
    ran = device.shell(f"for t in {shlex.join(names)}; do command -v $t >/dev/null || echo $t; done")
    missing = [name for name in ran.stdout.split() if name in names]
    if missing:
        raise DeviceError(
            f"{device.serial} lacks {', '.join(missing)}", hint="Android 8 or later has them (toybox)"
        )


def require_cores(device: AndroidDevice, cores: Sequence[int]) -> None:
    """Make sure that a program can be pinned to these cores, all of them.

    The kernel drops in silence those that the shell's own set of cores (cpuset) lacks.

    Raises:
        DeviceError: It cannot, or only to some of them.
    """
    pinned = masks.mask(cores)
    ran = device.shell(f"taskset {pinned} grep Cpus_allowed: /proc/self/status")
    match = re.search(r"Cpus_allowed:\s*([0-9a-fA-F,]{1,600})\s*$", ran.stdout)
    names = ", ".join(map(str, cores))
    hint = "measure without pinning: --affinity none"
    if ran.status != 0 or match is None:
        said = ran.stderr.strip().splitlines()
        why = said[-1][:200] if said else "taskset says nothing"
        raise DeviceError(f"{device.serial} cannot pin a program to cores {names}: {why}", hint=hint)
    allowed = masks.parse_mask(match[1])
    if allowed != frozenset(cores):
        others = ", ".join(map(str, sorted(allowed)))
        raise DeviceError(
            f"{device.serial} pins a program to cores {others} instead of {names}",
            hint=f"turn the screen on, which gives programs more cores; or {hint}",
        )


def require_room(device: AndroidDevice, size: int) -> None:
    """Make sure that the device has room for so many bytes.

    Raises:
        DeviceError: It has not.
    """
    lines = device.shell(f"df -k {ROOT}").stdout.splitlines()
    words = lines[-1].split() if len(lines) > 1 else []
    # FILESYSTEM BLOCKS USED AVAILABLE USE% MOUNTED; a long name may have a line of its own.
    numbers = [int(word) for word in words if word.isdecimal()]
    if len(numbers) >= 3 and numbers[2] << 10 < size:
        raise DeviceError(
            f"{device.serial} has {numbers[2] / 1e3:.1f} MB free on /data, "
            f"and {size / 1e6:.1f} MB are needed",
            hint="free some space on the device",
        )


def program_abi(path: Path) -> str:
    """Return which of Android's instruction sets a program is for.

    Raises:
        ArtifactError: It is no program for Linux.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(20)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    if len(head) < 20 or not head.startswith(b"\x7fELF"):
        raise ArtifactError(f"{path} is no program for Android (no ELF file)", hint="see docs/runner.md")
    order = "little" if head[5] == 1 else "big"
    machine = int.from_bytes(head[18:20], order)  # type: ignore[arg-type]
    return _MACHINES.get((head[4], machine), f"ELF machine {machine}")


def require_program(device: AndroidDevice, path: Path) -> None:
    """Make sure that the device runs programs like this one.

    Raises:
        ArtifactError: It is no program for Linux.
        DeviceError: It is for another instruction set.
    """
    abi = program_abi(path)
    known = device.identity.abis
    if known and abi not in known:
        raise DeviceError(
            f"{path.name} is a program for {abi}, and {device.serial} runs {', '.join(known)}",
            hint=f"get the {known[0]} build of it (docs/runner.md)",
        )


def problems(state: DeviceState, *, min_battery: float = MIN_BATTERY) -> tuple[Problem, ...]:
    """Return what keeps figures of this phone from meaning anything now."""
    found = []
    thermal, battery = state.thermal, state.battery
    if thermal.overridden:
        found.append(
            Problem(
                "its thermal status is fixed by hand, so that throttling would not show",
                "adb shell cmd thermalservice reset",
            )
        )
    if thermal.status:
        found.append(Problem(f"it is hot (thermal status {thermal.word})", "let it cool down", passes=True))
    if battery.level is not None and battery.level < min_battery:
        found.append(
            Problem(
                f"its battery is at {battery.level:.0f} %, and phones slow down when it runs out",
                f"charge it to {min_battery:.0f} %",
            )
        )
    if state.saving:
        found.append(Problem("battery saver is on, which slows it down", "turn battery saver off"))
    return tuple(found)


def require_quiet(device: AndroidDevice, state: DeviceState, *, min_battery: float = MIN_BATTERY) -> None:
    """Refuse a phone whose figures would mean nothing, and which will not get better by waiting.

    Raises:
        UnstableError: The thermal status is fixed by hand, the battery is low, or battery saver is on.
    """
    for problem in problems(state, min_battery=min_battery):
        if not problem.passes:
            raise UnstableError(f"{device.serial} cannot be measured: {problem.text}", hint=problem.remedy)
