"""The algebra of axes against numpy: whatever moves, the logical tensor stays the same."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shufflectl.converters.tflite.layout import (
    View,
    channels_last,
    gathered_order,
    movement,
    reshape,
)

NHWC = (0, 2, 3, 1)


def logical(file, view):
    """Return the logical tensor that a view of a file tensor stands for."""
    order = [f for axes in view.axes for f in axes]
    rest = [f for f in range(file.ndim) if f not in order]
    return file.transpose([*order, *rest]).reshape(view.shape)


def moved(file, view, order):
    step = movement(view, order)
    file = file if step.perm is None else file.transpose(step.perm)
    return file if step.dims is None else file.reshape(step.dims)


def test_shuffle_in_nhwc_is_reshape_transpose_reshape():
    view = View.of((2, 12, 5, 7), NHWC)
    dims, view = reshape(view, (2, 3, 4, 5, 7))
    assert (2, 5, 7, 3, 4) == dims
    view = view.transpose((0, 2, 1, 3, 4))
    dims, view = reshape(view, (2, 12, 5, 7))
    assert dims is None
    step = movement(view, view.natural_order())
    assert ((0, 1, 2, 4, 3), (2, 5, 7, 12)) == (step.perm, step.dims)


def test_batch_of_one_keeps_its_axis_in_a_shuffle():
    view = View.of((1, 12, 5, 7), NHWC)
    _, view = reshape(view, (1, 3, 4, 5, 7))
    _, view = reshape(view.transpose((0, 2, 1, 3, 4)), (1, 12, 5, 7))
    assert (0, 1, 2, 4, 3) == movement(view, NHWC).perm


def test_rank_4_shuffle_transposes_before_it_splits_the_plane():
    view = View.of((1, 12, 5, 7), NHWC)
    dims, view = reshape(view, (1, 3, 4, 35))
    assert (1, 35, 3, 4) == dims
    view = view.transpose((0, 2, 1, 3))
    assert reshape(view, (1, 12, 5, 7)) is None
    order = gathered_order(view, (1, 12, 5, 7))
    assert ((0, 1, 3, 2), None) == (movement(view, order).perm, movement(view, order).dims)
    dims, view = reshape(View.of(view.shape, order), (1, 12, 5, 7))
    assert (1, 5, 7, 12) == dims
    assert view.order == NHWC


def test_flattened_image_stays_where_it_is():
    dims, view = reshape(View.of((2, 3, 4, 5), NHWC), (2, 60))
    assert dims is None
    assert ((0,), (3, 1, 2)) == view.axes


def test_squeeze_and_unsqueeze_need_no_operator():
    dims, view = reshape(View.of((2, 8, 1, 1), NHWC), (2, 8))
    assert dims is None
    dims, view = reshape(view, (2, 8, 1, 1))
    assert dims is None
    assert movement(view, NHWC).free


def test_symbolic_batch_is_no_axis_of_one():
    view = View.of(("batch", 12, 5, 7), NHWC)
    dims, view = reshape(view, ("batch", 3, 4, 5, 7))
    assert ("batch", 5, 7, 3, 4) == dims


def test_batch_folded_into_channels_matches_by_its_product():
    dims, view = reshape(View.of(("batch", 12, 35), (0, 2, 1)), (12, "batch", 35)) or (None, None)
    assert dims is None
    assert view is None  # the batch is not where it was: a transpose has to come first


@pytest.mark.parametrize("rank", range(6))
def test_channels_last_is_a_permutation(rank):
    assert list(range(rank)) == sorted(channels_last(rank))


@st.composite
def programs(draw):
    """A logical tensor in some order, and reshapes and transposes on it."""
    shape = draw(st.lists(st.sampled_from([1, 1, 2, 2, 3, 4, 6]), min_size=1, max_size=4))
    order = draw(st.permutations(range(len(shape))))
    steps = []
    current = shape
    for _ in range(draw(st.integers(1, 6))):
        if draw(st.booleans()):
            steps.append(("transpose", draw(st.permutations(range(len(current))))))
            current = [current[p] for p in steps[-1][1]]
        else:
            size, made = math.prod(current), []
            while len(made) < 5 and (size > 1 or draw(st.booleans())):
                divisors = [d for d in range(1, size + 1) if size % d == 0]
                made.append(draw(st.sampled_from(divisors)))
                size //= made[-1]
            current = [*made, size] if size > 1 or not made else made
            steps.append(("reshape", current))
    return shape, order, steps, draw(st.permutations(range(len(current))))


@settings(max_examples=300, deadline=None)
@given(programs())
def test_any_mixture_keeps_the_logical_tensor(program):
    shape, order, steps, final = program
    tensor = np.arange(math.prod(shape)).reshape(shape)
    view, file = View.of(shape, order), tensor.transpose(order)
    for kind, argument in steps:
        if kind == "transpose":
            tensor, view = tensor.transpose(argument), view.transpose(argument)
        else:
            tensor = tensor.reshape(argument)
            step = reshape(view, argument)
            if step is None:
                gathered = gathered_order(view, argument)
                file, view = moved(file, view, gathered), View.of(view.shape, gathered)
                step = reshape(view, argument)
            assert step is not None
            file = file if step[0] is None else file.reshape(step[0])
            view = step[1]
        assert view.dims == file.shape
        np.testing.assert_array_equal(tensor, logical(file, view))
        if view.order is not None:
            np.testing.assert_array_equal(tensor.transpose(view.order), file)
    np.testing.assert_array_equal(tensor.transpose(final), moved(file, view, final))
