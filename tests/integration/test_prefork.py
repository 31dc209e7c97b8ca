"""A call of the command line in a forked process is one in a new interpreter, but for its speed."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.prefork import Nursery

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="new interpreters are called elsewhere"),
]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


@pytest.mark.parametrize(
    "words",
    [["--version"], ["models", "--json"], ["export", "no-such-model"], ["inspect", 'a b\n"c"']],
    ids=lambda words: words[0],
)
def test_streams_and_status_are_the_same(words: list[str], tmp_path: Path, run_cli: Any) -> None:
    forked, fresh = (run_cli(*words, cwd=tmp_path, env={"COLUMNS": "70"}, fresh=way) for way in (False, True))
    assert fresh == forked


def test_modules_are_found_in_the_folder_of_the_call(tmp_path: Path, run_cli: Any) -> None:
    (tmp_path / "of_mine.py").write_text("raise ValueError('found in ' + __file__)")
    run = run_cli("export", "of_mine:net", "--input", "x=1x3x8x8", cwd=tmp_path)
    assert str(tmp_path / "of_mine.py") in run.stderr


def children(process: int) -> list[str]:
    return Path(f"/proc/{process}/task/{process}/children").read_text("ascii").split()


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_a_call_that_is_given_up_ends(nursery: Nursery, tmp_path: Path) -> None:
    words = ["export", "shufflenet_v2_x1_0", "--weights", "random:0", "--target", "tflite", "--out", tmp_path]
    call = subprocess.Popen([*nursery.command, *map(str, words)])
    assert eventually(lambda: len(children(nursery.pid)) == 1)
    call.kill()
    call.wait()
    assert eventually(lambda: children(nursery.pid) == [])
    done = subprocess.run([*nursery.command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("shufflectl ")


def test_a_signal_that_ends_the_process_ends_the_call(nursery: Nursery, tmp_path: Path) -> None:
    words = ["export", "shufflenet_v2_x1_0", "--weights", "random:0", "--target", "tflite", "--out", tmp_path]
    call = subprocess.Popen([*nursery.command, *map(str, words)])
    assert eventually(lambda: len(children(nursery.pid)) == 1)
    subprocess.run(["kill", "-TERM", *children(nursery.pid)], check=True)
    assert -15 == call.wait(20)
