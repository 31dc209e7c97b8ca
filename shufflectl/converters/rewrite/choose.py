"""Which lowering a target gets where the user does not say, and what else is worth measuring on a phone.

One row a target and precision, each with the evidence that it rests on. The figures are ratios of medians,
measured side by side in one process; docs/latency.md has their intervals and the machine.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

import onnx_ir as ir

from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.analyze import analyze
from shufflectl.converters.rewrite.lowering import LOWERINGS, Options, Report, apply, unchanged
from shufflectl.converters.targets import TARGETS
from shufflectl.errors import UsageError, nearest

__all__ = [
    "AUTO",
    "NATIVE",
    "NO_CODES",
    "Candidate",
    "Choice",
    "candidates",
    "choose",
    "lower",
    "parse_align",
    "settle",
]

AUTO: Final = "auto"
_MAX_ALIGN = 256


@dataclass(frozen=True)
class Candidate:
    """A lowering with its options: one way to write a graph.

    Attributes:
        form: A name of `LOWERINGS`.
        options: Padding, the width of concats, merged classes.
    """

    form: str
    options: Options = field(default_factory=Options)

    @property
    def label(self) -> str:
        """Its name in tables: ``fold-split, align 16, merge 16``."""
        parts = [self.form]
        if self.options.align > 1:
            parts.append(f"align {self.options.align}")
        if self.options.merge:
            parts.append(f"merge {self.options.merge}")
        if self.options.carry:
            parts.append(f"carry {self.options.carry}")
        if self.options.max_concat:
            parts.append(f"concat {self.options.max_concat}")
        return ", ".join(parts)

    def apply(self, graph: Graph) -> tuple[Graph, Report]:
        """Return the graph in this form, and what was changed; see `lowering.apply`."""
        return apply(self.form, graph, self.options)

    def to_json(self) -> dict[str, Any]:
        """Return the candidate as JSON values."""
        return {"form": self.form, **self.options.to_json()}


NATIVE: Final = Candidate("native")
"""The graph as it was captured."""


@dataclass(frozen=True)
class Choice:
    """The form that a target gets.

    Attributes:
        candidate: The form.
        why: Why this one, in one sentence.
        source: The measurement or the document that says so.
        phone: Where the best form depends on the phone: on what, and what to try there. Empty otherwise.
        otherwise: What is better for graphs that it does not suit; see `settle`.
        avoid: Operators that the runtime does not take; a form that needs one does not suit.
    """

    candidate: Candidate
    why: str
    source: str
    phone: str = ""
    otherwise: "Choice | None" = None
    avoid: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the choice as JSON values."""
        return {**self.candidate.to_json(), "why": self.why, "source": self.source, "phone": self.phone}


_NOT_PADDED = "; its form does not pad channels"
_DOCS = "docs/latency.md"

_CORE_ML = Choice(
    NATIVE,
    "coremltools' own pass turns this spelling into concat(interleave=True)",
    "coremltools, converters/mil/mil/passes/defs/optimize_tensor_operation.py, detect_concat_interleave",
    "no public document says what the Neural Engine makes of the interleaved concat: compare with fold on "
    "the phones that matter",
)
_XNNPACK = 5
NO_CODES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "conv": "it multiplies by a permutation, which integer kernels would round",
        "masked": "it adds up tensors of several scales",
    }
)
"""Forms that int8 has not, and why."""
_LITERT = Choice(
    Candidate("fold", Options(max_concat=_XNNPACK)),
    "no shuffle is left to run, and XNNPACK takes every operator in one partition",
    _DOCS,
    "the GPU delegate copies each slice: compare with fold-split on the phones that matter",
    Choice(
        Candidate("interleave"),
        "fold would gather what its residual connections scatter, and XNNPACK has no gather",
        _DOCS,
        "concats on a new axis copy single elements: compare with rank4 on the phones that matter",
    ),
    avoid=("Gather",),
)
_ORT_PHONES = (
    "ONNX Runtime blocks by 16 channels with AVX-512, by 8 on other x86 processors and not at all on most "
    "Arm ones: compare fold, and fold-split with and without padding, on the phones that matter"
)
_ORT = Choice(
    Candidate("fold-split", Options(align=16, merge=16, carry=16)),
    "no shuffle is left to run, and all data stays in ONNX Runtime's blocked layout",
    _DOCS,
    _ORT_PHONES,
    Choice(
        Candidate("fold"),
        "no shuffle is left to run; most channel counts are whole blocks already, so padding would cost more "
        "than it wins",
        _DOCS,
        _ORT_PHONES,
    ),
)
_PAYS = 1.5
"""Dividing tensors into whole blocks costs arithmetic. It pays where that is at most this many times what
rounding the captured tensors up to whole blocks would cost: the further their counts are from whole blocks,
the more is computed outside blocks, or for nothing, anyway. Measured in ONNX Runtime (docs/latency.md):
padding wins in V2 x0.5, x1.0 and x2.0 (1.0, 0.2 and 0.2 times) and in V1 (0 to 0.4), and loses in V2 x1.5
(2.4), whose larger stages have 176 and 352 channels."""
_ORT_CODES = Choice(
    Candidate("fold-split", Options(align=16, merge=16)),
    "no shuffle is left to run, and rows of whole vectors suit ONNX Runtime's integer kernels",
    _DOCS,
    "integer kernels differ between x86 and Arm: compare fold, and fold-split with and without padding, on "
    "the phones that matter",
    Choice(
        Candidate("fold"),
        "no shuffle is left to run; padding would cost more than it wins",
        _DOCS,
    ),
)
_PREPARES: Final = frozenset({"Add", "Cast", "Div", "Mul", "Pad", "Sub"})
"""What is done to an image in front of the first convolution."""
_BY_TARGET: Final = {"onnx": _ORT, "coreml": _CORE_ML, "tflite": _LITERT}
_TABLE: Final[Mapping[tuple[str, str], Choice]] = MappingProxyType(
    {
        **{(t.name, p): _BY_TARGET[t.name] for t in TARGETS.values() for p in t.precisions},
        ("onnx", "int8"): _ORT_CODES,
    }
)
"""What a target gets; every target and precision of it has a row."""


def candidates(target: str, precision: str) -> tuple[Candidate, ...]:
    """Return what is worth measuring for a target, the best guess first.

    In int8 there are none whose tensors stand for nothing that was observed, see `quantize.annotate`.
    """
    codes = precision == "int8"
    best = _TABLE[target, precision].candidate
    limit = _XNNPACK if target == "tflite" else 0
    found = [best]
    for entry in LOWERINGS.values():
        if codes and entry.name in NO_CODES:
            continue
        choices = [Options()]
        if entry.folds:
            fills = ((0, 0), (1, 0)) if codes else ((0, 0), (1, 0), (1, 1))
            choices = [Options(max_concat=limit)]
            choices += [Options(n, limit, n if m else 0, n if c else 0) for n in (8, 16) for m, c in fills]
        found += [Candidate(entry.name, options) for options in choices]
    return tuple(dict.fromkeys(found))


def choose(target: str, precision: str, *, shuffle: str = AUTO, align: int | None = None) -> Choice:
    """Return the form that a target gets.

    Args:
        target: A name of `TARGETS`.
        precision: The artifact's.
        shuffle: A name of `LOWERINGS`, or `AUTO` for the table's.
        align: What channel counts are padded to a multiple of; None for the table's. Where the table's form
            pads nothing, it has no effect.

    Raises:
        UsageError: There is no such form, or it does not pad; or the target has no such precision.
    """
    row = _TABLE.get((target, precision))
    if row is None:
        holders = [t.name for t in TARGETS.values() if precision in t.precisions]
        raise UsageError(
            f"{target} files do not hold numbers as {precision}",
            hint=f"choose from: {', '.join(TARGETS[target].precisions)}; or --target {','.join(holders)}",
        )
    if shuffle == AUTO:
        if align is None or align == row.candidate.options.align:
            return row
        if not LOWERINGS[row.candidate.form].folds:
            return replace(row, why=row.why + _NOT_PADDED)
        if align == 1 and row.otherwise is not None:
            return replace(row.otherwise, why="no shuffle is left to run, and no padding was asked for")
        chosen = replace(row.candidate, options=_aligned(row.candidate.options, align))
        return Choice(chosen, "the alignment was asked for", "", row.phone)
    if precision == "int8" and shuffle in NO_CODES:
        raise UsageError(
            f"the shuffle form {shuffle!r} does not exist in int8: {NO_CODES[shuffle]}",
            hint="choose another --shuffle, as fold",
        )
    if shuffle not in LOWERINGS:
        raise UsageError(
            f"there is no shuffle form named {shuffle!r}", hint=nearest(shuffle, (AUTO, *LOWERINGS))
        )
    known = next(c for c in candidates(target, precision) if c.form == shuffle)
    options = known.options if align is None else _aligned(known.options, align)
    if align is not None and align > 1 and not LOWERINGS[shuffle].folds:
        padded = ", ".join(e.name for e in LOWERINGS.values() if e.folds)
        raise UsageError(f"the shuffle form {shuffle!r} does not pad channels", hint=f"these do: {padded}")
    return Choice(Candidate(shuffle, options), "it was asked for", "")


def _aligned(options: Options, align: int) -> Options:
    """Return the options with another alignment, and what fills padding filling that."""
    width = align if align > 1 else 0
    return replace(
        options, align=align, merge=width if options.merge else 0, carry=width if options.carry else 0
    )


def settle(graph: Graph, choice: Choice) -> Choice:
    """Return a choice as it stands for a graph: its alternative where it does not suit.

    It does not where its form brings in an operator that the runtime does not take, or where its padding does
    not pay.

    Raises:
        GraphError: The graph's operator set is older than the operators that are written.
    """
    block = choice.candidate.options.align
    if choice.otherwise is None or not analyze(graph).sites:
        return choice
    divided, report = choice.candidate.apply(graph)
    if any(report.operators_after.get(op, 0) > report.operators_before.get(op, 0) for op in choice.avoid):
        return choice.otherwise
    if block == 1:
        return choice
    plain, rounded, padded = (_multiply_adds(g, n) for g, n in ((graph, 1), (graph, block), (divided, block)))
    return choice if padded - rounded <= _PAYS * (rounded - plain) else choice.otherwise


def _multiply_adds(graph: Graph, block: int) -> int:
    """Return the multiply-adds of the convolutions, with channel counts rounded up to whole blocks.

    Those of an image are not: its channels are read one by one. Nor are those of groups.
    """
    total = 0
    for node in graph.nodes:
        given = node.inputs[0] if node.op_type == "Conv" else None
        weight = None if given is None else Graph.constant(node.inputs[1])
        if given is None or weight is None:
            continue
        rows, columns, *kernel = weight.shape
        if node.attributes.get_int("group", 1) == 1 and not _is_image(given):
            columns = -(-columns // block) * block
        area = [d for d in Graph.shape(node.outputs[0])[2:] if isinstance(d, int)]
        total += -(-rows // block) * block * columns * math.prod(kernel) * math.prod(area)
    return total


def _is_image(value: ir.Value) -> bool:
    """Whether a tensor is an input, as it is or prepared."""
    maker = value.producer()
    while maker is not None and maker.op_type in _PREPARES and maker.inputs[0] is not None:
        maker = maker.inputs[0].producer()
    return maker is None


def lower(graph: Graph, candidate: Candidate) -> tuple[Graph, Report]:
    """Return the graph in a form, or as it was where there is no shuffle to lower.

    Raises:
        GraphError: The graph's operator set is older than the operators that are written.
    """
    if candidate != NATIVE and not analyze(graph).sites:
        return unchanged(candidate.form, graph, "there is no shuffle")
    return candidate.apply(graph)


def parse_align(text: str) -> int | None:
    """Return an alignment from text, None for ``auto``.

    Raises:
        UsageError: It is neither ``auto`` nor a sensible number.
    """
    if text == AUTO:
        return None
    if text.isascii() and text.isdigit() and 0 < int(text) <= _MAX_ALIGN:
        return int(text)
    raise UsageError(
        f"{text!r} is not what channels can be padded to a multiple of",
        hint=f"give a number from 1 (no padding) to {_MAX_ALIGN}, or auto",
    )
