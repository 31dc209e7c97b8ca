"""JSON documents that may come from anywhere: bounded in size, strict, and of one schema in the package."""

import functools
import importlib.resources
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shufflectl.errors import InputError

__all__ = ["Kind"]


@dataclass(frozen=True)
class Kind:
    """A kind of document.

    Attributes:
        schema: What its key ``schema`` holds, as ``shufflectl.tuning/1``.
        noun: What it is called in sentences, as "tuning".
        package: Where the folder ``schemas`` is that holds its schema.
        most_bytes: No document of this kind is larger.
        hint: What to do about one that cannot be used.
        error: What is raised then.
    """

    schema: str
    noun: str
    package: str
    most_bytes: int
    hint: str
    error: type[InputError] = InputError

    def read(self, path: Path) -> bytes:
        """Return the bytes of a file.

        Raises:
            InputError: It is missing, a folder, or too large.
        """
        try:
            with path.open("rb") as stream:
                data = stream.read(self.most_bytes + 1)
        except OSError as error:
            raise self.error(f"{path} cannot be read: {error.strerror or error}", hint=self.hint) from error
        if len(data) > self.most_bytes:
            raise self.error(
                f"{path} is larger than {self.most_bytes >> 20} MiB, which no {self.noun} is", hint=self.hint
            )
        return data

    def parse(self, data: bytes, name: str) -> Any:
        """Return the value of a JSON text.

        Args:
            data: The text.
            name: What to call it in messages.

        Raises:
            InputError: It is no JSON, holds NaN or infinity, names a key twice, or is nested too deeply.
        """
        try:
            return json.loads(data, object_pairs_hook=_once, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:  # so are UnicodeDecodeError and JSONDecodeError
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise self.error(f"{name} is not JSON: {reason}", hint=self.hint) from error

    def problem(self, document: Any) -> str:
        """Return where and how a document breaks its schema; empty where it does not."""
        from jsonschema.exceptions import best_match

        found = best_match(_validator(self.package, self.schema).iter_errors(document))
        return "" if found is None else f"{found.json_path}: {_short(found.message)}"

    def validate(self, document: Any, name: str) -> None:
        """Refuse what does not satisfy the schema.

        Raises:
            InputError: It does not, or is a document of another kind or version.
        """
        found = document.get("schema") if isinstance(document, dict) else None
        if isinstance(found, str) and found != self.schema and found.startswith("shufflectl."):
            raise self.error(f"{name} is {found!r}, and a {self.noun} is {self.schema!r}", hint=self.hint)
        problem = self.problem(document)
        if problem:
            raise self.error(f"{name} is not a {self.noun}: {problem}", hint=self.hint)


@functools.cache
def _validator(package: str, schema: str) -> Any:
    """Return the validator of a schema: that of ``shufflectl.tuning/1`` is ``tuning-1.schema.json``."""
    import jsonschema

    file = schema.removeprefix("shufflectl.").replace("/", "-")
    folder = importlib.resources.files(package)
    text = folder.joinpath(f"schemas/{file}.schema.json").read_text("utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise ValueError("a key occurs twice")
    return keys


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _short(message: str) -> str:
    return message if len(message) <= 200 else f"{message[:120]} ... {message[-60:]}"
