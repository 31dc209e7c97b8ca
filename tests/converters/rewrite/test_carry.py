"""Old channels in the padding of branches: which are carried, that nothing changes, and what is refused."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from converters.rewrite.nets import captured, difference
from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.analyze import analyze
from shufflectl.converters.rewrite.carry import carry
from shufflectl.converters.rewrite.lowering import Options, apply
from support.nets import ShuffleNetV2


@pytest.fixture(scope="module")
def stages() -> Graph:
    """One long stage: the units at its end read many branches; 12 channels a branch leave room for 4."""
    return captured(ShuffleNetV2((2, 7), (8, 16, 24, 16), 10), size=64)


def widest(graph: Graph) -> int:
    return max(len(n.inputs) for n in graph.nodes if n.op_type == "Concat")


def test_the_graph_computes_the_same(stages: Graph) -> None:
    found = carry(stages, analyze(stages), 16)
    assert found.counts
    assert difference(stages, found.graph) < 1e-6
    assert difference(stages, carry(stages, analyze(stages), 8).graph) < 1e-6


def test_later_units_read_fewer_branches(stages: Graph) -> None:
    plain, _ = apply("fold-split", stages, Options(align=16, merge=16))
    after, report = apply("fold-split", stages, Options(align=16, merge=16, carry=16))
    assert widest(after) < widest(plain)
    assert report.bytes_after < apply("fold-split", stages, Options(align=16, merge=16))[1].bytes_after
    assert difference(stages, after) < 1e-5
    assert any("carries" in note for note in report.notes)


def test_no_branch_grows_beyond_the_width(stages: Graph) -> None:
    after = carry(stages, analyze(stages), 16).graph
    before = {str(v.name): v for n in stages.nodes for v in n.outputs}
    for node in after.nodes:
        for value in node.outputs:
            old = before.get(str(value.name))
            if old is not None and node.op_type in ("Conv", "Relu") and old.shape != value.shape:
                size, grown = Graph.shape(old)[1], Graph.shape(value)[1]
                assert isinstance(size, int)
                assert isinstance(grown, int)
                assert size < grown <= -(-size // 16) * 16


def test_what_a_tensor_stands_for_stays_on_record(stages: Graph) -> None:
    found = carry(stages, analyze(stages), 16)
    for tensor, count in found.counts.items():
        record = found.graph.record(tensor)
        assert tensor == record.origin
        assert record.channels is not None
        assert (-1,) * count == record.channels[-count:]


def _bend(graph: Graph, change: Callable[[ir.Node], None], op: str) -> Graph:
    """Return a copy with every node of an operator changed."""
    copy = graph.clone()
    for node in copy.nodes:
        if node.op_type == op:
            change(node)
    return copy


def test_an_activation_that_changes_positive_values_carries_nothing(stages: Graph) -> None:
    def leaky(node: ir.Node) -> None:
        node.op_type = "HardSwish"

    bent = _bend(stages, leaky, "Relu")
    assert not carry(bent, analyze(bent), 16).counts


def test_a_channel_that_may_be_negative_is_not_carried(stages: Graph) -> None:
    """A Relu in the branch would take what is below 0 away."""
    copy = stages.clone()
    for node in list(copy.nodes):
        if node.op_type == "Relu" and str(node.outputs[0].name).endswith(("branch1.4", "branch2.7")):
            given = node.inputs[0]
            assert given is not None
            ir.convenience.replace_all_uses_with(node.outputs[0], given)
            copy.model.graph.remove(node, safe=True)
    assert not carry(copy, analyze(copy), 16).counts


def test_weights_that_are_not_finite_carry_nothing(stages: Graph) -> None:
    """Zero times infinity is not a number."""
    copy = stages.clone()
    for node in copy.nodes:
        array = Graph.constant(node.inputs[1]) if node.op_type == "Conv" else None
        if array is not None and array.shape[2:] == (3, 3) and array.shape[1] == 1:
            bad = np.array(array)
            bad[0, 0, 0, 0] = np.inf
            value = node.inputs[1]
            assert value is not None
            value.const_value = ir.tensor(bad, name=str(value.name))
    assert not carry(copy, analyze(copy), 16).counts


def test_no_room_carries_nothing(stages: Graph) -> None:
    assert not carry(stages, analyze(stages), 4).counts  # branches have 8 and 12 channels
