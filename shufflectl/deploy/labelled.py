"""Labelled images: a folder with one sub-folder a class, or the digits in the package.

Nothing but indices is kept: an image is decoded when it is asked for, so a set of any size is run in the
memory of one batch. Files may be anything. Only decoders that Pillow brings itself are tried (none starts
another program), the size that a file declares is looked at before its pixels are read, and a file that
does not decode is an answer, not an error.
"""

import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from shufflectl.errors import DataError, UsageError, nearest
from shufflectl.models.checkpoints.files import printable
from shufflectl.models.data import digits_test

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "DIGITS",
    "FITS",
    "Bundled",
    "Damaged",
    "Fit",
    "ImageFolder",
    "Images",
    "Pictures",
    "PixelArray",
    "find_images",
    "find_pictures",
    "parse_fit",
]

Fit = Literal["auto", "crop", "squash"]
FITS: Final[tuple[Fit, ...]] = ("auto", "crop", "squash")
"""How an image gets the size of the input; see `ImageFolder.read`."""

DIGITS: Final = "digits"
"""The word for the images in the package."""

_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
"""Torchvision's ``IMG_EXTENSIONS``, and GIF (its first frame)."""

_FORMATS: Final = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
"""What files are read as, whatever their names: no EPS, which Pillow hands to Ghostscript."""

_MAX_PIXELS: Final = 100_000_000
"""Of a file: 0.4 GB when decoded. Pillow's own limit is of the same size."""

_CROPPED: Final = 0.875
"""The share of the shorter side that is seen: 224 of 256, as ShuffleNets are evaluated by their authors."""

_LONGEST: Final = 8
"""An image longer than this many times its width is cropped before it is resized."""

# What Pillow's decoders raise on damaged files: by no means only OSError.
_UNREADABLE: Final = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)


def parse_fit(word: str) -> Fit:
    """Return the way to resize of that name.

    Raises:
        UsageError: There is none.
    """
    found: Fit | None = next((fit for fit in FITS if fit == word), None)
    if found is None:
        raise UsageError(f"unknown way to resize {word!r}", hint=nearest(word, FITS))
    return found


@dataclass(frozen=True)
class Damaged:
    """A file that could not be used.

    Attributes:
        file: Its path below the folder.
        why: In a few words.
    """

    file: str
    why: str

    def to_json(self) -> dict[str, str]:
        """Return the file and the reason as JSON values."""
        return {"file": self.file, "why": self.why}


class Pictures(Protocol):
    """Images that are read one at a time."""

    def __len__(self) -> int:
        """How many there are."""

    def seen(self, crop: float) -> "Pictures":
        """Return the same images, of which a crop leaves that share of the shorter side."""

    def read(self, index: int, size: int, fit: Fit) -> NDArray[np.uint8] | Damaged:
        """Return an image as ``[size, size, 3]``, RGB, or what is wrong with it."""


class Images(Protocol):
    """Labelled images that are read one at a time."""

    @property
    def source(self) -> str:
        """Where they are from, as users name it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; labels are indices into them."""

    @property
    def labels(self) -> tuple[int, ...]:
        """The class of each image."""

    @property
    def refused(self) -> tuple[Damaged, ...]:
        """Files that are not looked into."""

    @property
    def resized(self) -> bool:
        """Whether there is a choice how images get the input's size."""

    def seen(self, crop: float) -> "Images":
        """Return the same images, of which a crop leaves that share of the shorter side."""

    def read(self, index: int, size: int, fit: Fit) -> NDArray[np.uint8] | Damaged:
        """Return an image as ``[size, size, 3]``, RGB, or what is wrong with its file."""


@dataclass(frozen=True)
class Bundled:
    """The held-out digits in the package, resized as they were for training.

    Attributes:
        count: How many, evenly spread; None for all.
    """

    count: int | None = None
    _sizes: dict[int, NDArray[np.uint8]] = field(default_factory=dict, init=False, repr=False)

    source: str = field(default=DIGITS, init=False)
    classes: tuple[str, ...] = field(default=tuple("0123456789"), init=False)
    refused: tuple[Damaged, ...] = field(default=(), init=False)
    resized: bool = field(default=False, init=False)

    @property
    def labels(self) -> tuple[int, ...]:
        """The digit of each image."""
        return tuple(int(label) for label in digits_test(1, self.count).labels)

    def seen(self, crop: float) -> Images:  # noqa: ARG002 - a protocol
        """Return the images: they are never cropped."""
        return self

    def read(self, index: int, size: int, fit: Fit) -> NDArray[np.uint8] | Damaged:  # noqa: ARG002 - a protocol
        """Return an image as ``[size, size, 3]``."""
        if size not in self._sizes:
            self._sizes.clear()
            self._sizes[size] = digits_test(size, self.count).images
        image: NDArray[np.uint8] = self._sizes[size][index]
        return image


@dataclass(frozen=True)
class PixelArray:
    """Images in memory.

    Attributes:
        images: ``[N, H, W, 3]``, uint8, RGB.
        crop: The share of the shorter side that a crop leaves.
    """

    images: NDArray[np.uint8]
    crop: float = _CROPPED

    def __len__(self) -> int:
        return len(self.images)

    def seen(self, crop: float) -> "PixelArray":
        """Return the same images, of which a crop leaves that share of the shorter side."""
        return replace(self, crop=crop)

    def read(self, index: int, size: int, fit: Fit) -> NDArray[np.uint8] | Damaged:
        """Return an image as ``[size, size, 3]``; see `ImageFolder.read`."""
        image: NDArray[np.uint8] = self.images[index]
        if image.shape[:2] == (size, size):
            return image
        from PIL import Image

        return np.asarray(_fit(Image.fromarray(image), size, fit, self.crop), np.uint8)


@dataclass(frozen=True)
class ImageFolder:
    """A folder with one sub-folder a class, as torchvision's ``ImageFolder`` has it.

    Attributes:
        folder: The folder.
        classes: The sub-folders' names, sorted.
        files: The images below the folder, class by class.
        labels: The class of each.
        refused: Files that are not looked into: links that lead out of the folder, what is not a file.
        crop: The share of the shorter side that a crop leaves.
    """

    folder: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: tuple[int, ...]
    refused: tuple[Damaged, ...] = ()
    crop: float = _CROPPED
    resized: bool = field(default=True, init=False)

    @property
    def source(self) -> str:
        """The folder, as the user named it."""
        return str(self.folder)

    def __len__(self) -> int:
        return len(self.files)

    def seen(self, crop: float) -> "ImageFolder":
        """Return the same images, of which a crop leaves that share of the shorter side."""
        return replace(self, crop=crop)

    def read(self, index: int, size: int, fit: Fit) -> NDArray[np.uint8] | Damaged:
        """Return an image as ``[size, size, 3]``, RGB, or what is wrong with its file.

        Turned as its EXIF orientation says. Grey is repeated; palettes and CMYK are converted, an alpha
        channel is dropped (both as torchvision's loader does); of 16 bits the upper 8 are taken.

        Args:
            index: Of the image.
            size: Height and width of the result.
            fit: ``crop`` resizes the shorter side to ``size / crop`` (256 for 224) and takes the middle;
                ``squash`` resizes both sides, whatever the proportions; ``auto`` leaves an image alone that
                has the size already, and crops any other. Bilinear, with a low-pass filter (Pillow's).
        """
        from PIL.Image import DecompressionBombError

        name = self.files[index]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of files that decode, but not cleanly
                return _decode(self.folder / name, size, fit, self.crop)
        except DataError as error:
            return Damaged(name, error.message)
        except (*_UNREADABLE, DecompressionBombError) as error:
            return Damaged(name, _reason(error))


def find_images(source: str, count: int | None = None, *, follow_links: bool = False) -> Images:
    """Return the labelled images that a user names.

    Args:
        source: ``digits``, or a folder.
        count: How many, evenly spread over all; None for all.
        follow_links: Whether links may lead out of the folder.

    Raises:
        DataError: The folder is missing, cannot be read, or holds no image in a sub-folder.
    """
    if source == DIGITS:
        return Bundled(count)
    folder = Path(source)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise DataError(
            f"{source} {what}, not a folder of labelled images",
            hint=f"pass a folder with one sub-folder a class, or the word {DIGITS}",
        )
    try:
        root = folder.resolve(strict=True)
        classes = sorted(entry.name for entry in _entries(folder) if entry.is_dir())
        walk = _Walk(folder, root, follow_links)
        found = [
            (name, label)
            for label, entry in enumerate(classes)
            for name in walk.images(Path(entry), frozenset())
        ]
    except OSError as error:
        raise DataError(
            f"{error.filename or source} cannot be read: {error.strerror or error}",
            hint="check its permissions",
        ) from error
    if not found:
        raise _no_image(folder, classes, walk.refused)
    if count is not None and count < len(found):
        chosen = np.linspace(0, len(found) - 1, count).round().astype(np.intp)
        found = [found[int(index)] for index in chosen]
    return ImageFolder(
        folder,
        tuple(classes),
        tuple(name for name, _ in found),
        tuple(label for _, label in found),
        tuple(walk.refused),
    )


def find_pictures(source: str) -> ImageFolder:
    """Return the images below a folder, wherever they are in it; what they show does not matter.

    Raises:
        DataError: The folder is missing, cannot be read, or holds no image.
    """
    folder = Path(source)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise DataError(
            f"{source} {what}, not a folder of images",
            hint=f"give a folder of images, an .npz file, or the word {DIGITS}",
        )
    try:
        walk = _Walk(folder, folder.resolve(strict=True), follow_links=False)
        files = tuple(walk.images(Path(), frozenset()))
    except OSError as error:
        raise DataError(
            f"{error.filename or source} cannot be read: {error.strerror or error}",
            hint="check its permissions",
        ) from error
    if not files:
        refused = walk.refused[0] if walk.refused else None
        hint = "image files end in " + ", ".join(_SUFFIXES)
        raise DataError(
            f"{source} holds no image", hint=hint if refused is None else f"{refused.file}: {refused.why}"
        )
    return ImageFolder(folder, (), files, (), tuple(walk.refused))


@dataclass
class _Walk:
    """Looks for images below one folder."""

    folder: Path
    root: Path
    follow_links: bool
    refused: list[Damaged] = field(default_factory=list)

    def images(self, below: Path, seen: frozenset[Path]) -> Iterator[str]:
        """Yield images below a sub-folder, in the order of their names.

        Args:
            below: The sub-folder, relative to the folder.
            seen: The real folders on the way to it: a link to one of them is a circle.
        """
        real = self._real(below)
        if real is None or real in seen:
            return
        for entry in sorted(_entries(self.folder / below), key=lambda path: path.name):
            name = below / entry.name
            if entry.is_dir():
                yield from self.images(name, seen | {real})
            elif entry.suffix.lower() in _SUFFIXES and self._is_usable(name):
                yield str(name)

    def _real(self, name: Path) -> Path | None:
        """Return where a name leads; None, and an entry among the refused, where that is elsewhere."""
        try:
            real = (self.folder / name).resolve(strict=True)
        except (OSError, RuntimeError):  # a circle of links is one or the other
            self.refused.append(Damaged(str(name), "a link that leads nowhere"))
            return None
        if not self.follow_links and not real.is_relative_to(self.root):
            self.refused.append(Damaged(str(name), "a link that leads out of the folder"))
            return None
        return real

    def _is_usable(self, name: Path) -> bool:
        real = self._real(name)
        if real is None:
            return False
        if not stat.S_ISREG(real.stat().st_mode):  # reading a pipe would wait for ever
            self.refused.append(Damaged(str(name), "not a regular file"))
            return False
        return True


def _entries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _no_image(folder: Path, classes: list[str], refused: list[Damaged]) -> DataError:
    if refused:
        hint = printable(f"{refused[0].file}: {refused[0].why}")
        if any("out of the folder" in entry.why for entry in refused):
            hint += "; pass --follow-links if it is meant to"
    elif classes:
        hint = "image files end in " + ", ".join(_SUFFIXES)
    else:
        hint = "put the images of each class into a sub-folder that has the class's name"
    where = f"none of the {len(classes)} sub-folders of {folder}" if classes else f"no sub-folder of {folder}"
    return DataError(f"{where} holds an image", hint=hint)


def _decode(path: Path, size: int, fit: Fit, crop: float) -> NDArray[np.uint8]:
    from PIL import Image, ImageOps

    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)  # what became a pipe since does not hold us up
    with os.fdopen(os.open(path, flags), "rb") as stream, Image.open(stream, formats=_FORMATS) as opened:
        width, height = opened.size
        if width * height > _MAX_PIXELS:
            raise DataError(
                f"declares {width} x {height} pixels, and {_MAX_PIXELS} are the most that is read"
            )
        image = _to_rgb(ImageOps.exif_transpose(opened))
    return np.asarray(_fit(image, size, fit, crop), np.uint8)


def _to_rgb(image: "Image") -> "Image":
    from PIL import Image

    if image.mode == "F":
        raise DataError("holds floating-point pixels, which have no common scale")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.size and (values.min() < 0 or values.max() > 0xFFFF):
            raise DataError("holds pixels of more than 16 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    return image.convert("RGB")


def _fit(image: "Image", size: int, fit: Fit, crop: float) -> "Image":
    from PIL.Image import Resampling

    if fit == "squash":
        return image.resize((size, size), Resampling.BILINEAR)
    if fit == "auto" and image.size == (size, size):
        return image
    width, height = image.size
    longest = _LONGEST * min(width, height)
    if max(width, height) > longest:
        # Resized whole, a strip of one pixel's width would fill the memory.
        left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
        image = image.crop((left, top, min(width, left + longest), min(height, top + longest)))
        width, height = image.size
    shorter = round(size / crop)
    scaled = [max(shorter, shorter * side // min(width, height)) for side in (width, height)]
    image = image.resize((scaled[0], scaled[1]), Resampling.BILINEAR)
    left, top = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError
    from PIL.Image import DecompressionBombError

    if isinstance(error, UnidentifiedImageError):
        return "not an image, or one of a format that is not read"
    if isinstance(error, DecompressionBombError):
        return f"declares more than {_MAX_PIXELS} pixels"
    if isinstance(error, MemoryError):
        return "does not fit the memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split())[:120] or type(error).__name__
