"""Work without the cyclic garbage collector, for a burst of allocations that all live to its end.

Tracing a model or building a program makes millions of small objects. Scanning them again and again costs
about a fifth of a capture's time.
"""

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["paused_collector"]


@contextlib.contextmanager
def paused_collector() -> Iterator[None]:
    """Keep the cyclic garbage collector from running in the body.

    The objects that exist already are set aside, so that a collection that the body itself asks for (as
    ``ct.convert`` does at its end) does not walk through everything that other libraries hold.
    """
    enabled = gc.isenabled()
    ours = gc.get_freeze_count() == 0  # what the caller has frozen stays so
    gc.disable()
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            # Moves the new objects to the oldest generation, without the scan that enabling would start.
            gc.freeze()
            gc.unfreeze()
        if enabled:
            gc.enable()
