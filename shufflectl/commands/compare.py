"""`shufflectl compare`: two stored results of bench."""

from pathlib import Path
from typing import Annotated

import typer

from shufflectl.commands.options import OUTPUT, Json, Verbose

__all__ = ["EXAMPLES", "compare"]

EXAMPLES = (
    "shufflectl compare before.json after.json",
    "shufflectl compare before.json after.json --tolerance 3% --json",
)


def compare(
    baseline: Annotated[Path, typer.Argument(help="What 'shufflectl bench --out' wrote: the baseline.")],
    candidate: Annotated[Path, typer.Argument(help="Another one: what is judged.")],
    tolerance: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="How much more time is allowed, as 3% or 0.03. Exit code 5 where it is more, 6 where that "
            "cannot be told.",
        ),
    ] = None,
    _json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Compare two stored results: the ratio of times with its 95 % interval.

    They were measured at different times, so everything that changed in between is in the ratio too:
    'shufflectl bench NEW --baseline OLD' measures both in turns and sees smaller differences. Results of
    different devices, runners, threads or accelerators are refused.
    """
    from shufflectl.benchmarks.compare import compare_suites, raise_for_verdicts
    from shufflectl.benchmarks.options import parse_share
    from shufflectl.benchmarks.results import read_suite
    from shufflectl.render.benchmark import compared

    OUTPUT.quiet_libraries()
    found = compare_suites(read_suite(baseline), read_suite(candidate), parse_share(tolerance))
    compared(OUTPUT, found)
    raise_for_verdicts(found)
