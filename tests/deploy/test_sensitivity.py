"""A layer that loses most in codes comes first, and the fewest layers that reach a goal are found."""

import functools
import json
import math
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from converters.quantize.nets import images, runner
from converters.rewrite.random_nets import Net
from shufflectl.converters.graph import Graph
from shufflectl.converters.quantize.calibrate import observe
from shufflectl.converters.quantize.operators import hold, weighted
from shufflectl.deploy import sensitivity as module
from shufflectl.deploy.parity.feeds import Feeds
from shufflectl.deploy.quantization import Quantized, find_layers, layers
from shufflectl.deploy.sensitivity import Sensitivity, fewest_floats, sensitivity
from shufflectl.errors import GraphError, UsageError
from shufflectl.render.sensitivity import figure
from support.integers import PLAIN


def network() -> Graph:
    net = Net(2, batch=1)
    x = net.input(3, 8)
    for _ in range(3):
        x = net.act(net.conv(x, 8))
    net.outputs.append(net.classify(x, 4))
    graph = net.finish()
    # A weight of each row a thousand times as large, for a channel that hardly is: the others lose all codes.
    for node in graph.nodes:
        found = weighted(node)
        if found is not None and node.outputs[0].name == "conv2_0":
            weights = found.weights.astype(np.float64)
            weights[:, 0] *= 1000
            hold(graph, node, 1, weights)
        if found is not None and node.outputs[0].name == "conv0_0":
            weights = found.weights.astype(np.float64)
            weights[0] /= 1000
            hold(graph, node, 1, weights)
            if found.bias is not None:
                bias = found.bias.astype(np.float64)
                bias[0] = 0
                hold(graph, node, 2, bias)
    return graph


@functools.cache
def given() -> tuple[Quantized, Feeds]:
    graph = network()
    seen = images(graph, 8)
    found = observe(graph, runner(seen), PLAIN, source="noise", images=8, seed=0)
    return Quantized(graph, found), Feeds({"image": np.concatenate(seen)})


@functools.cache
def measured() -> Sensitivity:
    quantized, seen = given()
    return sensitivity("tiny", quantized, seen, None, lambda *_: None)


def test_the_layer_that_is_spoilt_comes_first() -> None:
    found = measured()
    assert list(layers(given()[0].graph)) == [entry.layer for entry in found.costs]
    assert "conv2_0" == found.ranking[0].layer
    first, second = (entry.cost for entry in found.ranking[:2])
    assert first > 10 * second
    assert min(entry.alone for entry in found.costs) == found.ranking[0].alone


def test_each_layer_says_what_it_is() -> None:
    found = {entry.layer: (entry.kind, entry.weights) for entry in measured().costs}
    assert ("1x1", 24) == found["conv0_0"]
    assert ("1x1", 64) == found["conv2_0"]


def test_the_document_fits_its_schema() -> None:
    schema = json.loads(
        Path(module.__file__).with_name("schemas").joinpath("sensitivity-1.schema.json").read_text("utf-8")
    )
    jsonschema.Draft202012Validator.check_schema(schema)
    document = json.loads(json.dumps(measured().to_json(), allow_nan=False))
    jsonschema.validate(document, schema)
    assert "shufflectl.sensitivity/1" == document["schema"]


def test_the_figure_has_a_bar_for_each_layer() -> None:
    (axes,) = figure(measured()).axes
    assert len(measured().costs) == len(axes.patches)
    assert [entry.cost for entry in measured().costs] == pytest.approx([p.get_width() for p in axes.patches])
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert [entry.layer for entry in measured().costs] == [label.split()[0] for label in labels]


def test_the_fewest_layers_that_reach_a_goal() -> None:
    quantized, seen = given()
    found = measured()
    assert frozenset() == fewest_floats(quantized, seen, None, found.sqnr - 1, lambda *_: None)
    goal = found.sqnr + found.ranking[0].cost / 2
    kept = fewest_floats(quantized, seen, None, goal, lambda *_: None)
    assert 0 < len(kept) < len(found.costs)
    assert {entry.layer for entry in found.ranking[: len(kept)]} == kept


def test_a_goal_out_of_reach_is_refused_with_what_is_within() -> None:
    quantized, seen = given()
    with pytest.raises(GraphError, match=r"200 dB is out of reach: \d+\.\d dB"):
        fewest_floats(quantized, seen, None, 200.0, lambda *_: None)


def test_the_only_layer_costs_everything() -> None:
    net = Net(2, batch=1)
    net.outputs.append(net.conv(net.input(3, 8), 4))
    graph = net.finish()
    seen = images(graph, 8)
    found = observe(graph, runner(seen), PLAIN, source="noise", images=8, seed=0)
    (entry,) = sensitivity(
        "one", Quantized(graph, found), Feeds({"image": np.concatenate(seen)}), None, lambda *_: None
    ).costs
    assert math.isinf(entry.cost)


@pytest.mark.parametrize("word", ["conv9", "", "relu1_0", "conv2_00"])
def test_layers_that_do_not_exist_are_refused(word: str) -> None:
    with pytest.raises(UsageError, match="no layer"):
        find_layers(given()[0].graph, [word])
