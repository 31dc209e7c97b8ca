"""`shufflectl report`: results as one HTML page."""

from pathlib import Path
from typing import Annotated

import typer

from shufflectl.commands.options import OUTPUT, Json, Verbose

__all__ = ["EXAMPLES", "report"]

EXAMPLES = (
    "shufflectl report result.json --html report.html",
    "shufflectl report before.json after.json phone.json --html report.html",
)


def report(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="RESULT...", help="Files that [cyan]shufflectl bench --out[/] wrote."),
    ],
    html: Annotated[Path, typer.Option("--html", metavar="FILE", help="Where the page goes.")],
    _json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Show results on one HTML page: every run, medians, ratios, intervals, conditions, and what is doubtful.

    The page needs nothing else, neither network nor script, and may be sent by mail.
    """
    from shufflectl.benchmarks.report.page import render
    from shufflectl.benchmarks.results import read_suite
    from shufflectl.deploy.publish import write_file
    from shufflectl.render.report import reported

    suites = [(str(path), read_suite(path)) for path in results]
    page = render(suites).encode()
    write_file(html, page, "--html")
    reported(OUTPUT, suites, html, len(page))
