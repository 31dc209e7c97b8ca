"""How the runner's source becomes a program."""

import stat
import subprocess
from pathlib import Path

import pytest

from shufflectl.benchmarks.runner import SOURCES, build, built
from shufflectl.deploy.digests import digest
from shufflectl.errors import UnavailableError
from support.runner import require_compiler

STRICT = ("-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror")


@pytest.fixture(autouse=True)
def _compiler() -> None:
    require_compiler()


def test_the_source_has_no_warnings(tmp_path: Path) -> None:
    argv = ["cc", *STRICT, "-O2", "-o", str(tmp_path / "runner"), str(SOURCES[0]), "-ldl"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stderr)


def test_the_source_includes_no_header_of_litert() -> None:
    lines = [line for path in SOURCES for line in path.read_text(encoding="ascii").splitlines()]
    included = {line.split()[1] for line in lines if line.startswith("#include")}
    assert {'"litert.h"'} == {name for name in included if not name.startswith("<")}
    assert set() == {name for name in included if "litert" in name.lower()} - {'"litert.h"'}


def test_the_program_is_executable_and_its_digest_is_returned(tmp_path: Path) -> None:
    out = tmp_path / "runner"
    returned = build(out)
    assert digest(out) == returned
    assert out.stat().st_mode & stat.S_IXUSR


def test_a_compiler_that_fails_is_quoted_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "runner"
    out.write_bytes(b"the old one")
    with pytest.raises(UnavailableError, match=r"cc does not build the runner: .*no-such-flag"):
        build(out, "cc --no-such-flag")
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    with pytest.raises(UnavailableError, match="'no-such-compiler' was not found"):
        build(out)
    with pytest.raises(UnavailableError, match="cannot be read"):
        build(out, "cc '")
    assert b"the old one" == out.read_bytes()
    assert [out] == list(tmp_path.iterdir())


def test_the_cache_keeps_one_program_for_each_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHUFFLECTL_CACHE", str(tmp_path))
    first = built()
    made = first.stat().st_mtime_ns
    assert (first, made) == (built(), first.stat().st_mtime_ns)
    assert first != built("cc -DOTHER")
