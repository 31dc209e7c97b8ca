"""A checkpoint for a user's own network: every name, every shape, every value."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shufflectl.errors import CheckpointError, FactoryError, UsageError
from shufflectl.models.custom import load_into


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.PReLU(width))
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Conv2d(width, 2, 1)
        self.scale = nn.Parameter(torch.ones(width, 1, 1))
        self.register_buffer("anchors", torch.arange(6).reshape(3, 2))
        self.register_buffer("grid", torch.linspace(0, 1, 5))


def saved(state: dict[str, Tensor], path: Path) -> str:
    torch.save(state, path)
    return str(path)


def other() -> Net:
    torch.manual_seed(7)
    net = Net()
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    net.get_buffer("anchors").add_(10)
    return net


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "model.net."])
def test_every_tensor_is_loaded_behind_any_prefix(prefix: str, tmp_path: Path) -> None:
    source, net = other(), Net()
    spec = saved({prefix + k: v for k, v in source.state_dict().items()}, tmp_path / "w.pt")
    found = load_into(net, spec, "mine:net")
    assert "w.pt" == found.weights
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, net.state_dict()[name]), name


def test_half_precision_becomes_single_and_integers_stay(tmp_path: Path) -> None:
    net = Net()
    state = {k: v.half() if v.is_floating_point() else v for k, v in other().state_dict().items()}
    load_into(net, saved(state, tmp_path / "w.pt"), "mine:net")
    kinds = {name: tensor.dtype for name, tensor in net.state_dict().items()}
    assert torch.float32 == kinds["head.weight"]
    assert torch.int64 == kinds["anchors"]


def test_step_counters_may_be_absent(tmp_path: Path) -> None:
    state = {k: v for k, v in other().state_dict().items() if not k.endswith("num_batches_tracked")}
    net = Net()
    load_into(net, saved(state, tmp_path / "w.pt"), "mine:net")
    assert 0 == int(net.state_dict()["norm.num_batches_tracked"])


class TestRefused:
    def refused(self, state: dict[str, Tensor], folder: Path, words: str) -> CheckpointError:
        net = Net()
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        with pytest.raises(CheckpointError, match=words) as caught:
            load_into(net, saved(state, folder / "w.pt"), "mine:net")
        assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in before.items())
        assert "mine:net" in caught.value.message or "tensor" in caught.value.message
        return caught.value

    def test_a_missing_tensor_is_named(self, tmp_path: Path) -> None:
        state = other().state_dict()
        del state["head.bias"]
        self.refused(state, tmp_path, "'head.bias' is missing")

    def test_a_tensor_too_many_is_named(self, tmp_path: Path) -> None:
        self.refused({**other().state_dict(), "aux.weight": torch.zeros(1)}, tmp_path, "holds 'aux.weight'")

    def test_another_shape_is_named_with_both(self, tmp_path: Path) -> None:
        error = self.refused(Net(5).state_dict(), tmp_path, r"'scale' has shape \[5, 1, 1\]")
        assert "[4, 1, 1]" in error.message
        assert "--arg" in error.hint

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_values_that_are_not_finite(self, tmp_path: Path, value: float) -> None:
        state = other().state_dict()
        state["head.weight"][0] = value
        self.refused(state, tmp_path, "'head.weight' of w.pt holds NaN or infinity")

    def test_integers_for_weights(self, tmp_path: Path) -> None:
        state = other().state_dict()
        state["head.weight"] = state["head.weight"].to(torch.int8)
        self.refused(state, tmp_path, "of type int8")

    def test_another_network_altogether(self, tmp_path: Path) -> None:
        self.refused(
            nn.Linear(3, 4).state_dict(), tmp_path, "are missing, and it also holds 'weight', 'bias'"
        )

    def test_words_that_name_no_weights(self) -> None:
        with pytest.raises(UsageError, match="no weights 'digits' for mine:net"):
            load_into(Net(), "digits", "mine:net")

    def test_a_network_without_values_needs_weights(self, tmp_path: Path) -> None:
        with torch.device("meta"):
            net = Net()
        with pytest.raises(FactoryError, match="without values"):
            load_into(net, None, "mine:net")
        load_into(net, saved(other().state_dict(), tmp_path / "w.pt"), "mine:net")
        assert not any(tensor.is_meta for tensor in net.state_dict().values())


class TestRandom:
    def test_weights_are_the_same_for_a_seed_and_keep_anchors(self) -> None:
        first, second, third = Net(), Net(), Net()
        digests = [load_into(n, s, "n").sha256 for n, s in ((first, "random:1"), (second, "random:1"))]
        assert digests[0] == digests[1] != load_into(third, "random:2", "n").sha256
        assert torch.equal(Net().anchors, first.anchors)  # type: ignore[arg-type]  # buffers
        assert torch.equal(Net().grid, first.grid)  # type: ignore[arg-type]

    def test_every_layer_does_something(self) -> None:
        net = Net()
        load_into(net, "random:0", "n")
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point() and name != "grid":
                assert float(tensor.std()) > 0.01, name
            if name.endswith("running_var"):
                assert float(tensor.min()) > 0.5, name
