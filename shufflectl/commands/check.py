"""`shufflectl check`: run exported files and compare them."""

from pathlib import Path
from typing import Annotated

import typer

from shufflectl.commands.options import (
    OUTPUT,
    Arguments,
    Images,
    Json,
    MaxRelative,
    MinSqnr,
    MinTop1,
    PerLayer,
    RuntimeNames,
    RuntimePython,
    Seed,
    Threads,
    Verbose,
    Weights,
    complete_model,
    parity_options,
)

__all__ = ["EXAMPLES", "check"]

EXAMPLES = (
    "shufflectl check dist/",
    "shufflectl check model.onnx model.tflite model.mlpackage --per-layer",
    "shufflectl check dist/ --weights best.pt --json",
    "shufflectl check dist/ --model detector.model:build --arg classes=3 --weights best.pt",
)


def check(
    paths: Annotated[
        list[Path],
        typer.Argument(help="An exported folder, or .onnx, .tflite and .mlpackage files of one model."),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="The model to compare with, the .onnx file that the files were made from, or the function "
            "that built it (package.module:factory); by default what the files say.",
            autocompletion=complete_model,
        ),
    ] = None,
    weights: Weights = None,
    arg: Arguments = None,
    images: Images = "32",
    seed: Seed = 0,
    runtime: RuntimeNames = None,
    runtime_python: RuntimePython = None,
    threads: Threads = 1,
    max_rel: MaxRelative = None,
    min_sqnr: MinSqnr = None,
    min_top1: MinTop1 = None,
    per_layer: PerLayer = False,
    _json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Run exported files and compare them with torch and with one another.

    Where a file disagrees, the first layer that does is named, with the likely cause. Exit code 4.
    """
    from shufflectl.deploy import check as checking
    from shufflectl.render.verification import checked

    OUTPUT.quiet_libraries()
    options = parity_options(
        images, seed, runtime, runtime_python, threads, max_rel, min_sqnr, min_top1, per_layer
    )
    with OUTPUT.progress() as notify:
        result = checking.check(
            paths, model=model, weights=weights, arguments=arg or (), parity=options, notify=notify
        )
    checked(OUTPUT, result)
    result.raise_for_failure()
