"""Preprocessing: what it does to pixels, what is refused, and what users write for it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shufflectl.errors import InputError, UsageError
from shufflectl.models.preprocess import DIGITS, IMAGENET, MEGVII, PIXELS, UNIT, Preprocess
from shufflectl.models.preprocess_option import WORDS, PreprocessOption


def image() -> Any:
    return np.array([[[[255, 0, 51]]]], np.uint8)  # R 255, G 0, B 51


@pytest.mark.parametrize(
    ("preprocess", "expected"),
    [
        (UNIT, [1.0, 0.0, 0.2]),
        (PIXELS, [255.0, 0.0, 51.0]),
        (MEGVII, [51.0, 0.0, 255.0]),
        (DIGITS, [1.0, -1.0, -0.6]),
        (Preprocess("bgr", 1.0, (50, 10, 5), (2, 5, 10)), [0.5, -2.0, 25.0]),
    ],
)
def test_pixels_become_the_input(preprocess: Preprocess, expected: list[float]) -> None:
    np.testing.assert_allclose(preprocess.apply(image()).reshape(-1), expected, rtol=1e-6)


def test_each_colour_keeps_its_figures_in_another_order() -> None:
    swapped = IMAGENET.in_order("bgr")
    assert (0.406, 0.456, 0.485) == swapped.mean
    np.testing.assert_array_equal(IMAGENET.apply(image())[:, ::-1], swapped.apply(image()))
    assert IMAGENET == swapped.in_order("rgb")


def test_json_brings_back_the_same() -> None:
    spec = Preprocess("bgr", 1.0, (1, 2, 3), (4, 5, 6), "squash", 0.9, "nhwc")
    assert spec == Preprocess.from_json(json.loads(json.dumps(spec.to_json())))


def test_json_of_before_size_was_part_of_it_can_be_read() -> None:
    old = {key: IMAGENET.to_json()[key] for key in ("color", "scale", "mean", "std")}
    assert IMAGENET == Preprocess.from_json(old)


@pytest.mark.parametrize(
    "change",
    [
        {"color": "cmyk"},
        {"scale": 0.0},
        {"scale": float("nan")},
        {"mean": (float("inf"), 0, 0)},
        {"mean": (0, 0)},
        {"std": (1, 0, 1)},
        {"std": (1, -1, 1)},
        {"crop": 0.0},
        {"crop": 1.5},
        {"resize": "stretch"},
        {"layout": "chwn"},
    ],
)
def test_figures_without_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(IMAGENET, **change)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", MEGVII),
        *WORDS.items(),
        ("imagenet,color=bgr", IMAGENET.in_order("bgr")),
        ("color=rgb", replace(MEGVII, color="rgb")),
        ("auto,std=57", replace(MEGVII, std=(57, 57, 57))),
        ("unit, color=bgr, mean=0.4,0.5,0.6", Preprocess("bgr", 1 / 255, (0.4, 0.5, 0.6))),
        ("scale=1/127.5,mean=1,color=RGB", Preprocess("rgb", 1 / 127.5, (1, 1, 1))),
        ("crop=0.95,resize=squash,layout=nhwc", replace(MEGVII, crop=0.95, resize="squash", layout="nhwc")),
    ],
)
def test_what_users_write_becomes_a_specification(text: str, expected: Preprocess) -> None:
    assert expected == PreprocessOption.parse(text).of(MEGVII)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagnet", "unknown preprocessing 'imagnet'"),
        ("", "unknown preprocessing ''"),
        ("colour=bgr", "no key 'colour'"),
        ("color=xyz", "color is 'xyz'"),
        ("scale=big", "'big' is not a figure"),
        ("scale=1/0", "'1/0' is not a figure"),
        ("scale=nan", "scale must be"),
        ("mean=1,2", "2 figures for mean"),
        ("std=0", "std must be"),
        ("scale=1,2", "'2' belongs to no key"),
        ("mean=1,mean=2", "names mean twice"),
        ("imagenet,megvii", "'megvii' belongs to no key"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as found:
        PreprocessOption.parse(text)
    assert found.value.hint


def test_a_mistyped_word_gets_the_nearest_one() -> None:
    with pytest.raises(UsageError) as found:
        PreprocessOption.parse("imagnet")
    assert "did you mean 'imagenet'?" == found.value.hint


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(MEGVII.to_json()))
    option = PreprocessOption.parse(str(path))
    assert (MEGVII, True) == (option.of(IMAGENET), option.given)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("", "is no preprocessing"),
        ("[]", "no JSON object"),
        ("{}", "mean is missing"),
        (json.dumps({**IMAGENET.to_json(), "std": [0, 0, 0]}), "std must be"),
        (json.dumps({**IMAGENET.to_json(), "mean": "abc"}), "is no preprocessing"),
        (json.dumps({**IMAGENET.to_json(), "gamma": 2.2}), "no key 'gamma'"),
        ("[" * 60_000, "nested too deeply"),
        (" " * (1 << 17), "larger than"),
    ],
)
def test_a_file_that_holds_none_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        PreprocessOption.parse(str(path))


@pytest.mark.parametrize(
    ("preprocess", "text"),
    [
        (MEGVII, "BGR, 0 to 255, not normalised"),
        (UNIT, "RGB, 0 to 1, not normalised"),
        (DIGITS, "RGB, pixels times 0.00392157, mean 0.5, 0.5, 0.5, std 0.5, 0.5, 0.5"),
    ],
)
def test_specifications_are_said_in_words(preprocess: Preprocess, text: str) -> None:
    assert text == preprocess.text
