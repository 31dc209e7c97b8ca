"""Which tensors share a scale."""

import torch
from torch import Tensor, nn

from converters.rewrite.nets import captured
from shufflectl.converters.graph import Graph
from shufflectl.converters.quantize.ties import ties
from support.nets import tiny_graph


def test_a_stage_shares_one_scale() -> None:
    groups = ties(tiny_graph()).groups
    concats = [n for n in tiny_graph().nodes if n.op_type == "Concat"]
    joined = {str(v.name) for n in concats for v in (*n.inputs, *n.outputs)}
    found = [{groups[name] for name in joined if name.startswith(stage)} for stage in ("stage2", "stage3")]
    assert [1, 1] == [len(of) for of in found]
    assert found[0] != found[1]


def test_pre_activations_have_no_codes_and_depthwise_results_do() -> None:
    graph = tiny_graph()
    found = ties(graph)
    for node in graph.nodes:
        if node.op_type != "Conv":
            continue
        name = str(node.outputs[0].name)
        reader = next(iter(node.outputs[0].uses())).node
        assert (reader.op_type == "Relu") == (name in found.absorbed) == (name not in found.groups)


class Joined(nn.Module):
    """V1's downsampling unit in miniature: a concat, then ReLU; ``tap`` reads what is joined as well."""

    def __init__(self, *, tap: bool) -> None:
        super().__init__()
        self.stem, self.branch, self.last = (nn.Conv2d(a, b, 1) for a, b in ((3, 4), (4, 5), (9, 2)))
        self.tap = nn.Conv2d(5, 2, 1) if tap else None

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        made = self.branch(x)
        joined = self.last(torch.relu(torch.cat((nn.functional.avg_pool2d(x, 1), made), 1)))
        return joined if self.tap is None else joined + self.tap(made)


def _relu_behind_concat(graph: Graph) -> tuple[str, str, str]:
    relu = next(n for n in graph.nodes if n.op_type == "Relu" and n.inputs[0].producer().op_type == "Concat")
    concat = relu.inputs[0].producer()
    return str(concat.inputs[1].name), str(concat.outputs[0].name), str(relu.outputs[0].name)


def test_what_relus_alone_read_in_the_end_ends_at_zero() -> None:
    graph = captured(Joined(tap=False))
    found = ties(graph)
    made, joined, after = _relu_behind_concat(graph)
    assert {made, joined} <= found.saturated
    assert found.groups[made] == found.groups[joined] == found.groups[after]


def test_what_somebody_else_reads_keeps_its_negative_numbers() -> None:
    graph = captured(Joined(tap=True))
    found = ties(graph)
    made, joined, after = _relu_behind_concat(graph)
    assert not {made, joined} & found.saturated
    assert found.groups[joined] != found.groups[after]
