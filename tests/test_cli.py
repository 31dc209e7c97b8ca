"""What the command line promises for every command."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shufflectl import __version__, errors
from shufflectl.cli import app, main
from shufflectl.commands.options import OUTPUT

DOCS = Path(__file__).resolve().parent.parent / "docs"
COMMANDS = [command.callback.__name__ for command in app.registered_commands if command.callback]
RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def _fresh_output() -> Any:
    yield
    OUTPUT.json = OUTPUT.verbose = False


def test_the_commands_are_those_of_the_readme() -> None:
    assert [
        "export",
        "check",
        "evaluate",
        "inspect",
        "explain",
        "sensitivity",
        "identify",
        "bench",
        "compare",
        "tune",
        "report",
        "models",
        "devices",
        "doctor",
    ] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str) -> None:
    result = RUNNER.invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert 0 == result.exit_code
    assert f"shufflectl {command}" in result.output.split("Examples", 1)[1]
    assert "--json" in result.output
    assert "--verbose" in result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_page_in_docs(command: str) -> None:
    assert f"# `shufflectl {command}`" in (DOCS / f"{command}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_help(command: str) -> None:
    from typer.main import get_command

    group: Any = get_command(app)
    for parameter in group.commands[command].params:
        assert getattr(parameter, "help", None), parameter.name


def test_version_is_printed() -> None:
    assert f"shufflectl {__version__}\n" == RUNNER.invoke(app, ["--version"]).output


@pytest.mark.parametrize(
    "error",
    [
        errors.UsageError("a"),
        errors.CheckpointError("a"),
        errors.ParityError("a"),
        errors.GateError("a"),
        errors.UnstableError("a"),
        errors.UnavailableError("a"),
        errors.MissingDependencyError("coremltools", "coreml", "it"),
    ],
)
def test_an_error_becomes_its_exit_code(error: errors.ShufflectlError, capsys: Any) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        main(fail)
    assert error.exit_code == caught.value.code
    streams = capsys.readouterr()
    assert "" == streams.out
    assert streams.err.startswith(f"error: {error.message}")


def test_an_unexpected_exception_is_an_internal_error_without_a_traceback(capsys: Any) -> None:
    def fail() -> None:
        raise KeyError("surprise")

    with pytest.raises(SystemExit) as caught:
        main(fail)
    assert 1 == caught.value.code
    err = capsys.readouterr().err
    assert "internal error: KeyError" in err
    assert "Traceback" not in err
    assert "-v" in err


def test_an_interrupt_is_130() -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        main(fail)
    assert 130 == caught.value.code


def test_every_exit_code_is_documented() -> None:
    page = (DOCS / "exit-codes.md").read_text(encoding="utf-8")
    classes = [getattr(errors, name) for name in errors.__all__]
    codes = {kind.exit_code for kind in classes if isinstance(kind, type)}
    assert {1, 2, 3, 4, 5, 6, 7, 8, 130} == codes
    for code in codes:
        assert f"| {code} | " in page


def test_models_lists_the_registry() -> None:
    from shufflectl.models import zoo

    result = RUNNER.invoke(app, ["models"], env={"COLUMNS": "200"})
    assert 0 == result.exit_code
    for name in zoo.names():
        assert name in result.output


def test_commands_of_a_group_have_help_with_examples() -> None:
    from typer.main import get_command

    root: Any = get_command(app)
    groups = {name: command for name, command in root.commands.items() if hasattr(command, "commands")}
    assert {"runner"} == set(groups)
    for name, group in groups.items():
        assert f"# `shufflectl {name}`" in (DOCS / f"{name}.md").read_text(encoding="utf-8")
        for inner, command in group.commands.items():
            result = RUNNER.invoke(app, [name, inner, "--help"], env={"COLUMNS": "200"})
            assert f"shufflectl {name} {inner}" in result.output.split("Examples", 1)[1]
            assert "--json" in result.output
            for parameter in command.params:
                assert getattr(parameter, "help", None), parameter.name
