"""What holds for every lowering, on random networks."""

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from converters.rewrite.nets import noise, run
from converters.rewrite.random_nets import nets
from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.lowering import LOWERINGS, Options, apply
from shufflectl.converters.trace import TensorView
from shufflectl.errors import GraphError, UsageError


def everything(graph: Graph) -> onnx.ModelProto:
    """Return the graph with every float tensor as an output."""
    proto = graph.to_proto()
    known = {o.name for o in proto.graph.output}
    floats = {v.name for v in proto.graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    for node in proto.graph.node:
        for name in node.output:
            if name in floats and name not in known:
                proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return proto


def check(before: Graph, after: Graph) -> None:
    """Assert that both graphs compute the same, in every tensor that stands for one of the captured graph."""
    onnx.checker.check_model(after.to_proto(), full_check=True)
    feeds = noise(before)
    old, new = run(everything(before), feeds), run(everything(after), feeds)
    assert [o.name for o in before.outputs] == [o.name for o in after.outputs]
    for output in before.outputs:
        assert str(output.name) in new
        assert after.record(str(output.name)).channels is None
    compared = 0
    for name, value in new.items():
        record = after.record(name)
        if record.origin not in old:
            continue
        logical = TensorView(name, None, record.channels).to_logical(value)
        expected = old[record.origin]
        if record.channels is not None:
            expected = np.take(expected, sorted(c for c in record.channels if c >= 0), axis=1)
        assert expected.shape == logical.shape, name
        scale = max(float(np.abs(expected).max(initial=0)), 1.0)
        assert np.abs(expected - logical).max(initial=0) <= 2e-5 * scale, name
        compared += 1
    assert compared >= len(before.outputs)


def options(draw: st.DrawFn, name: str) -> Options:
    if not LOWERINGS[name].folds:
        return Options()
    return Options(
        align=draw(st.sampled_from([1, 1, 4, 8])),
        max_concat=draw(st.sampled_from([0, 2, 5])),
        merge=draw(st.sampled_from([0, 0, 3, 8])),
        carry=draw(st.sampled_from([0, 4, 8, 16])),
    )


@pytest.mark.parametrize("name", list(LOWERINGS))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_tensor_stays_equal(name: str, data: st.DataObject) -> None:
    graph = data.draw(nets())
    chosen = data.draw(st.composite(options)(name))
    before = graph.to_bytes()
    after, report = apply(name, graph, chosen)
    assert before == graph.to_bytes(), "the graph that was given changed"
    check(graph, after)
    assert report.to_json() == apply(name, graph, chosen)[1].to_json()
    assert after.to_bytes() == apply(name, graph, chosen)[0].to_bytes()
    assert sum(report.operators_after.values()) == len(after.nodes)
    if not report.changed:
        assert report.operators_before == report.operators_after


def test_an_unknown_lowering_is_refused_with_the_nearest(tiny: Graph) -> None:
    with pytest.raises(UsageError, match="no lowering named 'flod'") as error:
        apply("flod", tiny)
    assert "did you mean 'fold'?" == error.value.hint


def test_padding_is_refused_where_a_lowering_cannot(tiny: Graph) -> None:
    with pytest.raises(UsageError, match="'gather' does not pad") as error:
        apply("gather", tiny, Options(align=8))
    assert "fold" in error.value.hint


def test_an_old_operator_set_is_refused(tiny: Graph) -> None:
    old = tiny.clone()
    old.model.opset_imports[""] = 11
    with pytest.raises(GraphError, match="operator set 11 is too old"):
        apply("fold", old)
