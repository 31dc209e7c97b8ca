"""ONNX Runtime's own static quantisation of an official export: Q/DQ, weights by output channel, min-max.

Usage: onnx_quantised.py FLOAT.onnx IMAGES.npy OUT.onnx

IMAGES holds what the network takes, float32, [N, 3, H, W]. The export goes through the preparation that the
documentation asks for first.
"""

import logging
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
)


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands out images one at a time, under the graph's name of its input."""

    def __init__(self, name: str, images: NDArray[np.float32]) -> None:
        self._feeds = ({name: image[np.newaxis]} for image in images)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next image; None behind the last."""
        return next(self._feeds, None)


def main(source: str, images: str, out: str) -> None:
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared)
        name = onnx.load(prepared, load_external_data=False).graph.input[0].name
        quantize_static(
            prepared,
            out,
            Reader(name, np.load(images)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
