"""What `shufflectl tune` found, as a file that `export --tuning` takes.

The file may come from anywhere. It is bounded in size and validated against a schema before anything of it is
used; of a valid one, export uses nothing but the form, its options and the layout, and only for the network,
inputs, target and precision that were measured.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self, cast

from shufflectl.converters.rewrite.choose import Candidate, Choice
from shufflectl.converters.rewrite.lowering import LOWERINGS, Options
from shufflectl.converters.targets import TARGETS, Layout
from shufflectl.deploy.documents import Kind
from shufflectl.errors import InputError

__all__ = ["SCHEMA", "Source", "Tuned", "Tuning", "form_to_json", "read_tuning", "validate"]

SCHEMA: Final = "shufflectl.tuning/1"

_HINT: Final = "pass a file that 'shufflectl tune --out FILE' wrote"
_KIND: Final = Kind(SCHEMA, "tuning", "shufflectl.deploy", 16 << 20, _HINT)
_AGAIN: Final = "tune again for what is exported, or leave --tuning out"
_CALIBRATION: Final = "export with the calibration that 'shufflectl tune' wrote beside it, as --calibration"

JSON = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """What forms are forms of: all that decides which there are, and what they cost.

    Attributes:
        model: The network's name.
        weights_sha256: Digest of its weights.
        inputs: Names and shapes of the captured graph's inputs, in their order.
        fold_preprocess: Whether files prepare their images themselves.
        input_type: Of images, ``float`` or ``uint8``.
        output_stride: Of a network of the registry; None for its own.
        features: Likewise, the feature maps that are its outputs; empty for the logits.
        io: What int8 files take and give: ``float``, or codes as ``int8`` or ``uint8``.
        calibration: Digest of the calibration that int8 files get their scales from; empty for others.
    """

    model: str
    weights_sha256: str
    inputs: tuple[tuple[str, tuple[int | str, ...]], ...]
    fold_preprocess: bool = False
    input_type: str = "float"
    output_stride: int | None = None
    features: tuple[str, ...] = ()
    io: str = "float"
    calibration: str = ""

    def to_json(self) -> JSON:
        """Return the source as the tuning file holds it."""
        return {
            "model": self.model,
            "weights_sha256": self.weights_sha256,
            "inputs": [{"name": name, "shape": list(shape)} for name, shape in self.inputs],
            "fold_preprocess": self.fold_preprocess,
            "input_type": self.input_type,
            "output_stride": self.output_stride,
            "features": list(self.features),
            "io": self.io,
            "calibration": self.calibration,
        }

    @classmethod
    def from_json(cls, document: JSON) -> Self:
        """Read the source from a tuning file that satisfies its schema."""
        return cls(
            document["model"],
            document["weights_sha256"],
            tuple((entry["name"], tuple(entry["shape"])) for entry in document["inputs"]),
            document["fold_preprocess"],
            document["input_type"],
            document["output_stride"],
            tuple(document["features"]),
            document.get("io", "float"),
            document.get("calibration", ""),
        )

    def differs(self, other: "Source", weights: str) -> str:
        """Return in words how what was measured differs from what is exported; empty where it does not.

        Args:
            other: What is exported.
            weights: How the weights that were measured were named.
        """
        if self.model != other.model:
            return f"for {self.model}, not for {other.model}"
        if self.weights_sha256 != other.weights_sha256:
            mine, others = self.weights_sha256[:12], other.weights_sha256[:12]
            return f"with weights of SHA-256 {mine} ({weights}), and these are {others}"
        if self.inputs != other.inputs:
            return f"with inputs of {_shapes(self.inputs)}, not of {_shapes(other.inputs)}"
        if self.fold_preprocess != other.fold_preprocess:
            ways = "files that prepare their images themselves", "files whose callers prepare the images"
            return f"with {ways[not self.fold_preprocess]}, not with {ways[self.fold_preprocess]}"
        if self.input_type != other.input_type:
            return f"with {self.input_type} images, not with {other.input_type} ones"
        if self.output_stride != other.output_stride:
            strides = [str(s.output_stride or "the network's own") for s in (self, other)]
            return f"with an output stride of {strides[0]}, not of {strides[1]}"
        if self.features != other.features:
            maps = [", ".join(s.features) or "the logits" for s in (self, other)]
            return f"with {maps[0]} as outputs, not with {maps[1]}"
        if self.io != other.io:
            ends = ["floats" if s.io == "float" else f"{s.io} codes" for s in (self, other)]
            return f"with files that take and give {ends[0]}, not {ends[1]}"
        if self.calibration != other.calibration:
            made = [
                f"the calibration {s.calibration[:12]}" if s.calibration else "none" for s in (self, other)
            ]
            return f"with {made[0]} (SHA-256), not with {made[1]}"
        return ""


def _shapes(inputs: tuple[tuple[str, tuple[int | str, ...]], ...]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in inputs)


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
        source: What was measured.
        weights: How its weights were named.
        target: The format.
        precision: Of the file.
        device: What it was measured on, in words.
        choice: What it chose.
    """

    name: str
    sha256: str
    source: Source
    weights: str
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
            source=Source.from_json(document),
            device=str(device["model"] or device["cpu"] or device["kind"]),
            choice=choice,
            **{key: document[key] for key in ("weights", "target", "precision")},
        )

    @property
    def as_choice(self) -> Choice:
        """The choice as `choose` would give it."""
        return Choice(self.choice.candidate, self.choice.why, self.name)

    def check(self, source: Source) -> None:
        """Refuse to be used for something else than what was measured.

        Raises:
            InputError: The network or how it is exported differs.
        """
        difference = self.source.differs(source, self.weights)
        if difference:
            same = replace(source, calibration=self.source.calibration)
            hint = _AGAIN if self.source.differs(same, self.weights) else _CALIBRATION
            raise InputError(f"{self.name} was measured {difference}", hint=hint)

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
    data = _KIND.read(path)
    return Tuning.from_json(_KIND.parse(data, str(path)), path.name, hashlib.sha256(data).hexdigest())


def validate(document: Any, name: str) -> None:
    """Refuse what does not satisfy the schema.

    Raises:
        InputError: It does not, or is of another version.
    """
    _KIND.validate(document, name)
