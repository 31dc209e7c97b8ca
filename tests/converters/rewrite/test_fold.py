"""What the folds leave of known networks: sites, operators, bytes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from converters.rewrite.nets import MegviiV2, captured, counts, difference
from converters.rewrite.random_nets import Net
from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.lowering import LOWERINGS, Options, apply, bytes_moved
from support.nets import ShuffleNetV2, depthwise


@pytest.fixture(scope="module")
def stages() -> Graph:
    """Torchvision's V2 with an odd quarter of the channels and stages long enough for three lives."""
    return captured(ShuffleNetV2((5, 3), (8, 20, 28, 16), 10), size=64)


@pytest.fixture(scope="module")
def megvii() -> Graph:
    return captured(MegviiV2((4, 3), (8, 20, 28, 16)), size=64)


@pytest.fixture(scope="module", params=["stages", "megvii"])
def v2(request: pytest.FixtureRequest) -> Graph:
    graph: Graph = request.getfixturevalue(request.param)
    return graph


@pytest.mark.parametrize("name", list(LOWERINGS))
def test_both_spellings_are_lowered_exactly(name: str, v2: Graph) -> None:
    after, report = apply(name, v2)
    assert report.changed == (name != "native")
    assert name == "native" or report.rank_after == 4
    assert difference(v2, after) < 1e-5


def test_fold_leaves_one_concat_a_unit_and_slices(v2: Graph) -> None:
    before = counts(v2)
    after, report = apply("fold", v2)
    left = counts(after)
    assert {"Concat", "Slice"} == {"Concat", "Slice", "Split", "Reshape", "Transpose", "Gather"} & set(left)
    assert before["Concat"] == left["Concat"]
    assert {"fold"} == {site.form for site in report.sites}
    assert before["Conv"] == left["Conv"]
    assert difference(v2, after) < 1e-5


def test_fold_split_leaves_nothing_but_concats(v2: Graph) -> None:
    after, _ = apply("fold-split", v2)
    assert {"Concat"} == {"Concat", "Slice", "Split", "Reshape", "Transpose", "Gather"} & set(counts(after))
    assert difference(v2, after) < 1e-5


def test_fold_split_moves_a_quarter_of_torchvisions_bytes(stages: Graph) -> None:
    _, report = apply("fold-split", stages)
    assert report.bytes_after <= report.bytes_before / 4


def test_padding_makes_every_concat_input_a_multiple(stages: Graph) -> None:
    after, _ = apply("fold-split", stages, Options(align=8))
    joins = [n for n in after.nodes if n.op_type == "Concat"]
    assert [] == [v.name for n in joins for v in n.inputs if after.shape(v)[1] % 8]  # type: ignore[operator,union-attr,arg-type]
    assert difference(stages, after) < 1e-5


def test_concats_are_nested_where_a_runtime_limits_them(stages: Graph) -> None:
    wide, _ = apply("fold", stages)
    after, _ = apply("fold", stages, Options(max_concat=2))
    widths = {len(n.inputs) for n in after.nodes if n.op_type == "Concat"}
    assert {2} == widths
    assert max(len(n.inputs) for n in wide.nodes if n.op_type == "Concat") > 2
    assert difference(stages, after) < 1e-5


def test_merged_lives_need_fewer_convolutions(stages: Graph) -> None:
    apart, _ = apply("fold-split", stages, Options(align=8))
    shared, _ = apply("fold-split", stages, Options(align=8, merge=8))
    assert counts(shared)["Conv"] < counts(apart)["Conv"]
    assert difference(stages, shared) < 1e-5


def test_dynamic_batch_is_not_baked_in() -> None:
    graph = captured(ShuffleNetV2((2,), (8, 16, 16), 10), dynamic_batch=True)
    for name in ("rank4", "interleave", "fold", "fold-split"):
        after, _ = apply(name, graph)
        assert "batch" == after.shape(after.outputs[0])[0]
        assert difference(graph, after) < 1e-5  # with a batch of 2


class _Taps(ShuffleNetV2):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        x = self.maxpool(self.conv1(x))
        first = self.stage2(x)
        return first, self.fc(self.conv5(self.stage3(first)).mean([2, 3]))  # type: ignore[return-value]


def test_a_tap_at_the_end_of_a_stage_is_restored_by_one_gather() -> None:
    from shufflectl.converters.capture import capture
    from support.nets import randomise

    module = randomise(_Taps((2, 2), (8, 16, 24, 16), 10))
    graph = capture(module, (torch.zeros(1, 3, 64, 64),), name="taps", output_names=("features", "logits"))
    after, _ = apply("fold", graph)
    assert 1 == counts(after)["Gather"]
    assert ["features", "logits"] == [v.name for v in after.outputs]
    assert after.record("features").channels is None
    assert difference(graph, after) < 1e-5


def test_shared_weights_are_duplicated_and_noted() -> None:
    net = Net(0)
    x = net.act(net.conv(net.input(3, 8), 8, kernel=3))
    weight = net.weight(4, 4, 1, 1)
    for _ in range(3):
        kept, worked = net.split(x, 4, 4)
        x = net.shuffle(net.join(kept, net.act(net.conv(worked, 4, weight=weight))), 2, 5)
    net.outputs.append(net.classify(x, 3))
    graph = net.finish()
    after, report = apply("fold", graph)
    assert any("was shared by several nodes" in note for note in report.notes)
    assert difference(graph, after) < 1e-5


def test_a_shuffle_behind_a_dense_convolution_vanishes_in_v1() -> None:
    net = Net(1)
    x = net.act(net.conv(net.input(3, 8), 12))
    x = net.conv(net.depthwise(net.shuffle(x, 3, 5)), 12, group=3)
    net.outputs.append(x)
    graph = net.finish()
    after, report = apply("fold", graph)
    assert 0 == bytes_moved(after.nodes)
    assert ["fold"] == [site.form for site in report.sites]
    assert difference(graph, after) < 1e-5


def _between_groups(channels: int, groups: int, stride: int, batch: int = 2) -> Graph:
    net = Net(2, batch)
    x = net.act(net.conv(net.input(groups, 8), channels, group=groups))
    x = net.conv(net.depthwise(net.shuffle(x, groups, 5), stride), groups, group=groups)
    net.outputs.append(x)
    return net.finish()


def test_between_grouped_convolutions_whole_runs_are_moved() -> None:
    for batch, shape in ((2, (2, 4, 4, 16 * 64)), (1, (4, 4, 16, 64))):
        graph = _between_groups(256, 4, 1, batch)
        after, report = apply("commute", graph)
        assert "in 16 runs of channels; the next convolution's columns do the rest" == report.sites[0].why
        (move,) = [n for n in after.nodes if n.op_type == "Transpose"]
        assert shape == after.shape(move.inputs[0])  # type: ignore[arg-type]
        assert difference(graph, after) < 1e-5


def test_short_runs_are_not_worth_it() -> None:
    graph = _between_groups(32, 4, 1)
    after, report = apply("commute", graph)
    assert "at rank 4" == report.sites[0].why
    assert difference(graph, after) < 1e-5


@settings(max_examples=30, deadline=None)
@given(
    groups=st.sampled_from([2, 3, 4]),
    run=st.sampled_from([15, 16, 17]),
    stride=st.sampled_from([1, 2]),
    batch=st.sampled_from([1, 2, "batch"]),
    end=st.sampled_from([1, 2, 3, 4]),
)
def test_runs_are_exact(groups: int, run: int, stride: int, batch: int | str, end: int) -> None:
    """Every group count before the shuffle with every other one behind it, even and uneven."""
    channels = groups * end * run
    net = Net(run, batch)
    x = net.act(net.conv(net.input(groups, 4), channels, group=groups))
    x = net.depthwise(net.shuffle(x, groups, 5), stride)
    net.outputs.append(net.conv(x, end, group=end))
    graph = net.finish()
    after, report = apply("commute", graph)
    assert 4 >= report.rank_after
    assert difference(graph, after) < 1e-5


def test_an_uneven_division_stays_a_shuffle_at_rank_4() -> None:
    graph = _between_groups(12, 3, 1)
    after, report = apply("commute", graph)
    assert "at rank 4" == report.sites[0].why
    assert 4 == report.rank_after
    assert difference(graph, after) < 1e-5


def test_a_stride_is_passed_before_anything_moves() -> None:
    graph = _between_groups(32, 4, 2)
    after, report = apply("commute", graph)
    assert report.sites[0].why.startswith("behind ")
    assert report.bytes_before == 4 * report.bytes_after
    assert difference(graph, after) < 1e-5


def test_unknown_operators_keep_the_order_around_them_and_the_report_says_so() -> None:
    net = Net(3)
    x = net.act(net.conv(net.input(3, 8), 8, kernel=3))
    x = net.op("LpNormalization", [x], 8, axis=1)[0]
    x = net.op("LpNormalization", [net.shuffle(x, 2, 5)], 8, axis=1)[0]
    net.outputs.append(net.conv(x, 3))
    graph = net.finish()
    after, report = apply("fold", graph)
    (site,) = report.sites
    assert "commute" == site.form
    assert any("LpNormalization may mix channels" in why for why in site.refused)
    assert difference(graph, after) < 1e-5


def test_a_residual_connection_ties_two_orders() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU())
            self.branches = nn.ModuleList(
                nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), depthwise(8, 1), nn.Conv2d(8, 8, 1))
                for _ in range(4)
            )
            self.last = nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for branch in self.branches:
                kept, worked = x.chunk(2, dim=1)
                x = torch.cat((kept, torch.relu(worked + branch(worked))), 1)
                x = x.unflatten(1, (2, 8)).transpose(1, 2).flatten(1, 2)
            return self.last(x)

    graph = captured(Residual())
    after, report = apply("fold", graph)
    assert {"fold"} == {site.form for site in report.sites}
    assert {"Concat", "Slice"} == {"Concat", "Slice", "Split", "Reshape", "Transpose", "Gather"} & set(
        counts(after)
    )
    assert difference(graph, after) < 1e-5


def test_the_same_graph_gives_the_same_bytes(stages: Graph) -> None:
    first, _ = apply("fold-split", stages, Options(align=4))
    second, _ = apply("fold-split", Graph.from_bytes(stages.to_bytes()), Options(align=4))
    assert first.to_bytes() == second.to_bytes()


def test_records_say_where_captured_channels_are(stages: Graph) -> None:
    after, _ = apply("fold", stages, Options(align=4))
    branch = next(n for n in after.nodes if n.op_type == "Relu" and "branch1" in str(n.name))
    channels = after.record(str(branch.outputs[0].name)).channels
    assert channels is not None
    assert list(range(10)) == sorted(c for c in channels if c >= 0)
    assert len(channels) == after.shape(branch.outputs[0])[1]
    assert 0 == len(channels) % 4
    assert np.count_nonzero(np.asarray(channels) < 0) == len(channels) - 10


@pytest.mark.parametrize("align", [1, 16])
@pytest.mark.parametrize("name", ["fold", "fold-split"])
def test_many_scattered_channels_are_picked_by_one_gather(name: str, align: int) -> None:
    """Residual connections bring each channel next to ever other ones, as in SE-ShuffleNetV2."""
    net = Net(3)
    x = net.act(net.conv(net.input(3, 5), 80))
    for _ in range(7):
        kept, worked = net.split(x, 40, 40)
        made = net.op("Add", [worked, net.act(net.conv(worked, 40))], 40)[0]
        x = net.shuffle(net.join(kept, made), 2, 5)
    net.outputs.append(net.classify(x, 3))
    graph = net.finish()
    after, _ = apply(name, graph, Options(align=align))
    assert "Gather" in counts(after)
    assert len(after.nodes) < 2 * len(graph.nodes)
    assert bytes_moved(after.nodes) < bytes_moved(graph.nodes)
    assert weights_held(after) < 2 * weights_held(graph)
    assert difference(graph, after) < 1e-5


def weights_held(graph: Graph) -> int:
    return sum(v.const_value.size for v in graph.model.graph.initializers.values() if v.const_value)


@pytest.mark.parametrize("groups", [2, 3])
def test_a_shuffle_that_ends_up_behind_the_output_leaves_no_name_twice(groups: int) -> None:
    net = Net(0)
    x = net.act(net.shuffle(net.conv(net.input(6, 4), 6), groups, 4))
    net.outputs += net.op("GlobalAveragePool", [x], 6, 1)
    before = net.finish()
    after, report = apply("commute", before)
    assert report.changed
    assert difference(before, after) < 1e-5
    names = [node.name for node in after.nodes]
    assert len(names) == len(set(names))
