import sys
from pathlib import Path

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


def test_a_program_that_prints_without_end_is_killed() -> None:
    code = "import os\nwhile True: os.write(1, b'x' * 65536)"
    with pytest.raises(UnavailableError, match="printed more than 100000 bytes"):
        run([sys.executable, "-c", code], timeout=20, limit=100_000)


def test_output_up_to_the_limit_is_kept() -> None:
    done = run([sys.executable, "-c", "print('x' * 99_999)"], timeout=20, limit=100_000)
    assert 100_000 == len(done.stdout)


def test_a_child_that_keeps_the_streams_open_does_not_make_it_wait_forever() -> None:
    code = "import subprocess; subprocess.Popen(['sleep', '8'])"
    with pytest.raises(UnavailableError, match="did not end within"):
        run([sys.executable, "-c", code], timeout=0.5)


def test_a_program_works_in_the_folder_that_it_is_given(tmp_path: Path) -> None:
    done = run([sys.executable, "-c", "import os; print(os.getcwd())"], timeout=20, folder=tmp_path)
    assert f"{tmp_path.resolve()}\n" == done.stdout
