"""A phone in this process: the device's side of the ADB protocol over TCP, for the real adb client.

`Daemon` answers the client: connection, authorisation, ``shell`` (v2), ``exec`` and file ``sync``, with
faults to inject (`Faults`). `Phone` is what lies behind it: a folder that plays the file system, and small
programs that play ``getprop``, ``dumpsys``, ``cmd``, ``settings``, ``taskset`` and ``timeout``. Its shell is
this machine's.

The protocol: packages/modules/adb/protocol.txt, SYNC.TXT and shell_protocol.h of Android.
"""

import os
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

CONNECT, AUTH, OPEN, OKAY, CLOSE, WRITE = (
    int.from_bytes(name, "little") for name in (b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"CLSE", b"WRTE")
)
VERSION, LARGEST = 0x01000001, 256 << 10
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = 0, 1, 2, 3, 4
FEATURES = "shell_v2,cmd,stat_v2,ls_v2,fixed_push_mkdir"
ELF_HEADER = 64
OWN_PATHS = (
    "/data/local/tmp",
    "/sys/devices/system/cpu",
    "/proc/loadavg",
    "/proc/self/status",
    "/proc/sys/kernel",
)


@dataclass
class Faults:
    """What goes wrong. Patterns are searched for in the command that the client asks for.

    Attributes:
        unauthorized: The phone never accepts this computer.
        drop: The connection breaks as soon as such a command was started.
        hang: Such a command is never answered.
        garbage: Such a command answers with noise.
        flood: Such a command never stops to print.
        delay: Seconds that every packet to the client takes.
        no_space: Files cannot be written.
        truncate: Files are sent in part.
        corrupt: Files arrive with one bit turned.
    """

    unauthorized: bool = False
    drop: str = ""
    hang: str = ""
    garbage: str = ""
    flood: str = ""
    delay: float = 0.0
    no_space: bool = False
    truncate: bool = False
    corrupt: bool = False


@dataclass
class Phone:
    """A folder that plays a phone.

    Attributes:
        root: The folder.
        commands: What the shell was asked to run, in order.
    """

    root: Path
    commands: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for folder in ("data/local/tmp", "bin", "etc", "proc/sys/kernel/random", "proc/self"):
            (self.root / folder).mkdir(parents=True)
        self.put("proc/loadavg", "0.52 0.58 0.59 1/1234 5678\n")
        self.put("proc/sys/kernel/random/boot_id", "first boot\n")
        self.put("etc/low_power", "0\n")
        self.put(
            "etc/getprop",
            "[ro.build.fingerprint]: [maker/phone/phone:14/AB1.2/3:user/release-keys]\n"
            "[ro.build.version.release]: [14]\n[ro.build.version.sdk]: [34]\n"
            "[ro.product.cpu.abilist]: [arm64-v8a,armeabi-v7a,armeabi]\n"
            "[ro.product.manufacturer]: [Maker]\n[ro.product.model]: [Phone 9]\n"
            "[ro.soc.manufacturer]: [Chips]\n[ro.soc.model]: [C1000]\n",
        )
        self.thermal()
        self.battery()
        for core in range(8):
            self.clock(core, 1_800_000 if core < 4 else 2_800_000)
        self.program("getprop", 'cat "$PHONE/etc/getprop"')
        self.program(
            "dumpsys", 'cat "$PHONE/etc/dumpsys.$1" 2>/dev/null || echo "Can\'t find service: $1" >&2'
        )
        self.program("settings", 'cat "$PHONE/etc/$3"')
        self.program(
            "cmd", 'echo "$*" >> "$PHONE/etc/cmd.log"; [ ! -f "$PHONE/etc/cmd" ] || . "$PHONE/etc/cmd"'
        )
        self.program("df", 'if [ -f "$PHONE/etc/df" ]; then cat "$PHONE/etc/df"; else exec /bin/df "$@"; fi')
        self.program(
            "taskset",
            'echo "$1" >> "$PHONE/etc/taskset.log"\n'
            'allowed=$(cat "$PHONE/etc/cpuset" 2>/dev/null || echo "$1"); shift\n'
            'printf "Name:\\tgrep\\nCpus_allowed:\\t%s\\n" "$allowed" > "$PHONE/proc/self/status"\n'
            'if [ -f "$PHONE/etc/no_taskset" ]; then echo "taskset: Invalid argument" >&2; exit 1; fi\n'
            'exec emulate "$@"',
        )
        self.program("timeout", f'n=$3; shift 3; exec {shutil.which("timeout")} -s KILL "$n" emulate "$@"')
        # A program of another instruction set: an ELF header, then a script for this machine's shell.
        self.program(
            "emulate",
            # What waits before it starts a program is left out; cores are given as the phone gives them.
            'if [ $# -gt 4 ] && [ "$1 $2 $4" = "sh -c sh" ]; then shift 4; fi\n'
            f'case "$1" in */*) exec sh -c "$(tail -c +{ELF_HEADER + 1} "$1")" "$@" ;; esac\nexec "$@"',
        )

    def put(self, name: str, text: str) -> None:
        """Write a file."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def program(self, name: str, script: str) -> None:
        """Make a program of the phone from a shell script."""
        self.put(f"bin/{name}", f"#!/bin/sh\n{script}\n")
        (self.root / "bin" / name).chmod(0o755)

    def clock(self, core: int, khz: int, *, cap: int | None = None) -> None:
        """Set a core's maximum, and the cap on it."""
        folder = f"sys/devices/system/cpu/cpu{core}/cpufreq"
        self.put(f"{folder}/cpuinfo_max_freq", f"{khz}\n")
        self.put(f"{folder}/scaling_max_freq", f"{khz if cap is None else cap}\n")
        self.put(f"{folder}/scaling_min_freq", "300000\n")
        self.put(f"{folder}/scaling_cur_freq", "300000\n")
        self.put(f"{folder}/scaling_governor", "schedutil\n")

    def thermal(
        self, status: int = 0, skin: float = 31.5, cpu: float = 38.0, *, override: bool = False
    ) -> None:
        """Set the temperatures; the cached ones are far off, as on real phones."""
        self.put(
            "etc/dumpsys.thermalservice",
            f"IsStatusOverride: {str(override).lower()}\nThermalEventListeners:\n\tcallbacks: 1\n"
            f"Thermal Status: {status}\nCached temperatures:\n"
            "\tTemperature{mValue=84.2, mType=3, mName=SKIN, mStatus=3}\n"
            "HAL Ready: true\nHAL connection:\n\tThermalHAL AIDL 1 connected: yes\n"
            "Current temperatures from HAL:\n"
            f"\tTemperature{{mValue={skin}, mType=3, mName=SKIN, mStatus=0}}\n"
            f"\tTemperature{{mValue={cpu}, mType=0, mName=CPU0, mStatus=0}}\n"
            "\tTemperature{mValue=0.0, mType=1, mName=GPU, mStatus=0}\n"
            "Current cooling devices from HAL:\n"
            "\tCoolingDevice{mValue=0, mType=2, mName=cpu-cooling}\n",
        )

    def battery(self, level: int = 80) -> None:
        """Set the battery's level, in per cent."""
        self.put(
            "etc/dumpsys.battery",
            "Current Battery Service state:\n  AC powered: false\n  USB powered: true\n"
            f"  Wireless powered: false\n  status: 2\n  level: {level}\n  scale: 100\n  temperature: 312\n",
        )

    def local(self, path: str) -> Path:
        """Return where a path of the phone lies on this machine."""
        return self.root / os.path.normpath("/" + path).lstrip("/")

    @property
    def left(self) -> list[str]:
        """What lies in the folder that measurements use."""
        return sorted(path.name for path in (self.root / "data/local/tmp").iterdir())

    def start(self, command: str) -> "subprocess.Popen[bytes]":
        """Run a command in the phone's shell."""
        self.commands.append(command)
        for name in (
            "/data/local/tmp",
            "/sys/devices/system/cpu",
            "/proc/loadavg",
            "/proc/self/status",
            "/proc/sys/kernel",
        ):
            command = command.replace(name, f"{self.root}{name}")
        path = f"{self.root}/bin:{os.environ['PATH']}"
        return subprocess.Popen(
            ["sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=self.root,
            env={**os.environ, "PATH": path, "PHONE": str(self.root)},
            start_new_session=True,
        )


class Daemon:
    """Listens for the adb client on a port of its own (`port`), and answers as a phone does."""

    def __init__(self, phone: Phone, *, features: str = FEATURES) -> None:
        self.phone = phone
        self.faults = Faults()
        self.features = features
        self.running: list[subprocess.Popen[bytes]] = []
        self.connections: list[Connection] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def serial(self) -> str:
        """What names this phone to adb, once it is connected."""
        return f"127.0.0.1:{self.port}"

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection = Connection(client, self)
                self.connections.append(connection)
                threading.Thread(target=connection.serve, daemon=True).start()

    def unplug(self) -> None:
        """Break every connection, and take no new one: the cable is pulled."""
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.break_connections()

    def break_connections(self) -> None:
        """Break every connection; the client may come back."""
        for connection in self.connections:
            connection.hang_up()
        self.connections.clear()

    def reboot(self) -> None:
        """Lose power: nothing that runs gets to say good-bye, and the phone comes up again."""
        for process in self.running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        self.phone.put("proc/sys/kernel/random/boot_id", f"boot at {time.monotonic()}\n")
        self.break_connections()

    def close(self) -> None:
        """End everything."""
        self.unplug()
        for process in self.running:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()


class Connection:
    """One connection of the client: packets in, streams out."""

    def __init__(self, client: socket.socket, daemon: Daemon) -> None:
        self.daemon = daemon
        self.largest = LARGEST
        self._client = client
        self._lock = threading.Lock()
        self._streams: dict[int, Stream] = {}
        self._next = 1

    def send(self, command: int, first: int, second: int, data: bytes = b"") -> None:
        """Send one packet."""
        if self.daemon.faults.delay and data:
            time.sleep(self.daemon.faults.delay)
        head = struct.pack(
            "<6I", command, first, second, len(data), sum(data) & 0xFFFFFFFF, command ^ 0xFFFFFFFF
        )
        with self._lock:
            self._client.sendall(head + data)

    def hang_up(self) -> None:
        """End the connection without a word."""
        with suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)

    def serve(self) -> None:
        """Answer until the connection ends."""
        try:
            while True:
                command, first, second, size, _, magic = struct.unpack("<6I", self._receive(24))
                if magic != command ^ 0xFFFFFFFF:
                    break
                self._packet(command, first, second, self._receive(size))
        except (EOFError, OSError):
            pass
        finally:
            for stream in list(self._streams.values()):
                stream.end()
            self._client.close()

    def _packet(self, command: int, first: int, second: int, data: bytes) -> None:
        stream = self._streams.get(second)
        if command in (CONNECT, AUTH) and self.daemon.faults.unauthorized:
            self.send(AUTH, 1, 0, os.urandom(20))
        elif command == CONNECT:
            self.largest = min(second, LARGEST)
            banner = f"device::ro.product.name=phone;ro.product.model=Phone;features={self.daemon.features}"
            self.send(CONNECT, VERSION, LARGEST, banner.encode())
        elif command == OPEN:
            opened = Stream(self, self._next, first)
            self._streams[self._next] = opened
            self._next += 1
            service = data.rstrip(b"\0").decode()
            threading.Thread(target=self._serve, args=(opened, service), daemon=True).start()
        elif command == WRITE and stream is not None:
            stream.arrived.put(data)
            self.send(OKAY, second, first)
        elif command == OKAY and stream is not None:
            stream.ready.release()
        elif command == CLOSE and stream is not None:
            self._streams.pop(second)
            stream.end()

    def _serve(self, stream: "Stream", service: str) -> None:
        kind, _, rest = service.partition(":")
        try:
            if kind.split(",")[0] in ("shell", "exec"):
                self.send(OKAY, stream.here, stream.there)
                Shell(stream, self.daemon).run(rest)
            elif kind == "sync":
                self.send(OKAY, stream.here, stream.there)
                Sync(stream, self.daemon).run()
            with suppress(OSError):
                self.send(CLOSE, stream.here, stream.there)
        except (EOFError, OSError):
            pass
        finally:
            self._streams.pop(stream.here, None)

    def _receive(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = self._client.recv(size - len(data))
            if not chunk:
                raise EOFError
            data += chunk
        return bytes(data)


class Stream:
    """One stream of a connection, as its service reads and writes it."""

    def __init__(self, connection: Connection, here: int, there: int) -> None:
        self.connection = connection
        self.here, self.there = here, there
        self.arrived: SimpleQueue[bytes | None] = SimpleQueue()
        self.ready = threading.Semaphore(0)
        self.open = True
        self._rest = b""

    def write(self, data: bytes) -> None:
        """Send data, and wait until the client has it."""
        for begin in range(0, len(data), self.connection.largest):
            if not self.open:
                raise EOFError
            self.connection.send(WRITE, self.here, self.there, data[begin : begin + self.connection.largest])
            self.ready.acquire()

    def read(self, size: int) -> bytes:
        """Return exactly so many bytes."""
        while len(self._rest) < size:
            chunk = self.arrived.get()
            if chunk is None:
                raise EOFError
            self._rest += chunk
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def end(self) -> None:
        """Wake whoever waits: the client is gone."""
        self.open = False
        self.arrived.put(None)
        self.ready.release()


class Shell:
    """The service ``shell`` in its second version: packets of input, output, errors and the exit status."""

    def __init__(self, stream: Stream, daemon: Daemon) -> None:
        self.stream = stream
        self.daemon = daemon
        self._lock = threading.Lock()

    def run(self, command: str) -> None:
        """Run a command, or what a fault makes of it."""
        faults = self.daemon.faults

        def hit(pattern: str) -> bool:
            return bool(pattern) and re.search(pattern, command) is not None

        if hit(faults.hang):
            self.stream.read(1 << 30)
        if hit(faults.garbage):
            for kind in (STDOUT, STDERR):
                self._packet(kind, b"\n \r" + os.urandom(2000))  # blank lines first
            self._packet(EXIT, b"\0")
            return
        if hit(faults.flood):
            while True:
                self._packet(STDOUT, b"again and again\n" * 4096)
        process = self.daemon.phone.start(command)
        self.daemon.running.append(process)
        if hit(faults.drop):
            time.sleep(0.2)
            self.daemon.break_connections()
        threading.Thread(target=self._feed, args=(process,), daemon=True).start()
        pumps = [
            threading.Thread(target=self._pump, args=(source, kind), daemon=True)
            for source, kind in ((process.stdout, STDOUT), (process.stderr, STDERR))
        ]
        for pump in pumps:
            pump.start()
        for pump in pumps:
            pump.join()
        for source in (process.stdout, process.stderr):
            if source is not None:
                source.close()
        status = process.wait()
        self._packet(EXIT, bytes([status if status >= 0 else 128 - status]))

    def _packet(self, kind: int, data: bytes) -> None:
        with self._lock:
            self.stream.write(struct.pack("<BI", kind, len(data)) + data)

    def _pump(self, source: object, kind: int) -> None:
        with suppress(EOFError, OSError):
            while data := os.read(source.fileno(), 1 << 16):  # type: ignore[attr-defined]
                self._packet(kind, data)

    def _feed(self, process: "subprocess.Popen[bytes]") -> None:
        """Give the process its input; when the client goes away, hang up on it, as Android's daemon does."""
        assert process.stdin is not None
        try:
            while True:
                kind, size = struct.unpack("<BI", self.stream.read(5))
                data = self.stream.read(size)
                with suppress(OSError, ValueError):
                    if kind == STDIN:
                        process.stdin.write(data)
                    elif kind == CLOSE_STDIN:
                        process.stdin.close()
        except EOFError:
            with suppress(OSError):
                process.stdin.close()
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGHUP)


class Sync:
    """The service ``sync``: files there and back."""

    def __init__(self, stream: Stream, daemon: Daemon) -> None:
        self.stream = stream
        self.daemon = daemon

    def run(self) -> None:
        """Answer until the client quits."""
        answers: dict[bytes, Callable[[str], None]] = {
            b"STAT": self._stat,
            b"LSTA": self._stat,
            b"STA2": lambda path: self._stat2(path, b"STA2", follow=True),
            b"LST2": lambda path: self._stat2(path, b"LST2", follow=False),
            b"RECV": self._send_file,
            b"SEND": self._take_file,
        }
        while True:
            kind, size = struct.unpack("<4sI", self.stream.read(8))
            if kind == b"QUIT":
                return
            answers[kind](self.stream.read(size).decode())

    def _stat(self, path: str) -> None:
        try:
            found = os.lstat(self.daemon.phone.local(path))
            numbers = (found.st_mode, found.st_size & 0xFFFFFFFF, int(found.st_mtime))
        except OSError:
            numbers = (0, 0, 0)
        self.stream.write(struct.pack("<4s3I", b"STAT", *numbers))

    def _stat2(self, path: str, kind: bytes, *, follow: bool) -> None:
        local = self.daemon.phone.local(path)
        layout = "<4sIQQIIIIQqqq"
        try:
            s = local.stat() if follow else local.lstat()
            times = (int(s.st_atime), int(s.st_mtime), int(s.st_ctime))
            facts = (s.st_dev, s.st_ino, s.st_mode, s.st_nlink, 2000, 2000, s.st_size, *times)
            self.stream.write(struct.pack(layout, kind, 0, *facts))
        except OSError as error:
            self.stream.write(struct.pack(layout, kind, error.errno or 5, *[0] * 10))

    def _send_file(self, path: str) -> None:
        try:
            data = self.daemon.phone.local(path).read_bytes()
        except OSError as error:
            self._fail(f"open failed: {error.strerror}")
            return
        if self.daemon.faults.truncate:
            data = data[: len(data) // 2]
        for begin in range(0, len(data), 1 << 16):
            chunk = data[begin : begin + (1 << 16)]
            self.stream.write(b"DATA" + struct.pack("<I", len(chunk)) + chunk)
        self.stream.write(b"DONE\0\0\0\0")

    def _take_file(self, target: str) -> None:
        path, _, mode = target.rpartition(",")
        local = self.daemon.phone.local(path)
        data = bytearray()
        while True:
            kind, size = struct.unpack("<4sI", self.stream.read(8))
            if kind == b"DONE":
                break
            if self.daemon.faults.delay:
                time.sleep(self.daemon.faults.delay)
            data += self.stream.read(size)
        if self.daemon.faults.no_space:
            self._fail("couldn't create file: No space left on device")
            return
        if self.daemon.faults.corrupt:
            data[len(data) // 2] ^= 1
        try:
            local.write_bytes(data)
            local.chmod(stat.S_IMODE(int(mode)) | 0o600)
        except OSError as error:
            self._fail(f"couldn't create file: {error.strerror}")
            return
        self.stream.write(b"OKAY\0\0\0\0")

    def _fail(self, text: str) -> None:
        self.stream.write(b"FAIL" + struct.pack("<I", len(text)) + text.encode())


def program(script: str, *, machine: int = 183, bits: int = 64) -> bytes:
    """Return a program for the phone: the ELF header of its instruction set, then a shell script."""
    header = b"\x7fELF" + bytes([2 if bits == 64 else 1, 1, 1]) + bytes(9) + struct.pack("<HH", 3, machine)
    return header.ljust(ELF_HEADER, b"\0") + script.encode()


def connect(adb: Sequence[str], daemon: Daemon, env: dict[str, str]) -> None:
    """Make a server know the phone."""
    subprocess.run([*adb, "connect", daemon.serial], env=env, check=True, capture_output=True, timeout=20)
