"""`shufflectl runner`: the programs that measure on phones."""

from pathlib import Path
from typing import Annotated

import typer

from shufflectl.commands.options import OUTPUT, Json, Verbose

__all__ = ["EXAMPLES", "add", "app", "build", "list_", "remove"]

EXAMPLES = {
    "add": (
        "shufflectl runner add tflite-arm64 android_aarch64_benchmark_model",
        "shufflectl runner add own-arm64 shufflectl-runner --library libLiteRt.so",
        "shufflectl runner add litert-arm64 https://example.com/benchmark_model --sha256 0123...",
    ),
    "build": (
        "shufflectl runner build",
        "shufflectl runner build --cc aarch64-linux-android26-clang --out shufflectl-runner",
    ),
    "list": ("shufflectl runner list", "shufflectl runner list --json"),
    "remove": ("shufflectl runner remove tflite-arm64",),
}

app = typer.Typer(
    name="runner",
    no_args_is_help=True,
    help="The programs that measure on phones: add, list and remove them.",
    epilog="\n\n".join(["Examples:", *(f"  {line}" for lines in EXAMPLES.values() for line in lines)]),
)


def _epilog(name: str) -> str:
    return "\n\n".join(["Examples:", *(f"  {line}" for line in EXAMPLES[name])])


@app.command(epilog=_epilog("add"))
def add(
    name: Annotated[str, typer.Argument(help="What to call it, for example tflite-arm64.")],
    source: Annotated[str, typer.Argument(metavar="PATH|URL", help="The program, or its address.")],
    sha256: Annotated[
        str, typer.Option(help="What its SHA-256 must be; an address needs it.", metavar="HEX")
    ] = "",
    kind: Annotated[
        str,
        typer.Option(
            help="shufflectl, tflite, litert or onnxruntime; by default what the program's words say."
        ),
    ] = "",
    library: Annotated[
        list[Path] | None,
        typer.Option(help="A library that it loads, sent to the device with it; repeatable.", metavar="PATH"),
    ] = None,
    _json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Put a program that measures on phones into the cache."""
    from shufflectl.benchmarks.android import store
    from shufflectl.render.runners import added

    with OUTPUT.progress() as notify:
        program = store.add(name, source, sha256=sha256, kind=kind, libraries=library or (), notify=notify)
    added(OUTPUT, program)


@app.command(epilog=_epilog("build"))
def build(
    cc: Annotated[
        str,
        typer.Option(
            metavar="COMMAND", help="A C compiler, arguments included; by default the variable CC, or cc."
        ),
    ] = "",
    out: Annotated[Path, typer.Option(metavar="FILE", help="The program.")] = Path("shufflectl-runner"),
    _json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Build our own runner from its C source, for this machine or, with another compiler, for a phone."""
    from shufflectl.benchmarks.runner import build as build_runner
    from shufflectl.render.runners import built

    sha256 = build_runner(out, cc)
    built(OUTPUT, out, sha256)


@app.command("list", epilog=_epilog("list"))
def list_(_json: Json = False, _verbose: Verbose = False) -> None:
    """List the programs in the cache."""
    from shufflectl.benchmarks.android import store
    from shufflectl.render.runners import runners

    runners(OUTPUT, store.installed())


@app.command(epilog=_epilog("remove"))
def remove(
    name: Annotated[str, typer.Argument(help="Which one.")],
    _json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Remove a program from the cache."""
    from shufflectl.benchmarks.android import store
    from shufflectl.render.runners import removed

    store.remove(name)
    removed(OUTPUT, name)
