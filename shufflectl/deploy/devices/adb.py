"""Android's own `adb` client: the one way to reach a phone.

The client is found by name, every call is bounded in time and output, and what it says when it fails becomes
a typed error. It talks to a server of the user's (``ANDROID_ADB_SERVER_PORT`` and the other variables of adb
hold), which it starts where none runs.

``adb`` ends with 1 both when it fails and when the command on the device ends with 1, and ends with whatever
it likes when a connection breaks. `AndroidDevice` therefore never believes its exit status alone.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from shufflectl.deploy import process
from shufflectl.deploy.process import Completed, TooMuchOutputError
from shufflectl.errors import DeviceError, DeviceLostError, UnavailableError

__all__ = ["ADB_VARIABLE", "Adb", "Attached", "State", "Waits", "said"]

ADB_VARIABLE: Final = "ADB"
"""The environment variable that names the adb client."""

_SDK_VARIABLES: Final = ("ANDROID_HOME", "ANDROID_SDK_ROOT")
_STUDIO_FOLDERS: Final = ("Android/Sdk", "Library/Android/sdk", "AppData/Local/Android/Sdk")
_GET: Final = (
    "install Android's platform-tools (on Debian and Ubuntu: apt-get install adb), set ANDROID_HOME, "
    "or name the client with --adb or in the environment variable ADB"
)
_LIST_LIMIT: Final = 1 << 20

State = Literal["device", "unauthorized", "offline", "no permissions", "other"]

# What the client says on standard error, and what that means. It has no machine-readable errors.
_LOST: Final = (
    "device offline",
    "not found",
    "no devices",
    "closed",
    "connection reset",
    "cannot connect to daemon",
    "failed to read",
    "failed to write",
    "protocol fault",
    "connect failed",
    "transport",
    "broken pipe",
    "device still authorizing",
)


@dataclass(frozen=True)
class Waits:
    """How long a device is waited for, in seconds.

    Attributes:
        server: For the adb server to start and to list what is connected.
        command: For one short command on the device.
        slack: Beyond the time that a command may take on the device, before the connection counts as lost.
        transfer: For a file of no size; what its bytes take comes on top.
        bytes_per_s: The slowest link that is waited for.
        farewell: For the device to remove what was put there.
    """

    server: float = 20.0
    command: float = 20.0
    slack: float = 10.0
    transfer: float = 30.0
    bytes_per_s: float = 250_000.0
    farewell: float = 15.0


@dataclass(frozen=True)
class Attached:
    """One line of ``adb devices``.

    Attributes:
        serial: What names the device to adb.
        state: What adb says about it; ``other`` is a recovery, a bootloader, or a state not yet known.
        words: The same in adb's own words.
    """

    serial: str
    state: State
    words: str

    @property
    def problem(self) -> str:
        """Why nothing can be run there; empty when it can."""
        return {
            "device": "",
            "unauthorized": "this computer is not authorised",
            "offline": "it does not answer (offline)",
            "no permissions": "this user may not open the USB device",
            "other": f"it is in the state {self.words!r}",
        }[self.state]

    @property
    def remedy(self) -> str:
        """What to do about the problem; empty where there is none."""
        return {
            "device": "",
            "unauthorized": "unlock the phone and accept the prompt 'Allow USB debugging?'",
            "offline": "reconnect the cable, or call adb reconnect",
            "no permissions": "install udev rules for Android (Debian: android-sdk-platform-tools-common)",
            "other": "start Android on it",
        }[self.state]


@dataclass(frozen=True)
class Adb:
    """The adb client.

    Attributes:
        program: The path of the client.
        waits: How long its calls may take.
        env: The client's whole environment; None for this process's.
    """

    program: str
    waits: Waits = Waits()
    env: Mapping[str, str] | None = None

    @classmethod
    def find(
        cls,
        named: str | Path | None = None,
        *,
        waits: Waits | None = None,
        env: Mapping[str, str] | None = None,
    ) -> "Adb":
        """Find the client: what is named, ``ADB``, on PATH, in an Android SDK, where Android Studio puts it.

        Args:
            named: The client's path or name, as ``--adb`` gives it.
            waits: How long its calls may take.
            env: The environment to look in and to call it with; None for this process's.

        Raises:
            UnavailableError: It is not where it was said to be, or nowhere.
        """
        variables = os.environ if env is None else env
        path = variables.get("PATH", os.defpath)
        for source, value in (
            ("--adb", named),
            (f"the variable {ADB_VARIABLE}", variables.get(ADB_VARIABLE)),
        ):
            if value:
                found = shutil.which(str(value), path=path)
                if found is None:
                    raise UnavailableError(f"there is no adb client at {value}, named by {source}", hint=_GET)
                return cls(found, waits or Waits(), env)
        roots = [Path(variables[name]) for name in _SDK_VARIABLES if variables.get(name)]
        roots += [Path.home() / folder for folder in _STUDIO_FOLDERS]
        suffix = ".exe" if sys.platform == "win32" else ""
        tools = [str(root / "platform-tools" / f"adb{suffix}") for root in roots]
        for candidate in ["adb", *tools]:
            found = shutil.which(candidate, path=path)
            if found is not None:
                return cls(found, waits or Waits(), env)
        raise UnavailableError("the adb client was not found", hint=_GET)

    def call(self, *words: str, timeout: float, limit: int = _LIST_LIMIT) -> Completed:
        """Call the client, and return what it left behind, whatever its exit status.

        Raises:
            UnavailableError: It did not end in time, or printed more than ``limit`` bytes.
        """
        return process.run(
            [self.program, *words], timeout=timeout, env=self.env, limit=limit, own_session=True
        )

    def start(self) -> None:
        """Start the server unless it runs.

        Raises:
            DeviceError: It cannot be started.
        """
        try:
            done = self.call("start-server", timeout=self.waits.server)
        except UnavailableError as error:
            raise DeviceError(f"the adb server does not start: {error.message}", hint=_SERVER_HINT) from error
        if done.status != 0:
            raise DeviceError(f"the adb server does not start: {said(done)}", hint=_SERVER_HINT)

    def version(self) -> str:
        """Return the client's version, for example ``34.0.5-debian``; empty where it does not say."""
        done = self.call("version", timeout=self.waits.server)
        for line in done.stdout.splitlines():
            if line.startswith("Version "):
                return line.removeprefix("Version ").strip()
        return ""

    def devices(self) -> tuple[Attached, ...]:
        """Return what is connected, in adb's order.

        Raises:
            DeviceError: The server does not start or does not answer.
        """
        self.start()
        try:
            done = self.call("devices", timeout=self.waits.server)
        except UnavailableError as error:
            raise DeviceError(f"adb does not list its devices: {error.message}", hint=_SERVER_HINT) from error
        if done.status != 0:
            raise DeviceError(f"adb does not list its devices: {said(done)}", hint=_SERVER_HINT)
        rows = (line.partition("\t") for line in done.stdout.splitlines())
        return tuple(Attached(serial, _state(words), words.strip()) for serial, tab, words in rows if tab)

    def features(self, serial: str) -> frozenset[str]:
        """Return what a device's daemon and this client have in common, for example ``shell_v2``.

        Raises:
            DeviceLostError: The device does not answer.
        """
        done = self.on(serial, "features", timeout=self.waits.command)
        if done.status != 0:
            raise self.failure(serial, "tell its features", done)
        return frozenset(done.stdout.split())

    def on(self, serial: str, *words: str, timeout: float, limit: int = _LIST_LIMIT) -> Completed:
        """Call the client for one device.

        Raises:
            DeviceLostError: The call did not end in time.
            DeviceError: It printed more than ``limit`` bytes.
        """
        try:
            return self.call("-s", serial, *words, timeout=timeout, limit=limit)
        except TooMuchOutputError as error:
            raise DeviceError(
                f"{serial} printed more than {limit} bytes in answer to {shlex.join(words)[:80]}",
                hint="something on the device repeats itself: look with adb shell",
            ) from error
        except UnavailableError as error:
            raise DeviceLostError(
                f"{serial} did not answer within {timeout:g} s ({shlex.join(words)[:80]})",
                hint="see whether adb shell answers; reconnect the cable, or restart the phone",
            ) from error

    def failure(self, serial: str, doing: str, done: Completed) -> DeviceError:
        """Return the error for a call that failed, from what the client said."""
        text = said(done)
        lowered = text.lower()
        if "unauthorized" in lowered:
            here = Attached(serial, "unauthorized", text)
            return DeviceError(f"{serial} does not let this computer in: {here.problem}", hint=here.remedy)
        if "no space left" in lowered:
            return DeviceError(
                f"{serial} cannot {doing}: its storage is full", hint="free some space on /data of the device"
            )
        if any(word in lowered for word in _LOST) or not text:
            return DeviceLostError(
                f"{serial} was lost, and cannot {doing}: {text or 'the connection ended'}",
                hint="reconnect it, and see that adb devices lists it as 'device'",
            )
        return DeviceError(f"{serial} cannot {doing}: {text}", hint="see what adb says when called by hand")


_SERVER_HINT: Final = (
    "call adb kill-server and adb start-server by hand, and see what they say; "
    "another program may hold the port (ANDROID_ADB_SERVER_PORT names another)"
)


def said(done: Completed) -> str:
    """Return the client's complaint as one line: what it says, without its own name and the rest."""
    lines = [line for line in (*done.stderr.splitlines(), *done.stdout.splitlines()) if line.strip()]
    own = [line for line in lines if line.startswith(("adb: ", "error: ", "* "))]
    text = next((line for line in own if not line.startswith("* daemon")), "") or next(iter(lines), "")
    for prefix in ("adb: ", "error: "):
        text = text.removeprefix(prefix)
    return "".join(char if char.isprintable() else "?" for char in text).strip()[:300]


def _state(words: str) -> State:
    word = words.strip()
    if word.startswith("no permissions"):
        return "no permissions"
    if word in ("unauthorized", "authorizing"):
        return "unauthorized"
    if word in ("offline", "connecting"):
        return "offline"
    return "device" if word == "device" else "other"
