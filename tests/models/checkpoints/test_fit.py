"""Fitting a file's tensors to a network."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from shufflectl import models
from shufflectl.errors import CheckpointError
from shufflectl.models import zoo
from shufflectl.models.checkpoints import layouts
from shufflectl.models.checkpoints.files import WeightsFile
from shufflectl.models.checkpoints.fit import classifier, fit, skeleton
from shufflectl.models.random_weights import random_state

SMALL = "shufflenet_v1_g1_x0_25"
STATES = {
    name: random_state(skeleton(zoo.variant(name), 4), 0)
    for name in (SMALL, "shufflenet_v2_x0_5", "mobilenet_v1_x0_25", "mobilenet_v2_x0_35")
}


def file(tensors: dict[str, Tensor]) -> WeightsFile:
    return WeightsFile(Path("w.pth"), tensors)


def fitted(
    tensors: dict[str, Tensor], name: str = SMALL, num_classes: int | None = None
) -> dict[str, Tensor]:
    return fit(zoo.variant(name), file(tensors), num_classes).state


@pytest.fixture
def state() -> dict[str, Tensor]:
    return dict(STATES[SMALL])


@pytest.mark.parametrize("name", STATES)
def test_a_state_dict_fits_its_own_network(name: str) -> None:
    found = fitted(STATES[name], name)
    assert list(skeleton(zoo.variant(name), 4).state_dict()) == list(found)
    assert all(torch.equal(STATES[name][key], value) for key, value in found.items())


def test_our_own_networks_are_recognised_by_name() -> None:
    found = {name: layouts.recognise(STATES[name]) for name in STATES}
    assert {
        SMALL: [("shufflectl", "")],
        "shufflenet_v2_x0_5": [("torchvision", "")],
        "mobilenet_v1_x0_25": [("shufflectl", "")],
        "mobilenet_v2_x0_35": [("torchvision", "")],
    } == {name: [(layout.name, prefix) for layout, prefix in marks] for name, marks in found.items()}


def test_every_variant_has_a_layout() -> None:
    without = [
        row.name for row in zoo.variants() if not layouts.recognise(skeleton(row, 1).state_dict(), row.family)
    ]
    assert [] == without


def test_counters_of_batch_norm_may_be_absent(state: dict[str, Tensor]) -> None:
    without = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
    assert list(state) == list(fitted(without))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_become_fp32(state: dict[str, Tensor], dtype: torch.dtype) -> None:
    cast = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}
    found = fitted(cast)
    assert {torch.float32, torch.int64} == {t.dtype for t in found.values()}
    assert torch.equal(cast["fc.weight"].float(), found["fc.weight"])


def test_the_number_of_classes_is_the_files(state: dict[str, Tensor]) -> None:
    assert (4, 144) == tuple(fitted(state)["fc.weight"].shape)


def test_another_number_of_classes_names_tensor_found_and_remedy(state: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError) as caught:
        fitted(state, num_classes=1000)
    assert (
        "w.pth is for 4 classes (tensor 'fc.weight' has shape [4, 144]), and 1000 were asked for"
        == caught.value.message
    )
    assert "pass --num-classes 4, or leave it out" == caught.value.hint


@pytest.mark.parametrize("shape", [(4,), (0, 144), (2, 3, 4), ()])
def test_a_classifier_of_an_impossible_shape_is_refused(
    state: dict[str, Tensor], shape: tuple[int, ...]
) -> None:
    with pytest.raises(CheckpointError, match="which is not a classifier's"):
        fitted({**state, "fc.weight": torch.zeros(shape)})


def test_a_missing_tensor_is_named(state: dict[str, Tensor]) -> None:
    del state["stage3.2.expand.1.running_var"]
    with pytest.raises(CheckpointError, match=r"'stage3\.2\.expand\.1\.running_var' is missing"):
        fitted(state)


def test_many_missing_tensors_are_counted(state: dict[str, Tensor]) -> None:
    kept = {n: t for n, t in state.items() if not n.startswith("stage4")}
    with pytest.raises(CheckpointError, match=r"and \d+ more are missing"):
        fitted(kept)


def test_a_missing_classifier_is_said_so(state: dict[str, Tensor]) -> None:
    mobile = dict(STATES["mobilenet_v2_x0_35"])
    del state["fc.bias"]
    with pytest.raises(CheckpointError, match=r"'fc\.bias' is missing"):
        fitted(state)
    mobile["classifier.1.weight"] = torch.zeros(4, 3)
    with pytest.raises(CheckpointError, match=r"'classifier\.1\.weight' has shape \[4, 3\]"):
        fitted(mobile, "mobilenet_v2_x0_35")


def test_a_surplus_tensor_is_named(state: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"it also holds 'head\.weight'") as caught:
        fitted({**state, "head.weight": torch.ones(1)})
    assert "shufflectl identify" in caught.value.hint


def test_a_tensor_of_another_shape_is_named_with_both_shapes(state: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError) as caught:
        fitted({**state, "conv1.0.weight": torch.zeros(7, 3, 3, 3)})
    assert (
        "tensor 'conv1.0.weight' has shape [7, 3, 3, 3] there, and [6, 3, 3, 3] in the network"
        in caught.value.message
    )


def test_weights_of_another_width_suggest_that_width() -> None:
    with pytest.raises(CheckpointError, match="does not fit shufflenet_v2_x1_0") as caught:
        fitted(STATES["shufflenet_v2_x0_5"], "shufflenet_v2_x1_0")
    assert "its tensors are those of shufflenet_v2_x0_5" == caught.value.hint


def test_weights_of_another_family_suggest_their_own() -> None:
    with pytest.raises(CheckpointError, match="holds another network than shufflenet_v2_x0_5") as caught:
        fitted(STATES["mobilenet_v1_x0_25"], "shufflenet_v2_x0_5")
    assert "its tensors are those of mobilenet_v1_x0_25" == caught.value.hint


def test_an_unknown_layout_shows_what_it_holds() -> None:
    with pytest.raises(CheckpointError, match=r"it holds 'first_conv\.0\.weight'") as caught:
        fitted({"first_conv.0.weight": torch.ones(24, 3, 3, 3)})
    assert "shufflectl, megvii, mmpretrain, pytorchcv" in caught.value.hint


def test_no_tensors_at_all_is_said_so() -> None:
    with pytest.raises(CheckpointError, match="it holds no tensors"):
        fitted({})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_refused(state: dict[str, Tensor], value: float) -> None:
    broken = state["stage2.0.compress.0.weight"].clone()
    broken[0, 0] = value
    with pytest.raises(
        CheckpointError, match=r"'stage2\.0\.compress\.0\.weight' of w\.pth holds NaN or infinity"
    ):
        fitted({**state, "stage2.0.compress.0.weight": broken})


def test_numbers_beyond_fp32_are_refused(state: dict[str, Tensor]) -> None:
    large = state["fc.bias"].double() + 1e300
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        fitted({**state, "fc.bias": large})


def test_negative_variances_are_refused(state: dict[str, Tensor]) -> None:
    name = "conv1.1.running_var"
    with pytest.raises(CheckpointError, match="negative variances"):
        fitted({**state, name: state[name] - 2})


def test_integers_are_refused_as_weights(state: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match="is of type int8"):
        fitted({**state, "fc.weight": state["fc.weight"].to(torch.int8)})


def test_fitting_copies(state: dict[str, Tensor]) -> None:
    found = fitted(state)
    found["fc.bias"] += 1
    assert not torch.equal(found["fc.bias"], state["fc.bias"])


@pytest.mark.parametrize("name", STATES)
def test_the_classifier_is_the_last_dense_layer(name: str) -> None:
    expected = "classifier.1.weight" if name.startswith("mobilenet_v2") else "fc.weight"
    assert expected == classifier(skeleton(zoo.variant(name), 1))


def test_a_saved_state_dict_gives_the_same_logits(tmp_path: Path) -> None:
    module = models.create("shufflenet_v2_x0_5", weights="random:7", num_classes=4)
    torch.save(module.state_dict(), tmp_path / "w.pth")
    again = models.create("shufflenet_v2_x0_5", weights=str(tmp_path / "w.pth"))
    x = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(module(x), again(x))
