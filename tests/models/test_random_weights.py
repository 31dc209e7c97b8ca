"""Random weights: the same everywhere, and fit for export and parity."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shufflectl.models import loading, zoo
from shufflectl.models.data import digits_test
from shufflectl.models.preprocess import IMAGENET
from shufflectl.models.random_weights import digest, random_state

SMALL = "shufflenet_v1_g1_x0_25"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Leave the other processors alone: small layers only wait for one another's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def state(name: str, seed: int, num_classes: int = 10) -> dict[str, Tensor]:
    with torch.device("meta"):
        return random_state(zoo.variant(name).build(num_classes), seed)


def test_bits_are_the_same_on_every_machine() -> None:
    # If this fails on purpose, every manifest with random weights changes: say so in the changelog.
    assert "4e866559bf407c0972d4bd154cc0126ca945892cd2f41227e14ee1bbe9d7f10c" == digest(state(SMALL, 0))


def test_seeds_give_different_weights() -> None:
    assert 3 == len({digest(state(SMALL, seed)) for seed in (0, 1, 2**64 - 1)})


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    state(SMALL, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_every_tensor_of_the_network_is_there_in_its_shape_and_order() -> None:
    with torch.device("meta"):
        expected = zoo.variant(SMALL).build(10).state_dict()
    found = state(SMALL, 0)
    assert list(expected) == list(found)
    assert {n: (t.shape, t.dtype) for n, t in expected.items()} == {
        n: (t.shape, t.dtype) for n, t in found.items()
    }


def test_batch_norm_changes_every_channel_differently() -> None:
    found = state(SMALL, 0)
    for name, tensor in found.items():
        if tensor.ndim == 1 and not name.endswith("num_batches_tracked"):
            assert tensor.numel() == tensor.unique().numel(), name
    variances = torch.cat([t for n, t in found.items() if n.endswith("running_var")])
    assert 0.7 <= variances.min().item()
    assert 1.4 >= variances.max().item()


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**64 - 1))
def test_no_seed_gives_a_network_without_spread(seed: int) -> None:
    module = loading.load(SMALL, weights=f"random:{seed}").module
    with torch.no_grad():
        logits = module(torch.from_numpy(IMAGENET.apply(digits_test(64).images[:1])))
    assert 0.1 < logits.std().item() < 10


# At 224 the whole registry takes minutes; a smaller image passes through the same layers.
SIZES = [(name, 64) for name in zoo.names()]
SIZES += [(name, 224) for name in (SMALL, "shufflenet_v2_x0_5", "mobilenet_v1_x0_25", "mobilenet_v2_x0_35")]


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_logits_spread_and_activations_fit_fp16(name: str, size: int) -> None:
    model = loading.load(name)
    noise = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    images = np.concatenate([digits_test(size).images[:1], noise])
    largest = 0.0

    def watch(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal largest
        largest = max(largest, output.abs().max().item())

    for layer in model.module.modules():
        layer.register_forward_hook(watch)
    with torch.no_grad():
        deviations = model.module(torch.from_numpy(model.preprocess.apply(images))).std(1)
    assert 0.1 < deviations.min().item()
    assert 10 > deviations.max().item()
    assert largest < 1000  # fp16 ends at 65504, and sums inside a convolution are larger than their result
