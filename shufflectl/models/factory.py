"""A user's own network: the function that builds it, named as ``package.module:factory``.

This is the one place that runs a user's code, and it does so for a name that the user gave on this call of
the program. Nothing that a file says is ever taken for such a name. This file does not import torch.
"""

import ast
import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from shufflectl.errors import FactoryError, ShufflectlError, UsageError, nearest

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Factory", "build", "is_factory", "refuse_path", "running"]

_FACTORY: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_MAX_LINE: Final = 300
_MAX_ELEMENTS: Final = 1 << 28
_INPUT: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_.]*)=(\d{1,9}(?:x\d{1,9}){0,7})")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")


@dataclass(frozen=True)
class Factory:
    """What the user says of a network of their own.

    Attributes:
        name: ``package.module:factory``.
        arguments: By name, as written.
        inputs: Shapes by name, the batch first; empty for one image.
        outputs: Names instead of those that the network's own containers give.
    """

    name: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()

    @classmethod
    def parse(
        cls,
        name: str,
        *,
        arguments: Sequence[str] = (),
        inputs: Sequence[str] = (),
        outputs: Sequence[str] = (),
    ) -> Self:
        """Read what the command line has as text.

        Raises:
            UsageError: An argument, an input or a name has another form than it should.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for text in inputs:
            found = _INPUT.fullmatch(text)
            if found is None:
                raise UsageError(
                    f"the input {text!r} is not of the form NAME=SHAPE",
                    hint="for example --input image=1x3x320x320",
                )
            shape = tuple(int(size) for size in found[2].split("x"))
            if found[1] in shapes:
                raise UsageError(f"the input {found[1]!r} is given twice", hint="give each a name of its own")
            elements = 1
            for size in shape:
                elements *= size
            if not 0 < elements <= _MAX_ELEMENTS:
                raise UsageError(
                    f"an input of shape {found[2]} is empty or too large",
                    hint=f"at most {_MAX_ELEMENTS} numbers",
                )
            shapes[found[1]] = shape
        names = [word.strip() for text in outputs for word in text.split(",")]
        for word in names:
            if _NAME.fullmatch(word) is None:
                raise UsageError(
                    f"{word!r} is not a name for an output", hint="letters, digits, dots and underscores"
                )
        return cls(name, _arguments(arguments), shapes, tuple(names))


def is_factory(subject: str) -> bool:
    """Say whether a word of the command line names a function: ``package.module:factory``."""
    return _FACTORY.fullmatch(subject) is not None


def refuse_path(subject: str) -> None:
    """Refuse a path of Python code, which people write for the module's name.

    Raises:
        UsageError: It is one.
    """
    path, _, name = subject.partition(":")
    if not path.endswith(".py"):
        return
    dotted = ".".join(part for part in Path(path).with_suffix("").parts if part not in ("/", "."))
    raise UsageError(
        f"{subject} is a path, and a network of one's own is named by its module and function",
        hint=f"write {dotted}:{name or 'FUNCTION'}, in the folder from which that can be imported",
    )


def _arguments(given: Sequence[str]) -> dict[str, str]:
    """Return arguments by name, their values as written, from ``key=value``.

    Raises:
        UsageError: One has another form, or a name occurs twice.
    """
    arguments: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(
                f"the argument {text!r} is not of the form key=value", hint="for example --arg num_classes=3"
            )
        if name in arguments:
            raise UsageError(f"the argument {name!r} is given twice", hint="give it once")
        arguments[name] = value
    return arguments


def build(factory: Factory) -> "nn.Module":
    """Import a user's function, call it, and return the network that it builds, as it is.

    The current folder is importable, as it is for ``python -m``. Random numbers of torch are drawn from one
    seed, so that a network with its own initialisation is the same in every call.

    Args:
        factory: Names a function, a class, or a network itself. An argument is a Python literal or else text.

    Raises:
        UsageError: There is no such module or attribute, it cannot be called, or does not take the arguments.
        FactoryError: Its own code raises an exception, or gives something that is no ``torch.nn.Module``.
    """
    name, _, path = factory.name.partition(":")
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = _attribute(_imported(factory.name, name), name, path)

    if isinstance(found, torch.nn.Module):
        if factory.arguments:
            raise UsageError(
                f"{factory.name} is a network already and takes no arguments", hint="leave out --arg"
            )
        return found
    if not callable(found):
        raise UsageError(
            f"{factory.name} is of type {type(found).__name__}, which cannot be called",
            hint="name a function or a class that gives a torch.nn.Module",
        )
    values = {key: _value(text) for key, text in factory.arguments.items()}
    _check_arguments(factory.name, found, values)
    with running(f"{factory.name} raised"), torch.random.fork_rng():
        torch.manual_seed(0)
        module = found(**values)
    if not isinstance(module, torch.nn.Module):
        raise FactoryError(
            f"{factory.name} gives an object of type {type(module).__name__}, not a torch.nn.Module",
            hint="return the network itself",
        )
    return module


@contextmanager
def running(what: str, hint: str = "") -> Iterator[None]:
    """Make one sentence of whatever a user's code raises, and send what it prints to standard error.

    Args:
        what: What the message begins with; the exception follows.
        hint: What to do about it, where there is something; it follows where the exception was raised.

    Raises:
        FactoryError: The body raised an exception, or wanted to end the program.
    """
    with redirect_stdout(sys.stderr):
        try:
            yield
        except (ShufflectlError, KeyboardInterrupt):
            raise
        except (Exception, SystemExit) as error:
            parts = [_place(error), hint, "see the traceback with -v"]
            raise FactoryError(f"{what} {_say(error)}", hint="; ".join(filter(None, parts))) from error


def _say(error: BaseException) -> str:
    """Return an exception as one line: its type, and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = "".join(c for c in lines[0] if c.isprintable()) if lines else "no message"
    return f"{type(error).__name__}: {text if len(text) <= _MAX_LINE else text[:_MAX_LINE] + '...'}"


def _place(error: BaseException) -> str:
    """Return where in the code of others an exception was raised, for a hint; empty where it was in none."""
    own = str(Path(__file__).resolve().parents[1])
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"see {Path(error.filename).name}, line {error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((own, "<"))]
    # What a user wrote, rather than the library that it calls, is where the mistake is in the main.
    mine = [f for f in frames if not {"site-packages", "importlib"} & set(Path(f.filename).parts)] or frames
    return f"raised in {Path(mine[-1].filename).name}, line {mine[-1].lineno}" if mine else ""


def _imported(factory: str, name: str) -> Any:
    """Return the module of that name, its own errors told from its absence."""
    here = os.getcwd()  # noqa: PTH109 - as text, which is what sys.path holds
    if not sys.flags.safe_path and here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    with running(f"{name} cannot be imported:"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            # Of `a.b.c` the missing one may be any of its parents; another name is the module's own import.
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise UsageError(
                f"there is no module named {error.name!r}, which {factory} needs",
                hint="call from the folder that holds it, or set PYTHONPATH to that folder",
            ) from error


def _attribute(module: Any, name: str, path: str) -> Any:
    found = module
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            public = [
                key
                for key, value in vars(found).items()
                if callable(value) and not key.startswith("_") and getattr(value, "__module__", name) == name
            ]
            raise UsageError(
                f"{name} has no attribute {part!r}",
                hint=nearest(part, public) if public else "it defines no function and no class",
            ) from error
    return found


def _value(text: str) -> Any:
    """Return what a text is as a Python literal; else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def _check_arguments(factory: str, found: Callable[..., Any], values: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # written in C, or says something else of itself
        return
    try:
        signature.bind(**values)
    except TypeError as error:
        takes = ", ".join(str(p).partition(":")[0] for p in signature.parameters.values())
        raise UsageError(
            f"{factory} does not take these arguments: {error}",
            hint=f"it takes {takes or 'none'}; give each as --arg key=value",
        ) from error
