"""What the pages say exists: commands and options, files, links, names that Python examples import."""

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import shufflectl
from shufflectl.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def calls(page: Path) -> list[list[str]]:
    """Return the words of every call of the program in a page's code blocks."""
    bodies = [body.replace("\\\n", " ") for _, body in FENCE.findall(text(page))]
    lines = [line.strip().removeprefix("$ ") for body in bodies for line in body.splitlines()]
    found = [line for line in lines if line.startswith("shufflectl ")]
    return [shlex.split(re.split(r"\s{2,}|[|>#]", line)[0])[1:] for line in found]


@pages
def test_commands_and_options_in_code_blocks_exist(page: Path) -> None:
    group: Any = get_command(app)
    for words in calls(page):
        command = group
        for word in words:  # a command may have commands of its own
            if word.startswith("-") or not hasattr(command, "commands"):
                break
            assert word in command.commands, words
            command = command.commands[word]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        used = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert set() == used - known, words


@pages
def test_paths_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`((?:shufflectl|tests|scripts|docs)/[a-z\d_./-]+)`", text(page))
    # The package may be installed elsewhere than beside the tests.
    roots = (ROOT, Path(shufflectl.__file__).parents[1])
    assert [] == [path for path in named if not any((root / path).exists() for root in roots)]


@pages
def test_names_that_examples_import_exist(page: Path) -> None:
    for module, names in re.findall(r"^from (shufflectl[\w.]*) import ([\w, ]+)$", text(page), re.MULTILINE):
        found = importlib.import_module(module)
        assert [] == [name for name in names.split(", ") if not hasattr(found, name)]


@pages
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", re.sub(FENCE, "", text(page)))
    assert [] == [link for link in links if not (page.parent / link).exists()]
