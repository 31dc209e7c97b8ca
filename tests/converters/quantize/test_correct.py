"""Corrected biases take out the mean error of rounded weights."""

import numpy as np

from converters.quantize.nets import images, tensors
from converters.rewrite.random_nets import Net
from shufflectl.converters.graph import Graph
from shufflectl.converters.quantize.correct import probe, shifted
from shufflectl.converters.quantize.observe import ChannelObserver
from shufflectl.converters.quantize.operators import hold, weighted
from shufflectl.converters.quantize.scales import Scale, weight_codes
from shufflectl.converters.quantize.ties import ties

SOURCE = Scale(0.05, 0)


def rounded(graph: Graph) -> Graph:
    """Return the graph with its weights rounded, and nothing else."""
    copy = graph.clone()
    for node in copy.nodes:
        found = weighted(node)
        if found is not None:
            codes = weight_codes(found.weights, found.axis, SOURCE, found.bias)
            hold(copy, node, 1, codes.codes * found.along_rows(codes.scales.astype(np.float64)))
    return copy


def mean_output(graph: Graph) -> np.ndarray:
    observer = ChannelObserver()
    for found in tensors(graph, images(graph, 8)):
        observer.look(found)
    return observer.means[str(graph.outputs[0].name)]


def test_the_mean_of_every_channel_comes_back() -> None:
    net = Net(0, batch=1)
    x = net.act(net.conv(net.input(3, 8), 6))
    x = net.act(net.conv(x, 8, group=2))
    net.outputs.append(net.conv(x, 5))
    graph = net.finish()
    scales = dict.fromkeys(ties(graph).groups, SOURCE)
    before = np.abs(mean_output(rounded(graph)) - mean_output(graph)).max()
    twice, made = probe(graph, scales)
    errors = ChannelObserver()
    for found in tensors(twice, images(graph, 8), list(made)):
        errors.look(found)
    better = shifted(graph, {made[name]: -mean for name, mean in errors.means.items()})
    after = np.abs(mean_output(rounded(better)) - mean_output(graph)).max()
    assert before > 1e-4
    assert after < before / 3
