"""An ONNX file of any exporter as a model to export, or to hold exports against."""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import onnx

from shufflectl.converters.graph import Graph
from shufflectl.converters.metadata import ModelInfo
from shufflectl.deploy.files import EXPORT_AGAIN, info_from_text
from shufflectl.deploy.images import Inputs, gather_shapes
from shufflectl.deploy.onnx_weights import load_weights, parse
from shufflectl.deploy.options import ParityOptions
from shufflectl.deploy.verify import Reference
from shufflectl.errors import ArtifactError, GraphError, ShufflectlError, UsageError
from shufflectl.models import zoo
from shufflectl.models.preprocess import Preprocess

__all__ = [
    "UNPREPARED",
    "OnnxModel",
    "check_types",
    "is_file",
    "open_model",
    "reading",
    "refuse_finished",
]

_CHECKPOINTS: Final = (".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".tar")
_NAME: Final = re.compile(r"[^A-Za-z0-9._+-]+")
_ABSOLUTE: Final = re.compile(r"[~:\\]")
_FLOATS: Final = ("FLOAT", "FLOAT16")
UNPREPARED: Final = "does not say how images are prepared: pixels from 0 to 1 are taken, and written down"
"""What a user should know of a network that comes without: a note that begins with its name."""


def is_file(subject: str) -> bool:
    """Say whether a word of the command line means a file, and not a model of the registry."""
    if subject in zoo.names():
        return False
    path = Path(subject)
    return bool(path.suffix.lower() in (".onnx", ".tflite", ".mlpackage")) or path.exists() or "/" in subject


def refuse_finished(path: Path, instead: str) -> None:
    """Refuse a file that a converter has finished.

    Args:
        path: The file.
        instead: What to do about it.

    Raises:
        ArtifactError: It is a TFLite or a Core ML file.
    """
    suffix = path.suffix.lower()
    if suffix in (".tflite", ".mlpackage"):
        what = "TFLite" if suffix == ".tflite" else "Core ML"
        raise ArtifactError(
            f"{path} is a finished {what} file: its shuffles have the form that its converter chose",
            hint=instead,
        )


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say of which file an error is, and make one sentence of what a malformed file leads to.

    Raises:
        ShufflectlError: As within, the file's path before the message.
        ArtifactError: Anything else went wrong.
    """
    try:
        yield
    except ShufflectlError as error:
        if str(path) not in error.message:
            error.args = (message := f"{path}: {error.message}",)
            error.message = message
        raise
    except (OSError, MemoryError):  # not the file's fault
        raise
    except Exception as error:  # what a malformed file makes of onnx and numpy has no common base
        lines = str(error).strip().splitlines()
        raise ArtifactError(
            f"{path} is a damaged ONNX file: {lines[0][:200] if lines else type(error).__name__}",
            hint=EXPORT_AGAIN,
        ) from error


@dataclass(frozen=True)
class OnnxModel:
    """A file that was read.

    Attributes:
        path: The file.
        graph: Its graph, in single precision and in the operator set of capture.
        info: What files that are made from it say about themselves.
        half: Whether it computes in half precision.
        changes: What was made plain, a sentence each.
        notes: What the user should know, a sentence each.
    """

    path: Path
    graph: Graph
    info: ModelInfo
    half: bool
    changes: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def width(self) -> int:
        """The number of classes, or of channels, of the first output."""
        shapes = [Graph.shape(value) for value in self.graph.outputs]
        shape = next((s for s in shapes if len(s) == 2), shapes[0])
        found = shape[1] if len(shape) > 1 else 1
        return found if isinstance(found, int) and found > 0 else 1

    @property
    def interface(self) -> dict[str, list[str]]:
        """The names of inputs and outputs, where there are several."""
        names = {
            "inputs": [str(v.name) for v in self.graph.inputs],
            "outputs": [str(v.name) for v in self.graph.outputs],
        }
        return {key: value for key, value in names.items() if len(value) > 1}

    def reference(self) -> Reference:
        """Return the file itself, as ONNX Runtime runs it, as what is right."""
        batch = Graph.shape(self.graph.inputs[0])[0]
        return Reference(
            os.fsencode(self.path.name).decode("utf-8", "replace"),
            None,
            lambda: self.graph,
            original=self.path,
            precision="fp16" if self.half else "fp32",
            inputs=tuple(str(v.name) for v in self.graph.inputs),
            outputs=tuple(str(v.name) for v in self.graph.outputs),
            batch=batch if isinstance(batch, int) else None,
        )

    def inputs(self, options: ParityOptions) -> Inputs:
        """Return what parity runs on."""
        shapes = {str(v.name): Graph.shape(v) for v in self.graph.inputs}
        return gather_shapes(shapes, self.info.preprocess, self.info.labels, options)


def open_model(
    path: Path, *, size: int | None = None, batch: int | str = "dynamic", if_free: bool = False
) -> OnnxModel:
    """Read an ONNX file. Nothing of it runs.

    Args:
        path: The file.
        size: Height and width of its input, where it leaves them free.
        batch: What a free batch becomes: a number, or ``dynamic``.
        if_free: Whether a size is no error where the file fixes its own.

    Raises:
        ArtifactError: It is missing, damaged, or no ONNX file.
        GraphError: It cannot be made a graph for the targets.
        UsageError: It is a checkpoint, or size or batch are not those that it fixes.
    """
    if path.suffix.lower() in _CHECKPOINTS and path.is_file():
        raise UsageError(f"{path} is a checkpoint, not an ONNX file", hint=f"pass --weights {path}")
    refuse_finished(
        path, "pass the model or the ONNX file that it was made from, or hold files together with check"
    )
    proto, _ = parse(path)
    sha256 = _digest(path, load_weights(proto, path))
    stated = info_from_text({p.key: p.value for p in proto.metadata_props})
    if if_free and not _leaves_size_free(proto):
        size = None
    with reading(path):
        from shufflectl.converters.capture.foreign import to_graph

        onnx.checker.check_model(proto)
        name = _plain_name(path)
        found = to_graph(proto, name=name, size=size, batch=batch)
        check_types(found.graph)
    info, notes = _described(path, name, sha256, stated)
    if found.half:
        notes = (*notes, "the file computes in half precision, so exports are held to the limits of fp16")
    return OnnxModel(path, found.graph, info, found.half, found.changes, notes)


def _plain_name(path: Path) -> str:
    """Return a file's name without its suffix, with nothing that the name of an artifact may not have."""
    return _NAME.sub("_", path.stem).lstrip("._+-")[:100] or "model"


def _described(
    path: Path, name: str, sha256: str, stated: ModelInfo | None
) -> tuple[ModelInfo, tuple[str, ...]]:
    file = _ABSOLUTE.sub("_", os.fsencode(path.name).decode("utf-8", "replace"))
    if stated is not None:  # shufflectl wrote it, so what it says of images and classes is known
        # What its callers did is what callers of files that are made of it do.
        own = replace(stated.expects, layout="nchw")
        info = replace(stated, name=name, preprocess=own, preprocess_from="file", precision="", input=None)
        return replace(info, weights=file, weights_sha256=sha256), ()
    info = ModelInfo(
        name,
        weights=file,
        weights_sha256=sha256,
        preprocess=Preprocess(),
        preprocess_from="assumed",
        description=f"Made from {file}, which does not say how images are prepared.",
    )
    return info, (f"the file {UNPREPARED}",)


def _digest(path: Path, beside: list[Path]) -> str:
    """Return the SHA-256 of the file, followed by the files that hold its weights where there are some."""
    total = hashlib.sha256()
    for part in (path, *beside):
        with part.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                total.update(chunk)
    return total.hexdigest()


def _leaves_size_free(proto: onnx.ModelProto) -> bool:
    constants = {tensor.name for tensor in proto.graph.initializer}
    return any(
        not dim.HasField("dim_value")
        for value in proto.graph.input
        if value.name not in constants
        for dim in value.type.tensor_type.shape.dim[1:]
    )


def check_types(graph: Graph) -> None:
    """Refuse inputs and outputs that are no numbers to compare.

    Raises:
        GraphError: There is no input, or one or an output is not floating point.
    """
    if not graph.inputs:
        raise GraphError("the graph has no input", hint="pass the network itself")
    for kind, values in (("input", graph.inputs), ("output", graph.outputs)):
        for value in values:
            if value.dtype is None or value.dtype.name not in _FLOATS:
                found = "nothing known" if value.dtype is None else value.dtype.name.lower()
                raise GraphError(
                    f"the {kind} {value.name!r} holds {found}, and floating point is what can be compared",
                    hint="export the network without what stands before and behind it (ArgMax, TopK, casts)",
                )
