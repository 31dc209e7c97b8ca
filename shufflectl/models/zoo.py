"""Every network that shufflectl knows: one record a variant, readable without torch.

Published figures are those of the papers' own tables, or of the authors' own code where the papers have none:

- ShuffleNet V1: arXiv:1707.01083, tables 1, 2 and 5; parameters and the widths that the paper does not list
  are from the README of Megvii's ShuffleNet-Series.
- ShuffleNet V2: arXiv:1807.11164, tables 5, 6 and 8; the large networks' architecture is in its appendix.
- MobileNetV1: arXiv:1704.04861, table 6. MobileNetV2: arXiv:1801.04381, table 4, and for the other widths the
  README of the authors' code (tensorflow/models, research/slim/nets/mobilenet), whose parameters are those of
  1001 classes without batch norm.
"""

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from shufflectl.errors import CheckpointError, InputError, UsageError, nearest

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "FAMILIES",
    "LOGITS",
    "Pretrained",
    "Published",
    "Registry",
    "Variant",
    "names",
    "variant",
    "variants",
]

FAMILIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "shufflenet_v1": "ShuffleNet V1",
        "shufflenet_v2": "ShuffleNet V2",
        "shufflenet_v2_large": "ShuffleNet V2, large",
        "mobilenet_v1": "MobileNetV1",
        "mobilenet_v2": "MobileNetV2",
    }
)

LOGITS: Final = "logits"
"""The name of the classifier's output."""

_V1 = "arXiv:1707.01083"
_V2 = "arXiv:1807.11164"
_MEGVII = "megvii-model/ShuffleNet-Series"
_SLIM = "tensorflow/models, research/slim/nets/mobilenet"


@dataclass(frozen=True)
class Published:
    """What the authors report for ImageNet at 224x224; None where they do not.

    Attributes:
        source: Where the figures stand.
        multiply_adds: In millions, as rounded there.
        parameters: In millions, as rounded there.
        top1_error: In per cent, single centre crop, on the validation set.
        tolerance: The largest relative difference between ``multiply_adds`` and what this network takes.
        parameters_tolerance: Likewise for ``parameters``.
        note: Why the figures differ by more than rounding; empty where they do not.
    """

    source: str
    multiply_adds: float | None = None
    parameters: float | None = None
    top1_error: float | None = None
    tolerance: float = 0.02
    parameters_tolerance: float = 0.05
    note: str = ""

    @property
    def top1_accuracy(self) -> float | None:
        """Top-1 accuracy in per cent."""
        return None if self.top1_error is None else round(100 - self.top1_error, 2)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values; ``multiply_adds`` and ``parameters`` in millions."""
        return {
            "source": self.source,
            "multiply_adds_millions": self.multiply_adds,
            "parameters_millions": self.parameters,
            "top1_error": self.top1_error,
            "top1_accuracy": self.top1_accuracy,
            "note": self.note,
        }


@dataclass(frozen=True)
class Pretrained:
    """Trained weights that somebody publishes.

    Attributes:
        word: What users call them.
        url: Where they are.
        sha256: The beginning of the file's SHA-256, in hexadecimal.
        size: In bytes, as published: rounded to a thousandth of a MiB.
        top1_accuracy: In per cent, as published.
        source: Who publishes them, and where the figures stand.
        version: Their name there.
        crop: The share of the shorter side that they see, `Preprocess.crop`.
    """

    word: str
    url: str
    sha256: str
    size: int
    top1_accuracy: float
    source: str
    version: str
    crop: float = 0.875

    @property
    def file(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]

    @property
    def wrong(self) -> type[InputError]:
        """What another file in its place is."""
        return CheckpointError

    @property
    def otherwise(self) -> str:
        """What to do where it cannot be downloaded."""
        return "pass --weights with the file"

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return {
            "name": self.word,
            "url": self.url,
            "sha256_prefix": self.sha256,
            "bytes": self.size,
            "top1_accuracy": self.top1_accuracy,
            "source": self.source,
            "version": self.version,
        }


@dataclass(frozen=True)
class Variant:
    """One network.

    Attributes:
        name: What users call it.
        family: A key of `FAMILIES`.
        builder: ``module:function`` that returns the module; it takes ``arguments`` and ``num_classes``.
        arguments: Keyword arguments of the builder.
        parameters: Trained parameters, with 1000 classes.
        multiply_adds: Multiplications of convolutions and dense layers for one image of the input size, with
            1000 classes.
        published: What the authors report; None where they report nothing for this width.
        input_size: Height and width in pixels that the papers' figures are for.
        weights: Names of the bundled trained weights.
        pretrained: Trained weights that can be downloaded.
    """

    name: str
    family: str
    builder: str
    arguments: Mapping[str, Any] = field(hash=False)
    parameters: int
    multiply_adds: int
    published: Published | None = None
    input_size: int = 224
    weights: tuple[str, ...] = ()
    pretrained: tuple[Pretrained, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """What trained weights can be had by name."""
        return (*self.weights, *(item.word for item in self.pretrained))

    def build(self, num_classes: int = 1000) -> "nn.Module":
        """Return the module with torch's own initialisation, in training mode."""
        module, _, function = self.builder.partition(":")
        result: nn.Module = getattr(importlib.import_module(module), function)(
            **self.arguments, num_classes=num_classes
        )
        return result

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return {
            "name": self.name,
            "family": self.family,
            "input_size": self.input_size,
            "parameters": self.parameters,
            "multiply_adds": self.multiply_adds,
            "published": None if self.published is None else self.published.to_json(),
            "weights": list(self.words),
            "pretrained": [item.to_json() for item in self.pretrained],
        }


class Registry:
    """Variants by name, in the order in which they were added."""

    def __init__(self) -> None:
        self._rows: dict[str, Variant] = {}

    def add(self, row: Variant) -> None:
        """Add a variant.

        Raises:
            ValueError: The name is taken, or the family is unknown.
        """
        if row.name in self._rows:
            raise ValueError(f"two variants are named {row.name!r}")
        if row.family not in FAMILIES:
            raise ValueError(f"variant {row.name!r} names the unknown family {row.family!r}")
        self._rows[row.name] = row

    def __getitem__(self, name: str) -> Variant:
        """Return a variant.

        Raises:
            UsageError: There is none of that name.
        """
        try:
            return self._rows[name]
        except KeyError:
            raise UsageError(f"there is no model named {name!r}", hint=nearest(name, self._rows)) from None

    def __iter__(self) -> Iterator[Variant]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)


def names() -> tuple[str, ...]:
    """Return the names of all variants."""
    return tuple(row.name for row in _REGISTRY)


def variants() -> tuple[Variant, ...]:
    """Return all variants."""
    return tuple(_REGISTRY)


def variant(name: str) -> Variant:
    """Return the variant of that name.

    Raises:
        UsageError: There is none; the hint names the nearest.
    """
    return _REGISTRY[name]


def _torchvision(
    file: str, mebibytes: float, top1: float, module: str, version: str, resize: int = 256
) -> tuple[Pretrained]:
    """Return what torchvision publishes.

    ``mebibytes`` is its ``_file_size``, ``top1`` its ``acc@1``, ``resize`` its ``resize_size``, before a
    crop of 224.
    """
    return (
        Pretrained(
            word="imagenet",
            url=f"https://download.pytorch.org/models/{file}",
            sha256=file.rpartition("-")[2].removesuffix(".pth"),
            size=round(mebibytes * 2**20),
            top1_accuracy=top1,
            source=f"pytorch/vision, torchvision/models/{module}.py",
            version=version,
            crop=224 / resize,
        ),
    )


_TORCHVISION_V2: Final = {
    "x0_5": _torchvision("shufflenetv2_x0.5-f707e7126e.pth", 5.282, 60.552, "shufflenetv2", "IMAGENET1K_V1"),
    "x1_0": _torchvision("shufflenetv2_x1-5666bf0f80.pth", 8.791, 69.362, "shufflenetv2", "IMAGENET1K_V1"),
    "x1_5": _torchvision(
        "shufflenetv2_x1_5-3c479a10.pth", 13.557, 72.996, "shufflenetv2", "IMAGENET1K_V1", 232
    ),
    "x2_0": _torchvision(
        "shufflenetv2_x2_0-8be3c8ee.pth", 28.433, 76.230, "shufflenetv2", "IMAGENET1K_V1", 232
    ),
}
_TORCHVISION_MOBILENET_V2: Final = _torchvision(
    "mobilenet_v2-7ebf99e0.pth", 13.598, 72.154, "mobilenetv2", "IMAGENET1K_V2", 232
)


def _shufflenet_v2() -> Iterator[Variant]:
    table8 = f"{_V2}, tables 5 and 8"
    rows = (
        ("x0_5", (48, 96, 192), 1024, 1366792, 40476448, Published(table8, 41, 1.4, 39.7), ("digits",)),
        ("x1_0", (116, 232, 464), 1024, 2278604, 144907992, Published(table8, 146, 2.3, 30.6), ()),
        ("x1_5", (176, 352, 704), 1024, 3503624, 295759392, Published(table8, 299, 3.5, 27.4), ()),
        ("x2_0", (244, 488, 976), 2048, 7393996, 583253464, Published(table8, 591, 7.4, 25.1), ()),
    )
    for width, stages, last, parameters, multiply_adds, published, weights in rows:
        yield Variant(
            name=f"shufflenet_v2_{width}",
            family="shufflenet_v2",
            builder="shufflectl.models.shufflenet_v2:build",
            arguments=MappingProxyType({"stage_channels": stages, "last_channels": last}),
            parameters=parameters,
            multiply_adds=multiply_adds,
            published=published,
            weights=weights,
            pretrained=_TORCHVISION_V2[width],
        )


def _shufflenet_v2_large() -> Iterator[Variant]:
    yield Variant(
        name="shufflenet_v2_50",
        family="shufflenet_v2_large",
        builder="shufflectl.models.shufflenet_v2:build_large",
        arguments=MappingProxyType(
            {
                "stem_channels": (64,),
                "stage_channels": (244, 488, 976, 1952),
                "stage_units": (3, 4, 6, 3),
                "excite": False,
            }
        ),
        parameters=16573534,
        multiply_adds=2304152672,
        published=Published(f"{_V2}, table 6", 2300, None, 22.8),
    )
    yield Variant(
        name="se_shufflenet_v2_164",
        family="shufflenet_v2_large",
        builder="shufflectl.models.shufflenet_v2:build_large",
        arguments=MappingProxyType(
            {
                "stem_channels": (64, 64, 128),
                "stage_channels": (340, 680, 1360, 2720),
                "stage_units": (10, 10, 23, 10),
                "excite": True,
            }
        ),
        parameters=133099976,
        multiply_adds=12598704192,
        published=Published(
            f"{_V2}, table 6",
            12700,
            None,
            18.56,
            note="The paper does not give the inner width of squeeze-and-excitation; it is that of the "
            f"branch, as in {_MEGVII} (ShuffleNetV2.Large).",
        ),
    )


_V1_COUNTS: Final = {
    (1, 0.25): (209746, 11003184),
    (2, 0.25): (267486, 11520372),
    (3, 0.25): (305902, 11009808),
    (4, 0.25): (339252, 12394600),
    (8, 0.25): (454504, 12426240),
    (1, 0.5): (534484, 38517408),
    (2, 0.5): (643932, 38570608),
    (3, 0.5): (718324, 37589856),
    (4, 0.5): (778040, 37468832),
    (8, 0.5): (1011448, 40469760),
    (1, 1.0): (1531936, 143078976),
    (2, 1.0): (1733848, 140836512),
    (3, 1.0): (1865728, 137460672),
    (4, 1.0): (1968344, 134339776),
    (8, 1.0): (2434768, 138365952),
    (1, 1.5): (2993032, 308096352),
    (2, 1.5): (3272312, 302187792),
    (3, 1.5): (3442168, 292443552),
    (4, 1.5): (3574032, 285767712),
    (8, 1.5): (4269952, 290188800),
    (1, 2.0): (4918744, 550334592),
    (2, 2.0): (5257896, 539138624),
    (3, 2.0): (5450776, 524045184),
    (4, 2.0): (5593528, 510289536),
    (8, 2.0): (6522232, 521942016),
}

_V1_QUARTER = (
    "The paper prints one rounded figure for all five networks of this width, and not the width of their "
    "first convolution, which takes a fifth of the multiply-adds: it is 24 times 0.25 here, and 12 would "
    "give 13 M."
)
_V1_G8_HALF = (
    "The paper prints one figure, 38, for all five networks of this width; Megvii's code, whose first "
    "convolution has 16 channels here, states 40."
)


def _v1_published() -> Iterator[tuple[tuple[int, float], Published]]:
    """Yield the published figures by groups and width."""
    table2 = f"{_V1}, table 2"
    parameters = {
        (3, 0.5): 0.7,
        (8, 0.5): 1.0,
        (3, 1.0): 1.9,
        (8, 1.0): 2.4,
        (3, 1.5): 3.4,
        (8, 1.5): 4.3,
        (3, 2.0): 5.4,
        (8, 2.0): 6.5,
    }  # of Megvii's README

    def source(paper: str, key: tuple[int, float]) -> str:
        return f"{paper}; parameters: {_MEGVII}" if key in parameters else paper

    quarter = {1: 57.1, 2: 56.8, 3: 55.0, 4: 54.2, 8: 52.7}
    half = {1: 45.1, 2: 44.4, 3: 43.2, 4: 41.6, 8: 42.3}
    full = {1: (143, 33.6), 2: (140, 32.7), 3: (137, 32.6), 4: (133, 32.8), 8: (137, 32.4)}
    for groups, error in quarter.items():
        key = (groups, 0.25)
        yield key, Published(table2, 13, parameters.get(key), error, tolerance=0.16, note=_V1_QUARTER)
    for groups, error in half.items():
        key = (groups, 0.5)
        note, tolerance = (_V1_G8_HALF, 0.07) if groups == 8 else ("", 0.02)
        where = source(table2, key)
        yield key, Published(where, 38, parameters.get(key), error, tolerance=tolerance, note=note)
    for groups, (figure, error) in full.items():
        key = (groups, 1.0)
        yield key, Published(source(f"{_V1}, tables 1 and 2", key), figure, parameters.get(key), error)
    for key, figure, error in (((3, 1.5), 292, 28.5), ((3, 2.0), 524, 26.3)):
        yield key, Published(source(f"{_V1}, table 5", key), figure, parameters.get(key), error)
    for key, figure, error in (((8, 1.5), 290, 29.0), ((8, 2.0), 522, 27.1)):
        yield key, Published(_MEGVII, figure, parameters.get(key), error)


def _shufflenet_v1() -> Iterator[Variant]:
    published = dict(_v1_published())
    for (groups, width), (parameters, multiply_adds) in _V1_COUNTS.items():
        yield Variant(
            name=f"shufflenet_v1_g{groups}_{_width(width)}",
            family="shufflenet_v1",
            builder="shufflectl.models.shufflenet_v1:build",
            arguments=MappingProxyType({"groups": groups, "width": width}),
            parameters=parameters,
            multiply_adds=multiply_adds,
            published=published.get((groups, width)),
            weights=("digits",) if (groups, width) == (3, 0.5) else (),
        )


def _mobilenets() -> Iterator[Variant]:
    table6 = "arXiv:1704.04861, table 6"
    v1_rows = (
        (0.25, 470072, 41030272, Published(table6, 41, 0.5, 49.4, parameters_tolerance=0.07)),
        (0.5, 1331592, 149497088, Published(table6, 149, 1.3, 36.3)),
        (0.75, 2585560, 325400448, Published(table6, 325, 2.6, 31.6)),
        (1.0, 4231976, 568740352, Published(table6, 569, 4.2, 29.4)),
    )
    for width, parameters, multiply_adds, published in v1_rows:
        yield _mobilenet("v1", width, parameters, multiply_adds, published)
    table4 = "arXiv:1801.04381, table 4"
    wide = (
        "The paper states 6.9 M parameters; the README of the authors' code states 6.06 M, which is this "
        "network with 1001 classes and without its batch norms."
    )
    v2_rows = (
        (0.35, 1677128, 59285808, Published(_SLIM, 59, 1.66, 39.7)),
        (0.5, 1968680, 97131840, Published(_SLIM, 97, 1.95, 34.6)),
        (0.75, 2636424, 209069792, Published(_SLIM, 209, 2.61, 30.2)),
        (1.0, 3504872, 300774272, Published(table4, 300, 3.4, 28.0)),
        (1.3, 5386792, 509374560, Published(_SLIM, 509, 5.34, 25.6)),
        (1.4, 6108776, 582195824, Published(table4, 585, 6.9, 25.3, parameters_tolerance=0.12, note=wide)),
    )
    for width, parameters, multiply_adds, published in v2_rows:
        yield _mobilenet("v2", width, parameters, multiply_adds, published)


def _mobilenet(
    version: str, width: float, parameters: int, multiply_adds: int, published: Published
) -> Variant:
    return Variant(
        name=f"mobilenet_{version}_{_width(width)}",
        family=f"mobilenet_{version}",
        builder=f"shufflectl.models.mobilenet_{version}:build",
        arguments=MappingProxyType({"width": width}),
        parameters=parameters,
        multiply_adds=multiply_adds,
        published=published,
        pretrained=_TORCHVISION_MOBILENET_V2 if (version, width) == ("v2", 1.0) else (),
    )


def _width(width: float) -> str:
    return f"x{width}".replace(".", "_")


def _registry() -> Registry:
    registry = Registry()
    for family in (_shufflenet_v2, _shufflenet_v2_large, _shufflenet_v1, _mobilenets):
        for row in family():
            registry.add(row)
    return registry


_REGISTRY: Final = _registry()
