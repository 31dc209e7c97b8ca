"""`shufflectl devices`: the Android devices that are connected."""

from typing import Annotated

import typer

from shufflectl.commands.options import OUTPUT, Json, Verbose

__all__ = ["EXAMPLES", "devices"]

EXAMPLES = (
    "shufflectl devices",
    "shufflectl devices --adb ~/Android/Sdk/platform-tools/adb --json",
)


def devices(
    adb: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="The adb client; by default the variable ADB, PATH, or an Android SDK (ANDROID_HOME).",
        ),
    ] = None,
    _json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Show the Android devices that are connected, how they are, and what keeps them from being measured."""
    from shufflectl.deploy.devices import Adb, survey
    from shufflectl.render.devices import devices as render

    OUTPUT.quiet_libraries()
    with OUTPUT.progress() as notify:
        found = survey(Adb.find(adb), lambda what: notify(what, 0, 0))
    render(OUTPUT, found)
    if not any(item.usable for item in found):
        raise typer.Exit(7)
