"""A network in codes as an export makes it: a goal that is reached stays reached."""

from pathlib import Path

import numpy as np
import pytest

from converters.quantize.nets import images
from converters.rewrite.random_nets import Net
from shufflectl.converters.metadata import ModelInfo
from shufflectl.converters.quantize.calibration import Calibration
from shufflectl.deploy import calibration as source
from shufflectl.deploy.calibration_options import CalibrationOptions
from shufflectl.deploy.codes import calibrated
from shufflectl.deploy.options import ExportRequest
from shufflectl.deploy.pixels import Given
from shufflectl.deploy.sensitivity import output_sqnr

GOAL = 46.0


def test_settled_biases_do_not_undo_a_goal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def spoil(self: source.Calibrator, floats: frozenset[str]) -> Calibration:
        # As few images may: the last biases fit them, and nothing else.
        settled = original(self, floats)
        shifts = {name: array + 0.5 for name, array in settled.shifts.items()}
        return type(settled)(**{**vars(settled), "shifts": shifts})

    original = source.Calibrator.settled
    monkeypatch.setattr(source.Calibrator, "settled", spoil)
    net = Net(5, batch=1)
    x = net.input(3, 8)
    for _ in range(5):
        x = net.act(net.conv(x, 8))
    net.outputs.append(net.classify(x, 4))
    graph = net.finish()
    np.savez(tmp_path / "images.npz", image=np.concatenate(images(graph, 8)))
    request = ExportRequest.parse(
        model="net.onnx",
        targets=["onnx"],
        precisions=["int8"],
        batch="1",
        layout=None,
        out=tmp_path,
        calibration=CalibrationOptions(str(tmp_path / "images.npz"), 8),
        target_sqnr=GOAL,
    )
    found = calibrated(request, Given(graph, request, None), ModelInfo("net"), lambda *_: None)
    assert found.images is not None
    assert found.quantized.floats
    assert GOAL <= output_sqnr(found.quantized, found.images, None)
