"""What is known of a Core ML file and the Neural Engine, from the file alone.

Core ML decides on the device which operation runs where, and nothing public says by which rules: "There is no
static documentation, as it changes based on device generation, operating system version, tensor sizes etc."
(an engineer of Apple, github.com/apple/coremltools/issues/1780). So this is a list of what Apple's own pages
state, and of what users report, with the source of each; only `MLComputePlan` on a Mac or an iPhone tells.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from shufflectl.deploy.runtimes.coreml_reference.package import read_model
from shufflectl.deploy.runtimes.coreml_reference.protos import message_modules

__all__ = ["NeuralEngineNote", "NeuralEngineReport", "read_neural_engine"]

_CAVEAT: Final = (
    "rules and reports only: MLComputePlan on a Mac or an iPhone tells where operations really run"
)

Certainty = Literal["stated", "reported", "conflicting"]
"""``stated``: by Apple. ``reported``: by users. ``conflicting``: reports disagree, or there are none."""

_MOST_RANK: Final = 5
_LARGEST_WINDOW: Final = 13
_WIDE_CONCAT: Final = 1600
_UNSUPPORTED: Final = "github.com/hollance/neural-engine, docs/unsupported-layers.md"
_RECURRENT: Final = ("lstm", "gru", "rnn")
_GATHERING: Final = (
    "gather",
    "gather_along_axis",
    "gather_nd",
    "scatter",
    "scatter_along_axis",
    "scatter_nd",
)
_WINDOWED: Final = ("conv", "conv_transpose", "avg_pool", "max_pool", "l2_pool")
_SHUFFLING: Final = ("reshape", "transpose", "concat", "split", "slice_by_index", "slice_by_size")


@dataclass(frozen=True)
class NeuralEngineNote:
    """What is known against an operation.

    Attributes:
        operation: The operation's first output.
        type: Its type.
        certainty: How certain it is that the operation leaves the Neural Engine.
        why: What is known, in a few words.
        source: Who says so.
    """

    operation: str
    type: str
    certainty: Certainty
    why: str
    source: str


@dataclass(frozen=True)
class NeuralEngineReport:
    """What is known of a package.

    Attributes:
        operations: How many operations there are, constants and conversions between types left out.
        notes: What is known against some of them, the most certain note for each.
        interleaved: Concatenations that interleave channels: shuffles that Core ML's own pass found.
        shuffles: Tensors of rank 5 or more: shuffles that are left as they were.
        caveat: What all of this cannot tell.
    """

    operations: int
    notes: tuple[NeuralEngineNote, ...]
    interleaved: tuple[str, ...]
    shuffles: tuple[str, ...]
    caveat: str = _CAVEAT

    @property
    def leaving(self) -> tuple[NeuralEngineNote, ...]:
        """The notes on operations that leave the Neural Engine, as stated or reported."""
        return tuple(note for note in self.notes if note.certainty != "conflicting")


@dataclass(frozen=True)
class _Operation:
    name: str
    type: str
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    numbers: Mapping[str, tuple[int, ...]]
    kernel: tuple[int, ...]

    @property
    def rank(self) -> int:
        return max((len(shape) for shape in self.shapes), default=0)


_Rule = tuple[Certainty, str, Callable[[_Operation], str]]
"""How certain, who says so, and what is known against an operation (empty where nothing is)."""


def read_neural_engine(path: Path) -> NeuralEngineReport:
    """Return what is known of a ``.mlpackage``.

    Raises:
        ArtifactError: As `coreml_file.read_coreml`.
        MissingDependencyError: coremltools is not installed.
    """
    spec, _ = read_model(path)
    function = spec.mlProgram.functions[spec.description.defaultFunctionName or "main"]
    block = function.block_specializations[function.opset]
    found = [op for op in _operations(function, block) if op.type != "cast"]
    notes = []
    for op in found:
        for certainty, source, rule in _RULES:
            if why := rule(op):
                notes.append(NeuralEngineNote(op.name, op.type, certainty, why, source))
                break
    return NeuralEngineReport(
        operations=len(found),
        notes=tuple(notes),
        interleaved=tuple(op.name for op in found if op.type == "concat" and any(op.numbers["interleave"])),
        shuffles=tuple(op.name for op in found if op.type in _SHUFFLING and op.rank >= 5),
    )


def _operations(function: Any, block: Any) -> Iterator[_Operation]:
    _, mil = message_modules()
    types = {number: name.lower() for name, number in mil.DataType.items()}
    shapes: dict[str, tuple[int, ...]] = {}
    numbers: dict[str, tuple[int, ...]] = {}
    for item in function.inputs:
        shapes[item.name] = _shape(item.type)
    for message in block.operations:
        for item in message.outputs:
            shapes[item.name] = _shape(item.type)
        if message.type == "const" or message.type.startswith("constexpr_"):
            value = message.attributes.get("val")
            for item in message.outputs:
                numbers[item.name] = () if value is None else _numbers(value)
            continue
        bound = {name: _bound(argument, numbers) for name, argument in message.inputs.items()}
        weight = _names(message.inputs.get("weight"))
        outputs = list(message.outputs)
        yield _Operation(
            name=outputs[0].name if outputs else str(message.type),
            type=str(message.type),
            shapes=tuple(shapes[item.name] for item in outputs)
            + tuple(shapes.get(name, ()) for name in _names(message.inputs.get("x"))),
            dtypes=tuple(types.get(item.type.tensorType.dataType, "") for item in outputs),
            numbers=_Numbers(bound),
            kernel=shapes.get(weight[0], ()) if weight else (),
        )


class _Numbers(dict[str, tuple[int, ...]]):
    """The integers that parameters are bound to; none for one that is left out."""

    def __missing__(self, key: str) -> tuple[int, ...]:
        return ()


def _names(argument: Any) -> list[str]:
    bindings = argument.arguments if argument is not None else ()
    return [str(b.name) for b in bindings if b.WhichOneof("binding") == "name"]


def _bound(argument: Any, numbers: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    found: tuple[int, ...] = ()
    for binding in argument.arguments:
        if binding.WhichOneof("binding") == "name":
            found += numbers.get(binding.name, ())
        else:
            found += _numbers(binding.value)
    return found


def _numbers(value: Any) -> tuple[int, ...]:
    if value.WhichOneof("value") != "immediateValue":
        return ()
    tensor = value.immediateValue.tensor
    return tuple(int(v) for v in tensor.ints.values or tensor.bools.values)


def _shape(message: Any) -> tuple[int, ...]:
    """Return a tensor's shape; 1 for a free dimension."""
    if message.WhichOneof("type") != "tensorType":
        return ()
    return tuple(
        int(d.constant.size) if d.WhichOneof("dimension") == "constant" else 1
        for d in message.tensorType.dimensions
    )


def _precision(op: _Operation) -> str:
    return "it computes in float32" if "float32" in op.dtypes else ""


def _window(op: _Operation) -> str:
    sizes = op.kernel[2:] if op.type.startswith("conv") else op.numbers["kernel_sizes"]
    largest = max(sizes, default=0)
    return f"a window of {largest}" if op.type in _WINDOWED and largest > _LARGEST_WINDOW else ""


def _dilation(op: _Operation) -> str:
    widest = max(op.numbers["dilations"], default=1)
    return f"dilation {widest}" if op.type.startswith("conv") and widest > 1 else ""


def _wide(op: _Operation) -> str:
    shape = op.shapes[0] if op.shapes else ()
    return (
        f"{shape[1]} channels joined"
        if op.type == "concat" and len(shape) == 4 and shape[1] >= _WIDE_CONCAT
        else ""
    )


_RULES: Final[Sequence[_Rule]] = (
    (
        "stated",
        "github.com/apple/coremltools/issues/2536",
        lambda op: f"rank {op.rank}: Core ML takes up to {_MOST_RANK}" if op.rank > _MOST_RANK else "",
    ),
    (
        "stated",
        "coremltools guide, Typed Execution Workflow Example: a float32 model executes on the GPU and CPU",
        _precision,
    ),
    (
        "stated",
        "github.com/apple/coremltools/issues/1780",
        lambda op: "recurrent" if op.type in _RECURRENT else "",
    ),
    (
        "reported",
        f"{_UNSUPPORTED}; github.com/apple/coremltools/issues/1103",
        lambda op: "gathers or scatters" if op.type in _GATHERING else "",
    ),
    ("reported", "github.com/hollance/neural-engine/issues/1", _window),
    ("conflicting", f"{_UNSUPPORTED} (a guess, by its own words)", _dilation),
    (
        "conflicting",
        "no public statement; github.com/hollance/neural-engine, docs/unsupported-layers.md, on N-D layers",
        lambda op: f"moves channels at rank {op.rank}" if op.type in _SHUFFLING and op.rank >= 5 else "",
    ),
    ("conflicting", "developer.apple.com/forums/thread/720810: wrong results on iPhone 13 and 14", _wide),
)
"""The most certain first; each operation is given its first."""
