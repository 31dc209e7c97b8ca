"""Debian's own adbd in a network namespace: a real device daemon that the real adb client talks to.

The system on the device is made of packages of Debian trixie (adbd, mksh, toybox and what they need), fetched
with the machine's apt into folders of its own, unpacked, and used as the root of the daemon's process; small
programs stand in for Android's ``getprop``, ``dumpsys`` and ``settings``. The daemon asks nobody who they are
and listens on all addresses, so it runs in a network namespace in which there is nothing but it, adb's server
and the tests' clients; its own mount and process namespaces make all of it disappear with one process.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PORT", "RealDevice", "UnsupportedError", "running", "system"]

RELEASE = "trixie"  # bookworm has the client only
PACKAGES = ("adbd", "mksh", "toybox")
PORT = 15999  # away from the ports at which clients look for emulators
SLOW, FAST = "1500000", "2800000"
SYMLINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
FOLDERS = ("data/local/tmp", "dev", "proc", "sys", "tmp")

# Run by the system's shell as the first process of the namespaces; ends as adbd.
START = """
set -e
mount -t proc proc "$1/proc"
mount -t tmpfs -o mode=755 dev "$1/dev"
for node in null zero full random urandom tty; do
  : > "$1/dev/$node"
  mount --bind "/dev/$node" "$1/dev/$node"
done
mkdir "$1/dev/pts"
mount -t devpts -o ptmxmode=666,newinstance devpts "$1/dev/pts"
ln -s pts/ptmx "$1/dev/ptmx"
mount -t tmpfs -o mode=771 tmp "$1/data/local/tmp"
chroot "$1" /usr/bin/toybox ifconfig lo up
HOME="$3" "$4" nodaemon server > "$3/server.log" 2>&1 &
exec chroot "$1" /usr/bin/toybox env -i PATH=/usr/bin ADBD_PORT="$2" /usr/lib/android-sdk/platform-tools/adbd
"""

PROGRAMS = {
    "getprop": """
cat <<'END'
[ro.build.fingerprint]: [debian/adbd/trixie:14/TEST/1:user/test-keys]
[ro.build.version.release]: [14]
[ro.build.version.sdk]: [34]
[ro.product.cpu.abilist]: [@ABI@]
[ro.product.manufacturer]: [Debian]
[ro.product.model]: [adbd]
[ro.soc.manufacturer]: [Debian]
[ro.soc.model]: [chroot]
END
""",
    "dumpsys": """
case $1 in
thermalservice) cat <<'END'
IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 1
Thermal Status: 0
Cached temperatures:
\tTemperature{mValue=84.2, mType=3, mName=SKIN, mStatus=0}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{mValue=31.5, mType=3, mName=SKIN, mStatus=0}
\tTemperature{mValue=41.0, mType=0, mName=CPU0, mStatus=0}
Current cooling devices from HAL:
END
;;
battery) printf 'Current Battery Service state:\\n  USB powered: true\\n  level: 88\\n'
  echo '  temperature: 297' ;;
*) echo "Can't find service: $1"; exit 20 ;;
esac
""",
    "settings": "\necho 0\n",
}


class UnsupportedError(Exception):
    """This machine cannot run the daemon; the message says why."""


@dataclass(frozen=True)
class RealDevice:
    """A daemon that runs.

    Attributes:
        root: The folder that is the root of its file system.
        pid: A process in its network namespace.
        home: The home folder of its clients.
    """

    root: Path
    pid: int
    home: Path

    @property
    def serial(self) -> str:
        """What names it to adb."""
        return f"127.0.0.1:{PORT}"

    @property
    def env(self) -> dict[str, str]:
        """The environment of its clients."""
        names = (
            "ANDROID_SERIAL",
            "ADB_SERVER_SOCKET",
            "ANDROID_ADB_SERVER_ADDRESS",
            "ANDROID_ADB_SERVER_PORT",
        )
        kept = {name: value for name, value in os.environ.items() if name not in names}
        return {**kept, "HOME": str(self.home), "ADB": program("adb")}

    def inside(self, argv: Sequence[str | Path]) -> list[str]:
        """Return the command that runs another one in its network namespace."""
        user = [] if os.geteuid() == 0 else [f"--user=/proc/{self.pid}/ns/user", "--preserve-credentials"]
        return ["nsenter", *user, f"--net=/proc/{self.pid}/ns/net", "--", *map(str, argv)]

    def call(
        self, *argv: str | Path, env: dict[str, str] | None = None, timeout: float = 120
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command in its network namespace."""
        return subprocess.run(
            self.inside(argv),
            env={**self.env, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def shufflectl(
        self, *words: str | Path, env: dict[str, str] | None = None, timeout: float = 120
    ) -> "subprocess.CompletedProcess[str]":
        """Call the command line, as a user whose phone it is."""
        return self.call(sys.executable, "-m", "shufflectl", *words, env=env, timeout=timeout)

    def left(self) -> list[str]:
        """Return what measurements left behind on it."""
        done = self.call("adb", "-s", self.serial, "shell", "ls -A /data/local/tmp")
        assert 0 == done.returncode, done.stderr
        return done.stdout.split()


def program(name: str) -> str:
    """Return where a program is.

    Raises:
        UnsupportedError: It is not installed.
    """
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        raise UnsupportedError(f"the program {name} is not installed")
    return path


def system(folder: Path) -> Path:
    """Return the root of the device's file system, made in a folder unless it is there.

    Raises:
        UnsupportedError: This machine's apt cannot get the packages.
    """
    root = folder / "root"
    if (folder / "complete").exists():
        return root
    shutil.rmtree(folder, ignore_errors=True)
    archives = _download(folder)
    root.mkdir()
    for package in archives:
        _checked(["dpkg", "-x", package, root])
    for name, target in SYMLINKS.items():
        (root / name).symlink_to(target)
    for name in FOLDERS:
        (root / name).mkdir(parents=True)
    _make_programs(root)
    _make_cores(root)
    (folder / "complete").touch()
    return root


def _download(folder: Path) -> list[Path]:
    """Get the packages and all that they depend on, checked by apt against Debian's keys."""
    sources, archives = folder / "sources.list", folder / "cache" / "archives"
    for path in (folder / "state" / "lists" / "partial", archives / "partial"):
        path.mkdir(parents=True)
    (folder / "state" / "status").touch()  # nothing is installed there
    sources.write_text(_source(), encoding="ascii")
    apt = [
        program("apt-get"),
        *("-o", f"Dir::State={folder}/state", "-o", f"Dir::State::status={folder}/state/status"),
        *("-o", f"Dir::Cache={folder}/cache", "-o", f"Dir::Etc::sourcelist={sources}"),
        *("-o", "Dir::Etc::sourceparts=-", "-o", "Dir::Etc::preferencesparts=-"),
        *("-o", "Acquire::Languages=none", "-o", "APT::Sandbox::User=", "-o", "Debug::NoLocking=true"),
        *("-o", "Acquire::Retries=3", "-o", "APT::Update::Post-Invoke::=", "-qq"),
    ]
    _checked([*apt, "update"])
    _checked([*apt, "install", "--yes", "--no-install-recommends", "--download-only", *PACKAGES])
    found = sorted(archives.glob("*.deb"))
    if not found:
        raise UnsupportedError("apt-get downloaded nothing")
    return found


def _source() -> str:
    """Return where this machine's apt gets Debian from, with the other release in its own one's place."""
    words = Path("/etc/os-release").read_text(encoding="utf-8") if Path("/etc/os-release").exists() else ""
    codename = re.search(r"^VERSION_CODENAME=\"?(\w+)\"?$", words, re.MULTILINE)
    if not re.search(r"^ID=\"?debian\"?$", words, re.MULTILINE) or codename is None:
        raise UnsupportedError("this machine does not run Debian, whose packages the device is made of")
    form = "$(CREATED_BY)|$(RELEASE)|$(COMPONENT)|$(REPO_URI)|$(SIGNED_BY)"
    listed = _checked([program("apt-get"), "indextargets", "--no-release-info", "--format", form])
    for line in listed.splitlines():
        kind, release, component, uri, key = line.split("|")
        if (kind, release, component) == ("Packages", codename[1], "main"):
            signed = f"[signed-by={key}] " if key and "$" not in key and "\n" not in key else ""
            return f"deb {signed}{uri} {RELEASE} main\n"
    raise UnsupportedError(f"this machine's apt has no source of Debian {codename[1]}")


def _make_programs(root: Path) -> None:
    toybox = root / "usr/bin/toybox"
    for name in _checked([toybox]).split():
        path = root / "usr/bin" / name
        if not path.exists():
            path.symlink_to("toybox")
    (root / "usr/bin/sh").unlink(missing_ok=True)
    (root / "usr/bin/sh").symlink_to("mksh")
    abi = {"x86_64": "x86_64", "aarch64": "arm64-v8a"}.get(os.uname().machine, os.uname().machine)
    for name, text in PROGRAMS.items():
        path = root / "usr/bin" / name
        path.write_text(f"#!/bin/sh{text}".replace("@ABI@", abi), encoding="utf-8")
        path.chmod(0o755)


def _make_cores(root: Path) -> None:
    """Make the kernel's files on cores: this machine's, the last one a cluster of its own that is faster."""
    cores = sorted(os.sched_getaffinity(0))
    folder = root / "sys/devices/system/cpu"
    folder.mkdir(parents=True)
    for name in ("possible", "present", "online"):
        (folder / name).write_text(f"0-{cores[-1]}\n", encoding="ascii")
    for core in cores:
        speed = FAST if core == cores[-1] and len(cores) > 1 else SLOW
        clock = folder / f"cpu{core}" / "cpufreq"
        clock.mkdir(parents=True)
        for name in ("cpuinfo_max_freq", "scaling_max_freq", "scaling_cur_freq"):
            (clock / name).write_text(f"{speed}\n", encoding="ascii")
        (clock / "scaling_min_freq").write_text("300000\n", encoding="ascii")
        (clock / "scaling_governor").write_text("schedutil\n", encoding="ascii")


@contextmanager
def running(root: Path, home: Path) -> Iterator[RealDevice]:
    """Start the daemon and a server of adb in namespaces of their own; all of it is gone afterwards.

    Raises:
        UnsupportedError: This machine does not allow it, or lacks a program.
    """
    adb = program("adb")
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    argv = [
        *(program("setpriv"), "--pdeathsig", "KILL"),  # also when this process is killed
        *(program("unshare"), *user, "--net", "--pid", "--mount", "--fork", "--kill-child"),
        *("sh", "-c", START, "sh", str(root), str(PORT), str(home), adb),
    ]
    with (home / "adbd.log").open("wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    device = RealDevice(root, process.pid, home)
    try:
        _wait(device, process, home)
        yield device
    finally:
        _kill(process)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End the first process of the namespaces, and with it all others there; its parent takes note of it."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if process.poll() is None:
        for child in children.read_text(encoding="ascii").split() if children.exists() else []:
            os.kill(int(child), signal.SIGKILL)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(device: RealDevice, process: "subprocess.Popen[bytes]", home: Path) -> None:
    deadline = time.monotonic() + 30
    said = ""
    while time.monotonic() < deadline:
        if process.poll() is not None:
            said = (home / "adbd.log").read_text(errors="replace").strip()
            raise UnsupportedError(f"adbd cannot be started in namespaces of its own: {said[-300:]}")
        # Until then a client would start a server of its own, outside.
        if (home / "server.log").exists() and "started" in (home / "adbd.log").read_text(errors="replace"):
            done = device.call("adb", "connect", device.serial, timeout=20)
            said = done.stdout + done.stderr
            if device.call("adb", "-s", device.serial, "shell", "true", timeout=20).returncode == 0:
                return
        time.sleep(0.1)
    raise UnsupportedError(f"adbd does not answer: {said.strip()[-300:]}")


def _checked(argv: Sequence[str | Path]) -> str:
    try:
        done = subprocess.run(
            list(map(str, argv)), capture_output=True, text=True, timeout=300, check=False, env=_plain()
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnsupportedError(f"{argv[0]} failed: {error}") from error
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip()[-500:]
        raise UnsupportedError(f"{Path(argv[0]).name} {argv[-1]} failed: {words}")
    return done.stdout


def _plain() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
