"""How the runner is built: one C file, one call of any C compiler, no headers but our own."""

import hashlib
import importlib.util
import os
import shlex
import tempfile
from pathlib import Path
from typing import Final

from shufflectl.deploy.digests import digest
from shufflectl.deploy.process import run
from shufflectl.deploy.publish import write_file
from shufflectl.errors import MissingDependencyError, OutputError, UnavailableError
from shufflectl.models.download import cache_folder

__all__ = ["COMPILER_VARIABLE", "NAME", "SOURCES", "build", "built", "library"]

SOURCES: Final = tuple(Path(__file__).parent / name for name in ("runner.c", "litert.h"))
"""The program, and the declarations that it includes."""

NAME: Final = "shufflectl-runner"
"""What the program is called."""

COMPILER_VARIABLE: Final = "CC"
"""The environment variable that names a C compiler, with arguments of its own where it needs some."""

_FLAGS: Final = ("-std=c11", "-O2")
_TIMEOUT_S: Final = 120


def build(out: Path, compiler: str = "") -> str:
    """Build the runner.

    Args:
        out: The program; replaced when the new one is whole.
        compiler: A C compiler, with arguments as in a shell, for example
            ``aarch64-linux-android26-clang``; by default the variable CC, or ``cc``.

    Returns:
        The program's SHA-256.

    Raises:
        UnavailableError: There is no such compiler, or it fails.
        OutputError: ``out`` cannot be written.
    """
    words = _words(compiler)
    with tempfile.TemporaryDirectory(prefix="shufflectl-") as folder:
        program = Path(folder) / NAME
        argv = [*words, *_FLAGS, "-o", str(program), str(SOURCES[0]), "-ldl"]
        done = run(argv, timeout=_TIMEOUT_S)
        if done.status != 0 or not program.is_file():
            lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.status}"]
            first = next((line for line in lines if "error" in line), lines[0])
            raise UnavailableError(
                f"{words[0]} does not build the runner: {first[:300]}",
                hint=f"see all it says: {shlex.join(argv)}",
            )
        write_file(out, program.read_bytes())
    try:
        out.chmod(0o755)
    except OSError as error:
        raise OutputError(f"{out} cannot be made executable: {error.strerror}") from error
    return digest(out)


def built(compiler: str = "") -> Path:
    """Return the runner for this machine, from the cache or built now.

    Raises:
        UnavailableError: There is no C compiler, or it fails.
        OutputError: The cache cannot be written.
    """
    words = _words(compiler)
    machine = os.uname()
    recipe = [*words, *_FLAGS, machine.sysname, machine.machine, *(digest(path) for path in SOURCES)]
    key = hashlib.sha256(shlex.join(recipe).encode()).hexdigest()[:16]
    program = cache_folder().parent / "runner" / key / NAME
    if not os.access(program, os.X_OK):
        try:
            program.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"the cache {program.parent} cannot be written: {error.strerror}") from error
        build(program, compiler)
    return program


def library() -> Path:
    """Return LiteRT's library for this machine, out of the package ai-edge-litert.

    Raises:
        MissingDependencyError: The package is not installed.
        UnavailableError: It holds no library, as some releases for some systems.
    """
    spec = importlib.util.find_spec("ai_edge_litert")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError("ai-edge-litert", "tflite", "running .tflite files")
    path = Path(spec.submodule_search_locations[0]) / "libLiteRt.so"
    if not path.is_file():
        raise UnavailableError(
            f"the installed ai-edge-litert has no {path.name}", hint="install ai-edge-litert 2.2 or later"
        )
    return path


def _words(compiler: str) -> list[str]:
    try:
        words = shlex.split(compiler or os.environ.get(COMPILER_VARIABLE, "") or "cc")
    except ValueError as error:
        raise UnavailableError(f"the compiler {compiler!r} cannot be read: {error}") from error
    return words or ["cc"]
