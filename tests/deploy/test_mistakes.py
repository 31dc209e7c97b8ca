"""Mistakes of preprocessing are named when they explain a result, and not when luck does."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shufflectl.deploy.labelled import Fit
from shufflectl.deploy.mistakes import Explanation, Feed, explain
from shufflectl.models.preprocess import DIGITS, IMAGENET, Preprocess

RAW = Preprocess(scale=1.0)
BGR = Preprocess("bgr", 1.0)
IMAGENET_BGR = Preprocess("bgr", IMAGENET.scale, IMAGENET.mean[::-1], IMAGENET.std[::-1])
UNIT = Preprocess()
OWN = Feed(UNIT, "auto")


def pixels(count: int = 64, size: int = 4) -> NDArray[np.uint8]:
    """Return images whose brightest channel is red, green or blue in turn."""
    images = np.random.default_rng(0).integers(0, 100, (count, size, size, 3), np.uint8)
    images[np.arange(count), :, :, np.arange(count) % 3] += 100
    return images


LABELS = np.arange(64) % 3


def trained_with(feed: Feed, images: NDArray[np.uint8], labels: NDArray[Any] = LABELS) -> Any:
    """Return a model that is right on inputs made as it was trained, and says 0 to any other."""
    known = {
        row.tobytes(): int(label) for row, label in zip(feed.prepare(given(images)), labels, strict=True)
    }
    return lambda inputs: np.asarray([known.get(row.tobytes(), 0) for row in inputs])


def given(images: NDArray[np.uint8]) -> dict[Fit, NDArray[np.uint8]]:
    return {"auto": images, "squash": images[:, ::-1]}


@pytest.mark.parametrize(
    ("own", "trained", "cause", "instead_of"),
    [
        (OWN, replace(OWN, swapped=True), "BGR images", "RGB images"),
        (Feed(BGR, "auto"), Feed(RAW, "auto"), "RGB images", "BGR images"),
        (OWN, Feed(RAW, "auto"), "images of 0 to 255, neither scaled nor normalised", "of 0 to 1"),
        (Feed(RAW, "auto"), OWN, "images of 0 to 1, not normalised", "of 0 to 255"),
        (OWN, Feed(IMAGENET, "auto"), "images normalised with ImageNet's mean", "of 0 to 1"),
        (Feed(IMAGENET, "auto"), OWN, "images of 0 to 1, not normalised", "ImageNet's mean"),
        (OWN, Feed(DIGITS, "auto"), "images scaled to -1 to 1", "of 0 to 1"),
        (
            Feed(Preprocess(mean=(0.1,) * 3), "auto"),
            OWN,
            "images of 0 to 1, not normalised",
            "as they are now",
        ),
        (
            Feed(IMAGENET, "auto"),
            Feed(BGR, "auto"),
            "BGR images of 0 to 255, neither",
            "RGB images normalised",
        ),
        (Feed(IMAGENET_BGR, "auto"), Feed(IMAGENET, "auto"), "RGB images", "BGR images"),
        (
            Feed(BGR, "auto"),
            Feed(IMAGENET, "auto"),
            "RGB images normalised with ImageNet's",
            "BGR images of 0",
        ),
        (Feed(BGR, "auto"), Feed(IMAGENET_BGR, "auto"), "images normalised with ImageNet's", "images of 0"),
        (OWN, replace(OWN, fit="squash"), "images resized without a crop", "images taken as they are"),
        (OWN, replace(OWN, layout="nhwc"), "images in NHWC order fed as if they were NCHW", ""),
        (OWN, replace(OWN, layout="nchw"), "images in NCHW order fed as if they were NHWC", ""),
    ],
)
def test_the_mistake_is_named(own: Feed, trained: Feed, cause: str, instead_of: str) -> None:
    images = pixels()
    found = explain(trained_with(trained, images), own, given(images), LABELS, None)
    assert found is not None
    assert found.cause.startswith(cause)
    assert instead_of in found.instead_of
    assert ("top-1", 1.0, 64) == (found.metric, found.would_be, found.images)
    assert found.sentence.startswith(f"top-1 would be 1.00 with {found.cause}; it is 0.3")


def test_a_mistake_that_lowers_the_agreement_alone_is_named_too() -> None:
    images = pixels()
    model = trained_with(replace(OWN, swapped=True), images)
    unrelated = np.full(64, 7)  # no label is ever predicted
    found = explain(model, OWN, given(images), unrelated, LABELS)
    assert found is not None
    assert ("agreement with torch", "BGR images") == (found.metric, found.cause)


def test_a_model_that_is_always_wrong_is_explained_by_nothing() -> None:
    images = pixels()
    assert explain(lambda x: np.zeros(len(x), np.int64), OWN, given(images), LABELS, LABELS) is None


@pytest.mark.parametrize("seed", range(5))
def test_luck_is_no_explanation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = pixels()
    assert explain(lambda x: rng.integers(0, 3, len(x)), OWN, given(images), LABELS, None) is None


def test_few_images_explain_nothing() -> None:
    images = pixels(9)
    model = trained_with(replace(OWN, swapped=True), images, LABELS[:9])
    assert explain(model, OWN, given(images), LABELS[:9], None) is None


def test_two_mistakes_at_once_are_named_together() -> None:
    images = pixels()
    strict = trained_with(replace(OWN, swapped=True, fit="squash"), images)
    lenient = trained_with(replace(OWN, swapped=True), images)

    def model(inputs: Any) -> Any:
        # Right on half of the images with the one, on all of them with both.
        half = np.where(np.arange(len(inputs)) % 2 == 0, lenient(inputs), 0)
        return np.maximum(strict(inputs), half)

    found = explain(model, OWN, given(images), LABELS, None)
    assert found is not None
    assert "BGR images resized without a crop" == found.cause


def test_the_order_of_nhwc_is_undone_by_reading_it_as_nchw() -> None:
    images = given(pixels(2, 5))
    straight = OWN.prepare(images)
    nhwc = replace(OWN, layout="nhwc").prepare(images)
    assert np.array_equal(straight.transpose(0, 2, 3, 1).ravel(), nhwc.ravel())
    nchw = replace(OWN, layout="nchw").prepare(images)
    assert np.array_equal(straight.ravel(), nchw.transpose(0, 2, 3, 1).ravel())


def test_the_document_holds_the_sentence() -> None:
    found = Explanation("BGR images", "top-1", 1 / 3, 0.99, 64, "RGB images")
    assert "top-1 would be 0.99 with BGR images; it is 0.33 with RGB images (on 64 images)" == found.sentence
    assert 0.3333 == found.to_json()["found"]
