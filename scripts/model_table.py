"""Write the table of docs/models.md from the registry.

python scripts/model_table.py           rewrite the table
python scripts/model_table.py --check   exit with 1 where it is not the registry's
"""

import sys
from pathlib import Path

from shufflectl.models import zoo
from shufflectl.models.zoo import Variant

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
START, END = "<!-- table: scripts/model_table.py -->\n", "<!-- end of table -->\n"


def table() -> str:
    """Return the tables of all families, and the notes, as Markdown."""
    parts = []
    for family, title in zoo.FAMILIES.items():
        rows = [row for row in zoo.variants() if row.family == family]
        parts.append(f"## {title}\n\n" + "".join(f"{line}\n" for line in _lines(rows)))
        noted: dict[str, list[str]] = {}
        for row in rows:
            if row.published is not None and row.published.note:
                noted.setdefault(row.published.note, []).append(f"`{row.name}`")
        parts += [f"{', '.join(names)}: {note}\n" for note, names in noted.items()]
    return "\n" + "\n".join(parts) + "\n"


def _lines(rows: list[Variant]) -> list[str]:
    columns = (
        *(
            "name",
            "parameters",
            "multiply-adds",
            "published: M parameters",
            "M multiply-adds",
            "top-1 error %",
        ),
        *("source", "bundled weights"),
    )
    lines = [f"| {' | '.join(columns)} |", "|---|--:|--:|--:|--:|--:|---|---|"]
    for row in rows:
        published = row.published
        figures = ["", "", "", ""]
        if published is not None:
            numbers = (published.parameters, published.multiply_adds, published.top1_error)
            figures = ["" if number is None else f"{number:g}" for number in numbers] + [published.source]
        cells = [
            f"`{row.name}`",
            f"{row.parameters:,}",
            f"{row.multiply_adds:,}",
            *figures,
            ", ".join(row.weights),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> int:
    """Rewrite the page, or compare it."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    wanted = before + START + table() + END + after
    if "--check" in sys.argv[1:]:
        if wanted != text:
            print(
                f"{PAGE.name} is not what the registry says: run python scripts/model_table.py",
                file=sys.stderr,
            )
            return 1
        return 0
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
