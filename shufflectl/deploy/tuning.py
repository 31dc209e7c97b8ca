"""What `shufflectl tune` found, as a file that `export --tuning` takes.

The file may come from anywhere. It is bounded in size and validated against a schema before anything of it is
used; of a valid one, export uses nothing but the form, its options and the layout, and only for the model,
weights, input, target and precision that were measured.
"""

import functools
import hashlib
import importlib.resources
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, cast

from shufflectl.converters.rewrite.choose import Candidate, Choice
from shufflectl.converters.rewrite.lowering import LOWERINGS, Options
from shufflectl.converters.targets import TARGETS, Layout
from shufflectl.errors import InputError

__all__ = ["SCHEMA", "Tuned", "Tuning", "form_to_json", "read_tuning", "validate"]

SCHEMA: Final = "shufflectl.tuning/1"

_MAX_BYTES: Final = 16 << 20
_HINT: Final = "pass a file that 'shufflectl tune --out FILE' wrote"
_AGAIN: Final = "tune again for what is exported, or leave --tuning out"

JSON = dict[str, Any]


@dataclass(frozen=True)
class Tuned:
    """What a tuning chose.

    Attributes:
        candidate: The form.
        layout: Of the image input.
        sha256: Of the file that was measured.
        threads: With which it was measured; None where the runtime chose them.
        tuned: Whether it was shown to be faster than what export takes by default; otherwise it is that.
        why: In one sentence.
    """

    candidate: Candidate
    layout: Layout
    sha256: str
    threads: int | None
    tuned: bool
    why: str


@dataclass(frozen=True)
class Tuning:
    """A tuning, as far as an export needs it.

    Attributes:
        name: The file's name, for messages.
        sha256: The file's digest.
        model: The model's name.
        weights: How its weights were named.
        weights_sha256: Their digest.
        input_shape: Of the first input of the captured graph.
        target: The format.
        precision: Of the file.
        device: What it was measured on, in words.
        choice: What it chose.
    """

    name: str
    sha256: str
    model: str
    weights: str
    weights_sha256: str
    input_shape: tuple[int, ...]
    target: str
    precision: str
    device: str
    choice: Tuned

    @classmethod
    def from_json(cls, document: Any, name: str, sha256: str = "") -> Self:
        """Read what `shufflectl tune` wrote.

        Args:
            document: Parsed JSON of any shape.
            name: What to call it in messages.
            sha256: Of the file.

        Raises:
            InputError: It is of another version, does not satisfy the schema, or names what does not exist.
        """
        validate(document, name)
        if document["chosen"] >= len(document["races"]):
            raise InputError(f"{name} chooses a measurement that it does not hold", hint=_HINT)
        if document["target"] not in TARGETS:
            raise InputError(f"{name} is for the unknown target {document['target']!r}", hint=_HINT)
        found = document["races"][document["chosen"]]["choice"]
        options = dict(found["form"])
        form, layout = options.pop("form"), options.pop("layout")
        if form not in LOWERINGS:
            raise InputError(f"{name} chooses the unknown shuffle form {form!r}", hint=_HINT)
        if not LOWERINGS[form].folds and Options(**options) != Options():
            raise InputError(f"{name} gives the shuffle form {form!r} options that it has not", hint=_HINT)
        choice = Tuned(
            Candidate(form, Options(**options)),
            cast("Layout", layout),
            found["sha256"],
            found["threads"],
            found["tuned"],
            found["why"],
        )
        device = document["device"]
        return cls(
            name=name,
            sha256=sha256,
            input_shape=tuple(document["input_shape"]),
            device=str(device["model"] or device["cpu"] or device["kind"]),
            choice=choice,
            **{key: document[key] for key in ("model", "weights", "weights_sha256", "target", "precision")},
        )

    @property
    def as_choice(self) -> Choice:
        """The choice as `choose` would give it."""
        return Choice(self.choice.candidate, self.choice.why, self.name)

    def check(self, *, model: str, weights_sha256: str, input_shape: Sequence[int | str]) -> None:
        """Refuse to be used for something else than what was measured.

        Raises:
            InputError: The model, its weights or its input differ.
        """
        if model != self.model:
            raise InputError(f"{self.name} was measured for {self.model}, not for {model}", hint=_AGAIN)
        if weights_sha256 != self.weights_sha256:
            raise InputError(
                f"{self.name} was measured with weights of SHA-256 {self.weights_sha256[:12]} "
                f"({self.weights}), and these are {weights_sha256[:12]}",
                hint=_AGAIN,
            )
        if tuple(input_shape) != self.input_shape:
            shapes = ["x".join(map(str, shape)) for shape in (self.input_shape, input_shape)]
            raise InputError(
                f"{self.name} was measured with inputs of {shapes[0]}, not of {shapes[1]}", hint=_AGAIN
            )

    def to_manifest(self, sha256: str) -> JSON:
        """Return what a manifest says about it.

        Args:
            sha256: Of the file that was exported with it.
        """
        return {
            "tuning_sha256": self.sha256,
            "tuning_device": self.device,
            "tuning_threads": self.choice.threads,
            "tuning_measured_this_file": sha256 == self.choice.sha256,
        }


def form_to_json(candidate: Candidate, layout: str) -> JSON:
    """Return a form and a layout as the file holds them."""
    return {**candidate.to_json(), "layout": layout}


def read_tuning(path: Path) -> Tuning:
    """Read a tuning file.

    Raises:
        InputError: It is missing, too large, no JSON, or no tuning.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}", hint=_HINT) from error
    if len(data) > _MAX_BYTES:
        raise InputError(f"{path} is larger than {_MAX_BYTES >> 20} MiB, which no tuning is", hint=_HINT)

    def refuse(text: str) -> None:
        raise ValueError(f"{text} is not JSON")

    try:
        document = json.loads(data, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{path} is not JSON: {reason}", hint=_HINT) from error
    return Tuning.from_json(document, path.name, hashlib.sha256(data).hexdigest())


@functools.cache
def _validator() -> Any:
    import jsonschema

    folder = importlib.resources.files("shufflectl.deploy")
    text = folder.joinpath("schemas/tuning-1.schema.json").read_text("utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))


def validate(document: Any, name: str) -> None:
    """Refuse what does not satisfy the schema.

    Raises:
        InputError: It does not, or is of another version.
    """
    from jsonschema.exceptions import best_match

    version = document.get("schema") if isinstance(document, dict) else None
    if isinstance(version, str) and version != SCHEMA and version.startswith("shufflectl."):
        raise InputError(f"{name} is {version!r}, and a tuning is {SCHEMA!r}", hint=_HINT)
    found = best_match(_validator().iter_errors(document))
    if found is not None:
        text = found.message if len(found.message) <= 200 else f"{found.message[:120]} ..."
        raise InputError(f"{name} is no tuning: {found.json_path}: {text}", hint=_HINT)
