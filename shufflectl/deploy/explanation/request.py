"""What is to be explained, as the command line says it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, cast

from shufflectl.converters.rewrite.choose import AUTO, Choice, choose, parse_align
from shufflectl.converters.targets import PRECISIONS, TARGETS, Precision
from shufflectl.deploy.options import parse_factory, words
from shufflectl.errors import UsageError
from shufflectl.models.factory import Factory

__all__ = ["ExplainRequest"]

_MAX_SIZE: Final = 2048


@dataclass(frozen=True)
class ExplainRequest:
    """What is to be explained.

    Attributes:
        subject: A name of the registry, the path of an ONNX file, or a function of the user's
            (``package.module:factory``).
        factory: What the user says of that function; None where ``subject`` is none.
        targets: Names of `TARGETS`.
        precisions: Of every target.
        weights: As `models.load` takes it; only with a name of the registry.
        num_classes: Likewise.
        input_size: Height and width in pixels; of a file only where it leaves them free.
        shuffle: A name of `LOWERINGS`, or ``auto`` for what `export` would take.
        align: What channel counts are padded to a multiple of; None for what is best with the form.
        all_forms: Whether every form is tried, too.
    """

    subject: str
    factory: Factory | None = None
    targets: tuple[str, ...] = tuple(TARGETS)
    precisions: tuple[Precision, ...] = ("fp32",)
    weights: str | None = None
    num_classes: int | None = None
    input_size: int | None = None
    shuffle: str = AUTO
    align: int | None = None
    all_forms: bool = False

    @classmethod
    def parse(
        cls,
        *,
        targets: Sequence[str],
        precisions: Sequence[str],
        align: str = AUTO,
        arguments: Sequence[str] = (),
        inputs: Sequence[str] = (),
        **rest: Any,
    ) -> Self:
        """Read what the command line has as text.

        Raises:
            UsageError: A word is not one of the choices, or a number is out of range.
        """
        request = cls(
            factory=parse_factory(rest.get("subject"), arguments, inputs),
            targets=words(targets, tuple(TARGETS), "target", everything="all"),
            precisions=cast("tuple[Precision, ...]", words(precisions, PRECISIONS, "precision")),
            align=parse_align(align),
            **rest,
        )
        size = request.input_size
        if size is not None and not 1 <= size <= _MAX_SIZE:
            raise UsageError(f"an input of {size} pixels is too large", hint=f"give at most {_MAX_SIZE}")
        for target in request.targets:
            for precision in request.precisions:
                request.choice(target, precision)
        return request

    def choice(self, target: str, precision: str) -> Choice:
        """Return the form that a target gets.

        Raises:
            UsageError: There is no form of that name, or it does not pad channels.
        """
        return choose(target, precision, shuffle=self.shuffle, align=self.align)
