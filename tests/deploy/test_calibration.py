"""Where the images of a calibration come from, and what is refused in one sentence."""

import contextlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from converters.rewrite.random_nets import Net
from shufflectl.converters.graph import Graph
from shufflectl.converters.quantize.calibration import Calibration
from shufflectl.deploy import calibration as module
from shufflectl.deploy.calibration import Calibrator, read_calibration
from shufflectl.deploy.calibration_options import CalibrationOptions
from shufflectl.deploy.quantization import layers
from shufflectl.errors import DataError, ShufflectlError, UsageError
from shufflectl.models.preprocess import IMAGENET
from support.graphs import graph_from_text
from support.integers import PLAIN, coded
from support.nets import tiny_graph

RNG = np.random.default_rng(5)
SCHEMA = Path(module.__file__).with_name("schemas") / "calibration-1.schema.json"


def calibrator(source: Path | str, graph: Graph | None = None, images: int = 16) -> Calibrator:
    options = CalibrationOptions(str(source), images, recipe=PLAIN)
    return Calibrator(graph or tiny_graph(), options, IMAGENET, IMAGENET, lambda *_: None)


def pictures(folder: Path, count: int, mode: str = "RGB") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for place in range(count):
        pixels = RNG.integers(0, 256, (33 + 7 * place, 60 - place, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{place}.png")
    return folder


def archive(path: Path, **arrays: NDArray[Any]) -> Path:
    np.savez(path, **arrays)
    return path


def floats(count: int = 12, size: int = 32) -> NDArray[np.float32]:
    return RNG.standard_normal((count, 3, size, size), dtype=np.float32)


def test_a_folder_with_folders_of_any_size_and_colour(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "photos", 4)
    pictures(folder / "deeper" / "still", 3, "L")
    pictures(folder / "clear", 3, "RGBA")
    (folder / "notes.txt").write_text("no picture")
    found = calibrator(folder)
    assert (10, "photos") == (found.observed.images, found.observed.source)
    low, high = found.observed.ranges["image"]
    assert (IMAGENET.apply(np.zeros((1, 1, 1, 3), np.uint8)).min() - 1e-3) <= low < 0 < high < 2.7


def test_damaged_files_are_left_out(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "photos", 9)
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:200])
    (folder / "nothing.jpg").write_bytes(b"")
    assert 9 == calibrator(folder).observed.images


def test_links_that_lead_out_are_not_followed(tmp_path: Path) -> None:
    folder, other = pictures(tmp_path / "photos", 8), pictures(tmp_path / "private", 3)
    (folder / "out").symlink_to(other)
    (folder / "one.png").symlink_to(other / "0.png")
    assert 8 == calibrator(folder).observed.images


def test_the_seed_chooses_where_there_are_more(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.npz", image=floats(40))
    first, again = calibrator(path, images=8).observed, calibrator(path, images=8).observed
    assert 8 == first.images
    assert first.ranges == again.ranges
    assert first.ranges != calibrator(path, images=40).observed.ranges


@pytest.mark.parametrize("name", ["images", "image", "anything"])
def test_pixels_of_another_size(tmp_path: Path, name: str) -> None:
    pixels = RNG.integers(0, 256, (12, 50, 41, 3), dtype=np.uint8)
    assert 12 == calibrator(archive(tmp_path / "x.npz", **{name: pixels})).observed.images


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_arrays_as_the_network_takes_them(tmp_path: Path, dtype: str) -> None:
    given = floats().astype(dtype)
    found = calibrator(archive(tmp_path / "x.npz", image=given)).observed
    assert (float(given.min()), float(given.max())) == pytest.approx(found.ranges["image"], rel=1e-6)


TWO = """g (float[1,3,4,4] a, float[1,2] b) => (float[1,3,4,4] y, float[1,2] z) {
  y = Relu(a)
  z = Tanh(b)
}"""


def test_several_inputs_by_name(tmp_path: Path) -> None:
    given = archive(tmp_path / "x.npz", a=floats(9, 4), b=np.full((9, 2), 0.5, np.float32))
    assert {"a", "b"} <= set(calibrator(given, graph_from_text(TWO)).observed.ranges)


def test_digits() -> None:
    assert ("digits", 16) == (
        (found := calibrator("digits").observed).source,
        found.images,
    )


def test_a_calibration_made_before(tmp_path: Path) -> None:
    made = calibrator(archive(tmp_path / "x.npz", image=floats())).settled(frozenset())
    path = tmp_path / "made.json"
    path.write_bytes(made.to_bytes())
    again = calibrator(path)
    assert made.to_bytes() == again.settled(frozenset()).to_bytes()
    assert again.images is None
    with pytest.raises(UsageError, match="other layers in floats"):
        again.settled(frozenset({"conv5.2"}))
    jsonschema.validate(json.loads(made.to_bytes()), json.loads(SCHEMA.read_text("utf-8")))


def raw(path: Path, shape: tuple[int, ...], data: bytes) -> Path:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("images.npy", head.getvalue() + data)
    return path


def bomb(path: Path) -> Path:
    """An array of 5 GiB of zeros, whose size is in the directory alone."""
    raw(path, (2000, 1000, 900, 3), b"")
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02")
    data[place + 24 : place + 28] = (0xFFFFFFF0).to_bytes(4, "little")
    path.write_bytes(data)
    return path


def undecodable(folder: Path) -> Path:
    for path in pictures(folder, 9).iterdir():
        path.write_bytes(b"x")
    return folder


def with_value(value: float) -> NDArray[np.float32]:
    array = floats()
    array[3, 0, 0, 0] = value
    return array


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "too few": (lambda p: pictures(p / "photos", 3), "3 usable images"),
    "none": (lambda p: pictures(p / "photos", 0), "no image|0 usable images"),
    "damaged": (lambda p: undecodable(p / "photos"), "0 usable images"),
    "all the same": (
        lambda p: archive(p / "x.npz", images=np.full((9, 32, 32, 3), 7, np.uint8)),
        "all 9 images of x.npz are the same",
    ),
    "missing folder": (lambda p: p / "nowhere", "nowhere"),
    "missing archive": (lambda p: p / "nowhere.npz", "nowhere.npz cannot be read.*No such file"),
    "missing calibration": (lambda p: p / "nowhere.json", "nowhere.json cannot be read"),
    "one colour": (
        lambda p: archive(p / "x.npz", images=np.zeros((9, 32, 32, 1), np.uint8)),
        r"shape \[9, 32, 32, 1\]",
    ),
    "another size": (
        lambda p: archive(p / "x.npz", image=floats(9, 31)),
        r"float32 \[9, 3, 31, 31\].*\[N, 3, 32, 32\]",
    ),
    "integers": (lambda p: archive(p / "x.npz", image=floats().astype(np.int64)), "int64"),
    "NaN": (lambda p: archive(p / "x.npz", image=with_value(np.nan)), "NaN or infinity"),
    "infinity": (lambda p: archive(p / "x.npz", image=with_value(np.inf)), "NaN or infinity"),
    "beyond float32": (
        lambda p: archive(p / "x.npz", image=floats().astype(np.float64) * 1e300),
        "NaN or infinity",
    ),
    "objects": (lambda p: archive(p / "x.npz", images=np.asarray([{}] * 9, object)), "Object arrays|pickle"),
    "no archive": (lambda p: text(p / "x.npz", b"nonsense"), "not a zip file"),
    "cut archive": (lambda p: text(p / "x.npz", b"PK\x03\x04xx"), "not a zip file"),
    "no array": (lambda p: archive(p / "x.npz"), "no array"),
    "array of none": (lambda p: archive(p / "x.npz", images=np.zeros((0, 32, 32, 3), np.uint8)), "shape"),
    "a number": (lambda p: archive(p / "x.npz", image=np.float32(3)), "float32 \\[\\]"),
    "other names": (lambda p: archive(p / "x.npz", foo=floats(), bar=floats()), "foo, bar.*images or image"),
    "a header that lies": (lambda p: raw(p / "x.npz", (10**9, 900, 900, 3), b"abc"), "x.npz"),
    "a bomb": (lambda p: bomb(p / "x.npz"), "more than 4 GiB|x.npz"),
    "half a JSON": (lambda p: text(p / "x.json", b"{"), "not JSON"),
    "deep JSON": (lambda p: text(p / "x.json", b"[" * 100_000), "no calibration"),
    "other bytes": (lambda p: text(p / "x.json", b"\xff\xfe\0"), "not JSON"),
    "other JSON": (lambda p: text(p / "x.json", b"{}"), "no calibration"),
}


def text(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("error")
def test_refused(case: str, tmp_path: Path) -> None:
    make, words = REFUSED[case]
    with pytest.raises(DataError, match=words) as caught:
        calibrator(make(tmp_path))
    assert "\n" not in caught.value.message


def test_a_calibration_of_another_graph(tmp_path: Path) -> None:
    made = calibrator("digits").observed
    path = text(tmp_path / "x.json", made.to_bytes())
    with pytest.raises(DataError, match="another graph"):
        calibrator(path, graph_from_text(TWO))


@pytest.mark.parametrize("key", ["images", "seed", "equalise", "ranges", "magnitudes", "shifts", "floats"])
@pytest.mark.parametrize("value", [1e999, -1, 10**400, "x", None, [[]], {"a": 1e999}, {"a": [-1e308, 1e308]}])
@pytest.mark.filterwarnings("error")
def test_damaged_figures_are_refused_or_harmless(key: str, value: Any, tmp_path: Path) -> None:
    graph = tiny_graph()
    made = calibrator("digits").observed.to_json()
    path = text(tmp_path / "x.json", json.dumps({**made, key: value}).encode())
    with contextlib.suppress(ShufflectlError):
        found = read_calibration(path)
        found.scales(found.prepare(graph))


@pytest.mark.parametrize("count", [1, 3, 9])
def test_corrections_of_other_channels_are_refused(count: int) -> None:
    graph = tiny_graph()
    made = calibrator("digits").observed.to_json()
    name = next(n for n in layers(graph) if n.startswith("conv1"))
    bad = Calibration.from_json({**made, "shifts": {name: [0.5] * count}})
    with pytest.raises(DataError, match=rf"corrects {count} channels of 'conv1\.1', which has 8"):
        bad.prepare(graph)


# Networks at the edge of what has a range.


def test_what_is_never_positive_has_codes() -> None:
    net = Net(1, batch=1)
    x = net.input(3, 6)
    below = net.op("Neg", [net.act(net.conv(x, 4))], 4)[0]
    net.outputs.append(net.conv(below, 2))
    made = coded(net.finish())
    scale = next(s for name, s in made.quantized.in_codes.items() if name.startswith("neg"))
    assert 127 == scale.zero_point
    image = floats(1, 6)
    assert all(np.abs(a - b).max() <= 1 for a, b in made.both(image, delegate=True).values())


def test_rows_of_zeros_and_an_activation_that_is_always_zero() -> None:
    net = Net(1, batch=1)
    x = net.input(3, 6)
    rows = net.rng.standard_normal((4, 3, 1, 1)).astype(np.float32)
    rows[1:3] = 0
    some = net.act(net.op("Conv", [x, net.constant(rows)], 4, kernel_shape=[1, 1])[0])
    zero = net.act(net.op("Conv", [x, net.constant(rows * 0)], 4, kernel_shape=[1, 1])[0])
    net.outputs.append(net.op("Add", [some, zero], 4)[0])
    made = coded(net.finish())
    assert all(np.abs(a - b).max() <= 1 for a, b in made.both(floats(1, 6), delegate=True).values())
