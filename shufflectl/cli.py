"""The command line: it gathers the commands, and makes errors exit codes. No heavy import at start-up."""

import atexit
import contextlib
import errno
import gc
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from shufflectl import __version__
from shufflectl.commands import (
    bench,
    check,
    compare,
    devices,
    doctor,
    evaluate,
    explain,
    export,
    identify,
    inspect,
    models,
    report,
    runner,
    sensitivity,
    tune,
)
from shufflectl.commands.options import OUTPUT
from shufflectl.errors import OutputError, ShufflectlError

__all__ = ["app", "main"]

app = typer.Typer(
    name="shufflectl",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Export ShuffleNets to ONNX, Core ML and TFLite, and prove that the files agree.",
    epilog="Exit codes: 0 done, 1 internal error, 2 usage, 3 bad input, 4 parity failed, 5 gate failed, "
    "6 inconclusive, 7 device or runtime unavailable, 8 optional package missing, 130 interrupted.",
)


def _add(command: Callable[..., None], examples: tuple[str, ...]) -> None:
    app.command(epilog="\n\n".join(["Examples:", *(f"  {example}" for example in examples)]))(command)


_add(export.export, export.EXAMPLES)
_add(check.check, check.EXAMPLES)
_add(evaluate.evaluate, evaluate.EXAMPLES)
_add(inspect.inspect, inspect.EXAMPLES)
_add(explain.explain, explain.EXAMPLES)
_add(sensitivity.sensitivity, sensitivity.EXAMPLES)
_add(identify.identify, identify.EXAMPLES)
_add(bench.bench, bench.EXAMPLES)
_add(compare.compare, compare.EXAMPLES)
_add(tune.tune, tune.EXAMPLES)
_add(report.report, report.EXAMPLES)
_add(models.models, models.EXAMPLES)
_add(devices.devices, devices.EXAMPLES)
_add(doctor.doctor, doctor.EXAMPLES)
app.add_typer(runner.app)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"shufflectl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    pass


def _fail(error: ShufflectlError) -> NoReturn:
    OUTPUT.error(error)
    sys.exit(error.exit_code)


def _prepare_streams() -> None:
    """Make standard output and error usable: closed ones lead nowhere, others show ? for what they lack."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the process ends
            setattr(sys, name, nowhere)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _leave_quickly() -> None:
    """Spare the last collection over torch's objects: it would take seconds, and free nothing.

    nanobind reports what is then left over as leaks, on standard error: by now there is nothing else to say.
    """
    gc.freeze()
    if "onnxsim" in sys.modules:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)


def main(run: Callable[[], Any] = app) -> None:
    """Run the program. The one place where an error becomes an exit code."""
    _prepare_streams()
    atexit.register(_leave_quickly)
    try:
        run()
    except ShufflectlError as error:
        if OUTPUT.verbose:
            import traceback

            traceback.print_exc()
        _fail(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if OUTPUT.verbose:
            raise
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO):
            _fail(OutputError(f"the output cannot be written: {error.strerror}", hint="send it elsewhere"))
        _fail(
            ShufflectlError(
                f"internal error: {type(error).__name__}: {error}",
                hint="this is a defect of shufflectl: call again with -v and report what it prints",
            )
        )
