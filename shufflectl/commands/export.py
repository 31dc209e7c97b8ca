"""`shufflectl export`: export a model, an ONNX file or one's own network to every target."""

from pathlib import Path
from typing import Annotated

import typer

from shufflectl.commands.options import (
    INTEGERS,
    OUTPUT,
    Arguments,
    BiasCorrection,
    Calibration,
    CalibrationImages,
    CalibrationMethod,
    Equalise,
    Features,
    FoldPreprocess,
    Images,
    Inputs,
    InputType,
    Json,
    MaxRelative,
    MinSqnr,
    MinTop1,
    OutputStride,
    PerLayer,
    Preprocess,
    RuntimeNames,
    RuntimePython,
    Seed,
    Threads,
    Verbose,
    Weights,
    calibration_options,
    complete_model,
    parity_options,
)
from shufflectl.errors import ParityError, UsageError

__all__ = ["EXAMPLES", "export"]

EXAMPLES = (
    "shufflectl export shufflenet_v2_x0_5 --weights digits --target all --out dist/",
    "shufflectl export shufflenet_v2_x1_0 --weights best.pt --target coreml --precision fp16",
    "shufflectl export --weights best.pt --target tflite",
    "shufflectl export model.onnx --target tflite,coreml",
    "shufflectl export detector.model:build --arg classes=3 --weights best.pt --input image=1x3x320x320",
    "shufflectl export shufflenet_v1_g3_x1_0 --target onnx,tflite --batch dynamic --json",
    "shufflectl export shufflenet_v2_x1_0 --target tflite --shuffle fold-split --align 8",
    "shufflectl export shufflenet_v2_x1_0 --features stage2,stage3,stage4 --output-stride 16",
    "shufflectl export --weights best.pt --fold-preprocess --input-type uint8",
    "shufflectl export --weights mine.pt --preprocess imagenet,color=bgr --target onnx",
    "shufflectl export --weights best.pt --precision int8 --calibration photos/ --target all",
)


def export(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL|FILE|MODULE:FACTORY]",
            help="A name that [cyan]shufflectl models[/] lists, an .onnx file of any exporter, or a Python "
            "function that builds a torch module; by default what the checkpoint is of.",
            autocompletion=complete_model,
        ),
    ] = None,
    weights: Weights = None,
    arg: Arguments = None,
    input_: Inputs = None,
    output: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Names of the outputs of package.module:factory, in its order; by default the keys of its "
            "dictionaries. Repeatable, or separated by commas.",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="onnx, coreml, tflite or all; repeatable, or separated by commas."),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="fp32, fp16, int8 (with --calibration), int8-weights, int8-dynamic (TFLite), palette8, "
            "palette6 or palette4 (Core ML); repeatable, or separated by commas.",
        ),
    ] = None,
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FOLDER", help="Where the files and manifest.json go.")
    ] = "dist",
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Number of classes; by default what the weights hold.")
    ] = None,
    input_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Height and width of the input; by default what the weights were made for. Of a file: where "
            "it leaves them free.",
        ),
    ] = None,
    output_stride: OutputStride = None,
    features: Features = None,
    batch: Annotated[str, typer.Option(metavar="1|N|dynamic", help="The batch size of the files.")] = "1",
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="nhwc|nchw", help="Layout of the image input; by default nhwc for TFLite, nchw otherwise."
        ),
    ] = None,
    shuffle: Annotated[
        str,
        typer.Option(
            metavar="auto|NAME",
            help="The form of channel shuffles: auto (the best known for each target), or one that "
            "[cyan]shufflectl explain[/] lists.",
        ),
    ] = "auto",
    align: Annotated[
        str,
        typer.Option(metavar="auto|N", help="Pad channel counts to a multiple of N, in forms that can."),
    ] = "auto",
    preprocess: Preprocess = "auto",
    fold_preprocess: FoldPreprocess = False,
    input_type: InputType = "float",
    tuning: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Take the form that [cyan]shufflectl tune[/] found; repeatable, one for each target.",
        ),
    ] = None,
    half_io: Annotated[
        bool, typer.Option("--half-io", help="Let fp16 ONNX and Core ML files take and give fp16.")
    ] = False,
    minimum_deployment_target: Annotated[
        str | None,
        typer.Option(
            metavar="iOSNN",
            help="The oldest system that a Core ML file must run on; by default iOS16, and iOS17 for int8.",
        ),
    ] = None,
    calibration: Calibration = None,
    calibration_images: CalibrationImages = 128,
    calibration_method: CalibrationMethod = "minmax",
    equalise: Equalise = 0.5,
    bias_correction: BiasCorrection = True,
    keep_float: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER",
            help="Layers that compute in floating point in int8 files, by the name of a tensor or a module; "
            "repeatable, or separated by commas. [cyan]shufflectl sensitivity[/] says which pay.",
            rich_help_panel=INTEGERS,
        ),
    ] = None,
    auto_mixed: Annotated[
        bool,
        typer.Option(
            "--auto-mixed",
            help="Keep the fewest layers in floating point that reach --target-sqnr.",
            rich_help_panel=INTEGERS,
        ),
    ] = False,
    target_sqnr: Annotated[
        float | None,
        typer.Option(
            metavar="DB", help="The SQNR that --auto-mixed is to reach, in dB.", rich_help_panel=INTEGERS
        ),
    ] = None,
    io: Annotated[
        str,
        typer.Option(
            metavar="float|int8|uint8",
            help="What int8 TFLite files take and give: floats, or codes.",
            rich_help_panel=INTEGERS,
        ),
    ] = "float",
    images: Images = "32",
    seed: Seed = 0,
    runtime: RuntimeNames = None,
    runtime_python: RuntimePython = None,
    threads: Threads = 1,
    max_rel: MaxRelative = None,
    min_sqnr: MinSqnr = None,
    min_top1: MinTop1 = None,
    per_layer: PerLayer = False,
    keep_failing: Annotated[
        bool, typer.Option("--keep-failing", help="Publish files that fail parity too, for a closer look.")
    ] = False,
    _json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Export a model, an ONNX file or one's own network; run every file; compare all with the original.

    Files and their manifest appear in the output folder only when they pass. Exit code 4 when they do not.
    """
    from shufflectl.deploy.export import export as run_export
    from shufflectl.deploy.options import ExportRequest
    from shufflectl.deploy.tuning import read_tuning
    from shufflectl.deploy.verify import TIP
    from shufflectl.render.verification import exported

    OUTPUT.quiet_libraries()
    if not out.strip():
        raise UsageError("the output folder is an empty name", hint="name a folder, or . for this one")
    if auto_mixed != (target_sqnr is not None):
        raise UsageError(
            "--auto-mixed and --target-sqnr belong together", hint="as in: --auto-mixed --target-sqnr 35"
        )
    tunings = tuple(read_tuning(path) for path in tuning or ())
    request = ExportRequest.parse(
        model=model,
        weights=weights,
        arguments=arg or (),
        inputs=input_ or (),
        outputs=output or (),
        targets=target or [entry.target for entry in tunings] or ["all"],
        precisions=precision or [entry.precision for entry in tunings] or ["fp32"],
        out=Path(out),
        num_classes=num_classes,
        input_size=input_size,
        output_stride=output_stride,
        features=features or (),
        batch=batch,
        layout=layout,
        shuffle=shuffle,
        align=align,
        preprocess=preprocess,
        fold_preprocess=fold_preprocess,
        input_type=input_type,
        tunings=tunings,
        half_io=half_io,
        minimum_deployment_target=minimum_deployment_target,
        calibration=calibration_options(
            calibration,
            calibration_images,
            seed,
            calibration_method,
            equalise,
            correct_bias=bias_correction,
        ),
        keep_float=keep_float or (),
        target_sqnr=target_sqnr,
        io=io,
        keep_failing=keep_failing,
        verbose=OUTPUT.verbose,
        parity=parity_options(
            images, seed, runtime, runtime_python, threads, max_rel, min_sqnr, min_top1, per_layer
        ),
    )
    with OUTPUT.progress() as notify:
        result = run_export(request, notify)
    published = result.passed or keep_failing
    exported(OUTPUT, result, out, published=published)
    if not result.passed:
        raise ParityError(result.failure, hint=TIP)
