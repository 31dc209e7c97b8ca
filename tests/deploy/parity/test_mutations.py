"""A file in which one thing is spoilt fails, and the layer is named: all formats, both precisions."""

import functools
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shufflectl.converters.metadata import ModelInfo
from shufflectl.converters.targets import FLOATS, TARGETS, EmitOptions, Precision
from shufflectl.deploy import runtimes
from shufflectl.deploy.parity.limits import default_limits
from shufflectl.deploy.parity.locate import Divergence, locate
from shufflectl.deploy.parity.nway import Member, ParityReport, check_parity
from shufflectl.models.preprocess import DIGITS
from support import mutate
from support.nets import tiny_graph, tiny_v2

IMAGES = np.random.default_rng(7).standard_normal((3, 3, 32, 32), dtype=np.float32)
KINDS = [(target, precision) for target in TARGETS for precision in FLOATS]


@functools.cache
def original(target: str, precision: Precision) -> Path:
    path = Path(tempfile.mkdtemp(prefix="mutations")) / f"tiny{TARGETS[target].extension}"
    TARGETS[target].emit(tiny_graph(), ModelInfo("tiny", preprocess=DIGITS), EmitOptions(precision), path)
    return path


@pytest.fixture(scope="module", autouse=True)
def _clean() -> Iterator[None]:
    yield
    for target, precision in KINDS:
        shutil.rmtree(original(target, precision).parent)
    original.cache_clear()


@pytest.fixture
def artifact(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    source = original(*request.param)
    path = tmp_path / source.name
    if source.is_dir():
        shutil.copytree(source, path)
    else:
        shutil.copy(source, path)
    return path


def located(path: Path, precision: str) -> Divergence | None:
    target = next(row for row in TARGETS.values() if row.extension == path.suffix)
    with runtimes.choose(target.name, ()).load(path) as session:
        return locate(tiny_graph(), session, {"image": IMAGES}, default_limits(precision))


def compared(path: Path, precision: str) -> ParityReport:
    target = next(row for row in TARGETS.values() if row.extension == path.suffix)
    with runtimes.choose(target.name, ()).load(path) as session:
        members = [Member.from_session(path.name, precision, session)]
        return check_parity(Member.from_module("torch", tiny_v2()), members, {"random": IMAGES})


every = pytest.mark.parametrize(
    ("artifact", "precision"),
    [((target, precision), precision) for target, precision in KINDS],
    ids=[f"{target}-{precision}" for target, precision in KINDS],
    indirect=["artifact"],
)


def assert_named(found: Divergence | None, layer: str) -> Divergence:
    assert found is not None
    assert any(node.startswith(f"{layer} (") for node in found.layer.nodes), found.sentence
    assert 2 >= len(found.layer.nodes)
    assert "jump" == found.kind
    assert () == found.others, found.sentence
    return found


@every
def test_a_sound_file_passes(artifact: Path, precision: str) -> None:
    assert compared(artifact, precision)
    assert located(artifact, precision) is None


@every
@pytest.mark.parametrize(
    ("layer", "channel"),
    [("stage2.1.branch2.1", 3), ("stage3.0.branch1.3", 3), ("conv1.1", 1)],
)
def test_a_deleted_weight_column_is_found(layer: str, channel: int, artifact: Path, precision: str) -> None:
    mutate.weight(artifact, layer, mutate.zero_column(channel))
    found = assert_named(located(artifact, precision), layer)
    assert f"input channel {channel} of {layer} (Conv) contributes nothing" in found.diagnosis.sentence
    assert precision != "fp32" or not compared(artifact, precision)


@every
def test_a_deleted_column_of_the_classifier_is_found(artifact: Path, precision: str) -> None:
    mutate.weight(artifact, "logits", mutate.zero_column(20))
    found = assert_named(located(artifact, precision), "logits")
    assert "input channel 20 of logits (Gemm) contributes nothing" in found.diagnosis.sentence


@every
@pytest.mark.parametrize("layer", ["stage2.1.branch2.1", "stage2.0.branch2.4", "conv1.1"])
def test_swapped_channels_are_found(layer: str, artifact: Path, precision: str) -> None:
    mutate.swap_channels(artifact, layer, 2, 5)
    found = assert_named(located(artifact, precision), layer)
    sentences = {
        "channels 2 and 5 of 8 are swapped",
        # A depthwise filter stays with its input.
        f"the filters of output channels 2 and 5 of {layer} (Conv) are swapped",
    }
    assert found.diagnosis.sentence in sentences
    assert precision != "fp32" or not compared(artifact, precision)


@every
@pytest.mark.parametrize("layer", ["conv1.1", "stage3.0.branch2.4"])
def test_wrong_pads_are_found(layer: str, artifact: Path, precision: str) -> None:
    mutate.pads(artifact, layer, (0, 0, 2, 2))
    found = assert_named(located(artifact, precision), layer)
    assert "padding" == found.diagnosis.cause
    # At stride 2 the last row of padding goes unread, so one less does the same.
    assert found.diagnosis.sentence in {
        f"{layer} (Conv) pads [top, left, bottom, right] by [0, 0, {end}, {end}] where [1, 1, 1, 1] is right"
        for end in (1, 2)
    }
    assert not compared(artifact, precision)


@every
def test_wrong_pads_behind_the_first_pooling_are_found(artifact: Path, precision: str) -> None:
    """TFLite computes a row and a column more there, which a moved window reads: no pads explain that."""
    mutate.pads(artifact, "stage2.0.branch2.4", (0, 0, 2, 2))
    found = assert_named(located(artifact, precision), "stage2.0.branch2.4")
    assert found.diagnosis.cause == "padding" or artifact.suffix == ".tflite"
    assert not compared(artifact, precision)


@every
def test_a_spoilt_bias_is_found(artifact: Path, precision: str) -> None:
    mutate.bias(artifact, "stage2.1.branch2.6", lambda bias: bias + np.eye(8, dtype=bias.dtype)[4])
    found = assert_named(located(artifact, precision), "stage2.1.branch2.6")
    pattern = r"output channel 4 of 8: (1|1\.000|0\.999\d) is added, as of a wrong bias"
    assert re.fullmatch(pattern, found.diagnosis.sentence)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("precision", FLOATS)
def test_every_layer_is_named_when_a_column_of_it_is_missing(
    target: str, precision: Precision, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    convolutions = [node for node in tiny_graph().nodes if node.op_type in ("Conv", "Gemm")]
    for index, node in enumerate(convolutions):
        source = original(target, precision)
        path = tmp_path / f"{index}{source.suffix}"
        if source.is_dir():
            shutil.copytree(source, path)
        else:
            shutil.copy(source, path)
        layer = node.outputs[0].name or ""
        shape = node.inputs[1].shape
        assert shape is not None
        mutate.weight(path, layer, mutate.zero_column(int(rng.integers(int(shape[1])))))
        assert_named(located(path, precision), layer)
