"""The pieces against what their papers draw."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shufflectl.models.layers import (
    Residual,
    SqueezeExcitation,
    channel_shuffle,
    depthwise_conv,
    grouped_pointwise_conv,
)


@settings(max_examples=40, deadline=None)
@given(groups=st.integers(1, 8), width=st.integers(1, 7), batch=st.integers(1, 3))
def test_channel_k_of_group_j_moves_to_k_times_groups_plus_j(groups: int, width: int, batch: int) -> None:
    channels = torch.arange(groups * width).float().reshape(1, -1, 1, 1).expand(batch, -1, 2, 3)
    shuffled = channel_shuffle(channels, groups)
    expected = [j * width + k for k in range(width) for j in range(groups)]
    assert expected == shuffled[-1, :, 1, 2].int().tolist()


@settings(max_examples=20, deadline=None)
@given(groups=st.integers(1, 6), width=st.integers(1, 6))
def test_shuffles_with_the_two_factors_undo_each_other(groups: int, width: int) -> None:
    x = torch.randn(2, groups * width, 2, 2)
    assert torch.equal(x, channel_shuffle(channel_shuffle(x, groups), width))


def test_grouped_pointwise_conv_lets_a_group_see_its_own_inputs_alone() -> None:
    conv = grouped_pointwise_conv(6, 9, 3)
    x = torch.zeros(1, 6, 1, 1)
    x[0, 2:4] = 1  # the second group's inputs
    assert [3, 4, 5] == conv(x)[0, :, 0, 0].nonzero().flatten().tolist()


def test_depthwise_conv_has_one_filter_a_channel_and_halves_odd_sizes_upwards() -> None:
    conv = depthwise_conv(5, 2)
    assert (5, 1, 3, 3) == tuple(conv.weight.shape)
    assert (1, 5, 4, 3) == tuple(conv(torch.zeros(1, 5, 7, 5)).shape)


def test_squeeze_and_excitation_scales_whole_channels_by_a_figure_in_0_to_1() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 4, 3, 3) + 0.5
    ratio = SqueezeExcitation(4, 2)(x) / x
    assert torch.allclose(ratio, ratio.mean((2, 3), keepdim=True).expand_as(ratio))
    assert 0 < ratio.min().item()
    assert 1 > ratio.max().item()


def test_residual_adds() -> None:
    assert [3.0] == Residual()(torch.tensor([1.0]), torch.tensor([2.0])).tolist()
