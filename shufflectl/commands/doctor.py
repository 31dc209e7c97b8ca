"""`shufflectl doctor`: what works on this machine."""

import typer

from shufflectl.commands.options import OUTPUT, Json, RuntimePython, Verbose

__all__ = ["EXAMPLES", "doctor"]

EXAMPLES = (
    "shufflectl doctor",
    "shufflectl doctor --runtime-python .venv-tflite/bin/python --json",
)


def doctor(
    runtime_python: RuntimePython = None,
    _json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Show what is installed, what works here, what is missing and how to get it."""
    from shufflectl.deploy.doctor import diagnose
    from shufflectl.render.diagnosis import diagnosis

    OUTPUT.quiet_libraries()
    with OUTPUT.progress() as notify:
        found = diagnose(runtime_python=runtime_python, notify=lambda what: notify(what, 0, 0))
    diagnosis(OUTPUT, found)
    if not found.usable:
        raise typer.Exit(7)
