"""What builds the computation of an operation."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from shufflectl.deploy.runtimes.coreml_reference.operation import Argument, Compute, Operation

__all__ = ["Builder", "Built", "rows"]

Built = tuple[Compute, list[Argument]]
"""What an operation computes, and its operands."""

Builder = Callable[[Operation], Built]
"""Reads an operation once."""


def rows(builder: Callable[..., Built], functions: Mapping[str, Any]) -> dict[str, Builder]:
    """Return the rows of operations that differ in one function alone."""
    return {name: partial(builder, function=function) for name, function in functions.items()}
