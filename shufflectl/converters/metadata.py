"""What an exported file says about itself, in each format's own metadata."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from shufflectl.models.preprocess import IMAGENET, Preprocess

__all__ = ["METADATA_KEY", "TRACE_KEY", "FactoryRecord", "ModelInfo"]

METADATA_KEY = "shufflectl.info"
"""The key under which every format's own metadata holds `ModelInfo.to_json`."""

TRACE_KEY = "shufflectl.trace"
"""The key under which every format's own metadata holds `converters.trace.Trace.to_json`."""


@dataclass(frozen=True)
class FactoryRecord:
    """The user's function that built a network: a record, which is never run from what a file says.

    Attributes:
        name: ``package.module:factory``.
        arguments: By name, as the user wrote them.
        inputs: The names of the inputs, in the order in which the network takes them.
        outputs: The names of the outputs, in the order in which it gives them.
    """

    name: str
    arguments: tuple[tuple[str, str], ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return {
            "name": self.name,
            "arguments": dict(self.arguments),
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        return cls(
            name=str(data["name"]),
            arguments=tuple((str(key), str(value)) for key, value in data["arguments"].items()),
            inputs=tuple(str(name) for name in data["inputs"]),
            outputs=tuple(str(name) for name in data["outputs"]),
        )


@dataclass(frozen=True)
class ModelInfo:
    """A deployed model's description.

    Attributes:
        name: The model's name, for example ``shufflenet_v2_x0_5``.
        weights: How the user named the weights, without folders: ``digits``, ``random:0``, ``best.pt``.
        weights_sha256: SHA-256 of the weights, in hexadecimal.
        preprocess: What happens to an image before it enters the model.
        labels: Class names in the order of the logits; empty when unknown.
        description: One sentence.
        author: Who made the model.
        version: The model's own version.
        license: An SPDX expression.
        precision: Of the file that holds this description; empty where it is not of one file.
        factory: The user's function that built the network, where one did.
    """

    name: str
    weights: str = ""
    weights_sha256: str = ""
    preprocess: Preprocess = IMAGENET
    labels: tuple[str, ...] = ()
    description: str = ""
    author: str = ""
    version: str = ""
    license: str = ""
    precision: str = ""
    factory: FactoryRecord | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the description as JSON values; what is not there of a usual model is left out."""
        return {
            "name": self.name,
            "weights": self.weights,
            "weights_sha256": self.weights_sha256,
            "preprocess": self.preprocess.to_json(),
            "labels": list(self.labels),
            "description": self.description,
            "author": self.author,
            "version": self.version,
            "license": self.license,
            "precision": self.precision,
            **({} if self.factory is None else {"factory": self.factory.to_json()}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        text = {key: str(data.get(key, "")) for key in ("weights", "weights_sha256", "description", "author")}
        return cls(
            name=str(data["name"]),
            preprocess=Preprocess.from_json(data["preprocess"]),
            labels=tuple(str(label) for label in data.get("labels", ())),
            version=str(data.get("version", "")),
            license=str(data.get("license", "")),
            precision=str(data.get("precision", "")),
            factory=FactoryRecord.from_json(data["factory"]) if "factory" in data else None,
            **text,
        )
