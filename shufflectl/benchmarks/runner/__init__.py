"""Our own runner: a C program over LiteRT's C API that measures on phones and here. See ``runner.c``."""

from shufflectl.benchmarks.runner.build import NAME, SOURCES, build, built, library

__all__ = ["NAME", "SOURCES", "build", "built", "library"]
