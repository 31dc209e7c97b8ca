"""Equalised graphs compute the same, with more equal channels."""

import numpy as np
import pytest
from hypothesis import given, settings

from converters.quantize.nets import images, tensors
from converters.rewrite.nets import difference
from converters.rewrite.random_nets import nets
from shufflectl.converters.graph import Graph
from shufflectl.converters.quantize.equalise import equalised
from shufflectl.converters.quantize.observe import ChannelObserver
from shufflectl.converters.quantize.ties import ties
from support.nets import tiny_graph


def magnitudes(graph: Graph, count: int = 4) -> dict[str, np.ndarray]:
    observer = ChannelObserver()
    for found in tensors(graph, images(graph, count)):
        observer.look(found)
    return {name: found for name, found in observer.magnitudes.items() if name in ties(graph).groups}


@settings(max_examples=40, deadline=None)
@given(nets())
def test_any_network_computes_the_same(graph: Graph) -> None:
    assert difference(graph, equalised(graph, magnitudes(graph, 1), 1.0)) < 1e-4


def test_all_channels_of_a_stage_become_equally_large() -> None:
    graph = tiny_graph()
    before = magnitudes(graph)
    after = magnitudes(equalised(graph, before, 1.0))
    relus = [str(n.outputs[0].name) for n in graph.nodes if n.op_type == "Relu"]
    inner = [name for name in relus if ".branch2.2" in name]
    assert len(inner) == 4
    for name in inner:
        used = before[name] > 0.01 * before[name].max()
        assert before[name][used].min() < 0.8 * before[name].max()
        assert after[name][used] == pytest.approx(np.full(used.sum(), before[name].max()), rel=1e-4)
    # What passes through shuffles is as large as the largest that shares its scale.
    groups = ties(graph).groups
    group = [name for name in after if groups[name] == groups["stage2.1.branch2.7"]]
    assert len(group) > 4
    peak = max(float(before[name].max()) for name in group)
    assert all(float(after[name].max()) <= peak * 1.0001 for name in group)
    assert float(after["stage2.1.branch2.7"].min()) > float(before["stage2.1.branch2.7"].min())


def test_at_zero_nothing_changes() -> None:
    graph = tiny_graph()
    assert graph.to_bytes() == equalised(graph, magnitudes(graph), 0.0).to_bytes()


def test_the_graph_that_was_given_stays_as_it_was() -> None:
    graph = tiny_graph()
    before = graph.to_bytes()
    equalised(graph, magnitudes(graph), 1.0)
    assert before == graph.to_bytes()
