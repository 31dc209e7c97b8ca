"""The inputs of parity: the same for the same options."""

import numpy as np

from shufflectl.deploy.images import gather
from shufflectl.deploy.options import ParityOptions
from shufflectl.models.preprocess import DIGITS

LABELS = tuple("0123456789")


def test_noise_depends_on_the_seed_alone() -> None:
    first, again, other = (
        gather("image", 8, DIGITS, LABELS, ParityOptions(images=1, random_images=2, seed=seed))
        .by_kind["random"]
        .arrays["image"]
        for seed in (1, 1, 2)
    )
    assert (np.float32, (2, 3, 8, 8)) == (first.dtype, first.shape)
    assert (first == again).all()
    assert not (first == other).all()
    assert -1 <= first.min() < -0.9 < 0.9 < first.max() <= 1  # preprocessed: what the model can really meet


def test_real_images_come_with_labels_where_the_model_knows_the_ten_digits() -> None:
    known = gather("image", 8, DIGITS, LABELS, ParityOptions(images=60))
    assert (60, 3, 8, 8) == known.by_kind["real"].arrays["image"].shape
    assert 60 == len(known.labels["real"])
    assert 10 == len(set(known.labels["real"].tolist()))  # spread over the test set
    assert {} == gather("image", 8, DIGITS, ("cat", "dog"), ParityOptions(images=1)).labels
