"""Integer arithmetic: ranges are observed once, on the captured graph; all formats write the same scales."""
