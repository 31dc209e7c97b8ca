"""ai-edge-quantizer's own static quantisation of litert-torch's export: the recipe static_wi8_ai8.

Usage: tflite_quantised.py FLOAT.tflite IMAGES.npy OUT.tflite

IMAGES holds what the network takes, float32, [N, 3, H, W].
"""

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer, recipe


def main(source: str, images: str, out: str) -> None:
    interpreter = Interpreter(source)
    ((key, ports),) = interpreter.get_signature_list().items()
    turned = tuple(interpreter.get_input_details()[0]["shape"])[1] != 3
    arrays = np.load(images)
    arrays = arrays.transpose(0, 2, 3, 1) if turned else arrays
    feeds = [{ports["inputs"][0]: np.ascontiguousarray(image[np.newaxis])} for image in arrays]
    made = quantizer.Quantizer(source, recipe.static_wi8_ai8())
    made.quantize(made.calibrate({key: feeds})).export_model(out, overwrite=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
