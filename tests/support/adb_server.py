"""An adb server of the tests' own: its port, its home folder, and nothing of the user's."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shufflectl.deploy.devices import Adb, Waits
from support.adb_daemon import Daemon

# Short, so that what never answers is noticed soon; long enough for a machine that is busy.
WAITS = Waits(server=20, command=10, slack=4, transfer=10, farewell=10)


@dataclass(frozen=True)
class AdbServer:
    """A server that runs.

    Attributes:
        program: The client.
        env: The environment in which the client finds it.
    """

    program: str
    env: dict[str, str]

    def client(self, waits: Waits = WAITS) -> Adb:
        """Return the client as the product calls it."""
        return Adb.find(self.program, waits=waits, env=self.env)

    def call(self, *words: str) -> str:
        """Call the client as a user does."""
        done = subprocess.run(
            [self.program, *words], env=self.env, capture_output=True, text=True, timeout=30, check=False
        )
        return done.stdout + done.stderr

    def connect(self, daemon: Daemon) -> None:
        """Make the server know a phone."""
        self.call("connect", daemon.serial)

    def forget(self, daemon: Daemon) -> None:
        """Make it forget the phone."""
        self.call("disconnect", daemon.serial)


@contextmanager
def running(home: Path) -> Iterator[AdbServer]:
    """Start a server, and stop it in the end."""
    program = shutil.which("adb")
    if program is None:
        raise FileNotFoundError("the adb client is not installed (Debian: apt-get install adb)")
    # adb looks for emulators at the odd ports from 5555 to 5585; this port and the phones' are elsewhere.
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    env = {**os.environ, "ANDROID_ADB_SERVER_PORT": str(port), "HOME": str(home), "ADB": program}
    for name in ("ANDROID_SERIAL", "ADB_SERVER_SOCKET", "ANDROID_ADB_SERVER_ADDRESS", "COLUMNS"):
        env.pop(name, None)
    server = AdbServer(program, env)
    server.call("start-server")
    try:
        yield server
    finally:
        server.call("kill-server")
