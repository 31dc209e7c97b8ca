"""What users write for a preprocessing: a word, a JSON file, or keys and values."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from shufflectl.errors import InputError, UsageError, nearest
from shufflectl.models.preprocess import DIGITS, IMAGENET, MEGVII, PIXELS, UNIT, Layout, Preprocess

__all__ = ["AUTO", "WORDS", "PreprocessOption"]

AUTO: Final = "auto"

WORDS: Final[Mapping[str, Preprocess]] = MappingProxyType(
    {"imagenet": IMAGENET, "megvii": MEGVII, "signed": DIGITS, "unit": UNIT, "none": PIXELS}
)
"""The specifications that have a name: ``signed`` is -1 to 1, ``unit`` 0 to 1, ``none`` 0 to 255."""

_KEYS: Final = ("color", "scale", "mean", "std", "resize", "crop", "layout")
_LISTS: Final = ("mean", "std")
_TEXTS: Final = ("color", "resize", "layout")
_MAX_BYTES: Final = 1 << 16


@dataclass(frozen=True)
class PreprocessOption:
    """What a user asks for.

    Attributes:
        text: As it was written, for messages.
        base: What it starts from; None for what the weights say.
        changes: Fields that are given one by one.
    """

    text: str = AUTO
    base: Preprocess | None = None
    changes: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def given(self) -> bool:
        """Whether anything is asked for that the weights do not say by themselves."""
        return self.base is not None or bool(self.changes)

    @property
    def layout(self) -> Layout | None:
        """The layout of files that is asked for; None where each format's own is."""
        given: Layout | None = self.changes.get("layout")
        if given is None and self.base is not None and self.base.layout == "nhwc":
            return self.base.layout
        return given

    def of(self, own: Preprocess) -> Preprocess:
        """Return the specification for a model.

        Where another colour order is all that is said, each colour keeps its mean and deviation.

        Args:
            own: What the weights say.

        Raises:
            UsageError: The figures make no specification.
        """
        start = own if self.base is None else self.base
        try:
            if "color" in self.changes:
                start = start.in_order(self.changes["color"])
            return replace(start, **self.changes)
        except ValueError as error:
            raise UsageError(f"--preprocess {self.text}: {error}", hint=_HOW) from error

    @classmethod
    def parse(cls, text: str) -> "PreprocessOption":
        """Read a word, the path of a ``.json`` file, or ``[word,]key=value,...``.

        Raises:
            UsageError: There is no such word or key, or a value cannot be read.
            InputError: The file is missing or holds no specification.
        """
        if text.strip().lower().endswith(".json"):
            return cls(text, _read(Path(text.strip())))
        tokens = [token.strip() for token in text.split(",")]
        base: Preprocess | None = None
        if "=" not in tokens[0]:
            word = tokens.pop(0)
            if word != AUTO and word not in WORDS:
                known = (AUTO, *WORDS)
                hint = nearest(word, known) if word.isalnum() and not Path(word).exists() else _HOW
                raise UsageError(f"unknown preprocessing {word!r}", hint=hint)
            base = WORDS.get(word)
        changes = _values(text, tokens)
        option = cls(text, base, MappingProxyType(changes))
        option.of(base or UNIT)  # what no model can mend is refused now
        return option


_HOW: Final = (
    f"write {AUTO}, {', '.join(WORDS)}, a .json file, or values: "
    "color=bgr,scale=1/255,mean=0.406,0.456,0.485,std=0.225,0.224,0.229"
)


def _values(text: str, tokens: list[str]) -> dict[str, Any]:
    """Return fields by name; a figure without a name goes to the list before it."""
    found: dict[str, list[str]] = {}
    last = ""
    for token in tokens:
        key, equals, value = token.partition("=")
        if equals:
            last = key.strip().lower()
            if last not in _KEYS:
                raise UsageError(f"--preprocess has no key {last!r}", hint=nearest(last, _KEYS))
            if last in found:
                raise UsageError(f"--preprocess names {last} twice", hint="name it once")
            found[last] = [value.strip()]
        elif last in _LISTS:
            found[last].append(token)
        else:
            raise UsageError(f"--preprocess {text}: {token!r} belongs to no key", hint=_HOW)
    return {key: _value(key, values) for key, values in found.items()}


def _value(key: str, values: list[str]) -> Any:
    if key in _TEXTS:
        return values[0].lower()
    figures = tuple(_figure(key, value) for value in values)
    if key not in _LISTS:
        return figures[0]
    if len(figures) == 1:
        return figures * 3
    if len(figures) != 3:
        raise UsageError(f"--preprocess has {len(figures)} figures for {key}", hint="give 3, or 1 for all")
    return figures


def _figure(key: str, text: str) -> float:
    """Return a number, or a fraction as ``1/255``."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        raise UsageError(
            f"{text!r} is not a figure for {key}", hint="write a number, or a fraction as 1/255"
        ) from None


def _read(path: Path) -> Preprocess:
    try:
        with path.open("rb") as stream:
            return _specification(stream.read(_MAX_BYTES + 1))
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path} cannot be read: {reason}", hint="check the path") from error
    except KeyError as error:
        what = f"{error.args[0]} is missing"
    except RecursionError:
        what = "it is nested too deeply"
    except (ValueError, TypeError, OverflowError) as error:
        what = str(error)
    raise InputError(f"{path} is no preprocessing: {what}", hint="see docs/preprocess.md")


def _specification(data: bytes) -> Preprocess:
    if len(data) > _MAX_BYTES:
        raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
    document = json.loads(data)
    if not isinstance(document, dict):
        raise TypeError("it is no JSON object")
    unknown = [key for key in document if key not in _KEYS]
    if unknown:
        raise ValueError(f"there is no key {unknown[0]!r:.40}")
    return Preprocess.from_json(document)
