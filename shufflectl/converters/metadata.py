"""What an exported file says about itself, in each format's own metadata."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, cast, get_args

from shufflectl.models.preprocess import IMAGENET, Preprocess

__all__ = [
    "METADATA_KEY",
    "TRACE_KEY",
    "FactoryRecord",
    "FileInput",
    "Inside",
    "ModelInfo",
    "Origin",
    "QuantizationRecord",
]

METADATA_KEY = "shufflectl.info"
"""The key under which every format's own metadata holds `ModelInfo.to_json`."""

TRACE_KEY = "shufflectl.trace"
"""The key under which every format's own metadata holds `converters.trace.Trace.to_json`."""

Inside = Literal["nothing", "weights", "shift", "operators"]
"""What of the preprocessing a file does itself; see `converters.pixels.Fold`."""

Origin = Literal["", "weights", "option", "file", "assumed"]
"""Who says what the preprocessing is: the checkpoint (or its layout), the user, an ONNX file, nobody."""

_TYPES: Final = ("float32", "float16", "uint8", "image", "int8 codes", "uint8 codes")


@dataclass(frozen=True)
class FileInput:
    """What one file takes from its caller.

    Attributes:
        preprocess: What is left for the caller to do, the layout included.
        type: The type of the elements; ``image`` for a picture that Core ML itself reads (8 bits a colour),
            ``codes`` for integers of which the file says what numbers they stand for.
        inside: What the file does itself.
    """

    preprocess: Preprocess
    type: str = "float32"
    inside: Inside = "nothing"

    def to_json(self) -> dict[str, Any]:
        """Return the input as JSON values."""
        return {**self.preprocess.to_json(), "type": self.type, "inside": self.inside}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote.

        Raises:
            KeyError: A value is missing.
            TypeError: A value is of another type.
            ValueError: A value is not one that an input can have.
        """
        kind, inside = data["type"], data["inside"]
        if kind not in _TYPES or inside not in get_args(Inside):
            raise ValueError(f"not the input of a file: {kind!r:.40}, {inside!r:.40}")
        return cls(Preprocess.from_json(data), kind, cast("Inside", inside))

    @property
    def text(self) -> str:
        """The input in words: ``RGB, 0 to 255, not normalised; uint8, NHWC``."""
        layout = "" if self.type == "image" else f", {self.preprocess.layout.upper()}"
        return f"{self.preprocess.text}; {self.type}{layout}"


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
class QuantizationRecord:
    """What the scales of an int8 file come from.

    Attributes:
        calibration: The name of the calibration's file, beside the file of the model.
        sha256: Of that file, in hexadecimal.
        floats: Layers that compute in floating point.
    """

    calibration: str
    sha256: str
    floats: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return {"calibration": self.calibration, "sha256": self.sha256, "floats": list(self.floats)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote.

        Raises:
            KeyError: A value is missing.
            ValueError: It is none.
        """
        name = str(data["calibration"])
        if "/" in name or "\\" in name or name.startswith("."):
            raise ValueError(f"a calibration lies beside its model, not at {name!r:.60}")
        return cls(name, str(data["sha256"]), tuple(str(layer) for layer in data["floats"]))


@dataclass(frozen=True)
class ModelInfo:
    """A deployed model's description.

    Attributes:
        name: The model's name, for example ``shufflenet_v2_x0_5``.
        weights: How the user named the weights, without folders: ``digits``, ``random:0``, ``best.pt``.
        weights_sha256: SHA-256 of the weights, in hexadecimal.
        preprocess: What happens to an image before it enters the network.
        preprocess_from: Who says so; empty where it is not known.
        labels: Class names in the order of the logits; empty when unknown.
        description: One sentence.
        author: Who made the model.
        version: The model's own version.
        license: An SPDX expression.
        precision: Of the file that holds this description; empty where it is not of one file.
        factory: The user's function that built the network, where one did.
        output_stride: How many pixels apart the last feature map's positions are, where that was changed.
        features: The names of the outputs, where they are feature maps.
        input: What that file takes; None where it takes what the network takes, or it is not of one file.
        quantization: What that file's scales come from; None where it has none.
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
    preprocess_from: Origin = ""
    input: FileInput | None = None
    quantization: QuantizationRecord | None = None

    @property
    def stem(self) -> str:
        """What the names of its files begin with; a precision and a suffix follow."""
        stride = "" if self.output_stride is None else f"-os{self.output_stride}"
        return f"{self.name}{stride}{'-features' if self.features else ''}"

    @property
    def expects(self) -> Preprocess:
        """What the caller of the file does to an image."""
        return self.preprocess if self.input is None else self.input.preprocess

    def to_json(self) -> dict[str, Any]:
        """Return the description as JSON values; what is not there of a usual model is left out."""
        data = {
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
            "preprocess_from": self.preprocess_from,
        }
        if self.quantization is not None:
            data["quantization"] = self.quantization.to_json()
        return data if self.input is None else {**data, "input": self.input.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        text = {key: str(data.get(key, "")) for key in ("weights", "weights_sha256", "description", "author")}
        origin = data.get("preprocess_from", "")
        if origin not in get_args(Origin):
            raise ValueError(f"{origin!r:.40} says nothing of where the preprocessing is from")
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
            preprocess_from=cast("Origin", origin),
            input=None if data.get("input") is None else FileInput.from_json(data["input"]),
            quantization=QuantizationRecord.from_json(data["quantization"])
            if "quantization" in data
            else None,
            **text,
        )
