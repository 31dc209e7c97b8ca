"""ONNX operators as TFLite's."""
