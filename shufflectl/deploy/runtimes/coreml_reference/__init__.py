"""A reference runtime for Core ML programs that works on any platform."""

from shufflectl.deploy.runtimes.coreml_reference.runtime import CoreMLReference

__all__ = ["CoreMLReference"]
