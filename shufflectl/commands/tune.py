"""`shufflectl tune`: the fastest form of a model on one device."""

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
    Inputs,
    InputType,
    Json,
    OutputStride,
    Preprocess,
    RuntimePython,
    Seed,
    Verbose,
    Weights,
    calibration_options,
    complete_model,
)

__all__ = ["EXAMPLES", "tune"]

EXAMPLES = (
    "shufflectl tune shufflenet_v2_x1_0 --weights best.pt --target onnx --out tuning.json",
    "shufflectl tune model.onnx --target tflite --threads 1,2 --budget 10m",
    "shufflectl tune shufflenet_v2_x1_0 --target tflite --device android --runner litert",
    "shufflectl tune shufflenet_v2_x1_0 --target tflite --fold-preprocess --input-type uint8",
    "shufflectl tune shufflenet_v2_x1_0 --target tflite --precision int8 --calibration digits",
)


def tune(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|FILE|MODULE:FACTORY",
            help="A name that [cyan]shufflectl models[/] lists, an .onnx file of any exporter, or a Python "
            "function that builds a torch module.",
            autocompletion=complete_model,
        ),
    ],
    target: Annotated[str, typer.Option(metavar="NAME", help="onnx, coreml or tflite.")],
    weights: Weights = None,
    arg: Arguments = None,
    input_: Inputs = None,
    precision: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="fp32, fp16, int8 (with --calibration), or another that export has."
        ),
    ] = "fp32",
    device: Annotated[
        str,
        typer.Option(
            metavar="local|android[:SERIAL]", help="Where: this machine, or a phone that adb is connected to."
        ),
    ] = "local",
    runtime: Annotated[
        str | None, typer.Option(metavar="NAME", help="On this machine: onnxruntime, litert, tflite-runtime.")
    ] = None,
    runtime_python: RuntimePython = None,
    runner: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="On a phone: what runs the files.")
    ] = None,
    threads: Annotated[
        str, typer.Option(metavar="N[,N...]", help="Threads; each number has a race of its own.")
    ] = "1",
    affinity: Annotated[str, typer.Option(metavar="CORES", help="Pin the process to cores, as in 0,1.")] = "",
    accelerator: Annotated[
        str, typer.Option(metavar="cpu|gpu|nnapi", help="What the runner uses, on a phone.")
    ] = "cpu",
    layout: Annotated[
        str | None, typer.Option(metavar="nhwc|nchw", help="Layout of the image input; by default both.")
    ] = None,
    num_classes: Annotated[int | None, typer.Option(min=1, help="Number of classes.")] = None,
    input_size: Annotated[int | None, typer.Option(min=1, help="Height and width of the input.")] = None,
    output_stride: OutputStride = None,
    features: Features = None,
    preprocess: Preprocess = "auto",
    fold_preprocess: FoldPreprocess = False,
    input_type: InputType = "float",
    batch: Annotated[str, typer.Option(metavar="N", help="The batch size of the files.")] = "1",
    budget: Annotated[
        str, typer.Option(metavar="TIME", help="Time for everything, as 90s, 3m or 1h.")
    ] = "3m",
    seed: Seed = 0,
    calibration: Calibration = None,
    calibration_images: CalibrationImages = 128,
    calibration_method: CalibrationMethod = "minmax",
    equalise: Equalise = 0.5,
    bias_correction: BiasCorrection = True,
    keep_float: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER",
            help="Layers that compute in floating point in int8 files; repeatable, or separated by commas.",
            rich_help_panel=INTEGERS,
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
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="Where the choice and the evidence go.")
    ] = Path("tuning.json"),
    _json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Measure every form of a model on one device, and write the fastest for [cyan]export --tuning[/].

    Every file is compared with the model before it is timed. The winner is measured again in rounds of its
    own; where it is not shown to be faster than what export takes by default, the default stays.
    """
    import json

    from shufflectl.benchmarks.bench import Device
    from shufflectl.benchmarks.options import parse_threads
    from shufflectl.benchmarks.tune import TuneOptions, parse_budget
    from shufflectl.benchmarks.tune import tune as run_tune
    from shufflectl.deploy.options import ExportRequest, ParityOptions
    from shufflectl.deploy.publish import write_file
    from shufflectl.render.tuning import tuned

    OUTPUT.quiet_libraries()
    request = ExportRequest.parse(
        model=model,
        weights=weights,
        arguments=arg or (),
        inputs=input_ or (),
        targets=[target],
        precisions=[precision],
        num_classes=num_classes,
        input_size=input_size,
        output_stride=output_stride,
        features=features or (),
        preprocess=preprocess,
        fold_preprocess=fold_preprocess,
        input_type=input_type,
        batch=batch,
        layout=layout,
        calibration=calibration_options(
            calibration,
            calibration_images,
            seed,
            calibration_method,
            equalise,
            correct_bias=bias_correction,
        ),
        keep_float=keep_float or (),
        io=io,
        verbose=OUTPUT.verbose,
        parity=ParityOptions(images=4, random_images=4, runtime_python=runtime_python),
    )
    options = TuneOptions(
        device=Device.parse(device),
        runtime=runtime,
        runtime_python=runtime_python,
        runner=runner,
        threads=parse_threads(threads),
        affinity=affinity,
        accelerator=accelerator,
        budget_s=parse_budget(budget),
        seed=seed,
    )
    with OUTPUT.progress() as notify:
        found = run_tune(request, options, notify)
    document = found.to_json()
    write_file(out, json.dumps(document, indent=2, allow_nan=False).encode() + b"\n")
    calibrated = None
    if found.calibration is not None:
        calibrated = out.with_name(f"{out.stem}-calibration.json")
        write_file(calibrated, found.calibration)
    tuned(OUTPUT, found, document, out, calibrated)
