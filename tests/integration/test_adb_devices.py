"""The device layer against the real adb client, with a phone in this process: what works, what goes wrong."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shufflectl.deploy.devices import (
    FAREWELL,
    AndroidDevice,
    Workspace,
    find_device,
    fix_clocks,
    require_program,
    require_quiet,
    require_room,
    require_tools,
    survey,
)
from shufflectl.errors import DeviceError, DeviceLostError, ShufflectlError, UnstableError, UsageError
from support.adb_daemon import Daemon, Phone, program
from support.adb_server import WAITS, AdbServer

pytestmark = pytest.mark.integration

QUICK = replace(WAITS, command=2, slack=1, transfer=3, farewell=3)


@pytest.fixture
def device(adb_server: AdbServer, daemon: Daemon) -> AndroidDevice:
    return find_device(adb_server.client(), daemon.serial)


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_a_command_has_its_own_status_and_streams(device: AndroidDevice) -> None:
    with Workspace(device) as folder:
        ran = device.run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout=5, folder=folder.path)
    assert (3, "out\n", "err\n", False) == (ran.status, ran.stdout, ran.stderr, ran.timed_out)


def test_arguments_reach_a_program_as_they_are(device: AndroidDevice) -> None:
    words = ["a b", "$HOME", "; reboot", "'\"", "*", "\\", "", "`id`", "ü"]
    with Workspace(device) as folder:
        ran = device.run(
            ["printf", "%s\\n", *words], timeout=5, folder=folder.path, env={"LC_ALL": "it's; exit 9"}
        )
    assert words == ran.stdout.splitlines()


def test_a_status_of_1_is_the_commands_and_no_failure_of_adb(device: AndroidDevice) -> None:
    with Workspace(device) as folder:
        script = "echo 'error: device offline' >&2; exit 1"
        ran = device.run(["sh", "-c", script], timeout=5, folder=folder.path)
    assert 1 == ran.status


def test_the_device_kills_what_takes_too_long(device: AndroidDevice) -> None:
    with Workspace(device) as folder:
        ran = device.run(["sleep", "60"], timeout=1, folder=folder.path)
    assert ran.timed_out


def test_a_program_that_something_else_killed_was_not_out_of_time(device: AndroidDevice) -> None:
    with Workspace(device) as folder:
        ran = device.run(["sh", "-c", "kill -9 $$"], timeout=20, folder=folder.path)
    assert (137, False) == (ran.status, ran.timed_out)


def test_cores_are_given_to_taskset_as_its_mask(device: AndroidDevice, daemon: Daemon) -> None:
    with Workspace(device) as folder:
        ran = device.run(["echo", "hi"], timeout=5, folder=folder.path, cores=(4, 5, 6, 7))
    assert "hi\n" == ran.stdout
    assert "f0\n" == (daemon.phone.root / "etc/taskset.log").read_text()


def test_cores_that_the_device_refuses_are_an_error(device: AndroidDevice, daemon: Daemon) -> None:
    daemon.phone.put("etc/no_taskset", "")
    with Workspace(device) as folder, pytest.raises(DeviceError, match="cannot pin a program to cores 7"):
        device.run(["echo", "hi"], timeout=5, folder=folder.path, cores=(7,))


@pytest.mark.parametrize("name", ["plain.bin", 'it\'s a "file" $(id).bin', "-rf ü.bin"])
def test_files_go_there_and_come_back_whole(device: AndroidDevice, tmp_path: Path, name: str) -> None:
    sent, back = tmp_path / name, tmp_path / f"back {name}"
    sent.write_bytes(os.urandom(300_000))
    with Workspace(device) as folder:
        device.push(sent, f"{folder.path}/model")
        device.pull(f"{folder.path}/model", back)
    assert sent.read_bytes() == back.read_bytes()


def test_a_program_that_was_sent_can_be_run(device: AndroidDevice, tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_text("#!/bin/sh\necho ran\n")
    with Workspace(device) as folder:
        device.push(path, f"{folder.path}/program", executable=True)
        assert "ran\n" == device.shell(f"{folder.path}/program").stdout


def test_a_file_that_is_not_there_does_not_come(device: AndroidDevice, tmp_path: Path) -> None:
    with Workspace(device) as folder, pytest.raises(DeviceError, match="has no file"):
        device.pull(f"{folder.path}/missing", tmp_path / "back")


def test_a_file_that_is_too_large_does_not_come(device: AndroidDevice, tmp_path: Path) -> None:
    with Workspace(device) as folder:
        device.shell(f"head -c 5000 /dev/zero > {folder.path}/large")
        with pytest.raises(DeviceError, match="5000 bytes"):
            device.pull(f"{folder.path}/large", tmp_path / "back", limit=4999)
    assert not (tmp_path / "back").exists()


class TestTheFolderIsGone:
    """However a measurement ends."""

    def test_when_it_ends_well(self, device: AndroidDevice, daemon: Daemon) -> None:
        with Workspace(device) as folder:
            assert [Path(folder.path).name] == daemon.phone.left
        assert [] == daemon.phone.left

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    def test_when_it_fails(self, device: AndroidDevice, daemon: Daemon, error: type[BaseException]) -> None:
        with pytest.raises(error), Workspace(device):
            raise error
        assert [] == daemon.phone.left

    @pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    def test_when_this_program_is_killed_in_a_run(
        self, adb_server: AdbServer, daemon: Daemon, with_signal: signal.Signals
    ) -> None:
        code = (
            "import signal, sys\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # background jobs ignore it
            "from shufflectl.deploy.devices import *\n"
            "device = find_device(Adb.find(), sys.argv[1])\n"
            "with Workspace(device, [FAREWELL]) as folder:\n"
            "    print('in', flush=True)\n"
            "    device.run(['sleep', '47'], timeout=60, folder=folder.path)\n"
        )
        program = subprocess.Popen(
            [sys.executable, "-c", code, daemon.serial],
            env=adb_server.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        with program:
            assert b"in\n" == program.stdout.readline()  # type: ignore[union-attr]
            sleeping = lambda: any("sleep 47" in c for c in daemon.phone.commands)  # noqa: E731
            assert eventually(sleeping)
            time.sleep(0.1)
            program.send_signal(with_signal)
            program.wait(15)
        assert eventually(lambda: daemon.phone.left == [])
        assert eventually(lambda: all(process.poll() is not None for process in daemon.running))
        assert "false" in (daemon.phone.root / "etc/cmd.log").read_text()

    def test_when_the_cable_is_pulled_in_a_run(self, device: AndroidDevice, daemon: Daemon) -> None:
        daemon.faults.drop = "sleep 47"
        with pytest.raises(DeviceLostError, match="was lost"), Workspace(device) as folder:
            device.run(["sleep", "47"], timeout=60, folder=folder.path)
        assert eventually(lambda: daemon.phone.left == [])

    def test_when_the_adb_server_is_killed_in_a_run(
        self, device: AndroidDevice, daemon: Daemon, adb_server: AdbServer
    ) -> None:
        threading.Timer(0.5, adb_server.call, ("kill-server",)).start()
        with pytest.raises(DeviceLostError), Workspace(device) as folder:
            device.run(["sleep", "47"], timeout=60, folder=folder.path)
        assert eventually(lambda: daemon.phone.left == [])

    def test_after_a_reboot_by_the_next_measurement(
        self, device: AndroidDevice, daemon: Daemon, adb_server: AdbServer
    ) -> None:
        threading.Timer(0.5, daemon.reboot).start()
        with pytest.raises(DeviceLostError), Workspace(device) as folder:
            device.run(["sleep", "47"], timeout=60, folder=folder.path)
        assert [Path(folder.path).name] == daemon.phone.left
        adb_server.connect(daemon)
        assert eventually(lambda: "up\n" == adb_server.call("-s", daemon.serial, "shell", "echo up"))
        with Workspace(device) as folder:
            assert [Path(folder.path).name] == daemon.phone.left
        assert [] == daemon.phone.left

    def test_but_not_that_of_another_measurement(self, device: AndroidDevice, daemon: Daemon) -> None:
        with Workspace(device) as first, Workspace(device) as second:
            assert sorted(Path(folder.path).name for folder in (first, second)) == daemon.phone.left

    def test_and_what_runs_there_is_ended(self, device: AndroidDevice) -> None:
        with Workspace(device) as folder:
            device.shell(f"cd {folder.path}; sleep 48 > /dev/null 2>&1 &")
        assert eventually(lambda: "sleep 48" not in subprocess.check_output(["ps", "ax"], text=True))


class TestFixedPerformance:
    """The mode is believed when clocks move, and turned off in every ending."""

    LOWER = (
        'case "$3" in true) v=1000000;; *) v=2800000;; esac\n'
        "for c in 4 5 6 7; do\n"
        '  echo $v > "$PHONE/sys/devices/system/cpu/cpu$c/cpufreq/scaling_max_freq"\ndone\n'
    )

    def test_it_is_on_while_it_lasts(self, device: AndroidDevice, daemon: Daemon) -> None:
        daemon.phone.put("etc/cmd", self.LOWER)
        with Workspace(device, [FAREWELL]):
            assert {1_800_000, 1_000_000} == {core.cap_khz for core in fix_clocks(device)}
        assert {1_800_000, 2_800_000} == {core.cap_khz for core in device.snapshot().cores}

    def test_a_mode_that_does_nothing_is_an_error(self, device: AndroidDevice, daemon: Daemon) -> None:
        with Workspace(device, [FAREWELL]), pytest.raises(DeviceError, match="no clock's limits moved"):
            fix_clocks(device, patience=0.3)
        assert "enabled false" in (daemon.phone.root / "etc/cmd.log").read_text()

    def test_a_mode_that_is_refused_is_an_error(self, device: AndroidDevice, daemon: Daemon) -> None:
        daemon.phone.put("etc/cmd", "echo 'Failed to set FIXED_PERFORMANCE mode' >&2; exit 255")
        with Workspace(device, [FAREWELL]), pytest.raises(DeviceError, match="Failed to set"):
            fix_clocks(device)

    def test_an_old_phone_has_none(self, device: AndroidDevice, daemon: Daemon) -> None:
        daemon.phone.put("etc/getprop", "[ro.build.version.sdk]: [29]\n")
        with pytest.raises(DeviceError, match="API level is 29"):
            fix_clocks(device)


class TestWhichDevice:
    """One is taken when there is one; of several, the one that is named."""

    def test_the_only_one(self, adb_server: AdbServer, daemon: Daemon) -> None:
        assert daemon.serial == find_device(adb_server.client()).serial

    def test_none(self, adb_server: AdbServer) -> None:
        with pytest.raises(DeviceError, match="no Android device is connected"):
            find_device(adb_server.client())

    @pytest.mark.usefixtures("daemon")
    def test_two(self, adb_server: AdbServer, tmp_path: Path) -> None:
        other = Daemon(Phone(tmp_path / "other"))
        adb_server.connect(other)
        try:
            with pytest.raises(UsageError, match="2 devices are connected") as caught:
                find_device(adb_server.client())
            assert "--device android:127.0.0.1:" in caught.value.hint
            assert other.serial == find_device(adb_server.client(), other.serial).serial
        finally:
            adb_server.forget(other)
            other.close()

    @pytest.mark.usefixtures("daemon")
    def test_one_that_is_not_there(self, adb_server: AdbServer) -> None:
        with pytest.raises(UsageError, match="no device 'emulator-5554'"):
            find_device(adb_server.client(), "emulator-5554")

    def test_one_that_does_not_let_us_in(self, adb_server: AdbServer, daemon: Daemon, tmp_path: Path) -> None:
        stranger = Daemon(Phone(tmp_path / "stranger"))
        stranger.faults.unauthorized = True
        adb_server.connect(stranger)
        try:
            with pytest.raises(DeviceError, match="not authorised") as caught:
                find_device(adb_server.client(), stranger.serial)
            assert "Allow USB debugging" in caught.value.hint
            found = {item.serial: item for item in survey(adb_server.client())}
            assert not found[stranger.serial].usable
            assert found[daemon.serial].usable
        finally:
            adb_server.forget(stranger)
            stranger.close()

    def test_one_without_shell_v2(self, adb_server: AdbServer, tmp_path: Path) -> None:
        old = Daemon(Phone(tmp_path / "old"), features="cmd,stat_v2")
        adb_server.connect(old)
        try:
            with pytest.raises(DeviceError, match="shell_v2"):
                find_device(adb_server.client(), old.serial)
        finally:
            adb_server.forget(old)
            old.close()


class TestWhatIsRefusedBefore:
    """A figure that would mean nothing is not taken."""

    @pytest.mark.parametrize(
        ("spoil", "words"),
        [
            (lambda phone: phone.thermal(override=True), "fixed by hand"),
            (lambda phone: phone.battery(7), "battery is at 7 %"),
            (lambda phone: phone.put("etc/low_power", "1\n"), "battery saver"),
        ],
    )
    def test_a_phone_in_a_state(
        self, device: AndroidDevice, daemon: Daemon, spoil: Callable[[Phone], None], words: str
    ) -> None:
        spoil(daemon.phone)
        with pytest.raises(UnstableError, match=words) as caught:
            require_quiet(device, device.snapshot())
        assert caught.value.hint

    def test_a_program_for_another_instruction_set(self, device: AndroidDevice, tmp_path: Path) -> None:
        path = tmp_path / "benchmark_model"
        path.write_bytes(program("", machine=62))
        with pytest.raises(DeviceError, match=r"for x86_64, and .* runs arm64-v8a, armeabi-v7a"):
            require_program(device, path)

    def test_a_phone_that_is_full(self, device: AndroidDevice, daemon: Daemon) -> None:
        daemon.phone.put(
            "etc/df",
            "Filesystem      1K-blocks     Used Available Use% Mounted on\n"
            "/dev/block/dm-9      1000      999         1 100% /data\n",
        )
        with pytest.raises(DeviceError, match=r"0\.0 MB free on /data, and 5\.0 MB are needed"):
            require_room(device, 5_000_000)

    def test_a_phone_without_the_tools(self, device: AndroidDevice) -> None:
        require_tools(device)
        with pytest.raises(DeviceError, match="lacks no-such-tool"):
            require_tools(device, ["no-such-tool"])


class TestFaults:
    """What breaks on the way gives a sentence and a hint, and never hangs."""

    def broken(
        self, adb_server: AdbServer, daemon: Daemon, kind: type[ShufflectlError], words: str
    ) -> Callable[[Callable[[AndroidDevice, str], object]], None]:
        device = find_device(adb_server.client(QUICK), daemon.serial)

        def during(work: Callable[[AndroidDevice, str], object]) -> None:
            with pytest.raises(kind, match=words) as caught, Workspace(device) as folder:
                work(device, folder.path)
            assert kind is type(caught.value)
            assert caught.value.hint
            assert eventually(lambda: daemon.phone.left == [])

        return during

    def test_a_full_storage(self, adb_server: AdbServer, daemon: Daemon, tmp_path: Path) -> None:
        path = tmp_path / "model"
        path.write_bytes(b"x" * 1000)
        daemon.faults.no_space = True
        broken = self.broken(adb_server, daemon, DeviceError, "storage is full")
        broken(lambda device, folder: device.push(path, f"{folder}/model"))

    def test_a_file_that_arrives_as_another(
        self, adb_server: AdbServer, daemon: Daemon, tmp_path: Path
    ) -> None:
        path = tmp_path / "model"
        path.write_bytes(b"x" * 1000)
        daemon.faults.corrupt = True
        broken = self.broken(adb_server, daemon, DeviceError, "as something else")
        broken(lambda device, folder: device.push(path, f"{folder}/model"))

    def test_a_file_that_comes_in_part(self, adb_server: AdbServer, daemon: Daemon, tmp_path: Path) -> None:
        def work(device: AndroidDevice, folder: str) -> None:
            device.shell(f"head -c 100000 /dev/urandom > {folder}/result")
            device.pull(f"{folder}/result", tmp_path / "back")

        daemon.faults.truncate = True
        self.broken(adb_server, daemon, DeviceError, "damaged or in part")(work)
        assert [] == [path.name for path in tmp_path.iterdir() if path.name != "phone"]

    def test_a_link_that_is_too_slow(self, adb_server: AdbServer, daemon: Daemon, tmp_path: Path) -> None:
        path = tmp_path / "model"
        path.write_bytes(b"x" * 300_000)

        def work(device: AndroidDevice, folder: str) -> None:
            daemon.faults.delay = 2.0
            try:
                device.push(path, f"{folder}/model")
            finally:
                daemon.faults.delay = 0.0

        self.broken(adb_server, daemon, DeviceLostError, "did not answer within")(work)

    def test_a_shell_that_hangs(self, adb_server: AdbServer, daemon: Daemon) -> None:
        daemon.faults.hang = "echo hi"
        broken = self.broken(adb_server, daemon, DeviceLostError, "did not answer within 2 s")
        broken(lambda device, _: device.shell("echo hi"))

    def test_noise_in_place_of_an_answer(self, adb_server: AdbServer, daemon: Daemon) -> None:
        daemon.faults.garbage = "echo hi"
        broken = self.broken(adb_server, daemon, DeviceError, "cannot run echo")
        broken(lambda device, _: device.shell("echo hi"))

    def test_output_without_end(self, adb_server: AdbServer, daemon: Daemon) -> None:
        daemon.faults.flood = "echo hi"
        broken = self.broken(adb_server, daemon, DeviceError, "printed more than 1000000 bytes")
        broken(lambda device, _: device.shell("echo hi", limit=1_000_000))

    def test_a_folder_that_somebody_removed(self, adb_server: AdbServer, daemon: Daemon) -> None:
        def work(device: AndroidDevice, folder: str) -> None:
            device.shell(f"rm -rf {folder}")
            device.run(["echo", "hi"], timeout=1, folder=folder)

        self.broken(adb_server, daemon, DeviceLostError, "is gone")(work)

    def test_a_folder_that_cannot_be_made(self, adb_server: AdbServer, daemon: Daemon) -> None:
        (daemon.phone.root / "data/local/tmp").rmdir()
        device = find_device(adb_server.client(QUICK), daemon.serial)
        with pytest.raises(DeviceError, match="cannot make a folder in /data/local/tmp"), Workspace(device):
            pass

    def test_a_phone_that_says_nothing_about_itself(self, adb_server: AdbServer, daemon: Daemon) -> None:
        daemon.phone.put("etc/getprop", "")
        broken = self.broken(adb_server, daemon, DeviceError, "getprop is empty")
        broken(lambda device, _: device.identity)


class TestTheCommand:
    """`shufflectl devices`, as a user calls it."""

    def test_a_phone_is_shown(self, adb_server: AdbServer, daemon: Daemon, run_cli: Any) -> None:
        run = run_cli("devices", env=adb_server.env)
        assert 0 == run.status, run.stderr
        for word in (daemon.serial, "Maker Phone 9", "Chips C1000", "arm64-v8a", "34", "80", "none, 32"):
            assert word in run.stdout

    def test_a_phone_is_a_document(self, adb_server: AdbServer, daemon: Daemon, run_cli: Any) -> None:
        daemon.phone.thermal(2, skin=44.0)
        run = run_cli("devices", "--json", env=adb_server.env)
        assert 7 == run.status
        (found,) = run.document["devices"]
        assert ("shufflectl.devices/1", daemon.serial) == (run.document["schema"], found["serial"])
        assert (2, "moderate", False) == (
            found["thermal"]["status"],
            found["thermal"]["word"],
            found["usable"],
        )
        assert "hot" in found["problems"][0]["text"]

    def test_none_is_exit_code_7(self, adb_server: AdbServer, run_cli: Any) -> None:
        run = run_cli("devices", env=adb_server.env)
        assert 7 == run.status
        assert "no Android device is connected" in run.stderr

    def test_a_client_that_is_missing_is_exit_code_7(self, tmp_path: Path, run_cli: Any) -> None:
        run = run_cli("devices", "--adb", tmp_path / "adb")
        assert 7 == run.status
        assert "there is no adb client" in run.stderr
        assert "platform-tools" in run.stderr

    def test_the_doctor_shows_it_too(self, adb_server: AdbServer, daemon: Daemon) -> None:
        code = (
            "from shufflectl.deploy.doctor import _devices\n"
            "print([(c.name, c.state, c.detail) for c in _devices()])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=adb_server.env, capture_output=True, text=True, check=True
        )
        assert f"('{daemon.serial}', 'ok', 'Maker Phone 9')" in done.stdout
