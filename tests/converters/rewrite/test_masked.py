"""Slots: what they leave, and when a region is refused."""

from converters.rewrite.nets import counts, difference
from converters.rewrite.random_nets import Net
from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.lowering import apply


def stage(activation: str, *, tap: bool = False) -> Graph:
    """Two V2 units of 8 channels."""
    net = Net(0)
    x = net.act(net.conv(net.input(3, 8), 8, kernel=3), activation)
    for _ in range(2):
        kept, worked = net.split(x, 4, 4)
        made = net.act(net.conv(net.depthwise(net.conv(worked, 4)), 4))
        if tap:
            net.outputs.append(made)
        x = net.shuffle(net.join(kept, made), 2, 5)
    net.outputs.append(net.act(net.depthwise(x)))
    return net.finish()


def test_each_unit_becomes_a_masked_sum() -> None:
    graph = stage("Relu")
    after, report = apply("masked", graph)
    assert 2 == counts(after)["Mul"] == counts(after)["Add"]
    assert not {"Concat", "Split", "Slice", "Transpose", "Reshape"} & set(counts(after))
    assert {"masked"} == {site.form for site in report.sites}
    assert counts(graph)["Conv"] == counts(after)["Conv"]
    assert difference(graph, after) < 1e-5


def test_channels_that_may_be_negative_are_refused() -> None:
    graph = stage("HardSwish")
    after, report = apply("masked", graph)
    assert {"fold"} == {site.form for site in report.sites}
    assert any("is not known to be at least 0" in why for why in report.refused)
    assert difference(graph, after) < 1e-5


def test_a_branch_that_somebody_else_reads_is_refused() -> None:
    graph = stage("Relu", tap=True)
    after, report = apply("masked", graph)
    assert any("that nobody else reads" in why for why in report.refused)
    assert difference(graph, after) < 1e-5
