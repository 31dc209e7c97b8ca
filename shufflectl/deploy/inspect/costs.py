"""What a run costs: parameters, multiply-adds and memory access, per operator and in total.

Memory access cost (MAC) is the ShuffleNet V2 paper's (Ma et al., ECCV 2018, arXiv:1807.11164, section 2):
"the number of memory access operations", in elements. A 1x1 convolution with c1 input and c2 output channels
on an h x w map reads hw·c1, writes hw·c2 and reads c1·c2 weights. The same count holds for any operator:
activations in, activations out, weights. Biases are left out, as in the paper. Caches are assumed to be
large enough, as there, so that nothing is read twice.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

from shufflectl.deploy.inspect.guidelines import findings
from shufflectl.deploy.inspect.integers import arithmetic, border
from shufflectl.deploy.inspect.program import Operation, Program, Value, elements, size_in_bytes
from shufflectl.deploy.inspect.summary import LargestRank, OperatorSummary, Summary, TensorSummary

__all__ = ["summarize_operation", "summarize_program"]

_FREE = ("view", "weights")
_CONTRACTING = ("convolution", "dense")


def summarize_program(program: Program, name: str, size: int | None) -> Summary:
    """Return the summary of what a reader found.

    Args:
        program: The file's content.
        name: The file's name, without folders.
        size: Its size on disk in bytes; None for what is no file.
    """
    operators = tuple(
        replace(summarize_operation(operation), arithmetic=kind)
        for operation, kind in zip(program.operations, arithmetic(program.operations), strict=True)
    )
    codes = border(program)
    return Summary(
        name=name,
        format=program.format,
        bytes=size,
        producer=program.producer,
        inputs=tuple(TensorSummary(v.name, v.shape, v.dtype, codes.get(v.name)) for v in program.inputs),
        outputs=tuple(TensorSummary(v.name, v.shape, v.dtype, codes.get(v.name)) for v in program.outputs),
        metadata=program.info,
        operators=operators,
        largest_rank=_largest_rank(program),
        parameters=_total(o.parameters for o in operators),
        parameters_by_type=_types(program),
        multiply_adds=_total(o.multiply_adds for o in operators),
        memory_access=_total(o.memory_access for o in operators),
        memory_bytes=_total(o.memory_bytes for o in operators),
        findings=findings(program.operations, operators),
        unknown=tuple(
            o.name
            for o in operators
            if o.parameters is None or o.multiply_adds is None or o.memory_access is None
        ),
    )


def summarize_operation(operation: Operation) -> OperatorSummary:
    """Return one operator's shapes and costs."""
    tensors = (*operation.inputs, *operation.outputs)
    ranks = [len(v.shape) for v in tensors if v.shape is not None]
    spatial = operation.contraction if operation.role == "convolution" else None
    return OperatorSummary(
        name=operation.name,
        type=operation.type,
        role=operation.role,
        input_shapes=tuple(v.shape for v in operation.inputs),
        output_shapes=tuple(v.shape for v in operation.outputs),
        dtype=operation.outputs[0].dtype if operation.outputs else None,
        rank=max(ranks, default=None),
        groups=None if spatial is None else spatial.groups,
        window=None if spatial is None else spatial.window,
        parameters=_total(elements(v) for v in operation.weights),
        multiply_adds=_multiply_adds(operation),
        memory_access=_traffic(operation, elements),
        memory_bytes=_traffic(operation, size_in_bytes),
    )


def _types(program: Program) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for operation in program.operations:
        for value in operation.weights:
            counts[value.held or value.dtype or "unknown"] += elements(value) or 0
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _multiply_adds(operation: Operation) -> int | None:
    if operation.contraction is not None:
        return operation.contraction.multiply_adds
    return None if operation.role in (*_CONTRACTING, "unknown") else 0


def _traffic(operation: Operation, measure: Callable[[Value], int | None]) -> int | None:
    if operation.role in _FREE:
        return 0
    kernels = operation.weights[: len(operation.weights) - operation.biases]
    return _total(measure(v) for v in (*operation.inputs, *operation.outputs, *kernels))


def _total(counts: Iterable[int | None]) -> int | None:
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def _largest_rank(program: Program) -> LargestRank | None:
    written: dict[str, tuple[int, str]] = {
        v.name: (len(v.shape), "") for v in program.inputs if v.shape is not None
    }
    for operation in program.operations:
        if operation.role == "weights":
            continue
        for value in operation.outputs:
            if value.shape is not None:
                written.setdefault(value.name, (len(value.shape), operation.name))
    if not written:
        return None
    rank = max(rank for rank, _ in written.values())
    where = [(tensor, operator) for tensor, (r, operator) in written.items() if r == rank]
    return LargestRank(rank, where[0][0], where[0][1], len(where))
