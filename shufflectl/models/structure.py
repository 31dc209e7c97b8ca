"""What a user's network takes and gives: parameters of its forward, and tensors in nested outputs."""

import copy
import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from torch import Tensor, nn

from shufflectl.errors import FactoryError, UsageError

__all__ = ["bind", "flattened", "name_outputs", "parameters"]

_FOREIGN: Final = re.compile(r"[^A-Za-z0-9_.]+")
_KINDS: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def parameters(module: nn.Module) -> tuple[list[str], list[str], bool]:
    """Return the inputs that a network's forward must have, all that it may have, and whether any number."""
    found = list(inspect.signature(module.forward).parameters.values())
    positional = [p for p in found if p.kind in _KINDS]
    required = [p.name for p in positional if p.default is inspect.Parameter.empty]
    return (
        required,
        [p.name for p in positional],
        any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in found),
    )


def bind(given: Sequence[str], module: nn.Module, name: str) -> list[str]:
    """Return the names of inputs in the order in which the network takes them.

    Names that are all forward's own go by name. Any other names are given to forward in their order.

    Args:
        given: Names, as the user has them.
        module: The network.
        name: What messages call it.

    Raises:
        UsageError: There are too few or too many, or a name is forward's own at another place.
    """
    required, known, variable = parameters(module)
    if len(given) < len(required) or (len(given) > len(known) and not variable):
        takes = ", ".join(required) or "no input"
        raise UsageError(
            f"{name} takes {takes}, and {len(given)} inputs are given",
            hint="give each a shape: " + " ".join(f"--input {n}=1x3x224x224" for n in required or known[:1]),
        )
    if set(given) == set(known[: len(given)]):
        return known[: len(given)]
    for place, word in enumerate(given):
        if word in known and known.index(word) != place:
            raise UsageError(
                f"input {word!r} stands at place {place + 1}, and {name} takes it at {known.index(word) + 1}",
                hint="give the inputs in the order of " + ", ".join(known),
            )
    return list(given)


def flattened(module: nn.Module) -> nn.Module:
    """Return the network with a flat tuple of tensors as its output; names and tensors are shared.

    A subclass made here takes the place of the class, so that the network stays the root: around it a wrapper
    would stand before the name of every tensor.
    """
    kind = type(module)

    class Flattened(kind):  # type: ignore[misc, valid-type]  # known when it runs
        def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
            return tuple(tensor for _, tensor in _leaves("", super().forward(*inputs)))

    Flattened.__name__ = Flattened.__qualname__ = kind.__name__
    result = copy.copy(module)
    result.__class__ = Flattened
    return result


def name_outputs(
    outputs: Any, given: Sequence[str], taken: Sequence[str], name: str
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Return names and shapes of a network's outputs, in the order of `flattened`.

    A key of a mapping is a name, and so is the field of a named tuple or dataclass; the place in a tuple or
    list is a number. What is nested is joined by underscores. A single tensor is called ``output``.

    Args:
        outputs: What the network gave.
        given: Names that the user wants instead; empty for those above.
        taken: The names of the inputs.
        name: What messages call the network.

    Raises:
        FactoryError: An output is no tensor, or is another output too.
        UsageError: The user's names are not as many, or not unique.
    """
    leaves = list(_leaves("", outputs))
    for path, leaf in leaves:
        if not isinstance(leaf, Tensor):
            where = f" at {path!r}" if path else ""
            raise FactoryError(
                f"{name} gives an object of type {type(leaf).__name__}{where}, not a tensor",
                hint="let forward give tensors, in tuples, lists and dictionaries",
            )
    if not leaves:
        raise FactoryError(f"{name} gives no tensor", hint="return the tensors that the files shall give")
    if len({id(leaf) for _, leaf in leaves}) != len(leaves):
        raise FactoryError(f"{name} gives one tensor twice", hint="return each tensor once")
    if given and len(given) != len(leaves):
        raise UsageError(
            f"{len(given)} names are given for {len(leaves)} outputs of {name}",
            hint="give one --output a tensor: " + ", ".join(path or "output" for path, _ in leaves),
        )
    wanted = list(given) or [_FOREIGN.sub("_", path) or "output" for path, _ in leaves]
    wanted = [f"output_{text}" if text[0].isdigit() else text for text in wanted]
    names: list[str] = []
    for text in wanted:
        if given and (text in names or text in taken):
            raise UsageError(f"two inputs or outputs are named {text!r}", hint="give each a name of its own")
        unique, count = text, 0
        while unique in names or unique in taken:
            count += 1
            unique = f"{text}_{count}"
        names.append(unique)
    return tuple(names), tuple(tuple(leaf.shape) for _, leaf in leaves)


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what is in nested containers, each with its path; nothing for None."""

    def inner(key: object) -> str:
        return f"{path}_{key}" if path else str(key)

    if value is None:
        return
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        pairs = list(zip(value._fields, value, strict=True))
    elif isinstance(value, (tuple, list)):
        pairs = list(enumerate(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    else:
        yield path, value
        return
    for key, part in pairs:
        yield from _leaves(inner(key), part)
