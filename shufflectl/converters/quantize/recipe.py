"""How a graph is calibrated."""

from dataclasses import dataclass
from typing import Final, Literal, Self, get_args

from shufflectl.errors import UsageError, nearest

__all__ = ["METHODS", "Method", "Recipe"]

Method = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)


@dataclass(frozen=True)
class Recipe:
    """How a graph is calibrated.

    Attributes:
        method: How ranges are chosen; see `quantize.observe`.
        equalise: How far channels are made equally large, 0 to 1; see `quantize.equalise`. At 0.5 the codes
            that activations win and weights lose balance best (ShuffleNet V2 x1.0, docs/quantisation.md).
        correct_bias: Whether mean errors are taken out of the biases; see `quantize.correct`.
    """

    method: Method = "minmax"
    equalise: float = 0.5
    correct_bias: bool = True

    @classmethod
    def parse(cls, method: str, equalise: float, *, correct_bias: bool) -> Self:
        """Return a recipe of words.

        Raises:
            UsageError: There is no such method, or a number is out of range.
        """
        known = next((name for name in METHODS if name == method), None)
        if known is None:
            raise UsageError(
                f"there is no way to choose ranges named {method!r}", hint=nearest(method, METHODS)
            )
        return cls(known, equalise, correct_bias)

    def __post_init__(self) -> None:
        if not 0 <= self.equalise <= 1:
            raise UsageError(
                f"channels cannot be equalised by {self.equalise}", hint="give a number from 0 to 1"
            )
