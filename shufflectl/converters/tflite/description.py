"""What a TFLite file says about itself in TensorFlow's own metadata, which Android's tools read.

Two parts, as TensorFlow Lite's metadata schema (``metadata_schema.fbs``, file identifier ``M001``) has
them: a flatbuffer `ModelMetadata` in a buffer that the model calls ``TFLITE_METADATA``, and the class names
as a file in a ZIP archive behind the model's own bytes. Readers of the model stop before the archive.
MediaPipe's and the Task Library's image classifiers take normalisation and class names from there.

The tables are few and their fields fixed, so they are written with the flatbuffer builder alone; the comments
name each field by its slot in the schema.
"""

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, Final

import flatbuffers
import numpy as np
from numpy.typing import ArrayLike

from shufflectl.converters.metadata import ModelInfo
from shufflectl.converters.tflite.flatbuffer import Tensor

__all__ = ["LABELS", "NAME", "describe", "with_labels"]

NAME: Final = "TFLITE_METADATA"
"""What the model calls the buffer."""

LABELS: Final = "labels.txt"
"""The archive's file of class names, one a line."""

_IDENTIFIER = b"M001"
_PARSER = "1.0.0"
_AXIS_LABELS = 2  # AssociatedFileType.TENSOR_AXIS_LABELS
_COLOURS = {"rgb": 1}  # ColorSpaceType; it has no BGR, which is then UNKNOWN (0)
_IMAGE = 2  # ContentProperties.ImageProperties
_NORMALIZATION = 1  # ProcessUnitOptions.NormalizationOptions


class _Builder:
    """Tables by slot."""

    def __init__(self) -> None:
        self.out: Any = flatbuffers.Builder(1024)

    def text(self, text: str) -> int:
        return int(self.out.CreateString(text)) if text else 0

    def floats(self, values: ArrayLike) -> int:
        return int(self.out.CreateNumpyVector(np.asarray(values, np.float32)))

    def tables(self, offsets: Sequence[int]) -> int:
        self.out.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.out.PrependUOffsetTRelative(offset)
        return int(self.out.EndVector())

    def table(self, fields: Mapping[int, int], *, size: int, tags: Mapping[int, int] | None = None) -> int:
        """Write a table of ``size`` slots: offsets in ``fields``, one-byte enumerations in ``tags``."""
        self.out.StartObject(size)
        for slot, offset in fields.items():
            self.out.PrependUOffsetTRelativeSlot(slot, offset, 0)
        for slot, value in (tags or {}).items():
            self.out.PrependUint8Slot(slot, value, 0)
        return int(self.out.EndObject())


def describe(
    info: ModelInfo, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], *, nhwc: bool
) -> bytes:
    """Return the `ModelMetadata` flatbuffer.

    Args:
        info: The model's description.
        inputs: The file's inputs, by name.
        outputs: The file's outputs, by name.
        nhwc: Whether images are NHWC. The format knows no other layout, so an NCHW input is not called an
            image; its normalisation is stated all the same.
    """
    b = _Builder()
    subgraph = b.table(
        {
            2: b.tables([_input(b, info, name, tensor, nhwc=nhwc) for name, tensor in inputs.items()]),
            3: b.tables([_output(b, info, name, tensor) for name, tensor in outputs.items()]),
        },
        size=10,
    )  # SubGraphMetadata: input_tensor_metadata, output_tensor_metadata
    root = b.table(
        {
            0: b.text(info.name),
            1: b.text(info.description),
            2: b.text(info.version),
            3: b.tables([subgraph]),
            4: b.text(info.author),
            5: b.text(info.license),
            7: b.text(_PARSER),
        },
        size=8,
    )  # ModelMetadata: name, description, version, subgraph_metadata, author, license, min_parser_version
    b.out.Finish(root, _IDENTIFIER)
    return bytes(b.out.Output())


def _input(b: _Builder, info: ModelInfo, name: str, tensor: Tensor, *, nhwc: bool) -> int:
    p = info.expects
    image = len(tensor.dims) == 4 and tensor.dims[3 if nhwc else 1] == len(p.mean)
    if not image:
        return b.table({0: b.text(name)}, size=7)
    scale, mean, std = (np.asarray(v, np.float64) for v in (p.scale, p.mean, p.std))
    # (pixel * scale - mean) / std as the format's (pixel - mean') / std'
    options = b.table({0: b.floats(mean / scale), 1: b.floats(std / scale)}, size=2)  # mean, std
    unit = b.table({1: options}, tags={0: _NORMALIZATION}, size=2)  # ProcessUnit: options
    ends = np.stack([-mean / std, (255 * scale - mean) / std])
    stats = b.table({0: b.floats(ends.max(0)), 1: b.floats(ends.min(0))}, size=2)  # max, min
    content = 0
    if nhwc:
        properties = b.table({}, tags={0: _COLOURS.get(p.color, 0)}, size=2)  # ImageProperties: color_space
        content = b.table({1: properties}, tags={0: _IMAGE}, size=3)  # Content: content_properties
    about = f"{p.color.upper()} image, normalised for each channel as (pixel - mean) / std"
    fields = {0: b.text(name), 1: b.text(about), 3: content, 4: b.tables([unit]), 5: stats}
    return b.table(fields, size=7)  # TensorMetadata: name, description, content, process_units, stats


def _output(b: _Builder, info: ModelInfo, name: str, tensor: Tensor) -> int:
    files = 0
    if _labelled(info, tensor):
        about = b.text("class names in the order of the scores")
        file = b.table({0: b.text(LABELS), 1: about}, tags={2: _AXIS_LABELS}, size=5)
        files = b.tables([file])  # AssociatedFile: name, description, type
    return b.table({0: b.text(name), 6: files}, size=7)  # TensorMetadata: name, associated_files


def _labelled(info: ModelInfo, tensor: Tensor) -> bool:
    """Whether a tensor holds one score for each class name, and the names can be lines of a file."""
    return bool(
        info.labels
        and tensor.dims
        and tensor.dims[-1] == len(info.labels)
        and not any("\n" in label or "\r" in label for label in info.labels)
    )


def with_labels(model: bytes, info: ModelInfo, outputs: Mapping[str, Tensor]) -> bytes:
    """Return the model's bytes, with the archive of class names behind them where an output has classes."""
    if not any(_labelled(info, tensor) for tensor in outputs.values()):
        return model
    stream = io.BytesIO()
    stream.write(model)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_STORED) as archive:
        member = zipfile.ZipInfo(LABELS)  # dated 1980, so that the same labels give the same bytes
        member.create_system = 3  # Unix, whatever this system is
        member.external_attr = 0o644 << 16
        archive.writestr(member, "\n".join(info.labels) + "\n")
    return stream.getvalue()
