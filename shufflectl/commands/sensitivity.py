"""`shufflectl sensitivity`: which layers cost how much in int8."""

from pathlib import Path
from typing import Annotated

import typer

from shufflectl.commands.options import (
    OUTPUT,
    Arguments,
    BiasCorrection,
    CalibrationImages,
    CalibrationMethod,
    Equalise,
    Inputs,
    Json,
    Seed,
    Verbose,
    Weights,
    complete_model,
)

__all__ = ["EXAMPLES", "sensitivity"]

EXAMPLES = (
    "shufflectl sensitivity shufflenet_v2_x0_5 --weights digits --calibration digits",
    "shufflectl sensitivity --weights best.pt --calibration photos/ --plot layers.png",
    "shufflectl sensitivity model.onnx --calibration photos.npz --json",
)


def sensitivity(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL|FILE|MODULE:FACTORY]",
            help="A name that [cyan]shufflectl models[/] lists, an .onnx file of any exporter, or a Python "
            "function that builds a torch module; by default what the checkpoint is of.",
            autocompletion=complete_model,
        ),
    ] = None,
    calibration: Annotated[
        str,
        typer.Option(
            metavar="digits|FOLDER|FILE.npz",
            help="Images on which ranges are looked at, and the cost is measured.",
        ),
    ] = "",
    weights: Weights = None,
    arg: Arguments = None,
    input_: Inputs = None,
    num_classes: Annotated[int | None, typer.Option(min=1, help="Number of classes.")] = None,
    input_size: Annotated[int | None, typer.Option(min=1, help="Height and width of the input.")] = None,
    calibration_images: CalibrationImages = 128,
    calibration_method: CalibrationMethod = "minmax",
    equalise: Equalise = 0.5,
    bias_correction: BiasCorrection = True,
    seed: Seed = 0,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw it too: .png, .svg or .pdf. Needs matplotlib, in the extra 'plot'."
        ),
    ] = None,
    _json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Measure what each layer costs in int8: how many dB the output gains where that layer stays in floats.

    What costs most is worth a [cyan]--keep-float[/] at the export; [cyan]--auto-mixed[/] does it by itself.
    Writes nothing but the figure.
    """
    from shufflectl.commands.options import calibration_options
    from shufflectl.deploy.drawing import check_plot
    from shufflectl.deploy.options import ExportRequest
    from shufflectl.deploy.sensitivity_job import measure_sensitivity
    from shufflectl.errors import UsageError
    from shufflectl.render.sensitivity import draw, shown

    OUTPUT.quiet_libraries()
    if not calibration:
        raise UsageError(
            "layers are measured on images",
            hint="add --calibration with a folder of images, an .npz file, or the word digits",
        )
    if plot is not None:
        check_plot(plot)
    request = ExportRequest.parse(
        model=model,
        weights=weights,
        arguments=arg or (),
        inputs=input_ or (),
        targets=["onnx"],
        precisions=["int8"],
        num_classes=num_classes,
        input_size=input_size,
        batch="1",
        layout=None,
        calibration=calibration_options(
            calibration,
            calibration_images,
            seed,
            calibration_method,
            equalise,
            correct_bias=bias_correction,
        ),
    )
    with OUTPUT.progress() as notify:
        found = measure_sensitivity(request, notify)
    if plot is not None:
        draw(found, plot)
    shown(OUTPUT, found, plot)
