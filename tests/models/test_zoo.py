"""The registry against the networks it builds and against the papers' tables."""

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from importlib import resources

import pytest
import torch

from shufflectl.errors import UsageError
from shufflectl.models import zoo
from shufflectl.models.count import Count, count
from shufflectl.models.zoo import Variant

PUBLISHED = [row for row in zoo.variants() if row.published is not None]


def measured(row: Variant) -> Count:
    with torch.device("meta"):
        return count(row.build(), row.input_size)


@pytest.mark.parametrize("name", zoo.names())
def test_record_states_what_the_network_has(name: str) -> None:
    row = zoo.variant(name)
    assert Count(row.parameters, row.multiply_adds) == measured(row)


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row.name)
def test_multiply_adds_are_the_published_ones(row: Variant) -> None:
    assert row.published is not None
    if row.published.multiply_adds is not None:
        expected = pytest.approx(row.published.multiply_adds, rel=row.published.tolerance)
        assert expected == row.multiply_adds / 1e6


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row.name)
def test_parameters_are_the_published_ones(row: Variant) -> None:
    assert row.published is not None
    if row.published.parameters is not None:
        expected = pytest.approx(row.published.parameters, rel=row.published.parameters_tolerance)
        assert expected == row.parameters / 1e6


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row.name)
def test_a_wide_tolerance_is_explained(row: Variant) -> None:
    published = row.published
    assert published is not None
    assert published.source
    assert published.tolerance <= 0.02 or published.note
    # One decimal of a small figure is already a twentieth of it.
    assert published.parameters_tolerance <= 0.07 or published.note


def test_every_network_of_the_papers_is_there() -> None:
    groups, widths = (1, 2, 3, 4, 8), ("0_25", "0_5", "1_0", "1_5", "2_0")
    wanted = {f"shufflenet_v1_g{g}_x{w}" for g in groups for w in widths}
    wanted |= {f"shufflenet_v2_x{w}" for w in ("0_5", "1_0", "1_5", "2_0")}
    wanted |= {"shufflenet_v2_50", "se_shufflenet_v2_164"}
    wanted |= {f"mobilenet_v1_x{w}" for w in ("0_25", "0_5", "0_75", "1_0")}
    wanted |= {f"mobilenet_v2_x{w}" for w in ("0_35", "0_5", "0_75", "1_0", "1_3", "1_4")}
    assert wanted == set(zoo.names())


def test_torchvision_published_parameter_counts_are_met() -> None:
    # "num_params" of torchvision's weights: ShuffleNet_V2_*_Weights and MobileNet_V2_Weights.
    torchvision = {
        "shufflenet_v2_x0_5": 1366792,
        "shufflenet_v2_x1_0": 2278604,
        "shufflenet_v2_x1_5": 3503624,
        "shufflenet_v2_x2_0": 7393996,
        "mobilenet_v2_x1_0": 3504872,
    }
    assert torchvision == {name: zoo.variant(name).parameters for name in torchvision}


def test_registry_refuses_a_second_variant_of_one_name() -> None:
    registry = zoo.Registry()
    row = zoo.variant("shufflenet_v2_x0_5")
    registry.add(row)
    with pytest.raises(ValueError, match="two variants are named 'shufflenet_v2_x0_5'"):
        registry.add(row)
    assert 1 == len(registry)


def test_registry_refuses_an_unknown_family() -> None:
    with pytest.raises(ValueError, match="unknown family 'resnet'"):
        zoo.Registry().add(replace(zoo.variant("shufflenet_v2_x0_5"), family="resnet"))


def test_records_cannot_be_changed() -> None:
    row = zoo.variant("shufflenet_v2_x0_5")
    with pytest.raises(FrozenInstanceError):
        row.parameters = 1  # type: ignore[misc]  that it is refused is the point
    with pytest.raises(TypeError):
        row.arguments["last_channels"] = 1  # type: ignore[index]  likewise


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="no model named 'shuflenet_v2_x1_0'") as caught:
        zoo.variant("shuflenet_v2_x1_0")
    assert "did you mean 'shufflenet_v2_x1_0'?" == caught.value.hint


def test_accuracy_is_what_the_error_leaves() -> None:
    published = zoo.variant("se_shufflenet_v2_164").published
    assert published is not None
    assert 81.44 == published.top1_accuracy


def test_bundled_weights_are_those_that_the_records_name() -> None:
    named = {f"{row.name}_{word}.safetensors" for row in zoo.variants() for word in row.weights}
    folder = resources.files("shufflectl.models") / "weights"
    held = {entry.name for entry in folder.iterdir() if entry.name.endswith(".safetensors")}
    assert named == held


def test_bundled_weights_are_small() -> None:
    folder = resources.files("shufflectl.models") / "weights"
    sizes = {entry.name: len(entry.read_bytes()) for entry in folder.iterdir() if entry.is_file()}
    assert {} == {name: size for name, size in sizes.items() if size > 1_600_000}


def test_registry_is_read_without_torch() -> None:
    program = (
        "import sys; from shufflectl import models; from shufflectl.models import zoo; zoo.names(); "
        "print(sorted({'torch', 'numpy', 'onnx', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert ("[]\n", "") == (done.stdout, done.stderr)


@pytest.mark.parametrize("name", zoo.names())
def test_a_record_survives_json(name: str) -> None:
    row = zoo.variant(name)
    document = json.loads(json.dumps(row.to_json()))
    assert (row.name, row.parameters, list(row.words)) == (
        document["name"],
        document["parameters"],
        document["weights"],
    )
    assert (row.published is None) == (document["published"] is None)
