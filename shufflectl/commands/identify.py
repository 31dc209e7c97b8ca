"""`shufflectl identify`: what a checkpoint is."""

from pathlib import Path
from typing import Annotated

import typer

from shufflectl.commands.options import OUTPUT, Json, Verbose

__all__ = ["EXAMPLES", "identify"]

EXAMPLES = (
    "shufflectl identify best.pth",
    "shufflectl identify epoch_300.pth --json",
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
    from shufflectl.models.checkpoints.files import read
    from shufflectl.models.checkpoints.identify import identify as run_identify
    from shufflectl.render.identification import identified

    OUTPUT.quiet_libraries()
    with OUTPUT.progress() as notify:
        notify(f"reading {path.name}", 0, 0)
        found = run_identify(read(path))
    identified(OUTPUT, found)
    found.require()
