"""Feature maps and output strides: the fine map subsampled is the coarse one, at any size, in any family."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shufflectl import models
from shufflectl.errors import UsageError
from shufflectl.models import mobilenet_v1, mobilenet_v2, shufflenet_v1, shufflenet_v2, zoo
from shufflectl.models.staged import DilatedAveragePool, Staged, set_features, set_output_stride
from support.nets import randomise

V2 = {"stage_channels": (16, 32, 64), "last_channels": 48, "num_classes": 5}
SMALL: dict[str, Callable[[], nn.Module]] = {
    "v1 g1": partial(
        shufflenet_v1.build_custom, groups=1, stem=8, stages=(16, 32, 64), units=(2, 2, 2), num_classes=5
    ),
    "v1 g3, shortcut last": partial(
        shufflenet_v1.build_custom,
        groups=3,
        stem=6,
        stages=(24, 48, 96),
        units=(1, 3, 2),
        num_classes=5,
        shortcut="last",
    ),
    "v2": partial(shufflenet_v2.build_custom, stem=8, stage_units=(2, 2, 2), **V2),
    "v2 of Megvii": partial(
        shufflenet_v2.build_custom, stem=8, stage_units=(1, 2, 2), split="parity", shortcut="inputs", **V2
    ),
    "v2, pool ceil": partial(shufflenet_v2.build_custom, stem=8, stage_units=(2, 1, 1), pool="ceil", **V2),
    "v2 large": partial(
        shufflenet_v2.build_large,
        stem_channels=(8, 8),
        stage_channels=(16, 16, 32, 32),
        stage_units=(2, 2, 2, 2),
        excite=False,
        num_classes=5,
    ),
    "mobilenet v1": partial(mobilenet_v1.build, width=0.125, num_classes=5),
    "mobilenet v2": partial(mobilenet_v2.build, width=0.1, num_classes=5),
}


def made(name: str, output_stride: int = 32, *wanted: str) -> Staged:
    network = randomise(SMALL[name]())
    assert isinstance(network, Staged)
    set_output_stride(network, output_stride)
    set_features(network, wanted or ("all",))
    return network


def maps(network: Staged, image: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        found = network(image)
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=6, deadline=None)
@given(height=st.integers(33, 90), width=st.integers(33, 90), output_stride=st.sampled_from([8, 16]))
def test_the_fine_map_subsampled_is_the_coarse_one(
    name: str, height: int, width: int, output_stride: int
) -> None:
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height))
    coarse, fine = maps(made(name), image), maps(made(name, output_stride), image)
    for index, (old, new) in enumerate(zip(reversed(coarse), reversed(fine), strict=True)):
        rate = max(1, (32 >> index) // output_stride)
        assert old.shape == new[..., ::rate, ::rate].shape, (index, rate)
        assert torch.allclose(old, new[..., ::rate, ::rate], rtol=1e-4, atol=1e-5 * float(old.abs().max()))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_no_map_is_coarser_than_the_output_stride(name: str, output_stride: int) -> None:
    found = maps(made(name, output_stride), torch.zeros(1, 3, 64, 64))
    assert 64 // output_stride == min(tensor.shape[-1] for tensor in found) == found[-1].shape[-1]


@pytest.mark.parametrize("name", SMALL)
def test_weights_keep_their_names_and_values(name: str) -> None:
    before, after = randomise(SMALL[name]()).state_dict(), made(name, 8).state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", SMALL)
def test_stages_are_what_has_the_last_word_at_each_resolution(name: str) -> None:
    network = made(name)
    every = made(name, 32, *network.chain)
    sizes = [tensor.shape[-1] for tensor in maps(every, torch.zeros(1, 3, 64, 64))]
    assert network.stages[-1] in network.chain[-2:]  # behind the last stage one 1x1 convolution may stand
    for path in network.stages[:-1]:
        place = network.chain.index(path)
        assert sizes[place] > sizes[place + 1], path


class TestFeatures:
    def test_they_come_in_the_order_of_the_network_whatever_the_order_of_their_names(self) -> None:
        network = made("v2", 32, "logits", "stage4", "stage2", "stage4")
        assert ("stage2", "stage4", "logits") == network.outputs
        assert [16, 64, 5] == [tensor.shape[1] for tensor in maps(network, torch.zeros(1, 3, 64, 64))]

    def test_the_logits_are_those_of_the_network_as_it_was(self) -> None:
        image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        (logits,) = maps(made("v2", 32, "logits"), image)
        assert torch.equal(logits, maps(made("v2", 32, "all", "logits"), image)[-1])

    def test_what_is_behind_the_last_map_does_not_run(self) -> None:
        network = made("v2", 32, "stage3")
        network.stage4 = nn.Identity()  # type: ignore[assignment]  # so that it would show
        network.conv5 = nn.Linear(1, 1)  # type: ignore[assignment]
        assert (1, 32, 4, 4) == maps(network, torch.zeros(1, 3, 64, 64))[0].shape

    @pytest.mark.parametrize("wanted", ["stage5", "fc", "", "stage3.0"])
    def test_what_is_no_map_is_refused(self, wanted: str) -> None:
        with pytest.raises(UsageError, match="has no feature map"):
            made("v2", 32, wanted)

    @pytest.mark.parametrize("stride", [0, 1, 4, 12, 64, -8])
    def test_other_strides_are_refused(self, stride: int) -> None:
        with pytest.raises(UsageError, match="is not an output stride"):
            made("v2", stride)


@given(dilation=st.integers(1, 4), size=st.integers(3, 12))
@settings(max_examples=20, deadline=None)
def test_dilated_pooling_is_pooling_of_each_of_the_grids(dilation: int, size: int) -> None:
    image = torch.rand(2, 3, size * dilation, size * dilation, generator=torch.Generator().manual_seed(size))
    found = DilatedAveragePool(3, 3, dilation)(image)
    pool = nn.AvgPool2d(3, 1, 1)
    for row in range(dilation):
        for column in range(dilation):
            part = (..., slice(row, None, dilation), slice(column, None, dilation))
            assert torch.allclose(pool(image[part]), found[part], atol=1e-6)


def test_all_networks_of_the_registry_have_maps() -> None:
    for row in zoo.variants():
        with torch.device("meta"):
            network = row.build(10)
        assert isinstance(network, Staged)
        assert [network.get_submodule(path) for path in (*network.chain, *network.stages)]


class TestDense:
    def test_class_names_go_with_the_logits(self) -> None:
        loaded = models.load("shufflenet_v2_x0_5", weights="digits")
        assert 10 == len(loaded.labels)
        assert () == models.dense(loaded, None, ["all"]).labels
        both = models.dense(models.load("shufflenet_v2_x0_5", weights="digits"), 16, ["all", "logits"])
        assert (10, 16) == (len(both.labels), both.output_stride)

    def test_a_networks_own_stride_is_no_change(self) -> None:
        loaded = models.dense(models.load("shufflenet_v2_x0_5"), 32, [])
        assert (None, ("logits",)) == (loaded.output_stride, loaded.outputs)
