"""`shufflectl models`: the registry."""

from typing import Annotated

import typer

from shufflectl.commands.options import OUTPUT, Json, Verbose
from shufflectl.errors import UsageError, nearest

__all__ = ["EXAMPLES", "models"]

EXAMPLES = (
    "shufflectl models",
    "shufflectl models --family shufflenet_v1 --json",
)


def models(
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
    _json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """List the models that can be exported, with the figures of their papers."""
    from shufflectl.models import zoo
    from shufflectl.render.registry import models as render

    chosen = [zoo.variant(name) for name in zoo.names()]
    if family is not None:
        families = list(dict.fromkeys(variant.family for variant in chosen))
        if family not in families:
            raise UsageError(f"unknown family {family!r}", hint=nearest(family, families))
        chosen = [variant for variant in chosen if variant.family == family]
    render(OUTPUT, chosen)
