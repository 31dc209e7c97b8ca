"""From a name and a word for the weights to a network."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from shufflectl import models
from shufflectl.errors import CheckpointError, UsageError
from shufflectl.models import zoo
from shufflectl.models.checkpoints.files import sha256
from shufflectl.models.data import digits_test
from shufflectl.models.preprocess import DIGITS, IMAGENET
from shufflectl.models.random_weights import digest

SMALL = "shufflenet_v1_g1_x0_25"
WITH_DIGITS = [row.name for row in zoo.variants() if "digits" in row.weights]


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return dict(models.create(SMALL, num_classes=4).state_dict())


def save(path: Path, state: dict[str, Tensor], record: Any) -> str:
    save_file(state, path, {"shufflectl": record if isinstance(record, str) else json.dumps(record)})
    return str(path)


@pytest.mark.parametrize("name", WITH_DIGITS)
def test_bundled_weights_reach_the_accuracy_that_their_header_states(name: str) -> None:
    model = models.load(name, weights="digits")
    held_out = digits_test(model.input_size)
    with torch.no_grad():
        answers = model.module(torch.from_numpy(model.preprocess.apply(held_out.images))).argmax(1).numpy()
    share = float((answers == held_out.labels).mean())
    path = Path(models.__file__).parent / "weights" / f"{name}_digits.safetensors"
    with safe_open(path, framework="np") as file:
        stated = json.loads(file.metadata()["shufflectl"])["accuracy"]
    assert share >= 0.98
    # Another processor sums in another order, so an image on the edge may fall to the other side.
    assert pytest.approx(stated, abs=1.01 / 360) == share


@pytest.mark.parametrize("name", WITH_DIGITS)
def test_bundled_weights_are_described(name: str) -> None:
    model = models.load(name, weights="digits")
    assert (10, 32, "digits") == (model.num_classes, model.input_size, model.weights)
    assert tuple("0123456789") == model.labels
    assert DIGITS == model.preprocess
    assert ("The shufflectl authors", "1", "Apache-2.0") == (model.author, model.version, model.license)
    assert "held-out" in model.description
    assert not model.module.training
    assert torch.float32 == next(model.module.parameters()).dtype


def test_bundled_weights_name_their_data_and_its_licence() -> None:
    path = Path(models.__file__).parent / "weights" / "shufflenet_v2_x0_5_digits.safetensors"
    with safe_open(path, framework="np") as file:
        assert "CC BY 4.0" in json.loads(file.metadata()["shufflectl"])["data"]
        assert {"F16"} == {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118  not a dict


def test_no_weights_stand_for_seed_0() -> None:
    model, seeded = models.load(SMALL), models.load(SMALL, weights="random:0")
    assert seeded.weights_sha256 == model.weights_sha256
    assert ("random:0", 1000, 224, IMAGENET, ()) == (
        model.weights,
        model.num_classes,
        model.input_size,
        model.preprocess,
        model.labels,
    )


def test_the_digest_of_random_weights_is_that_of_the_module() -> None:
    model = models.load(SMALL, weights="random:3", num_classes=5)
    assert digest(dict(model.module.state_dict())) == model.weights_sha256
    assert 5 == model.module(torch.zeros(1, 3, 32, 32)).shape[1]


def test_create_gives_the_module_of_load() -> None:
    created, loaded = models.create(SMALL, num_classes=3), models.load(SMALL, num_classes=3).module
    assert digest(dict(created.state_dict())) == digest(dict(loaded.state_dict()))


def test_a_file_is_named_without_its_folder_and_hashed_whole(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    spec = save(tmp_path / "best.safetensors", state, {})
    model = models.load(SMALL, weights=spec)
    assert ("best.safetensors", sha256(Path(spec)), 4) == (
        model.weights,
        model.weights_sha256,
        model.num_classes,
    )
    assert str(tmp_path) not in model.description


def test_a_file_may_describe_itself(tmp_path: Path, state: dict[str, Tensor]) -> None:
    record = {
        "labels": ["a", "b", "c", "d"],
        "input_size": 96,
        "preprocess": DIGITS.to_json(),
        "license": "MIT",
    }
    model = models.load(SMALL, weights=save(tmp_path / "w.safetensors", state, record))
    assert (("a", "b", "c", "d"), 96, DIGITS, "MIT") == (
        model.labels,
        model.input_size,
        model.preprocess,
        model.license,
    )


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ("{", "Expecting property name"),
        ("[1]", "is not an object"),
        ("[" * 100_000, "nested too deeply"),
        ({"labels": ["a"]}, "1 labels and 4 classes"),
        ({"labels": "abcd"}, "not a list"),
        ({"labels": [1, 2, 3, 4]}, "not a text"),
        ({"input_size": 0}, "input size 0"),
        ({"input_size": True}, "input size True"),
        ({"input_size": 10**9}, "input size 1000000000"),
        ({"preprocess": {"color": "xyz"}}, "mean"),
        ({"preprocess": [1]}, "is not an object"),
        ({"author": 3}, "not a text"),
    ],
    ids=str,
)
def test_a_bad_description_is_refused(
    tmp_path: Path, state: dict[str, Tensor], record: Any, why: str
) -> None:
    with pytest.raises(CheckpointError, match=r"header of w\.safetensors .* cannot be used") as caught:
        models.load(SMALL, weights=save(tmp_path / "w.safetensors", state, record))
    assert why in caught.value.message
    assert "docs/checkpoints.md" in caught.value.hint


def test_a_description_of_another_network_is_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    spec = save(tmp_path / "w.safetensors", state, {"model": "shufflenet_v1_g1_x0_5"})
    with pytest.raises(CheckpointError, match="says that it is of 'shufflenet_v1_g1_x0_5'"):
        models.load(SMALL, weights=spec)


@pytest.mark.parametrize(
    "spec", ["random", "random:", "random:x", "random:-1", "random:1.5", f"random:{2**64}", "random:²"]
)
def test_a_bad_seed_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="do not give a seed") as caught:
        models.load(SMALL, weights=spec)
    assert "random:0" in caught.value.hint


def test_bundled_weights_of_another_model_are_refused_with_the_models_that_have_them() -> None:
    with pytest.raises(UsageError, match="no bundled weights 'digits' for mobilenet_v2_x1_0") as caught:
        models.load("mobilenet_v2_x1_0", weights="digits")
    assert all(name in caught.value.hint for name in WITH_DIGITS)


def test_bundled_weights_with_another_number_of_classes_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"for 10 classes .* and 1000 were asked for") as caught:
        models.load("shufflenet_v2_x0_5", weights="digits", num_classes=1000)
    assert "--num-classes 10" in caught.value.hint


def test_published_weights_of_another_model_are_refused_with_the_models_that_have_them() -> None:
    with pytest.raises(UsageError, match=f"no published weights 'imagenet' for {SMALL}") as caught:
        models.load(SMALL, weights="imagenet")
    assert "shufflenet_v2_x1_0" in caught.value.hint


def test_an_unknown_word_lists_what_there_is() -> None:
    with pytest.raises(UsageError, match="no weights 'cifar'") as caught:
        models.load(SMALL, weights="cifar")
    assert "digits, imagenet" in caught.value.hint
    assert "random:SEED" in caught.value.hint


@pytest.mark.parametrize("number", [0, -1, 10**7])
def test_an_impossible_number_of_classes_is_refused(number: int) -> None:
    with pytest.raises(UsageError, match="number of classes"):
        models.load(SMALL, num_classes=number)


def test_an_unknown_model_is_refused_before_its_weights_are_read() -> None:
    with pytest.raises(UsageError, match="no model named"):
        models.load("resnet50", weights="missing.pth")


def test_the_package_gives_its_public_names_alone() -> None:
    assert ["LoadedModel", "create", "dense", "load"] == models.__all__
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        _ = models.other


def test_a_replaced_file_does_not_change_a_loaded_model(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "w.safetensors"
    model = models.load(SMALL, weights=save(path, state, {}))
    before = model.module.state_dict()["fc.weight"].numpy().copy()
    path.write_bytes(bytes(path.stat().st_size))
    assert np.array_equal(before, model.module.state_dict()["fc.weight"].numpy())
