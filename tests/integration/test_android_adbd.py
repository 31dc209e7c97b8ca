"""The whole path to a phone: the real adb client, a real device daemon (Debian's adbd), our runner in C.

The daemon that stands in for phones that fail is in `test_adb_devices`; here is one that is not ours.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.adbd import RealDevice

pytestmark = pytest.mark.integration

# What the device layer does, as a program in the daemon's network namespace.
LAYER = """
import pathlib, sys
from shufflectl.deploy.devices import Adb, Workspace, find_device, require_tools
device = find_device(Adb.find(), sys.argv[1])
require_tools(device, ("taskset",))
with Workspace(device) as folder:
    def run(*argv, **more):
        ran = device.run(argv, timeout=more.pop("timeout", 20), folder=folder.path, **more)
        return ran.status, ran.stdout, ran.stderr, ran.timed_out
    print(repr(eval(pathlib.Path(sys.argv[2]).read_text())))
"""


@pytest.fixture
def layer(real_device: RealDevice, tmp_path: Path) -> Callable[[str], object]:
    """Evaluates an expression of ``device``, ``folder`` and ``run`` on the device."""

    def evaluate(expression: str) -> object:
        source = tmp_path / "expression"
        source.write_text(expression)
        done = real_device.call(sys.executable, "-c", LAYER, real_device.serial, source)
        assert 0 == done.returncode, done.stderr
        return eval(done.stdout)  # noqa: S307 - what the line above printed

    return evaluate


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_program_has_its_own_status_streams_words_and_cores(
    real_device: RealDevice, layer: Callable[[str], object]
) -> None:
    words = ["a b", "$HOME", "; reboot", "'\"", "*", "\\", "", "ü"]
    found = layer(
        "[run('sh', '-c', 'echo out; echo err >&2; exit 3'),"
        f" run('sh', '-c', 'for word in \"$@\"; do echo \"$word\"; done', 'sh', *{words!r}),"
        " run('grep', 'Cpus_allowed:', '/proc/self/status', cores=[0]),"
        " run('sleep', '60', timeout=1)[0::3]]"
    )
    assert [
        (3, "out\n", "err\n", False),
        (0, "".join(f"{word}\n" for word in words), "", False),
        (0, "Cpus_allowed:\t1\n", "", False),
        (137, True),
    ] == found
    assert [] == real_device.left()


def test_the_status_of_a_program_that_ends_at_once_is_its_own(layer: Callable[[str], object]) -> None:
    assert [7] * 20 == layer("[run('sh', '-c', 'exit 7')[0] for _ in range(20)]")


def test_files_go_there_and_come_back_whole(
    real_device: RealDevice, layer: Callable[[str], object], tmp_path: Path
) -> None:
    sent, back = tmp_path / 'it\'s a "file" $HOME.bin', tmp_path / "back.bin"
    sent.write_bytes(bytes(range(256)) * 4096)
    layer(
        f"(device.push(pathlib.Path({str(sent)!r}), folder.path + '/a file'),"
        f" device.pull(folder.path + '/a file', pathlib.Path({str(back)!r})))"
    )
    assert sent.read_bytes() == back.read_bytes()
    assert [] == real_device.left()


def test_the_folder_is_gone_after_a_client_that_was_killed(real_device: RealDevice, tmp_path: Path) -> None:
    source = tmp_path / "expression"
    source.write_text("run('sleep', '600', timeout=600)")
    argv = real_device.inside([sys.executable, "-c", LAYER, real_device.serial, source])
    process = subprocess.Popen(argv, env=real_device.env)
    try:
        assert eventually(lambda: any(name.startswith("shufflectl-") for name in real_device.left()))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert eventually(lambda: [] == real_device.left())
    processes = ("adb", "-s", real_device.serial, "shell", "ps -A -o ARGS")
    assert eventually(lambda: "sleep 600" not in real_device.call(*processes).stdout)


def test_the_device_is_described(real_device: RealDevice) -> None:
    done = real_device.shufflectl("devices", "--json")
    assert 0 == done.returncode, done.stderr
    (found,) = json.loads(done.stdout)["devices"]
    assert (real_device.serial, "Debian adbd", True) == (found["serial"], found["model"], found["usable"])
