"""What a file is, whatever it is wrapped in; and what it nearly is."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from shufflectl import models
from shufflectl.cli import app
from shufflectl.commands.options import OUTPUT
from shufflectl.errors import CheckpointError, UsageError
from shufflectl.models import zoo
from shufflectl.models.checkpoints import layouts
from shufflectl.models.checkpoints.files import WeightsFile, read
from shufflectl.models.checkpoints.fit import skeleton
from shufflectl.models.checkpoints.identify import identify
from shufflectl.models.preprocess import DIGITS
from support.nets import randomise
from support.wild import MegviiV1, MegviiV2, MmV2

State = dict[str, Tensor]


@cache
def megvii() -> nn.Module:
    return randomise(MegviiV2("0.5x", 5))


@cache
def averaged() -> nn.Module:
    return randomise(MegviiV2("0.5x", 5), seed=1)


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, name: str, base: type) -> type:
    """Make a class of a library that is not installed, so that pickles can name it."""
    made = type(name, (base,), {"__module__": module, "__qualname__": name})
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        if path not in sys.modules:
            monkeypatch.setitem(sys.modules, path, ModuleType(path))
    monkeypatch.setattr(sys.modules[module], name, made, raising=False)
    return made


class _Buffer:
    """Has the attributes of mmengine's HistoryBuffer."""

    def __init__(self) -> None:
        self._log_history = np.arange(3.0)
        self._count_history = np.ones(3, np.int64)
        self._max_length = 1000000


def lightning(state: State, monkeypatch: pytest.MonkeyPatch) -> Any:
    attributes = stand_in(monkeypatch, "pytorch_lightning.utilities.parsing", "AttributeDict", dict)
    return {
        "epoch": 9,
        "global_step": 100,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": prefixed(state, "model.") | {"criterion.weight": torch.ones(5)},
        "hyper_parameters": attributes(lr=0.1, folder=Path("data")),
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": []}],
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.7)}},
    }


def mmengine(state: State, monkeypatch: pytest.MonkeyPatch) -> Any:
    buffer = stand_in(monkeypatch, "mmengine.logging.history_buffer", "HistoryBuffer", _Buffer)
    return {
        "meta": {"epoch": 300, "experiment_name": "shufflenet", "time": "20260101"},
        "state_dict": state,
        "message_hub": {"log_scalars": {"train/loss": buffer()}, "last": np.float64(0.5)},
        "ema_state_dict": prefixed(state, "module.") | {"steps": torch.tensor(3)},
    }


def timm(state: State, _patch: pytest.MonkeyPatch) -> Any:
    return {
        "epoch": 3,
        "arch": "shufflenet",
        "state_dict": dict(averaged().state_dict()),
        "state_dict_ema": state,
        "args": argparse.Namespace(lr=0.1, output=Path("out")),
        "metric": 71.0,
    }


def torchvision_reference(state: State, _patch: pytest.MonkeyPatch) -> Any:
    return {
        "model": dict(averaged().state_dict()),
        "model_ema": prefixed(state, "module.") | {"n_averaged": torch.tensor(7)},
        "args": argparse.Namespace(lr=0.1),
    }


def lightning_ema(state: State, _patch: pytest.MonkeyPatch) -> Any:
    return {"state_dict": prefixed(dict(averaged().state_dict()), "model.") | prefixed(state, "ema.module.")}


WRAPPERS: dict[str, tuple[Callable[[State, pytest.MonkeyPatch], Any], str, tuple[str, ...]]] = {
    "bare": (lambda s, _: s, "", ()),
    "parallel": (lambda s, _: prefixed(s, "module."), "module.", ()),
    "compiled and parallel": (lambda s, _: prefixed(s, "module._orig_mod."), "module._orig_mod.", ()),
    "lightning": (lightning, "model.", ("state_dict",)),
    "mmengine": (mmengine, "", ("state_dict",)),
    "timm": (timm, "", ("state_dict_ema",)),
    "torchvision's references": (torchvision_reference, "module.", ("model_ema",)),
    "ema": (lambda s, _: {"ema": {"module": s}, "epoch": 1}, "", ("ema", "module")),
    "ema beside": (lightning_ema, "ema.module.", ("state_dict",)),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("archived", [True, False], ids=["zip", "before torch 1.6"])
def test_whatever_it_is_wrapped_in(
    wrapper: str, archived: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrap, prefix, entry = WRAPPERS[wrapper]
    path = tmp_path / "last.pth"
    state = dict(megvii().state_dict())
    torch.save(wrap(state, monkeypatch), path, _use_new_zipfile_serialization=archived)
    monkeypatch.undo()  # the classes are not there where the file is read
    file = read(path)
    found = identify(file).require()
    assert ("megvii", "shufflenet_v2_x0_5", prefix, 5) == (
        found.layout.name,
        found.variant.name,
        found.prefix,
        found.num_classes,
    )
    assert entry == file.entry
    loaded = models.load(weights=str(path))
    assert torch.equal(state["conv_last.0.weight"], loaded.module.state_dict()["conv5.0.weight"])


def test_safetensors_are_identified_and_their_header_counts(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    said = {"preprocess": DIGITS.to_json(), "input_size": 96}
    save_file(dict(megvii().state_dict()), path, {"shufflectl": json.dumps(said)})
    found = identify(read(path)).require()
    assert (DIGITS, 96) == (found.preprocess, found.input_size)
    assert "the file's header" in [f.why for f in found.findings if f.what == "preprocessing"]


def test_a_choice_between_entries_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.pth"
    torch.save(timm(dict(megvii().state_dict()), monkeypatch), path)
    assert ("w.pth: read entry 'state_dict_ema', left state_dict aside",) == models.load(
        weights=str(path)
    ).notes
    assert "state_dict" in next(f.why for f in identify(read(path)).require().findings)


def test_tensors_beside_the_network_are_left_aside_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.pth"
    torch.save(lightning(dict(megvii().state_dict()), monkeypatch), path)
    assert "'criterion.weight'" in models.load(weights=str(path)).notes[0]
    assert any("'criterion.weight'" in f.why for f in identify(read(path)).require().findings)


def test_two_networks_are_not_chosen_between(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    state = dict(megvii().state_dict())
    torch.save(prefixed(state, "student.") | prefixed(state, "teacher."), path)
    with pytest.raises(CheckpointError, match=r"holds 2 networks, .* 'student\.', 'teacher\.'"):
        identify(read(path))


class _Harmful:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("archived", [True, False])
def test_code_in_the_luggage_is_refused(tmp_path: Path, archived: bool) -> None:
    path, trace = tmp_path / "w.pth", tmp_path / "trace"
    contents = {"state_dict": {"a": torch.ones(1)}, "args": argparse.Namespace(x=_Harmful(trace))}
    torch.save(contents, path, _use_new_zipfile_serialization=archived)
    with pytest.raises(CheckpointError, match=r"refers to (posix|nt)\.system"):
        read(path)
    assert not trace.exists()


def test_what_is_known_of_a_file_comes_with_the_tensor_that_tells_it() -> None:
    state = {f"module.{k}": v for k, v in MegviiV1(8, "0.5x", 7).state_dict().items()}
    found = identify(WeightsFile(Path("w.pth"), state)).require()
    told = {f.what: (f.value, f.why) for f in found.findings}
    assert ("8", "'module.features.0.branch_main_2.0.weight' is [176, 6, 1, 1]: 48 channels in") == told[
        "groups"
    ]
    assert "shufflenet_v1_g8_x0_5" == told["model"][0]
    assert ("7", "'module.classifier.0.weight' is [7, 768]") == told["classes"]
    assert "BGR, 0 to 255, not normalised" == told["preprocessing"][0]
    assert "ToBGRTensor" in told["preprocessing"][1]


@pytest.mark.parametrize("row", zoo.variants(), ids=lambda row: row.name)
def test_every_network_of_the_registry_is_told_apart_in_every_layout(row: zoo.Variant) -> None:
    for layout in (layout for layout in layouts.LAYOUTS if layout.family == row.family):
        module = skeleton(layout.applied(row), 3)
        state = {
            f"model.{layout.spell(n)}": t for n, t in module.state_dict().items() if n not in layout.optional
        }
        found = identify(WeightsFile(Path("w.pth"), state)).require()
        assert (layout.networks, row.name, 3) == (
            found.layout.networks,
            found.variant.name,
            found.num_classes,
        )
        assert dict(layout.applied(row).arguments) == dict(found.variant.arguments)


def test_a_network_that_is_not_listed_is_named_for_its_channels_and_found_again(tmp_path: Path) -> None:
    arguments = {"stem": 16, "stage_channels": (40, 80, 96), "stage_units": (2, 3, 2), "last_channels": 64}
    from shufflectl.models.shufflenet_v2 import build_custom

    module = randomise(build_custom(**arguments, num_classes=4))
    path = tmp_path / "w.pth"
    torch.save(module.state_dict(), path)
    name = "shufflenet_v2_16x40x80x96x64_u2x3x2"
    loaded = models.load(weights=str(path))
    assert name == loaded.variant.name == models.load(name, weights=str(path)).variant.name
    assert sum(p.numel() for p in build_custom(**arguments, num_classes=1000).parameters()) == (
        loaded.variant.parameters
    )
    x = torch.ones(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(module(x), loaded.module(x))
    for other in ("shufflenet_v2_9x9x9x9x9", "shufflenet_v1_g3_9x9x9x9", "resnet_50"):
        with pytest.raises(UsageError, match=f"no model named '{other}'"):
            models.load(other, weights=str(path))


def test_a_changed_network_shows_the_nearest_and_what_does_not_fit() -> None:
    state = dict(megvii().state_dict())
    del state["conv_last.1.weight"]
    state["features.0.SE.weight"] = torch.ones(3)
    state["features.5.branch_main.0.weight"] = torch.ones(48, 40, 1, 1)
    found = identify(WeightsFile(Path("w.pth"), state))
    assert found.match is None
    best = found.candidates[0]
    assert ("megvii", "shufflenet_v2_x0_5") == (best.layout.name, best.variant.name)
    assert (("conv_last.1.weight",), ("features.0.SE.weight",)) == (best.missing, best.extra)
    assert (("features.5.branch_main.0.weight", (48, 40, 1, 1), (48, 48, 1, 1)),) == best.misshaped
    with pytest.raises(
        CheckpointError, match=r"nearest: shufflenet_v2_x0_5 of megvii, but missing"
    ) as caught:
        found.require()
    assert "[48, 40, 1, 1] not [48, 48, 1, 1]" in caught.value.message


def test_a_backbone_alone_is_near_its_network() -> None:
    state = {k: v for k, v in MmV2(0.5, 5).state_dict().items() if k.startswith("backbone")}
    found = identify(WeightsFile(Path("w.pth"), state))
    assert ("head.fc.weight", "head.fc.bias") == found.candidates[0].missing


def test_a_file_without_the_first_layers_is_still_near_its_network() -> None:
    state = {f"net.{k}": v for k, v in megvii().state_dict().items() if not k.startswith("first_conv")}
    best = identify(WeightsFile(Path("w.pth"), state)).candidates[0]
    assert ("megvii", "shufflenet_v2_x0_5", "net.") == (best.layout.name, best.variant.name, best.prefix)


@pytest.mark.parametrize("state", [{}, {"layer1.0.conv1.weight": torch.ones(1)}], ids=["empty", "resnet"])
def test_what_is_no_shufflenet_is_said_to_be_none(state: State) -> None:
    found = identify(WeightsFile(Path("w.pth"), state))
    assert () == found.candidates
    with pytest.raises(CheckpointError, match=r"w\.pth (holds no tensors|is none of the networks known)"):
        found.require()


_BASE = {
    k: torch.zeros(v.shape)
    for k, v in skeleton(zoo.variant("shufflenet_v1_g1_x0_25"), 2).state_dict().items()
}
_TELLING = [n for n in _BASE if n.endswith("weight") and (".0." in n or n.startswith("fc"))]


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(_TELLING), st.lists(st.integers(0, 5), max_size=5), st.booleans())
def test_a_tensor_of_any_shape_is_refused_or_fits(name: str, shape: list[int], drop: bool) -> None:
    state = dict(_BASE)
    del state[name]
    if not drop:
        state[name] = torch.zeros(shape)
    found = identify(WeightsFile(Path("w.pth"), state))
    if found.match is None:
        with pytest.raises(CheckpointError):
            found.require()
    else:
        assert "fc.weight" == name
        assert 144 == shape[1]


@pytest.fixture(autouse=True)
def _fresh_output() -> Any:
    yield
    OUTPUT.json = OUTPUT.verbose = False


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "160"})


def validated(text: str) -> Any:
    """Return a document, held against the schema in the package."""
    schema = resources.files("shufflectl.deploy").joinpath("schemas/identify-1.schema.json")
    document = json.loads(text)
    jsonschema.validate(document, json.loads(schema.read_text("utf-8")))
    return document


def test_the_command_prints_one_document(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(megvii().state_dict(), path)
    result = run("identify", str(path), "--json")
    document = validated(result.stdout)
    assert 0 == result.exit_code
    assert ("shufflectl.identify/1", True, []) == (
        document["schema"],
        document["identified"],
        document["candidates"],
    )
    match = document["match"]
    assert ("megvii", "shufflenet_v2_x0_5", True, 5, "bgr") == (
        match["layout"],
        match["model"],
        match["registered"],
        match["num_classes"],
        match["preprocess"]["color"],
    )
    assert {"split": "parity", "shortcut": "inputs"}.items() <= match["arguments"].items()


def test_the_command_shows_candidates_and_then_fails(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    state = dict(megvii().state_dict())
    del state["conv_last.1.weight"]
    torch.save(state, path)
    result = run("identify", str(path))
    assert "conv_last.1.weight" in result.stdout
    assert isinstance(result.exception, CheckpointError)
    document = validated(run("identify", str(path), "--json").stdout)
    assert ["conv_last.1.weight"] == document["candidates"][0]["missing"]


def test_without_a_model_and_without_a_file_nothing_is_exported() -> None:
    for weights in ((), ("--weights", "digits"), ("--weights", "random:1")):
        result = run("export", *weights, "--target", "onnx")
        assert isinstance(result.exception, UsageError)
        assert "no model is named" == result.exception.message
