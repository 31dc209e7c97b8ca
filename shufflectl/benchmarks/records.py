"""Frozen dataclasses to and from JSON values, by their type hints."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

__all__ = ["decode", "encode"]

_Record = TypeVar("_Record")


def encode(value: Any) -> Any:
    """Return a record, or a value in one, as JSON values; tables are sorted by key."""
    if dataclasses.is_dataclass(value):
        return {entry.name: encode(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: value[key] for key in sorted(value)}
    if isinstance(value, tuple):
        return [encode(entry) for entry in value]
    return value


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
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        plain = inner in (int, str)  # a hundred thousand samples are not looked at one by one
        return tuple(value) if plain else tuple(_value(inner, entry) for entry in value)
    return float(value) if hint is float else value
