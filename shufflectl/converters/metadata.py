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
        output_stride: How many pixels apart the last feature map's positions are, where that was changed.
        features: The names of the outputs, where they are feature maps.
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
    output_stride: int | None = None
    features: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        """What the names of its files begin with; a precision and a suffix follow."""
        stride = "" if self.output_stride is None else f"-os{self.output_stride}"
        return f"{self.name}{stride}{'-features' if self.features else ''}"

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
            **({} if self.output_stride is None else {"output_stride": self.output_stride}),
            **({"features": list(self.features)} if self.features else {}),
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
            output_stride=int(data["output_stride"]) if "output_stride" in data else None,
            features=tuple(str(name) for name in data.get("features", ())),
            **text,
        )
