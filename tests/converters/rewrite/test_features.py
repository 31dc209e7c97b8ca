"""Feature maps behind rewritten shuffles: every form gives each in the network's own order of channels."""

from functools import cache, partial

import numpy as np
import pytest
from torch import nn

from converters.rewrite.nets import difference, noise, run
from shufflectl.converters.capture import capture
from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.lowering import LOWERINGS, Options, apply
from shufflectl.models import shufflenet_v1, shufflenet_v2
from shufflectl.models.staged import Staged, set_features, set_output_stride
from support.nets import example, randomise

BUILDS = {
    "v1": partial(
        shufflenet_v1.build_custom, groups=3, stem=6, stages=(24, 48, 96), units=(2, 2, 2), num_classes=5
    ),
    "v2": partial(
        shufflenet_v2.build_custom,
        stem=8,
        stage_channels=(12, 20, 36),
        stage_units=(2, 3, 2),
        last_channels=32,
        num_classes=5,
    ),
    "v2 of Megvii": partial(
        shufflenet_v2.build_custom,
        stem=8,
        stage_channels=(12, 20, 36),
        stage_units=(2, 3, 2),
        last_channels=32,
        num_classes=5,
        split="parity",
        shortcut="inputs",
    ),
}


def network(name: str, *wanted: str) -> nn.Module:
    module = randomise(BUILDS[name]())
    assert isinstance(module, Staged)
    set_output_stride(module, 8)
    set_features(module, wanted)
    return module


@cache
def graph(name: str, *wanted: str) -> Graph:
    module = network(name, *wanted)
    assert isinstance(module, Staged)
    return capture(module, (example(48),), name="net", output_names=module.outputs)


def options(form: str) -> list[Options]:
    padded = [Options(align=8), Options(align=8, merge=8, carry=8)]
    return [Options(), *(padded if LOWERINGS[form].folds else [])]


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("form", list(LOWERINGS))
def test_every_map_is_the_captured_one(name: str, form: str) -> None:
    for wanted in (("all", "logits"), ("stage3",), ("maxpool", "stage2", "stage4")):
        before = graph(name, *wanted)
        for chosen in options(form):
            after, _ = apply(form, before, chosen)
            assert [o.name for o in before.outputs] == [o.name for o in after.outputs]
            assert [o.shape for o in before.outputs] == [o.shape for o in after.outputs]
            assert difference(before, after) < 2e-5, (wanted, chosen)


@pytest.mark.parametrize("name", BUILDS)
def test_the_captured_maps_are_those_of_torch(name: str) -> None:
    import torch

    before = graph(name, "all", "logits")
    feeds = noise(before)
    found = run(before, feeds)
    with torch.no_grad():
        expected = network(name, "all", "logits")(torch.from_numpy(feeds["image"]))
    for tensor, (output, array) in zip(expected, found.items(), strict=True):
        assert np.abs(tensor.numpy() - array).max() < 2e-5 * float(tensor.abs().max()), output


def test_folding_leaves_no_shuffle_inside() -> None:
    after, report = apply("fold", graph("v2", "all"))
    assert report.changed
    assert not [
        node.name for node in after.nodes if node.op_type == "Transpose" and len(node.inputs[0].shape) > 4
    ]
