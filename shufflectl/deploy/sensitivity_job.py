"""What `shufflectl sensitivity` does: open a network, calibrate it, measure its layers."""

from shufflectl.deploy.calibration import Calibrator
from shufflectl.deploy.export import open_subject
from shufflectl.deploy.options import ExportRequest
from shufflectl.deploy.pixels import give_pixels
from shufflectl.deploy.quantization import Quantized
from shufflectl.deploy.sensitivity import Sensitivity, sensitivity
from shufflectl.deploy.verify import Notify
from shufflectl.errors import UsageError

__all__ = ["measure_sensitivity"]


def measure_sensitivity(request: ExportRequest, notify: Notify) -> Sensitivity:
    """Return what each layer of a network costs.

    Raises:
        ShufflectlError: As `deploy.export.export`.
    """
    if request.calibration is None or request.calibration.made_before is not None:
        raise UsageError(
            "layers are measured on images", hint="give --calibration a folder, an .npz file, or digits"
        )
    subject = open_subject(request, notify)
    given = give_pixels(request, subject.graph, subject.info.preprocess)
    calibrator = Calibrator(given.graph, request.calibration, subject.info.preprocess, given.expects, notify)
    if calibrator.images is None:
        raise UsageError("layers are measured on images", hint="give --calibration images")
    quantized = Quantized(given.graph, calibrator.observed)
    return sensitivity(subject.info.stem, quantized, calibrator.images, given.expects, notify)
