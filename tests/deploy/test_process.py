import sys

import pytest

from shufflectl.deploy.process import run
from shufflectl.errors import UnavailableError


def test_status_and_streams_come_back() -> None:
    done = run(
        [sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"],
        timeout=20,
    )
    assert (3, "out\n", "err\n") == (done.status, done.stdout, done.stderr)


def test_arguments_reach_the_program_as_they_are() -> None:
    words = ["a b", "$HOME", "; rm -rf /", "'\"", "*"]
    done = run([sys.executable, "-c", "import sys; print(sys.argv[1:])", *words], timeout=20)
    assert f"{words}\n" == done.stdout


def test_a_missing_program_is_unavailable() -> None:
    with pytest.raises(UnavailableError, match="no-such-program"):
        run(["no-such-program"], timeout=1)


def test_a_program_that_does_not_end_is_killed() -> None:
    with pytest.raises(UnavailableError, match="did not end within"):
        run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.3)


def test_bytes_that_are_no_text_do_not_raise() -> None:
    done = run([sys.executable, "-c", "import os; os.write(1, b'\\xff\\xfe')"], timeout=20)
    assert 0 == done.status
    assert "\ufffd\ufffd" == done.stdout


def test_standard_input_is_empty() -> None:
    assert (
        "''\n" == run([sys.executable, "-c", "import sys; print(repr(sys.stdin.read()))"], timeout=20).stdout
    )
