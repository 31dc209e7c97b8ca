"""What several delegates ask of an operator, as checks that their tables are made of."""

from collections.abc import Callable, Collection

from shufflectl.deploy.inspect.delegates import Check
from shufflectl.deploy.inspect.tflite_graph import Node, Tensor

__all__ = [
    "ACTIVATIONS",
    "activation",
    "all_of",
    "constant",
    "dtype",
    "inputs",
    "no_options",
    "option",
    "outputs",
    "rank",
    "runtime_inputs",
    "window",
]

ACTIVATIONS = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")
"""Fused activations by their number in the schema."""


def all_of(*checks: Check) -> Check:
    """Return a check that makes several, in order."""
    return lambda node: next((why for check in checks if (why := check(node))), "")


def inputs(least: int, most: int | None = None) -> Check:
    """Ask for so many inputs, given or not."""
    most = least if most is None else most

    def check(node: Node) -> str:
        count = len(node.inputs)
        if least <= count <= most:
            return ""
        asked = str(least) if least == most else f"{least} to {most}"
        return f"{count} inputs, and it takes {asked}"

    return check


def outputs(least: int, most: int | None = None) -> Check:
    """Ask for so many outputs."""
    most = least if most is None else most

    def check(node: Node) -> str:
        count = len(node.outputs)
        if least <= count <= most:
            return ""
        asked = str(least) if least == most else f"{least} to {most}"
        return f"{count} outputs, and it takes {asked}"

    return check


def runtime_inputs(*counts: int) -> Check:
    """Ask for so many inputs that differ from run to run."""

    def check(node: Node) -> str:
        count = len(node.runtime_inputs)
        if count in counts:
            return ""
        return f"{count} inputs that are not constant, and it takes {' or '.join(map(str, counts))}"

    return check


def dtype(allowed: Collection[str], *, input: int | None = None, output: int | None = None) -> Check:  # noqa: A002 - what the schema calls it
    """Ask for the type of an input or an output."""

    def check(node: Node) -> str:
        tensor = _chosen(node, input, output)
        if tensor is None or tensor.dtype in allowed:
            return ""
        return f"type {tensor.dtype} of {tensor.name!r}, and it takes {', '.join(sorted(allowed))}"

    return check


def rank(
    *,
    least: int = 0,
    most: int = 64,
    input: int | None = None,  # noqa: A002 - what the schema calls it
    output: int | None = None,
) -> Check:
    """Ask for the rank of an input or an output."""

    def check(node: Node) -> str:
        tensor = _chosen(node, input, output)
        if tensor is None or least <= tensor.rank <= most:
            return ""
        asked = f"rank {least}" if least == most else f"rank {least} to {most}" if least else f"up to {most}"
        return f"rank {tensor.rank} of {tensor.name!r}, and it takes {asked}"

    return check


def constant(position: int, what: str, types: Collection[str] = ()) -> Check:
    """Ask for a constant input, of one of several types where they are given."""

    def check(node: Node) -> str:
        tensor = node.input(position)
        if tensor is None or not tensor.constant:
            return f"{what} that is not constant"
        if types and tensor.dtype not in types:
            return f"{what} of type {tensor.dtype}, and it takes {', '.join(sorted(types))}"
        return ""

    return check


def option(name: str, accepts: Callable[[float], bool], why: str) -> Check:
    """Ask something of an option; one that the file leaves out is 0."""
    return lambda node: "" if accepts(node.options.get(name, 0)) else why


def no_options(*names: str) -> Check:
    """Ask for options to be 0."""

    def check(node: Node) -> str:
        set_here = [name for name in names if node.options.get(name, 0)]
        return f"the option {set_here[0]}" if set_here else ""

    return check


def activation(*allowed: str) -> Check:
    """Ask for the fused activation."""

    def check(node: Node) -> str:
        number = int(node.options.get("fusedActivationFunction", 0))
        name = ACTIVATIONS[number] if 0 <= number < len(ACTIVATIONS) else str(number)
        return "" if name in allowed else f"the fused activation {name}"

    return check


def window(node: Node) -> str:
    """Ask for a pooling window without gaps, as XNNPACK does."""
    sizes = [int(node.options.get(key, 0)) for key in ("filterHeight", "filterWidth", "strideH", "strideW")]
    if sizes[2] > sizes[0] or sizes[3] > sizes[1]:
        return f"stride {sizes[2]}x{sizes[3]} larger than the window {sizes[0]}x{sizes[1]}"
    return ""


def _chosen(node: Node, position: int | None, result: int | None) -> Tensor | None:
    if position is not None:
        return node.input(position)
    return node.outputs[result] if result is not None and result < len(node.outputs) else None
