"""A folder of our own on a device, which is gone afterwards however this program ends.

A *keeper* makes the folder: a small script in the device's shell that then waits for the end of its standard
input. That comes when this program says so, when it dies (however it dies: the kernel closes the pipe), and
when the connection breaks (the device's daemon closes it). The keeper then ends what still runs in the
folder, undoes what else must be undone, and removes the folder; it ignores the hang-up that the daemon sends
it. So a cable that is pulled or a ``kill -9`` here leaves nothing there.

Only a device that loses power keeps the folder. The next keeper removes folders whose keeper is gone.
"""

import logging
import secrets
import shlex
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from shufflectl.deploy.devices.device import AndroidDevice
from shufflectl.deploy.process import Completed
from shufflectl.errors import DeviceError, DeviceLostError, ShufflectlError

__all__ = ["ROOT", "Workspace"]

_LOG = logging.getLogger(__name__)

ROOT: Final = "/data/local/tmp"
"""Where adb's user may write and run programs."""

# Standing alone, `trap ''` makes the shell and its children ignore the signals. Programs are looked for again
# once the folder is gone, until there are none: some may have entered it meanwhile, or started others.
_KEEPER: Final = """\
trap '' HUP INT TERM PIPE
boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)
for old in {root}/shufflectl-*; do
  [ -f "$old/.keeper" ] || continue
  read -r pid born < "$old/.keeper"
  if [ "$born" != "$boot" ] || ! kill -0 "$pid" 2>/dev/null; then rm -rf "$old"; fi
done
mkdir {root}/.{name} && echo "$$ $boot" > {root}/.{name}/.keeper && mv {root}/.{name} {root}/{name} \
|| {{ rm -rf {root}/.{name}; exit 1; }}
echo {word}
none_there() {{
  ls -l /proc/[0-9]*/cwd 2>/dev/null | (
    found=0
    while read -r line; do
      case "$line" in
        *"/cwd -> {root}/{name}"|*"/cwd -> {root}/{name} (deleted)")
          pid=${{line%/cwd*}}; kill -9 "${{pid##*/proc/}}" 2>/dev/null; found=1 ;;
      esac
    done
    exit $found
  )
}}
cat > /dev/null
none_there
{farewell}tries=0
while rm -rf {root}/{name}; ! none_there && [ $tries -lt 20 ]; do tries=$((tries + 1)); done
[ -e {root}/{name} ] || echo {word}
"""


class Workspace:
    """A folder on a device, as a context.

    Args:
        device: The device.
        farewell: Commands that the device runs before it removes the folder, whatever happens: each one argv.

    Attributes:
        path: The folder, once entered.
    """

    def __init__(self, device: AndroidDevice, farewell: Sequence[Sequence[str]] = ()) -> None:
        self._device = device
        self._farewell = "".join(f"{shlex.join(argv)} > /dev/null 2>&1\n" for argv in farewell)
        self._word = secrets.token_hex(8)
        self._name = f"shufflectl-{secrets.token_hex(6)}"
        self._keeper: subprocess.Popen[bytes] | None = None
        self._listener: _Listener | None = None
        self.path = f"{ROOT}/{self._name}"

    def __enter__(self) -> Self:
        """Make the folder.

        Raises:
            DeviceLostError: The device does not answer.
            DeviceError: The folder cannot be made: the storage is full, or the folder of all is not writable.
        """
        adb, serial = self._device.adb, self._device.serial
        script = _KEEPER.format(root=ROOT, name=self._name, word=self._word, farewell=self._farewell)
        argv = [adb.program, "-s", serial, "shell", "-T", script]
        _LOG.debug("running %s", shlex.join(argv))
        try:
            self._keeper = subprocess.Popen(  # noqa: S603 - adb, with a script of our own
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                env=adb.env,
                start_new_session=True,  # an interrupt from the keyboard is this program's, not adb's
            )
        except OSError as error:
            raise DeviceError(f"{adb.program} cannot be started: {error.strerror}") from error
        self._listener = _Listener(self._keeper, self._word.encode())
        try:
            self._wait_for_the_folder(self._listener)
        except BaseException:
            self._dismiss()
            raise
        return self

    def _wait_for_the_folder(self, listener: "_Listener") -> None:
        adb, serial = self._device.adb, self._device.serial
        if not listener.ready.wait(adb.waits.command):
            raise DeviceLostError(
                f"{serial} did not make a folder within {adb.waits.command:g} s",
                hint="see whether adb shell answers; reconnect the cable, or restart the phone",
            )
        if not listener.made:
            done = Completed(1, "", listener.text())
            raise adb.failure(serial, f"make a folder in {ROOT}", done)

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Remove the folder.

        Raises:
            DeviceError: It is still there, and nothing worse happened before.
        """
        removed = self._dismiss()
        if removed:
            return
        serial = self._device.serial
        left = f"{self.path} may be left on {serial}: adb -s {shlex.quote(serial)} shell rm -rf {self.path}"
        if isinstance(error, DeviceLostError):
            return  # the device removes it by itself; nobody can look
        if isinstance(error, ShufflectlError):
            error.hint = f"{error.hint}; {left}" if error.hint else left
        elif error is None:
            raise DeviceError(f"the folder of this measurement was not removed: {left}")

    @property
    def alive(self) -> bool:
        """Whether the folder is still kept; False after the connection broke or the device was restarted."""
        return self._keeper is not None and self._keeper.poll() is None

    def _dismiss(self) -> bool:
        """End the keeper, and return whether the folder is gone."""
        keeper, listener = self._keeper, self._listener
        if keeper is None or listener is None:
            return True
        self._keeper = None
        with suppress(OSError):
            if keeper.stdin is not None:
                keeper.stdin.close()
        wait = self._device.adb.waits.farewell
        try:
            keeper.wait(wait)
        except subprocess.TimeoutExpired:
            _LOG.debug("the keeper of %s does not end", self.path)
        finally:
            if keeper.poll() is None:
                keeper.kill()
                keeper.wait()
            listener.join(1.0)
        if listener.removed or not listener.made:
            return True
        try:
            gone = self._device.shell(
                f"{self._farewell}rm -rf {self.path}; [ ! -e {self.path} ]", timeout=wait
            )
        except DeviceError:
            return False
        return gone.status == 0


class _Listener(threading.Thread):
    """Hears what a keeper says: the word once the folder is made, and again once it is gone."""

    _ENOUGH: Final = 64 << 10

    def __init__(self, keeper: "subprocess.Popen[bytes]", word: bytes) -> None:
        super().__init__(daemon=True)
        self.ready = threading.Event()
        self._keeper = keeper
        self._word = word
        self._heard = b""
        self.start()

    @property
    def made(self) -> bool:
        return self._word in self._heard

    @property
    def removed(self) -> bool:
        return self._heard.count(self._word) > 1

    def text(self) -> str:
        return self._heard.decode(errors="replace")

    def run(self) -> None:
        stream = self._keeper.stdout
        assert stream is not None  # noqa: S101 - it is a pipe, which the type does not say
        with suppress(OSError, ValueError), stream:
            while chunk := stream.read(4096):
                self._heard = (self._heard + chunk)[-self._ENOUGH :]
                if self.made:
                    self.ready.set()
        self.ready.set()
