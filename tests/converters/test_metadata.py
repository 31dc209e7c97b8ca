"""What a file says about itself survives JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shufflectl.converters.metadata import ModelInfo
from shufflectl.models.preprocess import DIGITS, IMAGENET, Preprocess

figures = st.tuples(*[st.floats(0.001, 300, allow_nan=False)] * 3)
infos = st.builds(
    ModelInfo,
    name=st.text(max_size=8),
    weights=st.text(max_size=8),
    preprocess=st.builds(Preprocess, st.sampled_from(["rgb", "bgr"]), st.floats(1e-4, 1), figures, figures),
    labels=st.lists(st.text(max_size=5), max_size=4).map(tuple),
    description=st.text(max_size=8),
    author=st.text(max_size=8),
    version=st.text(max_size=8),
    license=st.text(max_size=8),
)


@given(infos)
def test_json_gives_the_description_back(info: ModelInfo) -> None:
    assert info == ModelInfo.from_json(json.loads(json.dumps(info.to_json())))


def test_what_a_file_leaves_out_is_empty() -> None:
    info = ModelInfo.from_json({"name": "m", "preprocess": DIGITS.to_json()})
    assert ModelInfo("m", preprocess=DIGITS) == info


def test_the_default_preprocessing_is_that_of_imagenet() -> None:
    assert IMAGENET == ModelInfo("m").preprocess


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"name": "m"},
        {"name": "m", "preprocess": {}},
        {"name": "m", "preprocess": {**DIGITS.to_json(), "mean": [1]}},
    ],
    ids=["empty", "no preprocessing", "empty preprocessing", "one mean"],
)
def test_an_incomplete_description_is_an_error(data: dict[str, object]) -> None:
    with pytest.raises((KeyError, ValueError)):
        ModelInfo.from_json(data)
