"""The models that can be exported, as a table or as JSON."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shufflectl.console import Output

if TYPE_CHECKING:
    from shufflectl.models.zoo import Variant

__all__ = ["models"]


def models(output: Output, variants: "Sequence[Variant]") -> None:
    """Show the registry."""
    if output.json:
        output.document({"schema": "shufflectl.models/1", "models": [v.to_json() for v in variants]})
        return
    rows = []
    for variant in variants:
        published = variant.published
        top1 = None if published is None else published.top1_accuracy
        rows.append(
            [
                variant.name,
                f"{variant.parameters / 1e6:.2f}",
                f"{variant.multiply_adds / 1e6:.1f}",
                "" if top1 is None else f"{top1:.1f}",
                ", ".join(variant.words),
                "" if published is None else published.source,
            ]
        )
    columns = ["name", "params M", "madds M", "top-1 %", "weights", "published in"]
    output.table("", columns, rows, right=columns[1:4])
    output.note("[dim]madds at 224x224; top-1 as published for ImageNet[/]")
