"""A network in codes as an export makes it: a goal that is reached stays reached."""

from pathlib import Path

import pytest

from shufflectl.converters.quantize.calibration import Calibration
from shufflectl.deploy import calibration as source
from shufflectl.deploy.calibration_options import CalibrationOptions
from shufflectl.deploy.codes import calibrated
from shufflectl.deploy.export import open_subject
from shufflectl.deploy.options import ExportRequest
from shufflectl.deploy.pixels import give_pixels
from shufflectl.deploy.sensitivity import output_sqnr

GOAL = 36.0


def test_settled_biases_do_not_undo_a_goal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def spoil(self: source.Calibrator, floats: frozenset[str]) -> Calibration:
        # As few images may: the last biases fit them, and nothing else.
        settled = original(self, floats)
        shifts = {name: array + 0.5 for name, array in settled.shifts.items()}
        return type(settled)(**{**vars(settled), "shifts": shifts})

    original = source.Calibrator.settled
    monkeypatch.setattr(source.Calibrator, "settled", spoil)
    request = ExportRequest.parse(
        model="shufflenet_v2_x0_5",
        weights="digits",
        targets=["onnx"],
        precisions=["int8"],
        batch="1",
        layout=None,
        out=tmp_path,
        calibration=CalibrationOptions("digits", 8),
        target_sqnr=GOAL,
    )

    def silent(_what: str, _done: int, _total: int) -> None:
        pass

    subject = open_subject(request, silent)
    given = give_pixels(request, subject.graph, subject.info.preprocess)
    found = calibrated(request, given, subject.info, silent)
    assert found.images is not None
    assert GOAL <= output_sqnr(found.quantized, found.images, given.expects)
