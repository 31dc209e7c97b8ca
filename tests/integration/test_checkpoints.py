"""Checkpoints as other people write them: identified, exported and held against torch, from the file."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from shufflectl.deploy.export import export
from shufflectl.deploy.options import ExportRequest, ParityOptions
from shufflectl.models.checkpoints.files import read
from shufflectl.models.checkpoints.identify import identify
from support.nets import randomise
from support.wild import MegviiV1, MegviiV2, MmV1, MmV2, pytorchcv_model, torchvision_v2

pytestmark = pytest.mark.integration

# Each layout of each library, and with them each convention: the inverse shuffle, the split by parity with a
# narrow left branch, the shuffle behind the depthwise convolution, max pooling without padding.
DEFINITIONS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...], str]] = {
    "torchvision": (partial(torchvision_v2, "shufflenet_v2_x0_5"), ("onnx",), "shufflenet_v2_x0_5"),
    "megvii v1": (partial(MegviiV1, 8, "0.5x", 4), ("tflite",), "shufflenet_v1_g8_x0_5"),
    "megvii v2": (partial(MegviiV2, "1.0x", 4), ("onnx", "tflite"), "shufflenet_v2_x1_0"),
    "mmpretrain v1": (partial(MmV1, 2, 0.25, 4), ("onnx",), "shufflenet_v1_g2_6x48x104x200"),
    "mmpretrain v2": (partial(MmV2, 0.5, 4), ("tflite",), "shufflenet_v2_x0_5"),
    "pytorchcv v1": (
        partial(pytorchcv_model, "shufflenet_g3_wd4", num_classes=4),
        ("onnx",),
        "shufflenet_v1_g3_x0_25",
    ),
    "pytorchcv v2b": (
        partial(pytorchcv_model, "shufflenetv2b_wd2", num_classes=4),
        ("onnx",),
        "shufflenet_v2_x0_5",
    ),
    "pytorchcv v2": (
        partial(pytorchcv_model, "shufflenetv2_wd2", num_classes=4),
        ("coreml", "tflite"),
        "shufflenet_v2_x0_5",
    ),
}


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_a_checkpoint_becomes_files_that_agree_with_torch(definition: str, tmp_path: Path) -> None:
    build, targets, name = DEFINITIONS[definition]
    torch.save({"state_dict": randomise(build()).state_dict()}, tmp_path / "best.ckpt")
    found = identify(read(tmp_path / "best.ckpt")).match
    assert found is not None
    assert definition.startswith(found.layout.name)
    request = ExportRequest(
        weights=str(tmp_path / "best.ckpt"),
        targets=targets,
        out=tmp_path / "dist",
        input_size=64,
        parity=ParityOptions(images=2, random_images=2),
    )
    result = export(request)
    assert result.passed, result.failure
    assert {name} == {file.name.rpartition("-")[0] for file in (tmp_path / "dist").glob(f"{name}-*")}
    assert len(targets) == len(result.results)
