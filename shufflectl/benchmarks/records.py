"""Frozen dataclasses to and from JSON values, by their type hints."""

import collections.abc
import dataclasses
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

__all__ = ["decode", "encode", "text"]

_Record = TypeVar("_Record")


def encode(value: Any) -> Any:
    """Return a record, or a value in one, as JSON values; tables are sorted by key."""
    if dataclasses.is_dataclass(value):
        return {entry.name: encode(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: value[key] for key in sorted(value)}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [encode(entry) for entry in value]
    return value


def text(fields: Mapping[str, Any], *, indent: int | None = None) -> Iterator[str]:
    """Yield the JSON text of an object that holds records, a piece at a time.

    However many records it holds, only the values of one are encoded at once.

    Args:
        fields: Its keys and values, in their order.
        indent: Spaces for each level of records; None for one line. Values within a record take a line each.
    """
    items = [(f"{json.dumps(key)}: ", value) for key, value in fields.items()]
    yield from _object("{}", items, indent, 1)


def _object(ends: str, items: list[tuple[str, Any]], indent: int | None, level: int) -> Iterator[str]:
    margin = "" if indent is None else "\n" + " " * indent * level
    yield ends[0]
    for number, (key, value) in enumerate(items):
        comma = "" if not number else ", " if indent is None else ","
        yield f"{comma}{margin}{key}"
        yield from _text(value, indent, level + 1)
    yield ("" if indent is None else "\n" + " " * indent * (level - 1)) + ends[1]


def _text(value: Any, indent: int | None, level: int) -> Iterator[str]:
    if dataclasses.is_dataclass(value):
        names = [entry.name for entry in dataclasses.fields(value)]
        items = [(f"{json.dumps(name)}: ", getattr(value, name)) for name in names]
        yield from _object("{}", items, indent, level)
    elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        yield from _object("[]", [("", entry) for entry in value], indent, level)
    else:
        yield json.dumps(encode(value), allow_nan=False)


def decode(cls: type[_Record], data: Mapping[str, Any]) -> _Record:
    """Build a record from what `encode` made of one, and a schema has admitted."""
    hints = typing.get_type_hints(cls)
    return cls(**{key: _value(hints[key], value) for key, value in data.items()})


def _value(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(entry for entry in typing.get_args(hint) if entry is not types.NoneType)
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast("type[Any]", hint), value)
    if typing.get_origin(hint) in (tuple, collections.abc.Sequence):
        inner = typing.get_args(hint)[0]
        plain = inner in (int, str)  # a hundred thousand samples are not looked at one by one
        return tuple(value) if plain else tuple(_value(inner, entry) for entry in value)
    return float(value) if hint is float else value
