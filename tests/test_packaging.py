"""What an installation rests on: the declared dependencies and the pinned set."""

import ast
import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

import shufflectl

ROOT = Path(__file__).parents[1]
PACKAGE = Path(shufflectl.__file__).parent
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def canonical(name: str) -> str:
    """Return a distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: list[str]) -> set[str]:
    found = {canonical(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]) for line in requirements}
    return found - {"shufflectl"}


def declared() -> set[str]:
    extras = PROJECT["optional-dependencies"].values()
    return names([*PROJECT["dependencies"], *(line for extra in extras for line in extra)])


@pytest.mark.parametrize("line", [line for line in CONSTRAINTS if line and not line.startswith("#")])
def test_every_constraint_pins_one_package_of_the_index(line: str) -> None:
    # pip refuses the whole file for one line of another form, as an editable requirement is.
    assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line)


def test_every_declared_dependency_is_pinned() -> None:
    assert set() == declared() - names([line for line in CONSTRAINTS if not line.startswith("#")])


def test_every_package_that_the_code_imports_is_declared() -> None:
    roots = set()
    for path in PACKAGE.rglob("*.py"):
        if path.name == "tflite_worker.py":  # runs in an environment of its own, with tflite-runtime
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                roots |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                roots.add(str(node.module).partition(".")[0])
    providers = importlib.metadata.packages_distributions()
    needed = {canonical(providers[root][0]) for root in roots if root in providers} - {"shufflectl"}
    assert set() == needed - declared()
