"""Which output of a model each class of the images is: by the classes' names, else by their order."""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shufflectl.deploy.labelled import Images
from shufflectl.errors import DataError
from shufflectl.models.checkpoints.files import printable

__all__ = ["outputs_of"]

_SHOWN: Final = 5
"""Names that a message shows."""


def outputs_of(images: Images, names: Sequence[str], width: int, title: str) -> tuple[NDArray[np.int64], str]:
    """Return the output of each class of the images, and how it was found.

    Args:
        images: Their classes are mapped.
        names: The outputs' names, where the files carry them.
        width: How many outputs there are.
        title: The model, for messages.

    Raises:
        DataError: The classes do not fit.
    """
    for form in (str, _folded):
        places = _places(names[:width], form)
        found = [places.get(form(name), []) for name in images.classes]
        twice = [name for name, places_of in zip(images.classes, found, strict=True) if len(places_of) > 1]
        if twice and form is str:
            raise DataError(
                f"{title} has two classes of the name {twice[0]!r}",
                hint="name no folder after a class whose name is not unique",
            )
        if all(len(places_of) == 1 for places_of in found) and len({p[0] for p in found}) == len(found):
            return np.asarray([place[0] for place in found], np.int64), "names"
    missing = [name for name, places_of in zip(images.classes, found, strict=True) if not places_of]
    if len(images.classes) == width and len(missing) in (0, width):
        return np.arange(width, dtype=np.int64), "order"
    if names and len(missing) < len(images.classes):
        raise DataError(
            f"{images.source} has a class {missing[0] if missing else images.classes[0]!r}, which is none of "
            f"{title}",
            hint="name the folders after the model's classes: " + _some(names),
        )
    raise DataError(
        f"{images.source} has {len(images.classes)} classes ({_some(images.classes)}), and {title} tells "
        f"{width} apart{f' ({_some(names)})' if names else ''}",
        hint="name the folders after the model's classes, or have one folder for each, in their order",
    )


def _folded(name: str) -> str:
    """Return a name as far as it matters: ``Great_White Shark`` is ``great white shark``."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _places(names: Sequence[str], form: Callable[[str], str]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        places.setdefault(form(name), []).append(index)
    return places


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return printable(shown if len(names) <= _SHOWN else f"{shown} ... {names[-1]}")
