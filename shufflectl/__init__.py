"""Export ShuffleNets to phones' formats and prove that the files compute the same function."""

__all__ = ["__version__"]
__version__ = "0.1.0"
