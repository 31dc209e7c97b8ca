"""`shufflectl explain`: every channel shuffle, and its form for each target."""

from typing import Annotated

import typer

from shufflectl.commands.options import OUTPUT, Arguments, Inputs, Json, Verbose, Weights, complete_model

__all__ = ["EXAMPLES", "explain"]

EXAMPLES = (
    "shufflectl explain shufflenet_v2_x1_0",
    "shufflectl explain model.onnx --target tflite --json",
    "shufflectl explain shufflenet_v1_g3_x1_0 --target onnx --shuffle fold --align 8",
    "shufflectl explain shufflenet_v2_x0_5 --all-forms",
    "shufflectl explain shufflenet_v2_x0_5 --precision int8 --all-forms",
    "shufflectl explain detector.model:build --arg classes=3 --input image=1x3x320x320",
)


def explain(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|FILE|MODULE:FACTORY",
            help="A name that [cyan]shufflectl models[/] lists, an .onnx file of any exporter, or a Python "
            "function that builds a torch module.",
            autocompletion=complete_model,
        ),
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="onnx, coreml, tflite or all; repeatable, or separated by commas."),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="fp32, fp16, int8 ... as of export; repeatable, or separated by commas."
        ),
    ] = None,
    weights: Weights = None,
    arg: Arguments = None,
    input_: Inputs = None,
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
    from shufflectl.deploy.explanation.explain import explain as run_explain
    from shufflectl.deploy.explanation.request import ExplainRequest
    from shufflectl.render.explanation import explained

    OUTPUT.quiet_libraries()
    request = ExplainRequest.parse(
        subject=model,
        targets=target or ["all"],
        precisions=precision or ["fp32"],
        weights=weights,
        arguments=arg or (),
        inputs=input_ or (),
        num_classes=num_classes,
        input_size=input_size,
        shuffle=shuffle,
        align=align,
        all_forms=all_forms,
    )
    with OUTPUT.progress() as notify:
        found = run_explain(request, notify)
    explained(OUTPUT, found)
