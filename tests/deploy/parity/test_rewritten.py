"""Files of rewritten graphs agree with the captured graph layer by layer, and a spoilt one is found out.

The reference knows nothing of the rewrite: permuted, padded, split and masked tensors are compared as the
captured graph has them.
"""

import functools
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from shufflectl.converters.capture import capture
from shufflectl.converters.graph import Graph
from shufflectl.converters.metadata import ModelInfo
from shufflectl.converters.rewrite.lowering import LOWERINGS, Options, apply
from shufflectl.converters.targets import FLOATS, TARGETS, EmitOptions, Layout, Precision
from shufflectl.deploy import runtimes
from shufflectl.deploy.inspect import summarize
from shufflectl.deploy.parity.limits import default_limits
from shufflectl.deploy.parity.locate import Divergence, Examination, examine
from shufflectl.deploy.parity.nway import Member, check_parity
from shufflectl.models.preprocess import DIGITS
from shufflectl.models.shufflenet_v1 import ShuffleNetV1
from shufflectl.models.shufflenet_v2 import ShuffleNetV2Large
from support import mutate
from support.nets import ShuffleNetV2, randomise

IMAGES = np.random.default_rng(7).standard_normal((3, 3, 32, 32), dtype=np.float32)
KINDS = [(target, precision) for target in TARGETS for precision in FLOATS]
NETS = ("v2", "v1", "se")


@dataclass(frozen=True)
class Form:
    """A net, and the form that it is in."""

    net: str
    name: str
    options: Options = field(default_factory=Options)

    def __str__(self) -> str:
        changed = [f"{k}{v}" for k, v in self.options.to_json().items() if v != Options().to_json()[k]]
        return "-".join([self.net, self.name, *changed])


PADDED = (
    Options(align=8),
    Options(align=16, merge=16, max_concat=5),
    Options(align=4, merge=4, max_concat=2),
)
FORMS = [
    *(Form("v2", name) for name in LOWERINGS),
    *(Form("v2", e.name, options) for e in LOWERINGS.values() if e.folds for options in PADDED),
    *(Form("v1", name) for name in ("rank4", "commute", "fold-split")),
    *(Form("se", name) for name in ("two-stream", "masked")),
    *(Form(net, "fold-split", PADDED[1]) for net in ("v1", "se")),
]
MUTATED = [
    Form("v2", "two-stream"),
    Form("v2", "fold", Options(align=8)),
    Form("v2", "fold-split", Options(align=4, merge=4, max_concat=2)),
    Form("v2", "masked"),
]
HALF = [*MUTATED, *(form for form in FORMS if form.net != "v2")]


@functools.cache
def module(net: str) -> nn.Module:
    if net == "v1":
        return randomise(ShuffleNetV1(3, 0.25, 10))
    if net == "se":
        large = ShuffleNetV2Large((8,), (16, 24, 32, 40), (3, 1, 1, 1), excite=True, num_classes=10)
        return randomise(large)
    return randomise(ShuffleNetV2((4, 2), (8, 24, 32, 16), 10))


@functools.cache
def captured(net: str) -> Graph:
    return capture(module(net), (torch.zeros(1, 3, 32, 32),), name=net)


@functools.cache
def rewritten(form: Form) -> Graph:
    return apply(form.name, captured(form.net), form.options)[0]


def write(form: Form, target: str, folder: Path, precision: Precision, layout: Layout | None = None) -> Path:
    path = folder / f"model{TARGETS[target].extension}"
    info = ModelInfo(form.net, preprocess=DIGITS)
    TARGETS[target].emit(rewritten(form), info, EmitOptions(precision, layout), path)
    return path


def examined(path: Path, net: str, precision: str) -> Examination:
    target = next(row for row in TARGETS.values() if row.extension == path.suffix)
    with runtimes.choose(target.name, ()).load(path) as session:
        return examine(captured(net), session, {"image": IMAGES}, default_limits(precision))


def agrees(path: Path, net: str, precision: str) -> bool:
    target = next(row for row in TARGETS.values() if row.extension == path.suffix)
    with runtimes.choose(target.name, ()).load(path) as session:
        member = Member.from_session(path.name, precision, session)
        return bool(check_parity(Member.from_module("torch", module(net)), [member], {"random": IMAGES}))


@pytest.fixture(scope="module", autouse=True)
def _forget() -> Iterator[None]:
    yield
    for cache in (module, captured, rewritten):
        cache.cache_clear()


@pytest.mark.parametrize(
    ("form", "precision"),
    [*((form, "fp32") for form in FORMS), *((form, "fp16") for form in HALF)],
    ids=str,
)
@pytest.mark.parametrize("target", TARGETS)
def test_every_form_passes(form: Form, target: str, precision: Precision, tmp_path: Path) -> None:
    path = write(form, target, tmp_path, precision)
    assert agrees(path, form.net, precision)
    found = examined(path, form.net, precision)
    assert found.divergence is None, found.divergence
    assert [] == [layer.problem for layer in found.layers if layer.problem]
    convolutions = {
        str(n.outputs[0].name) for n in captured(form.net).nodes if n.op_type in ("Conv", "Gemm", "Relu")
    }
    held = {layer.tensor for layer in found.layers}
    fused = len(convolutions - held)
    # Every layer is compared, if only behind its activation.
    assert fused <= sum(n.op_type == "Relu" for n in captured(form.net).nodes)
    rank = summarize(path).largest_rank
    if target == "tflite" and form.name != "native":
        assert rank is not None
        assert 4 >= rank.rank


@pytest.mark.parametrize("form", MUTATED, ids=str)
@pytest.mark.parametrize("target", TARGETS)
def test_every_form_passes_in_the_other_layout(form: Form, target: str, tmp_path: Path) -> None:
    layout: Layout = "nchw" if TARGETS[target].default_layout == "nhwc" else "nhwc"
    path = write(form, target, tmp_path, "fp32", layout)
    assert agrees(path, form.net, "fp32")
    assert examined(path, form.net, "fp32").divergence is None


@functools.cache
def original(form: Form, target: str, precision: Precision) -> Path:
    return write(form, target, Path(tempfile.mkdtemp(prefix="rewritten")), precision)


@pytest.fixture(scope="module", autouse=True)
def _clean() -> Iterator[None]:
    yield
    for form in MUTATED:
        for kind in KINDS:
            shutil.rmtree(original(form, *kind).parent)
    original.cache_clear()


@pytest.fixture(params=[(f, *k) for f in MUTATED for k in KINDS], ids=lambda p: f"{p[0]}-{p[1]}-{p[2]}")
def spoilt(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Form, str, Path]:
    """A copy of a sound file, for the test to spoil, with its form and its precision."""
    form, target, precision = request.param
    source = original(form, target, precision)
    path = tmp_path / source.name
    if source.is_dir():
        shutil.copytree(source, path)
    else:
        shutil.copy(source, path)
    return form, precision, path


def assert_named(found: Divergence | None, layer: str) -> Divergence:
    assert found is not None
    assert "jump" == found.kind
    assert any(node.startswith(f"{layer} (") for node in found.layer.nodes), found.sentence
    assert () == found.others, found.sentence
    return found


def test_a_deleted_weight_column_is_found(spoilt: tuple[Form, str, Path]) -> None:
    form, precision, path = spoilt
    mutate.weight(path, "stage2.1.branch2.1", mutate.zero_heaviest_column)
    found = assert_named(examined(path, form.net, precision).divergence, "stage2.1.branch2.1")
    assert "stage2.1.branch2.1 (Conv) contributes nothing" in found.diagnosis.sentence
    assert not agrees(path, form.net, precision)


def test_swapped_channels_of_a_branch_are_found(spoilt: tuple[Form, str, Path]) -> None:
    form, precision, path = spoilt
    layer = "stage2.1.branch2.6"
    held = {"fold-split": f"{layer}.part0", "masked": "stage2.1.branch2.7.slots.conv"}.get(form.name, layer)
    swap = mutate.SwapHeaviestRows()
    mutate.weight(path, held, swap)
    mutate.bias(path, held, swap)
    found = assert_named(examined(path, form.net, precision).divergence, layer)
    assert "channels permuted" == found.diagnosis.cause
    assert not agrees(path, form.net, precision)


def test_a_moved_pad_is_found(spoilt: tuple[Form, str, Path]) -> None:
    form, precision, path = spoilt
    mutate.pads(path, "stage3.0.branch2.4", (0, 0, 2, 2))
    found = assert_named(examined(path, form.net, precision).divergence, "stage3.0.branch2.4")
    assert "padding" == found.diagnosis.cause
    assert not agrees(path, form.net, precision)
