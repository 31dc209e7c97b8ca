"""The TFLite target: a flatbuffer writer and its operators."""
