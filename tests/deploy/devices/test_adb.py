"""Where the adb client is looked for, and what its words mean. No client is called here."""

from pathlib import Path

import pytest

from shufflectl.deploy.devices.adb import Adb, said
from shufflectl.deploy.devices.preflight import program_abi
from shufflectl.deploy.process import Completed
from shufflectl.errors import ArtifactError, DeviceError, DeviceLostError, UnavailableError
from support.adb_daemon import program


def client(folder: Path) -> Path:
    folder.mkdir(parents=True)
    path = folder / "adb"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_client_is_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, variable, on_path = (client(tmp_path / name) for name in ("named", "variable", "path"))
    sdk = client(tmp_path / "sdk" / "platform-tools")
    studio = client(tmp_path / "home" / "Android" / "Sdk" / "platform-tools")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    env = {"PATH": str(on_path.parent), "ADB": str(variable), "ANDROID_HOME": str(sdk.parents[1])}
    assert str(named) == Adb.find(named, env=env).program
    assert str(variable) == Adb.find(env=env).program
    del env["ADB"]
    assert str(on_path) == Adb.find(env=env).program
    env["PATH"] = ""
    assert str(sdk) == Adb.find(env=env).program
    del env["ANDROID_HOME"]
    assert str(studio) == Adb.find(env=env).program
    studio.unlink()
    with pytest.raises(UnavailableError, match="was not found"):
        Adb.find(env=env)


@pytest.mark.parametrize("where", ["--adb", "ADB"])
def test_a_named_client_that_does_not_exist_is_not_replaced_by_another(tmp_path: Path, where: str) -> None:
    there = client(tmp_path / "path")
    env = {"PATH": str(there.parent)}
    missing = str(tmp_path / "missing")
    named = missing if where == "--adb" else None
    with pytest.raises(UnavailableError, match=f"named by .*{where}"):
        Adb.find(named, env=env if named else {**env, "ADB": missing})


@pytest.mark.parametrize(
    ("stderr", "kind", "words"),
    [
        ("error: device offline\n", DeviceLostError, "was lost"),
        ("error: device '1234' not found\n", DeviceLostError, "was lost"),
        ("error: closed\n", DeviceLostError, "was lost"),
        ("", DeviceLostError, "the connection ended"),
        (
            "error: device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set\n",
            DeviceError,
            "let this",
        ),
        ("adb: error: failed to copy 'a' to 'b': remote No space left on device\n", DeviceError, "full"),
        (
            "adb: error: failed to copy 'a' to 'b': remote Permission denied\n",
            DeviceError,
            "Permission denied",
        ),
    ],
)
def test_words_of_the_client_become_errors(stderr: str, kind: type[DeviceError], words: str) -> None:
    error = Adb("adb").failure("1234", "take a.tflite", Completed(1, "", stderr))
    assert kind is type(error)
    assert words in error.message
    assert error.hint


def test_what_the_client_said_is_one_clean_line() -> None:
    done = Completed(1, "1 file pushed\n", "* daemon started successfully\nadb: error: \x1b[31mno\x07\n")
    assert "?[31mno?" == said(done)


@pytest.mark.parametrize(
    ("machine", "bits", "abi"),
    [
        (183, 64, "arm64-v8a"),
        (40, 32, "armeabi-v7a"),
        (62, 64, "x86_64"),
        (3, 32, "x86"),
        (21, 64, "ELF machine 21"),
    ],
)
def test_the_instruction_set_of_a_program_is_in_its_header(
    tmp_path: Path, machine: int, bits: int, abi: str
) -> None:
    path = tmp_path / "runner"
    path.write_bytes(program("", machine=machine, bits=bits))
    assert abi == program_abi(path)


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n" * 10, b"\x7fELF\x02\x01", b"MZ" + bytes(100)])
def test_what_is_no_program_for_android_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "runner"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="no program"):
        program_abi(path)
