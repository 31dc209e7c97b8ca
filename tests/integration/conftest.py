"""Fixtures of the tests that drive real programs."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from shufflectl.benchmarks.runner import NAME, build
from support import adbd
from support.adb_daemon import Daemon, Phone
from support.adb_server import AdbServer, running
from support.runner import require_compiler


@pytest.fixture(scope="session")
def adb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdbServer]:
    """A server of the real adb client."""
    if shutil.which("adb") is None:
        reason = "the adb client is not installed (Debian: apt-get install adb)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with running(tmp_path_factory.mktemp("adb-home")) as server:
        yield server


@pytest.fixture
def daemon(adb_server: AdbServer, tmp_path: Path) -> Iterator[Daemon]:
    """A phone in this process, connected."""
    phone = Daemon(Phone(tmp_path / "phone"))
    adb_server.connect(phone)
    yield phone
    adb_server.forget(phone)
    phone.close()


@pytest.fixture(scope="session")
def real_device(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[adbd.RealDevice]:
    """Debian's own adbd, in a network namespace."""
    assert pytestconfig.cache is not None
    try:
        root = adbd.system(pytestconfig.cache.mkdir("adbd"))
        with adbd.running(root, tmp_path_factory.mktemp("real-device")) as device:
            yield device
    except adbd.UnsupportedError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def own_runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our own runner, built for this machine, in a folder of its own."""
    require_compiler()
    path = tmp_path_factory.mktemp("own-runner") / NAME
    build(path)
    return path
