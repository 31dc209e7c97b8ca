"""What TensorFlow Lite's log says about who really ran a model.

The runtime prints ``Replacing X out of Y node(s) with delegate (NAME) node, yielding Z partitions`` each time
that a delegate takes operators (``Replacing X node(s)`` in older versions). Several may take some of the same
graph: a GPU that took 5 of 64 operators leaves the rest to XNNPACK, and the run is the CPU's.
"""

import re
from dataclasses import replace
from typing import Final

from shufflectl.benchmarks.results import Delegation
from shufflectl.errors import UnavailableError

__all__ = ["delegations", "require_accelerator"]

_REPLACING: Final = re.compile(
    r"Replacing (\d{1,7})(?: out of (\d{1,7}))? node\(s\) with delegate \(([^)\n]{1,80})\) node, "
    r"yielding (\d{1,7}) partitions"
)
_COMPLETE: Final = "the model graph will be completely executed by the delegate"
_GPU: Final = re.compile(r"gpu|LITERT_CL|LITERT_GL|LITERT_WEBGPU|LITERT_METAL|LITERT_VULKAN", re.IGNORECASE)
_NAMES: Final = {"gpu": _GPU, "nnapi": re.compile("nnapi", re.IGNORECASE)}
# Said by the tools and the delegates when the accelerator did not do it.
_FAILURES: Final = (
    "Failed to apply",
    "Failed to create",
    "delegate is not initialized",
    "not initialized",
    "unsupported on this platform",
    "will not be executed by the delegate",
    "will be partially executed by the delegate",
    "Disallowed CPU fallback",
    "not fully accelerated",
    "not fully delegated",
    "Falling back to CPU",
    "fallback to CPU",
    "falling back to the CPU",
)
_OPENGL: Final = re.compile(r"Falling back to OpenGL|Initialized OpenGL-based API", re.IGNORECASE)


def delegations(log: str) -> tuple[Delegation, ...]:
    """Return what each delegate took, in order. The name is the delegate's own."""
    return tuple(
        Delegation(match[3].strip(), int(match[1]), int(match[2]) if match[2] else None, int(match[4]))
        for match in _REPLACING.finditer(log)
    )


def require_accelerator(runner: str, accelerator: str, log: str) -> Delegation | None:
    """Return what the accelerator took, after making sure that it took everything.

    For the CPU: what XNNPACK took last, or None where the log does not say.

    Raises:
        UnavailableError: An accelerator took nothing or a part, failed, or the log does not prove that it
            ran the model.
    """
    taken = delegations(log)
    if accelerator == "cpu":
        others = [item for item in taken if "xnnpack" not in item.accelerator.lower()]
        if others:
            raise _not_used(runner, "cpu", f"the delegate {others[0].accelerator} took operators")
        return replace(taken[-1], accelerator="xnnpack") if taken else None
    failure = next((line.strip() for line in log.splitlines() if any(w in line for w in _FAILURES)), None)
    if failure is not None:
        raise _not_used(runner, accelerator, failure)
    own = [item for item in taken if _NAMES[accelerator].search(item.accelerator)]
    if not own:
        raise _not_used(runner, accelerator, "its log does not say that the accelerator took any operator")
    found = own[-1]
    whole = found.replaced == found.total if found.total is not None else _COMPLETE in log
    if not whole:
        total = "" if found.total is None else f" of {found.total}"
        raise _not_used(
            runner, accelerator, f"{found.replaced}{total} operators ran there, the rest on the CPU"
        )
    rest = [item for item in taken if item not in own]
    if rest:
        raise _not_used(runner, accelerator, f"the delegate {rest[0].accelerator} took operators as well")
    opengl = accelerator == "gpu" and _OPENGL.search(log)
    return replace(found, accelerator="gpu (OpenGL, for want of OpenCL)" if opengl else accelerator)


def _not_used(runner: str, accelerator: str, why: str) -> UnavailableError:
    text = "".join(char if char.isprintable() else "?" for char in why)[:300]
    return UnavailableError(
        f"the model did not run on {accelerator.upper()} alone with the {runner} runner: {text}",
        hint="shufflectl inspect shows which operators a GPU takes; or measure with --accelerator cpu",
    )
