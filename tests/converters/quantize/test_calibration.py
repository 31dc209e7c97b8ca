"""A calibration belongs to a graph, survives being written down, and makes codes near the float graph."""

import json
from typing import Any

import numpy as np
import pytest

from converters.quantize.nets import images, runner, session, tensors
from converters.rewrite.random_nets import Net
from shufflectl.converters.graph import Graph
from shufflectl.converters.pixels import fold_preprocess, take_bytes
from shufflectl.converters.quantize.annotate import annotated
from shufflectl.converters.quantize.calibrate import calibrate
from shufflectl.converters.quantize.calibration import Calibration
from shufflectl.converters.quantize.qdq import with_qdq
from shufflectl.converters.quantize.recipe import Recipe
from shufflectl.errors import DataError, UsageError
from shufflectl.models.preprocess import IMAGENET
from support.nets import tiny_graph


def calibrated(graph: Graph, recipe: Recipe) -> Calibration:
    return calibrate(graph, runner(images(graph, 16)), recipe, source="noise", images=16, seed=0)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibrated(tiny_graph(), Recipe())


def sqnr(graph: Graph, found: Calibration, output: str = "logits") -> float:
    """Return the SQNR of the outputs on other images, in dB."""
    prepared = found.prepare(graph)
    proto = with_qdq(annotated(prepared, prepared, found.scales(prepared))).to_proto()
    running, name = session(proto, [output]), str(graph.inputs[0].name)
    batches = images(graph, 32, seed=1)
    wanted = np.concatenate([t[output] for t in tensors(graph, batches)])
    given = np.concatenate([running.run([output], {name: batch})[0] for batch in batches])
    return float(10 * np.log10(np.square(wanted).sum() / np.square(given - wanted).sum()))


def test_equalised_and_corrected_codes_are_nearer_than_plain_ones(calibration: Calibration) -> None:
    plain = sqnr(tiny_graph(), calibrated(tiny_graph(), Recipe(equalise=0, correct_bias=False)))
    assert plain > 25
    assert sqnr(tiny_graph(), calibration) > plain + 0.5


@pytest.mark.parametrize("as_bytes", [False, True], ids=["floats", "bytes"])
def test_a_graph_that_takes_pixels_is_corrected_by_its_own_tensors(as_bytes: bool) -> None:
    graph, _ = fold_preprocess(tiny_graph(), IMAGENET)
    pixels = [np.clip(128 + 64 * image, 0, 255).round() for image in images(graph, 8)]
    if as_bytes:
        graph, pixels = take_bytes(graph), [image.astype(np.uint8) for image in pixels]
    found = calibrate(graph, runner(pixels), Recipe(), source="noise", images=8, seed=0)
    prepared = found.prepare(graph)
    assert found.shifts
    assert set(found.shifts) <= {str(value.name) for node in prepared.nodes for value in node.outputs}


def test_corrected_biases_do_not_run_away_in_a_deep_chain() -> None:
    net = Net(3, batch=1)
    x = net.act(net.conv(net.input(3, 16), 8))
    for _ in range(12):
        x = net.act(net.conv(x, 8))
    net.outputs.append(net.conv(x, 5))
    graph = net.finish()
    output = str(graph.outputs[0].name)
    plain = sqnr(graph, calibrated(graph, Recipe(correct_bias=False)), output)
    assert sqnr(graph, calibrated(graph, Recipe()), output) > plain - 1


def test_it_survives_being_written_down(calibration: Calibration) -> None:
    again = Calibration.from_json(json.loads(json.dumps(calibration.to_json())))
    graph = tiny_graph()
    assert calibration.to_json() == again.to_json()
    assert calibration.prepare(graph).to_bytes() == again.prepare(graph).to_bytes()
    assert calibration.scales(graph) == again.scales(graph)


def test_another_graph_is_refused(calibration: Calibration) -> None:
    from support.nets import capture, example, tiny_v2

    other = capture(tiny_v2(seed=1), (example(),), name="tiny")
    with pytest.raises(DataError, match="another graph"):
        calibration.prepare(other)


def test_no_image_is_refused() -> None:
    with pytest.raises(DataError, match="no images"):
        calibrate(tiny_graph(), lambda *_: [], Recipe(equalise=0), source="", images=0, seed=0)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_out_of_range_is_refused(strength: float) -> None:
    with pytest.raises(UsageError, match="equalised"):
        Recipe(equalise=strength)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "other"},
        {"method": "guess"},
        {"ranges": {"x": [0, float("inf")]}},
        {"ranges": {"x": [0]}},
        {"ranges": []},
        {"magnitudes": {"x": [[1.0]]}},
        {"shifts": {"x": ["a"]}},
        {"equalise": 2},
        {"images": "many"},
    ],
)
def test_what_is_no_calibration_is_refused(calibration: Calibration, change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="no calibration"):
        Calibration.from_json(calibration.to_json() | change)


@pytest.mark.parametrize("data", [None, [], "text", 3, {}])
def test_any_other_json_is_refused(data: Any) -> None:
    with pytest.raises(DataError, match="no calibration"):
        Calibration.from_json(data)
