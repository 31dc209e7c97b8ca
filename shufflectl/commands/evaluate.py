"""`shufflectl evaluate`: accuracy over labelled images."""

from pathlib import Path
from typing import Annotated

import typer

from shufflectl.commands.options import (
    OUTPUT,
    Arguments,
    Json,
    RuntimeNames,
    RuntimePython,
    Threads,
    Verbose,
    Weights,
    complete_model,
    parity_options,
)

__all__ = ["EXAMPLES", "evaluate"]

EXAMPLES = (
    "shufflectl evaluate dist/ --data photos/",
    "shufflectl evaluate model.tflite model.onnx --data photos/ --images 500 --resize squash",
    "shufflectl evaluate dist/ --data photos/ --model model.onnx",
    "shufflectl evaluate dist/ --data digits --min-top1 0.98 --json",
)


def evaluate(
    paths: Annotated[
        list[Path],
        typer.Argument(help="An exported folder, or .onnx, .tflite and .mlpackage files of one model."),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="FOLDER|digits",
            help="Labelled images: a folder with one sub-folder a class, or the digits in the package.",
        ),
    ],
    images: Annotated[
        str, typer.Option(metavar="N|all", help="How many of the images, evenly spread over the classes.")
    ] = "all",
    resize: Annotated[
        str,
        typer.Option(
            metavar="auto|crop|squash",
            help="crop: the shorter side to 256 for an input of 224, then the middle; squash: both sides; "
            "auto: crop, but take images as they are that have the input's size.",
        ),
    ] = "auto",
    min_top1: Annotated[
        float | None,
        typer.Option("--min-top1", min=0.0, max=1.0, help="Fail (exit code 5) where a file's top-1 is less."),
    ] = None,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Follow links that lead out of the folder of images.")
    ] = False,
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
    runtime: RuntimeNames = None,
    runtime_python: RuntimePython = None,
    threads: Threads = 1,
    _json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Run exported files over labelled images: top-1, top-5, agreement with torch, images a second.

    Each file is fed as its own metadata say. Where the result is poor, the usual mistakes of preprocessing
    are tried, and the one that explains it is named.
    """
    from shufflectl.deploy.evaluation.evaluate import evaluate as run_evaluate
    from shufflectl.deploy.labelled import parse_fit
    from shufflectl.render.evaluation import evaluated

    OUTPUT.quiet_libraries()
    options = parity_options(images, 0, runtime, runtime_python, threads, None, None, None, per_layer=False)
    with OUTPUT.progress() as notify:
        result = run_evaluate(
            paths,
            data=data,
            model=model,
            weights=weights,
            arguments=arg or (),
            fit=parse_fit(resize),
            follow_links=follow_links,
            min_top1=min_top1,
            options=options,
            notify=notify,
        )
    evaluated(OUTPUT, result)
    result.raise_for_failure()
