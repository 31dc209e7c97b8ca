"""An int8 file is held against the graph in codes: it passes as exported, and fails with a spoilt scale."""

import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from converters.quantize.nets import images, runner
from converters.rewrite.nets import captured
from shufflectl.converters.metadata import ModelInfo
from shufflectl.converters.quantize.calibrate import calibrate
from shufflectl.converters.quantize.recipe import Recipe
from shufflectl.converters.quantize.scales import Scale
from shufflectl.converters.rewrite.choose import Candidate
from shufflectl.converters.rewrite.lowering import Options
from shufflectl.converters.targets import TARGETS, EmitOptions
from shufflectl.deploy import runtimes
from shufflectl.deploy.parity.codes import CodeCounter, CodeReference
from shufflectl.deploy.parity.limits import CODE_LIMITS
from shufflectl.deploy.parity.locate import Divergence, Examination, examine
from shufflectl.deploy.quantization import Quantized
from shufflectl.models.shufflenet_v1 import ShuffleNetV1
from support import spoil_codes
from support.nets import randomise, tiny_graph

IMAGES = np.random.default_rng(7).standard_normal((3, 3, 32, 32), dtype=np.float32)
FORMS = {"onnx": "fold-split", "tflite": "fold", "coreml": "native"}
LAYER = "stage2.0.branch2.4"
"""A convolution whose result is rounded as it is, without an activation."""


@functools.cache
def quantized() -> Quantized:
    graph = tiny_graph()
    found = calibrate(graph, runner(images(graph, 8)), Recipe(), source="noise", images=8, seed=0)
    return Quantized(graph, found)


@functools.cache
def original(target: str) -> Path:
    path = Path(tempfile.mkdtemp(prefix="codes")) / f"tiny{TARGETS[target].extension}"
    graph, _ = quantized().form(Candidate(FORMS[target], Options()))
    options = EmitOptions("int8", minimum_deployment_target="iOS17")
    TARGETS[target].emit(graph, ModelInfo("tiny", precision="int8"), options, path)
    return path


@pytest.fixture(scope="module", autouse=True)
def _clean() -> Iterator[None]:
    yield
    for target in FORMS:
        shutil.rmtree(original(target).parent)
    original.cache_clear()


@pytest.fixture(params=FORMS)
def artifact(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    source = original(request.param)
    path = tmp_path / source.name
    if source.is_dir():
        shutil.copytree(source, path)
    else:
        shutil.copy(source, path)
    return path


def examined(path: Path) -> Examination:
    target = next(row.name for row in TARGETS.values() if row.extension == path.suffix)
    limits = CODE_LIMITS[target]
    with runtimes.choose(target, ()).load(path) as session:
        codes = CodeReference(quantized().in_codes, limits)
        return examine(quantized().reference(), session, {"image": IMAGES}, limits.numbers, codes=codes)


def held_as(path: Path, tensor: str) -> str:
    target = next(row.name for row in TARGETS.values() if row.extension == path.suffix)
    with runtimes.choose(target, ()).load(path) as session:
        return session.trace[tensor].name


def culprit(path: Path) -> Divergence:
    found = examined(path).divergence
    assert found is not None
    assert "jump" == found.kind
    return found


def test_a_file_as_exported_agrees_in_codes(artifact: Path) -> None:
    found = examined(artifact)
    assert found.divergence is None
    assert not found.blind
    coded = [layer for layer in found.layers if layer.codes is not None]
    assert len(coded) > 10
    assert all(layer.codes and layer.codes.largest <= 1 for layer in coded)


@pytest.mark.parametrize("target", FORMS)
def test_several_roundings_between_two_tensors_are_allowed_for(target: str, tmp_path: Path) -> None:
    # V1's sums are made of tensors that no file names: what a ReLU behind the concat cuts off is not there.
    net = randomise(ShuffleNetV1(2, None, 5, stem=8, stages=(16, 32, 48), units=(2, 1, 1)))
    graph = captured(net, size=64)
    found = calibrate(graph, runner(images(graph, 8)), Recipe(), source="noise", images=8, seed=0)
    network = Quantized(graph, found)
    path = tmp_path / f"v1{TARGETS[target].extension}"
    options = EmitOptions("int8", minimum_deployment_target="iOS17")
    form, _ = network.form(Candidate("fold" if target != "coreml" else "native"))
    TARGETS[target].emit(form, ModelInfo("v1", precision="int8"), options, path)
    limits = CODE_LIMITS[target]
    feeds = {str(graph.inputs[0].name): np.concatenate(images(graph, 2, seed=5))}
    with runtimes.choose(target, ()).load(path) as session:
        codes = CodeReference(network.in_codes, limits)
        seen = examine(network.reference(), session, feeds, limits.numbers, codes=codes)
    assert seen.divergence is None, seen.divergence.sentence


def test_a_scale_that_is_two_percent_off_is_named(artifact: Path) -> None:
    spoil_codes.activation_scale(artifact, held_as(artifact, LAYER), 1.02)
    found = culprit(artifact)
    assert LAYER == found.tensor
    assert "scale" == found.diagnosis.cause
    assert "the calibration says" in found.sentence


@pytest.mark.parametrize("step", [-1, 1])
def test_a_zero_point_that_is_one_off_is_named(artifact: Path, step: int) -> None:
    spoil_codes.zero_point(artifact, held_as(artifact, LAYER), step)
    found = culprit(artifact)
    assert LAYER == found.tensor
    assert "zero point" == found.diagnosis.cause


@pytest.mark.parametrize("target", ["onnx", "tflite"])
def test_a_bias_of_another_scale_is_named(target: str, tmp_path: Path) -> None:
    path = Path(shutil.copy(original(target), tmp_path))
    spoil_codes.bias_scale(path, held_as(path, LAYER), 1.05)
    found = culprit(path)
    assert LAYER == found.tensor
    assert "bias" == found.diagnosis.cause


@pytest.mark.parametrize("target", ["onnx", "tflite"])
def test_swapped_scales_of_two_channels_are_named(target: str, tmp_path: Path) -> None:
    path = Path(shutil.copy(original(target), tmp_path))
    spoil_codes.swap_weight_scales(path, held_as(path, LAYER), 0, 1)
    assert LAYER == culprit(path).tensor


def test_codes_are_counted_by_steps() -> None:
    counter = CodeCounter(Scale(0.5, 3))
    counter.add(np.asarray([0.0, 1.0, 2.0, -1.0]), np.asarray([0.0, 1.5, 2.01, -1.0]))
    found = counter.result(CODE_LIMITS["onnx"])
    assert (4, 1, 1.0) == (found.elements, found.different, found.largest)
    assert found
    counter.add(np.asarray([1.0]), np.asarray([np.nan]))
    assert not counter.result(CODE_LIMITS["onnx"])


@pytest.mark.parametrize(("different", "elements", "largest"), [(3, 100, 1), (1, 10**6, 2)])
def test_too_many_codes_or_too_many_steps_fail(different: int, elements: int, largest: int) -> None:
    assert not CODE_LIMITS["onnx"].allow(different, elements, largest)
    assert CODE_LIMITS["onnx"].allow(2, elements, 1)
