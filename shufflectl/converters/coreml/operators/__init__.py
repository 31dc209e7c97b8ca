"""ONNX operators as MIL."""
