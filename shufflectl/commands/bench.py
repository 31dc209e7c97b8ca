"""`shufflectl bench`: how fast files run, here or on a phone."""

from pathlib import Path
from typing import Annotated

import typer

from shufflectl.commands.options import OUTPUT, Json, RuntimePython, Seed, Verbose

__all__ = ["EXAMPLES", "bench"]

EXAMPLES = (
    "shufflectl bench dist/",
    "shufflectl bench new.tflite --baseline old.tflite --tolerance 3%",
    "shufflectl bench model.onnx --threads 1,2 --affinity 0,1 --out result.json --csv runs.csv",
    "shufflectl bench new.tflite --baseline old.tflite --plot ratios.png",
    "shufflectl bench model.tflite --device android --runner litert-arm64",
)


def bench(
    paths: Annotated[
        list[Path],
        typer.Argument(help="An exported folder, or .onnx, .tflite and .mlpackage files."),
    ],
    device: Annotated[
        str,
        typer.Option(
            metavar="local|android[:SERIAL]", help="Where: this machine, or a phone that adb is connected to."
        ),
    ] = "local",
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            "--runtime",
            metavar="NAME",
            help="On this machine; repeatable: onnxruntime, litert, litert-c (our own runner), "
            "tflite-runtime, coreml.",
        ),
    ] = None,
    runtime_python: RuntimePython = None,
    runner: Annotated[
        list[str] | None,
        typer.Option(
            "--runner",
            metavar="NAME|PATH",
            help="A name that 'shufflectl runner' knows, or a program's path. On a phone: what runs the "
            "files; repeatable. On this machine: our own runner, for --runtime litert-c.",
        ),
    ] = None,
    runner_kind: Annotated[
        str, typer.Option(metavar="KIND", help="On a phone: what the program is, where it does not say.")
    ] = "",
    adb: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="The adb client; by default the variable ADB, PATH, or an Android SDK (ANDROID_HOME).",
        ),
    ] = None,
    fixed_performance: Annotated[
        bool,
        typer.Option(
            "--fixed-performance", help="On a phone: hold the clocks at what it can keep up; always reset."
        ),
    ] = False,
    threads: Annotated[
        str, typer.Option(metavar="N[,N...]", help="Threads of the runtime; each number is measured.")
    ] = "1",
    affinity: Annotated[
        str,
        typer.Option(
            metavar="CORES|big|none",
            help="Pin the process to cores, as in 0,1; on a phone to its fastest (big) by default.",
        ),
    ] = "",
    accelerator: Annotated[
        str, typer.Option(metavar="cpu|gpu|nnapi", help="What the runner uses, on a phone.")
    ] = "cpu",
    mode: Annotated[
        str | None,
        typer.Option(
            metavar="absolute|paired",
            help="absolute: one file a process. paired: a process holds two, which take turns; the first "
            "file is the baseline unless --baseline names one. By default paired with --baseline FILE.",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Processes of each file, or of each pair.")] = 10,
    min_seconds: Annotated[float, typer.Option(min=0.0, help="Time for timed runs in a process.")] = 2.5,
    min_iterations: Annotated[
        int, typer.Option(min=1, help="Fewest timed runs of a file in a process, however long they take.")
    ] = 30,
    min_warmup: Annotated[float, typer.Option(min=0.0, help="Shortest warm-up, in seconds.")] = 0.25,
    max_warmup: Annotated[
        float, typer.Option(min=0.0, help="Longest warm-up, in seconds, where runs do not become steady.")
    ] = 5.0,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Compare with this model file, in pairs; or with a stored result (.json), unpaired.",
        ),
    ] = None,
    tolerance: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="How much more time than the baseline is allowed, as 3% or 0.03. Exit code 5 where it is "
            "more, 6 where that cannot be told.",
        ),
    ] = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the result, every run included, as JSON.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every run as CSV.")] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw the medians of all processes, intervals and ratios, as .png, .svg or .pdf; needs "
            "the extra 'plot'.",
        ),
    ] = None,
    _json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Measure how long files take: the median over fresh processes, with a 95 % interval.

    Load time, first run and peak memory are shown apart. What makes a figure worth less is said, with advice.
    Exit code 6 where a measurement is unstable. Ctrl-C ends it; --out gets the rounds that have ended.
    How it is done: docs/measuring.md.
    """
    from shufflectl.benchmarks.bench import BenchOptions, Device
    from shufflectl.benchmarks.bench import bench as run_bench
    from shufflectl.benchmarks.options import parse_mode, parse_share, parse_threads
    from shufflectl.benchmarks.output import write_csv, write_json
    from shufflectl.benchmarks.plot import write_plot
    from shufflectl.benchmarks.results import Warmup
    from shufflectl.deploy.drawing import check_plot
    from shufflectl.deploy.publish import check_writable
    from shufflectl.render.benchmark import measured

    OUTPUT.quiet_libraries()
    options = BenchOptions(
        device=Device.parse(device),
        runtimes=tuple(runtime or ()),
        runtime_python=runtime_python,
        runners=tuple(runner or ()),
        runner_kind=runner_kind,
        adb=adb,
        fixed_performance=fixed_performance,
        threads=parse_threads(threads),
        affinity=affinity,
        accelerator=accelerator,
        mode=parse_mode(mode),
        rounds=rounds,
        warmup=Warmup(min_seconds=min_warmup, max_seconds=max(min_warmup, max_warmup)),
        min_iterations=min_iterations,
        min_seconds=min_seconds,
        seed=seed,
        baseline=baseline,
        tolerance=parse_share(tolerance),
    )
    for file in (out, csv):
        if file is not None:
            check_writable(file)
    if plot is not None:
        check_plot(plot)
    with OUTPUT.progress() as notify:
        result = run_bench(paths, options, notify)
    if out is not None:
        write_json(result.suite, out)
    if csv is not None:
        write_csv(result.suite, csv)
    if plot is not None:
        write_plot(result.suite, plot)
    measured(OUTPUT, result.suite, result.skipped)
    result.raise_for_failure([str(file) for file in (out, csv) if file] + ["the document"] * OUTPUT.json)
