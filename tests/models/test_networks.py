"""The networks' names, shapes and structure."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from shufflectl.models import shufflenet_v1, shufflenet_v2, zoo
from shufflectl.models.count import count
from shufflectl.models.shufflenet_v1 import stem_channels

BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def conv_bn(prefix: str, *indices: int) -> Iterator[str]:
    """Yield the names of convolutions at ``indices`` of a Sequential, each followed by its batch norm."""
    for index in indices:
        yield f"{prefix}.{index}.weight"
        yield from (f"{prefix}.{index + 1}.{name}" for name in BATCH_NORM)


def torchvision_shufflenet_v2() -> Iterator[str]:
    """Yield the names that torchvision's ``models/shufflenetv2.py`` gives."""
    yield from conv_bn("conv1", 0)
    for stage, units in ((2, 4), (3, 8), (4, 4)):
        for unit in range(units):
            if unit == 0:
                yield from conv_bn(f"stage{stage}.{unit}.branch1", 0, 2)
            yield from conv_bn(f"stage{stage}.{unit}.branch2", 0, 3, 5)
    yield from conv_bn("conv5", 0)
    yield from ("fc.weight", "fc.bias")


def torchvision_mobilenet_v2() -> Iterator[str]:
    """Yield the names that torchvision's ``models/mobilenetv2.py`` gives."""
    yield from conv_bn("features.0", 0)
    for index in range(1, 18):
        prefix = f"features.{index}.conv"
        yield from conv_bn(f"{prefix}.0", 0)
        if index > 1:
            yield from conv_bn(f"{prefix}.1", 0)
        yield from conv_bn(prefix, 1 if index == 1 else 2)
    yield from conv_bn("features.18", 0)
    yield from ("classifier.1.weight", "classifier.1.bias")


def meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return zoo.variant(name).build()


@pytest.mark.parametrize("width", ["0_5", "1_0", "1_5", "2_0"])
def test_shufflenet_v2_has_torchvision_names_in_torchvision_order(width: str) -> None:
    assert list(torchvision_shufflenet_v2()) == list(meta(f"shufflenet_v2_x{width}").state_dict())


def test_mobilenet_v2_has_torchvision_names_in_torchvision_order() -> None:
    assert list(torchvision_mobilenet_v2()) == list(meta("mobilenet_v2_x1_0").state_dict())


@pytest.mark.parametrize("name", zoo.names())
def test_logits_have_the_number_of_classes_and_the_batch(name: str) -> None:
    with torch.device("meta"):
        module = zoo.variant(name).build(7).eval()
        logits = module(torch.zeros(3, 3, 64, 96))
    assert (3, 7) == tuple(logits.shape)


def test_v2_basic_unit_passes_half_of_its_channels_and_interleaves() -> None:
    unit = shufflenet_v2.BasicUnit(8).eval()
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(x[:, :4], unit(x)[:, 0::2])


def test_v2_residual_unit_adds_before_the_relu() -> None:
    unit = shufflenet_v2.ResidualUnit(8).eval()
    nn.init.constant_(unit.branch2[6].weight, 0)  # the last batch norm: the branch is zero
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(x[:, 4:].relu(), unit(x)[:, 1::2])


def test_v1_basic_unit_adds_before_the_relu() -> None:
    unit = shufflenet_v1.BasicUnit(12, 3, 3).eval()
    nn.init.constant_(unit.expand[1].weight, 0)
    x = torch.randn(2, 12, 5, 5)
    assert torch.equal(x.relu(), unit(x))


def test_v1_downsampling_unit_keeps_its_average_pooled_input_first() -> None:
    unit = shufflenet_v1.DownsamplingUnit(6, 18, 6, 3, first=1).eval()
    x = torch.rand(1, 6, 8, 8)
    assert torch.allclose(nn.functional.avg_pool2d(x, 3, 2, 1), unit(x)[:, :6])


def test_v1_groups_all_pointwise_convolutions_but_the_first_of_stage_2() -> None:
    module = zoo.variant("shufflenet_v1_g8_x0_5").build()
    pointwise = [m for m in module.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert [1] + [8] * 31 == [conv.groups for conv in pointwise]


@pytest.mark.parametrize(
    ("groups", "width", "channels"),
    [
        (3, 0.5, 12),
        (3, 1.0, 24),
        (3, 1.5, 24),
        (3, 2.0, 48),
        (8, 0.5, 16),
        (8, 1.0, 24),
        (8, 1.5, 24),
        (8, 2.0, 48),
    ],
)
def test_v1_first_convolution_is_as_wide_as_in_megvii_code(groups: int, width: float, channels: int) -> None:
    assert channels == stem_channels(groups, width)


def test_count_of_a_small_network_is_that_of_the_hand() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5))
    counted = count(module, 8)
    assert 4 * 4 * 4 * 27 + 64 * 5 == counted.multiply_adds
    assert 4 * 27 + 4 + 8 + 64 * 5 + 5 == counted.parameters


def test_counting_leaves_the_module_as_it_was() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    count(module, 8)
    assert module.training
    assert 0 == module[1].num_batches_tracked
    assert not module[0]._forward_hooks
