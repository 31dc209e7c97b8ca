"""Folders of images as people have them: links, damage, every kind of pixel."""

import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shufflectl.deploy.labelled import Bundled, Damaged, ImageFolder, find_images, parse_fit
from shufflectl.errors import DataError, UsageError
from shufflectl.models.data import digits_test

RED = (255, 0, 0)


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (8, 8), color: object = RED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)  # type: ignore[arg-type]  # a colour of any mode
    return path


def only(folder: Path) -> np.ndarray:
    """Return the one image of a folder at 8x8."""
    found = find_images(str(folder))
    assert 1 == len(found.labels)
    image = found.read(0, 8, "auto")
    assert not isinstance(image, Damaged), image
    assert (8, 8, 3) == image.shape
    assert np.uint8 == image.dtype
    return image


def damage(folder: Path) -> Damaged:
    image = find_images(str(folder)).read(0, 8, "auto")
    assert isinstance(image, Damaged)
    return image


def png(width: int, height: int) -> bytes:
    """Return a PNG that declares a size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_classes_are_sub_folders_in_sorted_order_and_images_lie_at_any_depth(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.PNG", "a/deep/er/3.jpg", ".hidden/4.png", "a/.thumb.png", "loose.png"):
        save(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("")
    found = find_images(str(tmp_path))
    assert isinstance(found, ImageFolder)
    assert ("a", "b") == found.classes
    assert ("a/deep/er/3.jpg", "b/1.PNG", "b/2.png") == found.files
    assert (0, 1, 1) == found.labels


def test_fewer_images_are_spread_over_all(tmp_path: Path) -> None:
    for index in range(12):
        save(tmp_path / f"{index % 3}" / f"{index}.png")
    assert (0, 0, 1, 1, 2, 2) == find_images(str(tmp_path), 6).labels
    assert 12 == len(find_images(str(tmp_path), 500).labels)


def test_digits_are_those_of_the_package() -> None:
    found, expected = find_images("digits", 5), digits_test(16, 5)
    assert isinstance(found, Bundled)
    assert expected.labels.tolist() == list(found.labels)
    for index in range(5):
        assert np.array_equal(expected.images[index], found.read(index, 16, "auto"))


@pytest.mark.parametrize(
    ("make", "message", "hint"),
    [
        (lambda _: None, "does not exist", "sub-folder a class"),
        (lambda p: p.write_text(""), "is a file", "sub-folder a class"),
        (lambda p: p.mkdir(), "no sub-folder of", "sub-folder that has the class's name"),
        (lambda p: (p / "cat").mkdir(parents=True), "none of the 1 sub-folders", "image files end in"),
        (lambda p: save(p / "cat.png"), "no sub-folder of", "sub-folder that has the class's name"),
    ],
    ids=["missing", "file", "empty", "no-image", "flat"],
)
def test_a_folder_without_images_is_an_error(make: object, message: str, hint: str, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    make(folder)  # type: ignore[operator]  # a function of a path
    with pytest.raises(DataError, match=message) as caught:
        find_images(str(folder))
    assert hint in caught.value.hint


def test_links_out_of_the_folder_are_followed_only_when_asked_for(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "1.png")
    folder = tmp_path / "photos"
    save(folder / "cat" / "0.png")
    (folder / "cat" / "file.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    (folder / "cat" / "inside.png").symlink_to(folder / "cat" / "0.png")
    (folder / "dog").symlink_to(tmp_path / "elsewhere")
    (folder / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "cat" / "circle").symlink_to(folder / "cat")
    found = find_images(str(folder))
    assert isinstance(found, ImageFolder)
    assert ("cat/0.png", "cat/inside.png") == found.files
    assert {
        "cat/file.png": "a link that leads out of the folder",
        "cat/gone.png": "a link that leads nowhere",
        "dog": "a link that leads out of the folder",
    } == {entry.file: entry.why for entry in found.refused}
    followed = find_images(str(folder), follow_links=True)
    assert isinstance(followed, ImageFolder)
    assert ("cat/0.png", "cat/file.png", "cat/inside.png", "dog/1.png") == followed.files
    assert ["cat/gone.png"] == [entry.file for entry in followed.refused]


def test_a_folder_of_links_alone_says_how_they_are_followed(tmp_path: Path) -> None:
    outside = save(tmp_path / "1.png")
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "1.png").symlink_to(outside)
    with pytest.raises(DataError) as caught:
        find_images(str(tmp_path / "photos"))
    assert "--follow-links" in caught.value.hint


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "0.png")
    os.mkfifo(tmp_path / "cat" / "1.png")
    found = find_images(str(tmp_path))
    assert [Damaged("cat/1.png", "not a regular file")] == list(found.refused)


@pytest.mark.parametrize(
    ("mode", "suffix", "color", "expected"),
    [
        ("RGB", "png", RED, RED),
        ("L", "png", 77, (77, 77, 77)),
        ("1", "png", 1, (255, 255, 255)),
        ("LA", "png", (77, 10), (77, 77, 77)),
        ("RGBA", "png", (*RED, 10), RED),
        ("P", "png", RED, RED),
        ("P", "gif", RED, RED),
        ("I;16", "png", 0x4D99, (0x4D, 0x4D, 0x4D)),
        ("I;16", "tiff", 0x4D99, (0x4D, 0x4D, 0x4D)),
        ("CMYK", "tiff", (0, 255, 255, 0), RED),
        ("YCbCr", "tiff", (77, 128, 128), (77, 77, 77)),
        ("RGB", "bmp", RED, RED),
        ("RGB", "ppm", RED, RED),
        ("RGB", "webp", (0, 0, 0), (0, 0, 0)),
    ],
)
def test_every_kind_of_pixel_becomes_rgb(
    mode: str, suffix: str, color: object, expected: tuple[int, int, int], tmp_path: Path
) -> None:
    path = tmp_path / "cat" / f"0.{suffix}"
    path.parent.mkdir()
    image = Image.new("RGB", (8, 8), RED).convert("P") if mode == "P" else None
    (image or Image.new(mode, (8, 8), color)).save(path)  # type: ignore[arg-type]  # a colour of any mode
    assert np.abs(np.asarray(expected) - only(tmp_path).astype(int)).max() <= 1


def test_images_are_turned_as_their_exif_says(tmp_path: Path) -> None:
    left = Image.new("RGB", (8, 8))
    left.paste(RED, (0, 0, 4, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    (tmp_path / "cat").mkdir()
    left.save(tmp_path / "cat" / "0.png", exif=exif)
    red = only(tmp_path)[..., 0] > 128
    assert red[:4].all()
    assert not red[4:].any()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not an image"),
        (b"<html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "not an image"),
        (png(8, 8), ""),
        (png(20_000, 20_000), "pixels"),
        (png(9_000, 12_000), "declares 9000 x 12000 pixels"),
        (png(0, 8), ""),
    ],
    ids=["empty", "html", "eps", "truncated", "bomb", "large", "flat"],
)
def test_damaged_files_are_named_with_the_reason(content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.png").write_bytes(content)
    tracemalloc.start()
    try:
        found = damage(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "cat/0.png" == found.file
    assert found.why
    assert why in found.why
    assert peak < 50e6


def test_a_file_that_goes_away_or_may_not_be_read_is_damaged(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "0.png")
    found = find_images(str(tmp_path))
    (tmp_path / "cat" / "0.png").unlink()
    assert Damaged("cat/0.png", "no such file or directory") == found.read(0, 8, "auto")


@settings(max_examples=60, deadline=None)
@given(data=st.data(), suffix=st.sampled_from(["png", "jpg", "gif", "tif", "bmp", "webp", "ppm"]))
def test_no_change_of_bytes_raises(
    data: st.DataObject, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("mutated")
    path = save(folder / "cat" / f"0.{suffix}", size=(9, 7))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    image = find_images(str(folder)).read(0, 8, "crop")
    assert isinstance(image, Damaged) or (8, 8, 3) == image.shape


def halves(size: tuple[int, int]) -> Image.Image:
    """Return an image whose outer quarters (of the longer side) are red."""
    image = Image.new("RGB", size)
    across = size[0] >= size[1]
    quarter = max(size) // 4
    for start in (0, max(size) - quarter):
        box = (start, 0, start + quarter, size[1]) if across else (0, start, size[0], start + quarter)
        image.paste(RED, box)
    return image


@pytest.mark.parametrize("size", [(64, 32), (32, 64)])
def test_crop_takes_the_middle_and_squash_the_whole(size: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    halves(size).save(tmp_path / "cat" / "0.png")
    found = find_images(str(tmp_path))
    cropped, squashed, default = (found.read(0, 14, fit) for fit in ("crop", "squash", "auto"))
    assert isinstance(cropped, np.ndarray)
    assert isinstance(squashed, np.ndarray)
    assert 0 == (cropped[..., 0] > 128).sum()
    assert 0.4 < (squashed[..., 0] > 128).mean() < 0.6
    assert np.array_equal(cropped, default)


def test_an_image_of_the_inputs_size_is_taken_as_it_is_by_default(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    (tmp_path / "cat").mkdir()
    Image.fromarray(pixels).save(tmp_path / "cat" / "0.png")
    assert np.array_equal(pixels, only(tmp_path))
    cropped = find_images(str(tmp_path)).read(0, 8, "crop")
    assert not np.array_equal(pixels, cropped)


def test_crop_is_what_torchvision_does(tmp_path: Path) -> None:
    # Resize(256) and CenterCrop(224): the longer side is cut to an integer, the offsets are rounded.
    pixels = np.random.default_rng(0).integers(0, 256, (75, 101, 3), np.uint8)
    (tmp_path / "cat").mkdir()
    Image.fromarray(pixels).save(tmp_path / "cat" / "0.png")
    resized = Image.fromarray(pixels).resize((344, 256), Image.Resampling.BILINEAR)
    expected = np.asarray(resized)[16 : 16 + 224, 60 : 60 + 224]
    assert np.array_equal(expected, find_images(str(tmp_path)).read(0, 224, "crop"))


def test_a_crop_leaves_the_share_that_is_asked_for(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (75, 101, 3), np.uint8)
    (tmp_path / "cat").mkdir()
    Image.fromarray(pixels).save(tmp_path / "cat" / "0.png")
    resized = Image.fromarray(pixels).resize((312, 232), Image.Resampling.BILINEAR)
    expected = np.asarray(resized)[4 : 4 + 224, 44 : 44 + 224]
    assert np.array_equal(expected, find_images(str(tmp_path)).seen(224 / 232).read(0, 224, "crop"))


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (1, 1), (3, 2)])
def test_a_strip_is_read_in_bounded_memory(
    size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resize = Image.Image.resize

    def bounded(image: Image.Image, to: tuple[int, int], *rest: object) -> Image.Image:
        assert to[0] * to[1] <= 9 * 256 * 256, to
        return resize(image, to, *rest)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(Image.Image, "resize", bounded)
    save(tmp_path / "cat" / "0.png", size=size)
    image = find_images(str(tmp_path)).read(0, 224, "crop")
    assert isinstance(image, np.ndarray)
    assert (image == np.asarray(RED)).all()


def test_an_unknown_way_to_resize_is_refused() -> None:
    assert "squash" == parse_fit("squash")
    with pytest.raises(UsageError, match="'stretch'") as caught:
        parse_fit("stretch")
    assert "squash" in caught.value.hint
