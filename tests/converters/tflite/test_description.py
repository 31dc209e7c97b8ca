"""TensorFlow's own metadata, read back with flatbuffers' generic table reader and zipfile."""

import io
import zipfile

import flatbuffers
import flatbuffers.table
import numpy as np
import pytest

from shufflectl.converters.metadata import ModelInfo
from shufflectl.converters.targets import EmitOptions
from shufflectl.converters.tflite.description import LABELS, NAME
from shufflectl.converters.tflite.emit import to_bytes
from shufflectl.deploy.inspect import summarize
from shufflectl.deploy.runtimes.litert import LiteRT
from shufflectl.models.preprocess import IMAGENET, Preprocess
from support.graphs import graph_from_text
from support.tflite import metadata

BGR = Preprocess("bgr", 1.0, (103.94, 116.78, 123.68), (58.8, 57.1, 57.4))
INFO = ModelInfo(
    "net", labels=("cat", "Bär", "a, b"), description="says", author="me", version="7", license="MIT"
)


class Table:
    """A flatbuffer table, addressed by slot."""

    def __init__(self, data, position=None):
        root = int.from_bytes(data[:4], "little")
        self.table = flatbuffers.table.Table(bytearray(data), root if position is None else position)

    def _offset(self, slot):
        offset = self.table.Offset(4 + 2 * slot)
        return self.table.Pos + offset if offset else None

    def text(self, slot):
        at = self._offset(slot)
        return None if at is None else self.table.String(at).decode()

    def tag(self, slot):
        at = self._offset(slot)
        return 0 if at is None else self.table.Bytes[at]

    def floats(self, slot):
        offset = self.table.Offset(4 + 2 * slot)
        at, count = self.table.Vector(offset), self.table.VectorLen(offset)
        return np.frombuffer(self.table.Bytes, np.float32, count, at)

    def child(self, slot):
        at = self._offset(slot)
        return None if at is None else Table(self.table.Bytes, self.table.Indirect(at))

    def children(self, slot):
        offset = self.table.Offset(4 + 2 * slot)
        if not offset:
            return []
        start, count = self.table.Vector(offset), self.table.VectorLen(offset)
        return [Table(self.table.Bytes, self.table.Indirect(start + 4 * i)) for i in range(count)]


def file(info=INFO, layout=None, classes=3):
    graph = graph_from_text(
        f"g (float[1,{classes},8,8] image) => (float[1,{classes}] logits) "
        "{ p = GlobalAveragePool(image) logits = Flatten(p) }"
    )
    return to_bytes(graph, info, EmitOptions(layout=layout))


def described(data):
    held = metadata(data, NAME)
    assert b"M001" == held[4:8]
    return Table(held)


def image_of(data):
    return described(data).children(3)[0].children(2)[0]


def output_of(data):
    return described(data).children(3)[0].children(3)[0]


def test_the_model_is_described_in_the_formats_own_fields():
    model = described(file())
    found = {name: model.text(slot) for slot, name in enumerate(("name", "description", "version"))}
    found |= {"author": model.text(4), "license": model.text(5)}
    expected = {"name": "net", "description": "says", "version": "7", "author": "me", "license": "MIT"}
    assert expected == found


@pytest.mark.parametrize("preprocess", [IMAGENET, BGR])
def test_stated_normalisation_is_the_models(preprocess):
    image = image_of(file(ModelInfo("net", preprocess=preprocess)))
    (unit,) = image.children(4)
    assert 1 == unit.tag(0)  # NormalizationOptions
    mean, std = (unit.child(1).floats(slot) for slot in (0, 1))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 4, 5, 3), np.uint8)
    ordered = pixels if preprocess.color == "rgb" else pixels[..., ::-1]
    expected = preprocess.apply(pixels).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(expected, (ordered - mean) / std, rtol=1e-5, atol=1e-5)
    ends = [(np.array([end] * 3, np.float32) - mean) / std for end in (255, 0)]
    np.testing.assert_allclose(ends, [image.child(5).floats(slot) for slot in (0, 1)], rtol=1e-5)


def test_image_has_the_colours_that_the_format_knows():
    for preprocess, colour in ((IMAGENET, 1), (BGR, 0)):
        content = image_of(file(ModelInfo("net", preprocess=preprocess))).child(3)
        assert (2, colour) == (content.tag(0), content.child(1).tag(0))  # ImageProperties


def test_nchw_input_is_no_image_to_a_format_that_knows_nhwc_only():
    image = image_of(file(layout="nchw"))
    assert image.child(3) is None
    assert 1 == len(image.children(4))


def test_class_names_are_a_file_behind_the_model():
    data = file()
    (labels,) = output_of(data).children(6)
    assert (LABELS, 2) == (labels.text(0), labels.tag(2))  # TENSOR_AXIS_LABELS
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert [LABELS] == archive.namelist()
        assert "cat\nBär\na, b\n" == archive.read(LABELS).decode()


@pytest.mark.parametrize(
    "labels", [(), ("a", "b"), ("a", "b", "c\nd")], ids=["none", "of another number", "of two lines"]
)
def test_without_names_that_fit_there_is_no_archive(labels):
    data = file(ModelInfo("net", labels=labels))
    assert [] == output_of(data).children(6)
    assert not zipfile.is_zipfile(io.BytesIO(data))


def test_input_that_is_no_image_is_named_only():
    graph = graph_from_text("g (float[1,4] x) => (float[1,4] y) { y = Relu(x) }")
    tensor = image_of(to_bytes(graph, INFO, EmitOptions()))
    assert ("x", []) == (tensor.text(0), tensor.children(4))


def test_same_model_gives_the_same_bytes():
    assert file() == file()


def test_file_with_an_archive_runs_and_is_summarised(tmp_path):
    path = tmp_path / "net.tflite"
    path.write_bytes(file())
    with LiteRT().load(path) as session:
        assert INFO == session.info
        result = session.run({"image": np.full((1, 8, 8, 3), 2, np.float32)})
    assert [[2, 2, 2]] == result["logits"].tolist()
    assert path.stat().st_size == summarize(path).bytes
