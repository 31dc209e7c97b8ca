"""What several commands take: the output, and options with their help."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shufflectl.console import Output

if TYPE_CHECKING:
    from shufflectl.deploy.calibration_options import CalibrationOptions
    from shufflectl.deploy.options import ParityOptions

__all__ = [
    "INTEGERS",
    "OUTPUT",
    "Arguments",
    "BiasCorrection",
    "Calibration",
    "CalibrationImages",
    "CalibrationMethod",
    "Equalise",
    "Features",
    "FoldPreprocess",
    "Images",
    "InputType",
    "Inputs",
    "Json",
    "MaxRelative",
    "MinSqnr",
    "MinTop1",
    "OutputStride",
    "PerLayer",
    "Preprocess",
    "RuntimeNames",
    "RuntimePython",
    "Seed",
    "Threads",
    "Verbose",
    "Weights",
    "calibration_options",
    "complete_model",
    "parity_options",
]

OUTPUT = Output()


def _set_json(value: bool) -> bool:
    OUTPUT.json = OUTPUT.json or value
    return value


def _set_verbose(value: bool) -> bool:
    OUTPUT.verbose = OUTPUT.verbose or value
    return value


def complete_model(incomplete: str) -> list[str]:
    """Return the models whose names begin so, for the shell."""
    from shufflectl.models import zoo

    return [name for name in zoo.names() if name.startswith(incomplete)]


Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document on standard output.", callback=_set_json),
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Show what libraries say, and tracebacks.", callback=_set_verbose),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="[cyan]digits[/] (bundled), [cyan]imagenet[/] (torchvision's, downloaded), a checkpoint "
        "(.safetensors, .pt, .pth, .ckpt), or [cyan]random:SEED[/]."
    ),
]
Arguments = Annotated[
    list[str] | None,
    typer.Option(
        "--arg",
        metavar="KEY=VALUE",
        help="An argument of package.module:factory, a Python literal or text; repeatable.",
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME=SHAPE",
        help="Name and shape of an input of package.module:factory, for example image=1x3x320x320; "
        "repeatable, in the order in which the network takes them.",
    ),
]
OutputStride = Annotated[
    int | None,
    typer.Option(
        metavar="16|8",
        help="For dense prediction: a last feature map of this stride, by dilation, of the same weights.",
    ),
]
Features = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Feature maps as outputs, not the logits: stage2, stage3 ..., all, logits; repeatable, or "
        "separated by commas.",
    ),
]
Preprocess = Annotated[
    str,
    typer.Option(
        metavar="auto|WORD|FILE.json|KEY=VALUE,...",
        help="What images go through: auto (what the weights say), imagenet, megvii, signed (-1 to 1), "
        "unit (0 to 1), none (0 to 255), a file, or values as color=bgr,scale=1/255,mean=...,std=...",
    ),
]
FoldPreprocess = Annotated[
    bool,
    typer.Option(
        "--fold-preprocess",
        help="Let the files do that themselves, in their weights where it is exact: they take RGB pixels "
        "from 0 to 255.",
    ),
]
InputType = Annotated[
    str,
    typer.Option(
        metavar="float|uint8",
        help="Type of the image input; uint8 is an image (picture) for Core ML.",
    ),
]
Images = Annotated[
    str,
    typer.Option(
        metavar="N|all", help="How many of the bundled real images to compare on; random ones come on top."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of the random images.")]
RuntimeNames = Annotated[
    list[str] | None,
    typer.Option(
        "--runtime",
        metavar="NAME",
        help="Run files with this runtime; repeatable: onnxruntime, litert, tflite-runtime, coreml, "
        "coreml-reference.",
    ),
]
RuntimePython = Annotated[
    Path | None,
    typer.Option(help="The Python interpreter in which tflite-runtime is installed."),
]
Threads = Annotated[int, typer.Option(min=1, help="Threads of each runtime.")]
MaxRelative = Annotated[
    float | None,
    typer.Option(
        "--max-rel", min=0.0, help="Largest allowed max|Δ| relative to the largest reference value."
    ),
]
MinSqnr = Annotated[float | None, typer.Option("--min-sqnr", help="Smallest allowed SQNR, in dB.")]
MinTop1 = Annotated[
    float | None, typer.Option("--min-top1", min=0.0, max=1.0, help="Smallest allowed top-1 agreement.")
]
PerLayer = Annotated[
    bool, typer.Option("--per-layer", help="Compare every inner tensor of failing files, and show it.")
]


INTEGERS = "Integers"
"""The heading of the options about int8 in the help."""

Calibration = Annotated[
    str | None,
    typer.Option(
        metavar="digits|FOLDER|FILE",
        help="For int8: images on which ranges are looked at: a folder, an .npz file, the bundled digits, or "
        "the .json of a calibration made before.",
        rich_help_panel=INTEGERS,
    ),
]
CalibrationImages = Annotated[
    int, typer.Option(metavar="N", help="How many of them at most.", rich_help_panel=INTEGERS)
]
CalibrationMethod = Annotated[
    str,
    typer.Option(
        metavar="minmax|percentile|entropy|mse",
        help="How a range is chosen of what was seen.",
        rich_help_panel=INTEGERS,
    ),
]
Equalise = Annotated[
    float,
    typer.Option(
        metavar="0..1",
        help="How far the channels of a tensor are made equally large first; 0 leaves the weights alone.",
        rich_help_panel=INTEGERS,
    ),
]
BiasCorrection = Annotated[
    bool,
    typer.Option(
        "--bias-correction/--no-bias-correction",
        help="Take what rounding adds on average out of the biases.",
        rich_help_panel=INTEGERS,
    ),
]


def calibration_options(
    source: str | None, images: int, seed: int, method: str, equalise: float, *, correct_bias: bool
) -> "CalibrationOptions | None":
    """Read the options of a calibration; None where there is none.

    Raises:
        UsageError: A word is not one of the choices, or a number is out of range.
    """
    from shufflectl.converters.quantize.recipe import Recipe
    from shufflectl.deploy.calibration_options import CalibrationOptions

    recipe = Recipe.parse(method, equalise, correct_bias=correct_bias)
    return None if source is None else CalibrationOptions(source, images, seed, recipe)


def parity_options(
    images: str,
    seed: int,
    runtime: Sequence[str] | None,
    runtime_python: Path | None,
    threads: int,
    max_rel: float | None,
    min_sqnr: float | None,
    min_top1: float | None,
    per_layer: bool,
) -> "ParityOptions":
    """Read the options of parity.

    Raises:
        UsageError: A word is not one of the choices, or a number is out of range.
    """
    from shufflectl.deploy.options import ParityOptions

    return ParityOptions.parse(
        images=images,
        seed=seed,
        runtimes=runtime or (),
        runtime_python=runtime_python,
        threads=threads,
        max_rel=max_rel,
        sqnr=min_sqnr,
        top1=min_top1,
        per_layer=per_layer,
    )
