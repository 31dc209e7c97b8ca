"""The command line: it parses, calls the library and prints. No logic, and no heavy import at start-up."""

import atexit
import contextlib
import errno
import gc
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from shufflectl import __version__
from shufflectl.console import Output
from shufflectl.errors import OutputError, ParityError, ShufflectlError, UsageError

if TYPE_CHECKING:
    from shufflectl.deploy.options import ParityOptions

__all__ = ["app", "main"]

OUTPUT = Output()

app = typer.Typer(
    name="shufflectl",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Export ShuffleNets to ONNX, Core ML and TFLite, and prove that the files agree.",
    epilog="Exit codes: 0 done, 1 internal error, 2 usage, 3 bad input, 4 parity failed, 5 gate failed, "
    "6 inconclusive, 7 device or runtime unavailable, 8 optional package missing.",
)


def _set_json(value: bool) -> bool:
    OUTPUT.json = OUTPUT.json or value
    return value


def _set_verbose(value: bool) -> bool:
    OUTPUT.verbose = OUTPUT.verbose or value
    return value


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"shufflectl {__version__}")
        raise typer.Exit


def _complete_model(incomplete: str) -> list[str]:
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


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    pass


@app.command(
    epilog="Examples:\n\n"
    "  shufflectl export shufflenet_v2_x0_5 --weights digits --target all --out dist/\n\n"
    "  shufflectl export shufflenet_v2_x1_0 --weights best.pt --target coreml --precision fp16\n\n"
    "  shufflectl export --weights best.pt --target tflite\n\n"
    "  shufflectl export model.onnx --target tflite,coreml\n\n"
    "  shufflectl export shufflenet_v1_g3_x1_0 --target onnx,tflite --batch dynamic --json\n\n"
    "  shufflectl export shufflenet_v2_x1_0 --target tflite --shuffle fold-split --align 8"
)
def export(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL|FILE]",
            help="A name that [cyan]shufflectl models[/] lists, or an .onnx file of any exporter; by default "
            "what the checkpoint is of.",
            autocompletion=_complete_model,
        ),
    ] = None,
    weights: Weights = None,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="onnx, coreml, tflite or all; repeatable, or separated by commas."),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="fp32 or fp16; repeatable, or separated by commas."),
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
    half_io: Annotated[
        bool, typer.Option("--half-io", help="Let fp16 ONNX and Core ML files take and give fp16.")
    ] = False,
    minimum_deployment_target: Annotated[
        str, typer.Option(metavar="iOSNN", help="The oldest system that a Core ML file must run on.")
    ] = "iOS16",
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
    """Export a model or an ONNX file, run every file, compare all with the original and with one another.

    Files and their manifest appear in the output folder only when they pass. Exit code 4 when they do not.
    """
    from shufflectl import render
    from shufflectl.deploy.export import export as run_export
    from shufflectl.deploy.options import ExportRequest
    from shufflectl.deploy.verify import TIP

    OUTPUT.quiet_libraries()
    if not out.strip():
        raise UsageError("the output folder is an empty name", hint="name a folder, or . for this one")
    request = ExportRequest.parse(
        model=model,
        weights=weights,
        targets=target or ["all"],
        precisions=precision or ["fp32"],
        out=Path(out),
        num_classes=num_classes,
        input_size=input_size,
        batch=batch,
        layout=layout,
        shuffle=shuffle,
        align=align,
        half_io=half_io,
        minimum_deployment_target=minimum_deployment_target,
        keep_failing=keep_failing,
        verbose=OUTPUT.verbose,
        parity=_parity(
            images, seed, runtime, runtime_python, threads, max_rel, min_sqnr, min_top1, per_layer
        ),
    )
    with OUTPUT.progress() as notify:
        result = run_export(request, notify)
    published = result.passed or keep_failing
    render.exported(OUTPUT, result, out, published=published)
    if not result.passed:
        raise ParityError(result.failure, hint=TIP)


@app.command(
    epilog="Examples:\n\n"
    "  shufflectl check dist/\n\n"
    "  shufflectl check model.onnx model.tflite model.mlpackage --per-layer\n\n"
    "  shufflectl check dist/ --weights best.pt --json"
)
def check(
    paths: Annotated[
        list[Path],
        typer.Argument(help="An exported folder, or .onnx, .tflite and .mlpackage files of one model."),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="The model to compare with, or the .onnx file that the files were made from; by default "
            "what the files say.",
            autocompletion=_complete_model,
        ),
    ] = None,
    weights: Weights = None,
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
    from shufflectl import render
    from shufflectl.deploy import check as checking

    OUTPUT.quiet_libraries()
    options = _parity(images, seed, runtime, runtime_python, threads, max_rel, min_sqnr, min_top1, per_layer)
    with OUTPUT.progress() as notify:
        result = checking.check(paths, model=model, weights=weights, parity=options, notify=notify)
    render.checked(OUTPUT, result)
    result.raise_for_failure()


@app.command(
    epilog="Examples:\n\n"
    "  shufflectl evaluate dist/ --data photos/\n\n"
    "  shufflectl evaluate model.tflite model.onnx --data photos/ --images 500 --resize squash\n\n"
    "  shufflectl evaluate dist/ --data digits --min-top1 0.98 --json"
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
            help="The model to compare with; by default what the files say.", autocompletion=_complete_model
        ),
    ] = None,
    weights: Weights = None,
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
    from shufflectl import render
    from shufflectl.deploy.evaluate import evaluate as run_evaluate
    from shufflectl.deploy.labelled import parse_fit

    OUTPUT.quiet_libraries()
    options = _parity(images, 0, runtime, runtime_python, threads, None, None, None, per_layer=False)
    with OUTPUT.progress() as notify:
        result = run_evaluate(
            paths,
            data=data,
            model=model,
            weights=weights,
            fit=parse_fit(resize),
            follow_links=follow_links,
            min_top1=min_top1,
            options=options,
            notify=notify,
        )
    render.evaluated(OUTPUT, result)
    result.raise_for_failure()


@app.command(
    epilog="Examples:\n\n"
    "  shufflectl inspect dist/shufflenet_v2_x0_5-fp32.tflite\n\n"
    "  shufflectl inspect model.onnx --operators --json\n\n"
    "  shufflectl inspect model.tflite --max-fallback-ops 0 --delegate gpu --max-rank 4"
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
    from shufflectl import render
    from shufflectl.deploy.inspect.inspection import Limits, inspect_file

    OUTPUT.quiet_libraries()
    with OUTPUT.progress() as notify:
        notify("reading", 0, 0)
        found = inspect_file(path, measured=measure, limits=Limits(max_fallback_ops, delegate, max_rank))
    render.inspection(OUTPUT, found, operators=operators)
    found.raise_for_failure()


@app.command(
    epilog="Examples:\n\n"
    "  shufflectl explain shufflenet_v2_x1_0\n\n"
    "  shufflectl explain model.onnx --target tflite --json\n\n"
    "  shufflectl explain shufflenet_v1_g3_x1_0 --target onnx --shuffle fold --align 8\n\n"
    "  shufflectl explain shufflenet_v2_x0_5 --all-forms"
)
def explain(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|FILE",
            help="A name that [cyan]shufflectl models[/] lists, or an .onnx file of any exporter.",
            autocompletion=_complete_model,
        ),
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="onnx, coreml, tflite or all; repeatable, or separated by commas."),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="fp32 or fp16; repeatable, or separated by commas."),
    ] = None,
    weights: Weights = None,
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
    shuffle: Annotated[
        str,
        typer.Option(
            metavar="auto|NAME", help="The form to see; by default what export takes for each target."
        ),
    ] = "auto",
    align: Annotated[
        str,
        typer.Option(
            metavar="auto|N", help="What channel counts are padded to a multiple of, by forms that pad."
        ),
    ] = "auto",
    all_forms: Annotated[
        bool, typer.Option("--all-forms", help="Try every form, and list what each leaves: one line a form.")
    ] = False,
    _json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Show every channel shuffle of a model, the form that each target gives it, and why.

    Sites, channel maps, what was refused, operators, bytes moved and ranks before and after. Writes nothing.
    """
    from shufflectl import render
    from shufflectl.deploy.explain import ExplainRequest
    from shufflectl.deploy.explain import explain as run_explain

    OUTPUT.quiet_libraries()
    request = ExplainRequest.parse(
        subject=model,
        targets=target or ["all"],
        precisions=precision or ["fp32"],
        weights=weights,
        num_classes=num_classes,
        input_size=input_size,
        shuffle=shuffle,
        align=align,
        all_forms=all_forms,
    )
    with OUTPUT.progress() as notify:
        found = run_explain(request, notify)
    render.explained(OUTPUT, found)


@app.command(
    epilog="Examples:\n\n  shufflectl identify best.pth\n\n  shufflectl identify epoch_300.pth --json"
)
def identify(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="A checkpoint: .safetensors, .pt, .pth, .ckpt.")
    ],
    _json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Say what a checkpoint is: library, network, classes, preprocessing, and which tensors tell it.

    Where it is nothing known, the nearest networks and the tensors that do not fit. Exit code 3.
    """
    from shufflectl import render
    from shufflectl.models.checkpoints.files import read
    from shufflectl.models.checkpoints.identify import identify as run_identify

    OUTPUT.quiet_libraries()
    with OUTPUT.progress() as notify:
        notify(f"reading {path.name}", 0, 0)
        found = run_identify(read(path))
    render.identified(OUTPUT, found)
    found.require()


@app.command(epilog="Examples:\n\n  shufflectl models\n\n  shufflectl models --family shufflenet_v1 --json")
def models(
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
    _json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """List the models that can be exported, with the figures of their papers."""
    from shufflectl import render
    from shufflectl.models import zoo

    chosen = [zoo.variant(name) for name in zoo.names()]
    if family is not None:
        from shufflectl.errors import nearest

        families = list(dict.fromkeys(variant.family for variant in chosen))
        if family not in families:
            raise UsageError(f"unknown family {family!r}", hint=nearest(family, families))
        chosen = [variant for variant in chosen if variant.family == family]
    render.models(OUTPUT, chosen)


@app.command(
    epilog="Examples:\n\n"
    "  shufflectl doctor\n\n"
    "  shufflectl doctor --runtime-python .venv-tflite/bin/python --json"
)
def doctor(
    runtime_python: RuntimePython = None,
    _json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Show what is installed, what works here, what is missing and how to get it."""
    from shufflectl import render
    from shufflectl.deploy.doctor import diagnose

    OUTPUT.quiet_libraries()
    with OUTPUT.progress() as notify:
        diagnosis = diagnose(runtime_python=runtime_python, notify=lambda what: notify(what, 0, 0))
    render.diagnosis(OUTPUT, diagnosis)
    if not diagnosis.usable:
        raise typer.Exit(7)


def _parity(
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


def _fail(error: ShufflectlError) -> NoReturn:
    OUTPUT.error(error)
    sys.exit(error.exit_code)


def _prepare_streams() -> None:
    """Make standard output and error usable: closed ones lead nowhere, others show ? for what they lack."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the process ends
            setattr(sys, name, nowhere)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _leave_quickly() -> None:
    """Spare the last collection over torch's objects: it would take seconds, and free nothing.

    nanobind reports what is then left over as leaks, on standard error: by now there is nothing else to say.
    """
    gc.freeze()
    if "onnxsim" in sys.modules:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)


def main(run: Callable[[], Any] = app) -> None:
    """Run the program. The one place where an error becomes an exit code."""
    _prepare_streams()
    atexit.register(_leave_quickly)
    try:
        run()
    except ShufflectlError as error:
        if OUTPUT.verbose:
            import traceback

            traceback.print_exc()
        _fail(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if OUTPUT.verbose:
            raise
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO):
            _fail(OutputError(f"the output cannot be written: {error.strerror}", hint="send it elsewhere"))
        _fail(
            ShufflectlError(
                f"internal error: {type(error).__name__}: {error}",
                hint="this is a defect of shufflectl: call again with -v and report what it prints",
            )
        )
