"""File descriptor 2 is quiet inside and itself again outside."""

import os
import subprocess
import sys

import pytest

from shufflectl.deploy.runtimes.quiet import quiet_stderr


def test_body_is_captured_and_the_rest_is_heard(capfd):
    os.write(2, b"before\n")
    with quiet_stderr() as heard:
        os.write(2, b"INFO: chatter\nERROR: first\nERROR: second\n")
    os.write(2, b"after\n")
    assert "before\nafter\n" == capfd.readouterr().err
    assert "second" == heard.last_error
    assert "INFO: chatter" in heard.text


def test_descriptor_comes_back_after_an_error(capfd):
    with pytest.raises(KeyError), quiet_stderr():
        raise KeyError
    os.write(2, b"after\n")
    assert "after\n" == capfd.readouterr().err


def test_nested_use(capfd):
    with quiet_stderr() as outer:
        with quiet_stderr() as inner:
            os.write(2, b"in\n")
        os.write(2, b"out\n")
    assert ("in\n", "out\n", "") == (inner.text, outer.text, capfd.readouterr().err)


def test_process_without_standard_error():
    program = (
        "import os; os.close(2)\n"
        "from shufflectl.deploy.runtimes.quiet import quiet_stderr\n"
        "with quiet_stderr(): pass\n"
        "print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "fine\n" == done.stdout
