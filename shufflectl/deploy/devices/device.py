"""A phone that runs programs: files go there and come back whole, a command's status is its own.

``adb`` reports its own failures and the command's exit status in one number, so each command writes a
word that nobody can guess, and its status, behind what it prints. Where the word is missing, the command was
not run to its end, whatever adb's exit status says.
"""

import math
import re
import secrets
import shlex
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Protocol

from shufflectl.deploy.devices import cores as core_masks
from shufflectl.deploy.devices import state as states
from shufflectl.deploy.devices.adb import Adb
from shufflectl.deploy.devices.state import DeviceState, Identity
from shufflectl.deploy.digests import digest
from shufflectl.errors import DeviceError, DeviceLostError, OutputError

__all__ = ["AndroidDevice", "Device", "Ran"]

_OUTPUT_LIMIT: Final = 16 << 20
_FILE_LIMIT: Final = 64 << 20
_DIGEST: Final = re.compile(r"^\\?([0-9a-f]{64})\s", re.MULTILINE)
_KILLED: Final = frozenset({124, 137})
# toybox's timeout (0.8.9) answers 127, whatever the status was, for a program that ends before it looks.
_PAUSE: Final = ("sh", "-c", 'sleep 0.1; exec "$@"', "sh")
_CPUFREQ: Final = " ".join(
    f"/sys/devices/system/cpu/cpu[0-9]*/cpufreq/{name}"
    for name in (
        "cpuinfo_max_freq",
        "scaling_max_freq",
        "scaling_min_freq",
        "scaling_cur_freq",
        "scaling_governor",
    )
)


@dataclass(frozen=True)
class Ran:
    """A command that ran on a device to its end, or until it was killed there.

    Attributes:
        status: Its exit status; above 128 a signal ended it.
        stdout: Its standard output.
        stderr: Its standard error.
        seconds: How long the call took, the way there and back included.
        timed_out: Whether the device killed it because its time was up.
    """

    status: int
    stdout: str
    stderr: str
    seconds: float
    timed_out: bool = False


class Device(Protocol):
    """What a measurement needs of a device."""

    @property
    def serial(self) -> str:
        """What names it here."""

    @property
    def identity(self) -> Identity:
        """Which device it is."""

    def push(self, local: Path, remote: str, *, executable: bool = False) -> str:
        """Copy a file there, and return its SHA-256, which the copy was found to have."""

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file here; ``local`` is replaced when it came whole."""

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        folder: str,
        env: Mapping[str, str] | None = None,
        cores: Iterable[int] = (),
    ) -> Ran:
        """Run a command there."""

    def snapshot(self) -> DeviceState:
        """Return its state now."""


@dataclass(frozen=True)
class AndroidDevice:
    """An Android device behind adb.

    Attributes:
        adb: The client.
        serial: What names the device to it.
    """

    adb: Adb
    serial: str

    @cached_property
    def properties(self) -> dict[str, str]:
        """The system properties, read once.

        Raises:
            DeviceError: The device does not tell.
        """
        found = states.read_properties(self.shell("getprop").stdout)
        if not found:
            raise DeviceError(
                f"{self.serial} tells nothing about itself (getprop is empty)",
                hint="is it an Android device?",
            )
        return found

    @property
    def identity(self) -> Identity:
        """Which device it is.

        Raises:
            DeviceError: The device does not tell.
        """
        return states.read_identity(self.properties)

    def shell(self, script: str, *, timeout: float | None = None, limit: int = _OUTPUT_LIMIT) -> Ran:
        """Run a script of our own in the device's shell.

        Args:
            script: The script; the caller has quoted what it put in.
            timeout: Seconds after which the connection counts as lost.
            limit: The most bytes that it may print on each stream.

        Raises:
            DeviceLostError: It did not run to its end: the device does not answer (any more).
            DeviceError: It printed too much, or the device refused the call.
        """
        word = secrets.token_hex(8)
        wrapped = f"( {script}\n); s=$?; echo {word} $s >&2; exit $s"
        begun = time.monotonic()
        done = self.adb.on(
            self.serial, "shell", "-T", wrapped, timeout=timeout or self.adb.waits.command, limit=limit
        )
        seconds = time.monotonic() - begun
        before, found, after = done.stderr.rpartition(word)
        status = re.match(r" (\d{1,3})\s", after) if found else None
        if status is None:
            raise self.adb.failure(self.serial, f"run {script.split(None, 1)[0]}", done)
        return Ran(int(status[1]), done.stdout, before, seconds)

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        folder: str,
        env: Mapping[str, str] | None = None,
        cores: Iterable[int] = (),
    ) -> Ran:
        """Run a command there; the device itself kills it when its time is up.

        Args:
            argv: The program and its arguments, which reach it as they are.
            timeout: Its time, in seconds.
            folder: Where it runs.
            env: Variables to add to its environment.
            cores: The cores that it may use; none for all.

        Raises:
            DeviceLostError: The device does not answer (any more), or the folder is gone.
            DeviceError: It printed too much, or cannot be pinned to these cores.
        """
        whole = max(1, math.ceil(timeout))
        words = ["timeout", "-s", "KILL", str(whole), *_PAUSE]
        pinned = sorted(set(cores))
        if pinned:
            words += ["taskset", core_masks.mask(pinned)]
        words += argv
        variables = "".join(f"{name}={shlex.quote(value)} " for name, value in (env or {}).items())
        gone = secrets.token_hex(8)
        script = f"cd {shlex.quote(folder)} || {{ echo {gone} >&2; exit 1; }}; {variables}{shlex.join(words)}"
        ran = self.shell(script, timeout=whole + self.adb.waits.slack)
        if gone in ran.stderr:
            raise DeviceLostError(
                f"{folder} is gone from {self.serial}: the connection broke, or somebody removed it",
                hint="measure again",
            )
        if pinned and ran.status != 0 and "taskset: " in ran.stderr:
            raise DeviceError(
                f"{self.serial} cannot pin a program to cores {', '.join(map(str, pinned))}: "
                f"{ran.stderr.strip().splitlines()[-1][:200]}",
                hint="measure without pinning: --affinity none",
            )
        late = ran.status in _KILLED and ran.seconds >= whole
        return Ran(ran.status, ran.stdout, ran.stderr, ran.seconds, timed_out=late)

    def push(self, local: Path, remote: str, *, executable: bool = False) -> str:
        """Copy a file there, and compare the SHA-256 of both ends.

        Raises:
            ArtifactError: The file cannot be read here.
            DeviceLostError: The device does not answer (any more).
            DeviceError: Its storage is full, it refuses the file, or what arrived is something else.
        """
        sent = digest(local)
        size = local.stat().st_size
        waits = self.adb.waits
        done = self.adb.on(
            self.serial,
            "push",
            str(local.absolute()),
            remote,
            timeout=waits.transfer + size / waits.bytes_per_s,
        )
        if done.status != 0:
            raise self.adb.failure(self.serial, f"take {local.name}", done)
        arrived = self._digest(remote, size)
        if arrived != sent:
            raise DeviceError(
                f"{local.name} arrived on {self.serial} as something else: its SHA-256 there is "
                f"{(arrived or 'unknown')[:12]}, here {sent[:12]}",
                hint="try another cable or port",
            )
        mode = "755" if executable else "644"
        changed = self.shell(f"chmod {mode} {shlex.quote(remote)}")
        if changed.status != 0:
            raise DeviceError(
                f"{self.serial} does not make {local.name} executable: {changed.stderr.strip()[:200]}"
            )
        return sent

    def pull(self, remote: str, local: Path, *, limit: int = _FILE_LIMIT) -> None:
        """Copy a file here and compare the SHA-256 of both ends; ``local`` is replaced when it came whole.

        Raises:
            DeviceLostError: The device does not answer (any more).
            DeviceError: It has no such file, the file is larger than ``limit`` bytes, or came damaged.
            OutputError: The file cannot be written here.
        """
        found = self.shell(f"wc -c < {shlex.quote(remote)}")
        if found.status != 0 or not found.stdout.strip().isdecimal():
            raise DeviceError(f"{self.serial} has no file {remote}", hint="see what the program printed")
        size = int(found.stdout.strip())
        if size > limit:
            raise DeviceError(
                f"{remote} on {self.serial} has {size} bytes, and {limit} are the most that is taken"
            )
        expected = self._digest(remote, size)
        waits = self.adb.waits
        try:
            with tempfile.TemporaryDirectory(dir=local.parent, prefix=".shufflectl-pull-") as folder:
                part = Path(folder) / "part"
                timeout = waits.transfer + size / waits.bytes_per_s
                done = self.adb.on(self.serial, "pull", remote, str(part.absolute()), timeout=timeout)
                if done.status != 0:
                    raise self.adb.failure(self.serial, f"give {remote}", done)
                if not part.is_file() or digest(part) != expected:
                    raise DeviceError(
                        f"{remote} came from {self.serial} damaged or in part",
                        hint="try another cable or port",
                    )
                part.replace(local)
        except OSError as error:
            raise OutputError(f"{local} cannot be written: {error.strerror}") from error

    def snapshot(self) -> DeviceState:
        """Return its state now, in one call.

        Raises:
            DeviceLostError: The device does not answer (any more).
            DeviceError: It printed too much.
        """
        word = secrets.token_hex(8)
        parts = {
            "thermal": "dumpsys thermalservice",
            "battery": "dumpsys battery",
            "cores": f"grep -H . {_CPUFREQ}",
            "saving": "settings get global low_power",
            "load": "cat /proc/loadavg",
        }
        script = "\n".join(f"echo {word}{name}; {command} 2>/dev/null" for name, command in parts.items())
        text = self.shell(script).stdout
        found = dict.fromkeys(parts, "")
        for block in text.split(word)[1:]:
            name, _, body = block.partition("\n")
            if name in found:
                found[name] = body
        load = re.match(r"\s*(\d{1,6}\.\d+)", found["load"])
        saving = found["saving"].strip()
        return DeviceState(
            thermal=states.read_thermal(found["thermal"]),
            battery=states.read_battery(found["battery"]),
            cores=states.read_cores(found["cores"]),
            saving={"1": True, "0": False}.get(saving),
            load=float(load[1]) if load else None,
        )

    def _digest(self, remote: str, size: int) -> str:
        """Return the SHA-256 of a file there; empty where there is none."""
        waits = self.adb.waits
        ran = self.shell(
            f"sha256sum {shlex.quote(remote)}", timeout=waits.command + size / (10 * waits.bytes_per_s)
        )
        match = _DIGEST.search(ran.stdout)
        return match[1] if ran.status == 0 and match else ""
