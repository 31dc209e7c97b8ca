"""What a captured graph promises, on a small ShuffleNetV2."""

import logging
import os
import subprocess
import sys
import warnings
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

from shufflectl.converters.capture import capture
from shufflectl.converters.graph import Graph
from shufflectl.errors import GraphError
from support.nets import example, randomise, tiny_graph, tiny_v2


class Fn(nn.Module):
    """A module whose forward is a function of itself and its input."""

    def __init__(self, function, **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.function(self, x)


def run(graph: Graph, x: torch.Tensor, taps: tuple[str, ...] = ()) -> list[np.ndarray]:
    proto = graph.to_proto()
    outputs = [o.name for o in proto.graph.output]
    proto.graph.output.extend(onnx.ValueInfoProto(name=tap) for tap in taps)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if taps:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options)
    return session.run([*outputs, *taps], {"image": x.numpy()})


def assert_close(module: nn.Module, graph: Graph, x: torch.Tensor) -> None:
    with torch.no_grad():
        expected = module(x).numpy()
    (actual,) = run(graph, x)
    assert expected.shape == actual.shape
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(actual / scale, expected / scale, atol=2e-6, rtol=0)


def test_a_captured_shufflenet_holds_only_its_own_operators() -> None:
    expected = {
        "Conv": 18,
        "Relu": 12,
        "Reshape": 8,
        "Concat": 4,
        "Transpose": 4,
        "Split": 2,
        "MaxPool": 1,
        "ReduceMean": 1,
        "Gemm": 1,
    }
    assert expected == Counter(node.op_type for node in tiny_graph().nodes)


def test_a_captured_graph_computes_what_torch_computes() -> None:
    assert_close(tiny_v2(), tiny_graph(), example(seed=7))


def test_a_captured_graph_is_valid_onnx_of_the_fixed_opset() -> None:
    proto = tiny_graph().to_proto()
    onnx.checker.check_model(proto, full_check=True)
    assert [("", 20)] == [(o.domain, o.version) for o in proto.opset_import]
    assert tiny_graph().opset == 20


def test_every_tensor_has_a_static_shape_and_a_type() -> None:
    graph = tiny_graph()
    for node in graph.nodes:
        for value in node.outputs:
            assert all(isinstance(d, int) for d in Graph.shape(value)), value.name
            assert ir.DataType.FLOAT == value.dtype, value.name


def test_every_initializer_is_used() -> None:
    graph = tiny_graph()
    unused = [name for name, value in graph.model.graph.initializers.items() if not value.uses()]
    assert [] == unused


def test_nothing_in_the_graph_tells_where_it_was_made() -> None:
    data = tiny_graph().to_bytes()
    assert os.fsencode(os.path.dirname(torch.__file__)) not in data  # noqa: PTH120 - bytes of a path, no file access
    assert b"stack_trace" not in data
    assert b"onnxsim" not in data
    assert b".py" not in data


def test_a_second_capture_gives_the_same_bytes() -> None:
    again = capture(tiny_v2(), (example(),), name="tiny")
    assert tiny_graph().to_bytes() == again.to_bytes()


def test_another_process_with_another_hash_seed_gives_the_same_bytes() -> None:
    program = (
        "import hashlib, sys; sys.path.insert(0, sys.argv[1]); import torch; torch.set_num_threads(1);"
        "from support.nets import tiny_graph; print(hashlib.sha256(tiny_graph().to_bytes()).hexdigest())"
    )
    tests = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120 - a path for the child's sys.path
    done = subprocess.run(
        [sys.executable, "-c", program, tests],
        env={**os.environ, "PYTHONHASHSEED": "4711"},
        capture_output=True,
        text=True,
        check=True,
    )
    import hashlib

    assert hashlib.sha256(tiny_graph().to_bytes()).hexdigest() == done.stdout.strip()
    assert "" == done.stderr


def test_capturing_does_not_change_the_module() -> None:
    module = tiny_v2()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    kinds = [type(part) for part in module.modules()]
    capture(module, (example(),), name="tiny")
    assert kinds == [type(part) for part in module.modules()]
    assert list(before) == list(module.state_dict())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_a_tensor_named_after_a_module_is_what_a_hook_on_it_sees() -> None:
    module, x = tiny_v2(), example(seed=3)
    graph = tiny_graph()
    modules = dict(module.named_modules())
    seen: dict[str, np.ndarray] = {}
    named = [v.name for n in graph.nodes for v in n.outputs if v.name in modules]
    # The in-place ReLU overwrites the result that the hook before it saw, so each result is copied at once.
    for name in named:
        modules[name].register_forward_hook(
            lambda _m, _i, out, name=name: seen.__setitem__(name, out.detach().clone().numpy())
        )
    with torch.no_grad():
        module(x)
    _, *taps = run(graph, x, tuple(named))
    assert len(named) > 25
    for name, tap in zip(named, taps, strict=True):
        np.testing.assert_allclose(tap, seen[name], atol=1e-5, err_msg=name)


def test_nothing_reaches_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        capture(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval(), (example(8),), name="m")
    out, err = capfd.readouterr()
    assert ("", "") == (out, err)
    assert [] == caught


def test_log_levels_are_restored() -> None:
    names = ("torch", "torch.onnx", "onnxscript")
    before = [logging.getLogger(name).level for name in names]
    capture(nn.ReLU().eval(), (example(8),), name="m")
    assert before == [logging.getLogger(name).level for name in names]


def test_dropout_and_identity_leave_no_node() -> None:
    module = nn.Sequential(nn.Dropout(), nn.Identity(), nn.Conv2d(3, 4, 1), nn.Dropout2d()).eval()
    assert ["Conv"] == [node.op_type for node in capture(module, (example(8),), name="m").nodes]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Fn(lambda _, x: x if x.sum() > 0 else -x), "cannot trace"),
        (Fn(lambda _, x: torch.linalg.qr(x)[0]), "cannot translate"),
        (nn.Linear(7, 3), "cannot trace"),
        (nn.Identity(), "not computed from its input"),
        (Fn(lambda _, x: (x + 1, x * 2)), "2 outputs"),
        (Fn(lambda _, x: x[x > 0]), "depends on the data"),
    ],
    ids=["data-dependent", "no translation", "wrong size", "identity", "outputs", "data-dependent shape"],
)
def test_what_cannot_be_captured_is_one_error_with_a_remedy(module: nn.Module, message: str) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        capture(module.eval(), (example(8),), name="m")
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_module_in_training_mode_is_refused() -> None:
    with pytest.raises(GraphError, match="training mode"):
        capture(nn.ReLU().train(), (example(8),), name="m")


def test_names_that_do_not_fit_the_inputs_are_refused() -> None:
    with pytest.raises(GraphError, match="1 example inputs do not fit 2 input names"):
        capture(nn.ReLU().eval(), (example(8),), name="m", input_names=("a", "b"))


def test_two_inputs_and_two_outputs_keep_their_names_and_order() -> None:
    class Two(nn.Module):
        def forward(self, x, y):
            return x * 2 + y, y - 1

    graph = capture(
        Two().eval(),
        (torch.ones(1, 2), torch.ones(1, 2)),
        name="m",
        input_names=("a", "b"),
        output_names=("p", "q"),
    )
    assert ["a", "b"] == [v.name for v in graph.inputs]
    assert ["p", "q"] == [v.name for v in graph.outputs]


def test_operators_around_a_model_survive(subtests: pytest.Subtests) -> None:
    modules = {
        "softmax": nn.Softmax(1),
        "hard-swish": nn.Hardswish(),
        "hard-sigmoid": nn.Hardsigmoid(),
        "clip": nn.ReLU6(),
        "pad": nn.ZeroPad2d((1, 2, 0, 3)),
        "resize": nn.Upsample(scale_factor=2, mode="nearest"),
        "average pooling": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    }
    for name, module in modules.items():
        with subtests.test(name):
            net = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), module))
            assert_close(net, capture(net, (example(8),), name="m"), example(8, seed=2))
