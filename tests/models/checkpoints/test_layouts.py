"""Every layout: its own definition of the network, and what we make of its tensors, give the same logits."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shufflectl import models
from shufflectl.models.checkpoints import layouts
from shufflectl.models.preprocess import IMAGENET, Preprocess
from support.nets import randomise
from support.wild import MegviiV1, MegviiV2, MmV1, MmV2, pytorchcv_model, torchvision_v2

BGR = Preprocess("bgr", 1.0)

# layout, definition, our name, preprocessing
CASES: dict[str, tuple[str, Callable[[], nn.Module], str, Preprocess]] = {
    "torchvision x0.5": (
        "torchvision",
        partial(torchvision_v2, "shufflenet_v2_x0_5"),
        "shufflenet_v2_x0_5",
        IMAGENET,
    ),
    **{
        f"megvii v1 g{group} {size}": (
            "megvii",
            partial(MegviiV1, group, size, 5),
            f"shufflenet_v1_g{group}_x{size[:-1].replace('.', '_')}",
            BGR,
        )
        for group, size in ((3, "0.5x"), (3, "1.0x"), (8, "0.5x"), (8, "1.0x"), (8, "1.5x"))
    },
    **{
        f"megvii v2 {size}": (
            "megvii",
            partial(MegviiV2, size, 5),
            f"shufflenet_v2_x{size[:-1].replace('.', '_')}",
            BGR,
        )
        for size in ("0.5x", "1.0x", "1.5x")
    },
    **{
        f"mmpretrain v1 g{groups} {widen}": (
            "mmpretrain",
            partial(MmV1, groups, widen, 5),
            name,
            IMAGENET,
        )
        for groups, widen, name in (
            (1, 0.25, "shufflenet_v1_g1_6x40x72x144"),
            (3, 1.0, "shufflenet_v1_g3_x1_0"),
            (4, 1.0, "shufflenet_v1_g4_x1_0"),
            (8, 1.0, "shufflenet_v1_g8_x1_0"),
        )
    },
    "mmpretrain v2 0.5": ("mmpretrain", partial(MmV2, 0.5, 5), "shufflenet_v2_x0_5", IMAGENET),
    "mmpretrain v2 1.0": ("mmpretrain", partial(MmV2, 1.0, 5), "shufflenet_v2_x1_0", IMAGENET),
    **{
        f"pytorchcv {theirs}": ("pytorchcv", partial(pytorchcv_model, theirs, num_classes=5), ours, IMAGENET)
        for theirs, ours in (
            ("shufflenet_g1_wd4", "shufflenet_v1_g1_x0_25"),
            ("shufflenet_g3_wd2", "shufflenet_v1_g3_x0_5"),
            ("shufflenet_g3_w3d4", "shufflenet_v1_g3_18x180x360x720"),
            ("shufflenet_g8_w1", "shufflenet_v1_g8_x1_0"),
            ("shufflenetv2_wd2", "shufflenet_v2_x0_5"),
            ("shufflenetv2_w3d2", "shufflenet_v2_24x176x352x704x1553"),
            ("shufflenetv2b_wd2", "shufflenet_v2_x0_5"),
            ("shufflenetv2b_w1", "shufflenet_v2_x1_0"),
        )
    },
}


@cache
def definition(case: str) -> nn.Module:
    return randomise(CASES[case][1]())


@cache
def image() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, 224, 224, generator=generator)  # their global pooling takes 7x7 alone


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_gives_the_logits_of_its_own_definition(case: str, tmp_path: Path) -> None:
    layout, _, name, preprocess = CASES[case]
    module = definition(case)
    torch.save(module.state_dict(), tmp_path / "best.pth")
    loaded = models.load(name, weights=str(tmp_path / "best.pth"))
    with torch.no_grad():
        expected, actual = module(image()), loaded.module(image())
    scale = expected.abs().max()
    assert float(expected.std()) > 1e-3 * float(scale)  # or nothing would be compared
    assert float((expected - actual).abs().max()) < 1e-5 * float(scale)
    assert (preprocess, name) == (loaded.preprocess, loaded.variant.name)
    assert [layout] == [found.name for found, _ in layouts.recognise(module.state_dict())]
