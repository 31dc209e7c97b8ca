"""Adaptive average pooling, against torch."""

from collections import Counter

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from shufflectl.converters.capture import capture
from shufflectl.converters.capture.adaptive import windows

sizes = st.integers(1, 24)


@given(sizes, sizes)
@settings(max_examples=100, deadline=None)
def test_windows_are_those_of_torch(source, target):
    x = torch.eye(source)[None]  # [1, source, source]: which elements each average is over
    expected = functional.adaptive_avg_pool1d(x, target)[0].numpy()
    np.testing.assert_allclose(windows(source, target), expected, rtol=1e-6, atol=1e-7)


CASES = {
    "to one": (1, {"ReduceMean"}),
    "alike": ((3, 5), {"AveragePool"}),
    "one side alike": ((3, 7), {"MatMul", "Transpose"}),
    "one side kept": ((9, 7), {"MatMul"}),
    "overlapping": ((4, 7), {"MatMul", "Transpose"}),
    "growing": ((12, 11), {"MatMul", "Transpose"}),
    "side left open": ((None, 4), {"MatMul"}),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_pooling_is_captured_and_computes_the_same(case, dynamic):
    size, expected = CASES[case]
    module = nn.Sequential(nn.AdaptiveAvgPool2d(size), nn.ReLU()).eval()
    x = torch.randn(2, 3, 9, 10, generator=torch.Generator().manual_seed(0))
    graph = capture(module, (x,), name="net", dynamic_batch=dynamic)
    assert {*expected, "Relu"} == set(Counter(node.op_type for node in graph.nodes))
    assert max(len(node.outputs[0].shape) for node in graph.nodes) == 4
    session = onnxruntime.InferenceSession(graph.to_proto().SerializeToString())
    for images in (x, torch.cat([x, x])) if dynamic else (x,):
        (actual,) = session.run(None, {"image": images.numpy()})
        np.testing.assert_allclose(actual, module(images).numpy(), rtol=1e-5, atol=1e-6)


def test_tensors_are_named_by_the_module():
    graph = capture(
        nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.ReLU()).eval(),
        (torch.randn(1, 3, 9, 10),),
        name="net",
    )
    assert "1" in {node.outputs[0].name for node in graph.nodes}
