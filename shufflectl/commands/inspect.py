"""`shufflectl inspect`: what a file holds, and what runtimes make of it."""

from pathlib import Path
from typing import Annotated

import typer

from shufflectl.commands.options import OUTPUT, Json, Verbose

__all__ = ["EXAMPLES", "inspect"]

EXAMPLES = (
    "shufflectl inspect dist/shufflenet_v2_x0_5-fp32.tflite",
    "shufflectl inspect model.onnx --operators --json",
    "shufflectl inspect model.tflite --max-fallback-ops 0 --delegate gpu --max-rank 4",
)


def inspect(
    path: Annotated[Path, typer.Argument(help="An .onnx, .tflite or .mlpackage file.")],
    operators: Annotated[bool, typer.Option("--operators", help="List every operator.")] = False,
    measure: Annotated[
        bool,
        typer.Option(
            help="Load the file in its runtime to see what becomes of it; without, nothing of it runs."
        ),
    ] = True,
    max_fallback_ops: Annotated[
        int | None,
        typer.Option(min=0, help="Fail (exit code 5) where more operators are left to other kernels."),
    ] = None,
    delegate: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Whose fallbacks count: xnnpack (default), gpu or nnapi; onnxruntime; ane.",
        ),
    ] = None,
    max_rank: Annotated[
        int | None, typer.Option(min=0, help="Fail (exit code 5) where a tensor has a larger rank.")
    ] = None,
    _json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Show operators, shapes, ranks, costs and delegates of a file, and hold it against limits.

    Memory access cost follows the guidelines G1 to G4 of the ShuffleNet V2 paper. Runtimes: which operators
    the TFLite GPU delegate, NNAPI and XNNPACK take, the reorders in ONNX Runtime, and what is known of the
    Neural Engine.
    """
    from shufflectl.deploy.inspect.inspection import Limits, inspect_file
    from shufflectl.render.inspection import inspection

    OUTPUT.quiet_libraries()
    with OUTPUT.progress() as notify:
        notify("reading", 0, 0)
        found = inspect_file(path, measured=measure, limits=Limits(max_fallback_ops, delegate, max_rank))
    inspection(OUTPUT, found, operators=operators)
    found.raise_for_failure()
