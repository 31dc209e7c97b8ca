"""Measurement on Android phones: `open_executor` finds a phone and a runner for `shufflectl.benchmarks`."""

from shufflectl.benchmarks.android.conditions import Cooling
from shufflectl.benchmarks.android.executor import AndroidExecutor, AndroidOptions, open_executor
from shufflectl.benchmarks.android.runners import KINDS

__all__ = ["KINDS", "AndroidExecutor", "AndroidOptions", "Cooling", "open_executor"]
