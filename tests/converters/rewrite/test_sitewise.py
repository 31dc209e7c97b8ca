"""What each form puts in a site's place, and what it refuses."""

import pytest

from converters.rewrite.nets import counts, difference
from converters.rewrite.random_nets import Net
from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.lowering import LOWERINGS, apply

MOVEMENT = ("Concat", "Gather", "Reshape", "Slice", "Split", "Transpose")


def movement(graph: Graph) -> dict[str, int]:
    return {op: n for op, n in counts(graph).items() if op in MOVEMENT}


def v1() -> Graph:
    net = Net(0)
    x = net.act(net.conv(net.input(4, 8), 16, group=4))
    x = net.conv(net.depthwise(net.shuffle(x, 4, 5)), 8, group=4)
    net.outputs.append(x)
    return net.finish()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("native", {"Concat": 4, "Reshape": 8, "Split": 2, "Transpose": 4}),
        ("rank4", {"Concat": 4, "Reshape": 8, "Split": 2, "Transpose": 4}),
        ("interleave", {"Concat": 4, "Reshape": 12, "Split": 2}),
        ("gather", {"Concat": 4, "Gather": 6}),
        ("conv", {"Concat": 4, "Split": 2}),
        ("two-stream", {"Concat": 6, "Reshape": 9, "Slice": 8}),
        ("fold", {"Concat": 4, "Slice": 8}),
        ("fold-split", {"Concat": 4}),
        ("masked", {"Concat": 2}),
    ],
)
def test_torchvisions_form_becomes(name: str, expected: dict[str, int], tiny: Graph) -> None:
    after, report = apply(name, tiny)
    assert expected == movement(after)
    assert (5 if name == "native" else 4) == report.rank_after
    assert difference(tiny, after) < 1e-5


def test_moves_are_bitwise_exact(tiny: Graph) -> None:
    for name in ("rank4", "interleave", "gather", "conv"):
        assert 0 == difference(tiny, apply(name, tiny)[0]), name


def test_interleave_leaves_one_tensors_shuffle_to_rank4_and_says_why() -> None:
    graph = v1()
    after, report = apply("interleave", graph)
    (site,) = report.sites
    assert "rank4" == site.form
    assert ("interleave: it shuffles one tensor, which would have to be divided first",) == site.refused
    assert {"Reshape": 2, "Transpose": 1} == movement(after) == site.operators_after
    assert 0 == difference(graph, after)


def test_a_selection_is_left_to_gather() -> None:
    net = Net(0)
    x = net.act(net.conv(net.input(3, 8), 9))
    parts = [net.slice(x, 0, 9, 4), net.slice(x, 3, 5), net.slice(x, 1, 2)]
    net.outputs.append(net.conv(net.join(*parts), 2))
    graph = net.finish()
    _, refused = apply("rank4", graph)
    assert not refused.changed
    assert any("do not follow from one channel shuffle" in why for why in refused.refused)
    after, report = apply("gather", graph)
    assert report.changed
    assert 0 == difference(graph, after)


def test_two_stream_leaves_a_tap_in_its_order(tiny: Graph) -> None:
    after, report = apply("two-stream", tiny)
    kept = after.record("stage2.1.split.0")
    permuted = after.record("stage2.1.split.1")
    assert kept.channels is None
    assert [0, 2, 4, 6, 1, 3, 5, 7] == list(permuted.channels or ())
    assert "two-stream" == report.sites[0].form
    assert "interleave" == report.sites[1].form


def test_reports_add_up(tiny: Graph) -> None:
    for name in LOWERINGS:
        _, report = apply(name, tiny)
        assert report.bytes_before == sum(site.bytes_before for site in report.sites), name
        assert report.bytes_after == sum(site.bytes_after for site in report.sites), name
        assert 4 == len(report.sites)
        document = report.to_json()
        assert name == document["lowering"]
        assert 4 == len(document["sites"])


def test_native_changes_nothing(tiny: Graph) -> None:
    after, report = apply("native", tiny)
    assert tiny.to_bytes() == after.to_bytes()
    assert not report.changed
