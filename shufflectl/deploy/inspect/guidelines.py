"""The four guidelines of the ShuffleNet V2 paper, computed for a model.

Ma, Zhang, Zheng and Sun, "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", ECCV
2018, arXiv:1807.11164, section 2. B is a layer's FLOPs (multiply-adds), hw the positions of its output map
(times the batch, since the weights are read once for all images).

- G1, equal channel width minimises memory access cost. A 1x1 convolution has B = hw·c1·c2 and
  MAC = hw(c1 + c2) + c1·c2, so MAC ≥ 2·sqrt(hw·B) + B/hw (equation 1), with equality where c1 = c2.
- G2, excessive group convolution increases MAC. With g groups B = hw·c1·c2/g and
  MAC = hw(c1 + c2) + c1·c2/g = hw·c1 + B·g/c1 + B/hw (equation 2). The dense layer of the same input and
  B has hw·c1 + B/c1 + B/hw.
- G3, network fragmentation reduces the degree of parallelism. The paper counts the "individual
  convolution or pooling operations in one building block"; a block here is what lies between one operator
  that merges several activations (concatenation, addition) and those before it.
- G4, element-wise operations are non-negligible. The paper counts "ReLU, AddTensor, AddBias, etc." and,
  for its low ratio of FLOPs to MAC, depthwise convolution; copies, reorders and conversions come on top.
"""

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from shufflectl.deploy.inspect.program import Contraction, Operation, Role
from shufflectl.deploy.inspect.summary import Finding, OperatorSummary

__all__ = ["findings", "grouped_mac", "pointwise_bound", "pointwise_mac"]

# Ratios up to this count as "at the bound": the rounding of channel counts alone costs as much.
_NEAR = 1.02
# Operators visited while blocks are looked for; a network of ten thousand operators takes some ten thousand.
_MOST_STEPS = 5_000_000


def findings(operations: Sequence[Operation], operators: Sequence[OperatorSummary]) -> tuple[Finding, ...]:
    """Return one finding for each of G1 to G4.

    Args:
        operations: The program's operations.
        operators: Their summaries, in the same order.
    """
    return (
        _equal_width(operations),
        _groups(operations),
        _fragmentation(operations),
        _elementwise(operations, operators),
    )


def pointwise_mac(layer: Contraction) -> int:
    """Return the memory access cost of a 1x1 convolution: hw(c1 + c2) + c1·c2/g, in elements."""
    return layer.positions * (layer.in_channels + layer.out_channels) + layer.weights


def pointwise_bound(layer: Contraction) -> float:
    """Return the least memory access cost at the same FLOPs: 2·sqrt(hw·B) + B/hw, in elements."""
    flops = layer.multiply_adds
    return 2 * math.sqrt(layer.positions * flops) + flops / layer.positions


def grouped_mac(layer: Contraction, groups: int) -> float:
    """Return the memory access cost with that many groups at the same input and FLOPs.

    A window of k positions has B = hw·k·c1·c2/g, so c2 = B·g/(hw·k·c1): the cost is
    hw·c1 + B·g/(k·c1) + B/hw elements.
    """
    flops, window = layer.multiply_adds, math.prod(layer.window)
    return (
        layer.positions * layer.in_channels
        + flops * groups / (window * layer.in_channels)
        + flops / layer.positions
    )


def _countable(operation: Operation) -> Contraction | None:
    layer = operation.contraction
    if operation.role != "convolution" or layer is None:
        return None
    return layer if layer.positions > 0 and layer.weights > 0 else None


def _equal_width(operations: Sequence[Operation]) -> Finding:
    title = "equal channel width minimises memory access"
    rows = []
    for operation in operations:
        layer = _countable(operation)
        if layer is not None and layer.pointwise and layer.groups == 1:
            rows.append((pointwise_mac(layer), pointwise_bound(layer), operation, layer))
    if not rows:
        return Finding("G1", title, None, "x", {"convolutions": 0}, "there is no dense 1x1 convolution")
    ratio = sum(mac for mac, *_ in rows) / sum(bound for _, bound, *_ in rows)
    mac, bound, worst, layer = max(rows, key=lambda row: row[0] / row[1])
    equal = sum(row[3].in_channels == row[3].out_channels for row in rows)
    details = {
        "convolutions": len(rows),
        "equal_width": equal,
        "memory_access": sum(row[0] for row in rows),
        "lower_bound": round(sum(row[1] for row in rows)),
        "worst": worst.name,
        "worst_ratio": mac / bound,
        "worst_channels": [layer.in_channels, layer.out_channels],
    }
    text = (
        f"dense 1x1 convolutions ({len(rows)}) access {ratio:.2f}x the memory of the lower bound; "
        f"{equal} have equal width"
    )
    if mac / bound > _NEAR:
        widths = f"{layer.in_channels} to {layer.out_channels} channels"
        text += f"; the furthest from it is {worst.name} ({widths}, {mac / bound:.2f}x)"
    return Finding("G1", title, ratio, "x", details, text)


def _groups(operations: Sequence[Operation]) -> Finding:
    title = "group convolution increases memory access"
    rows = []
    for operation in operations:
        layer = _countable(operation)
        if layer is not None and layer.groups > 1 and not layer.depthwise:
            rows.append((grouped_mac(layer, layer.groups), grouped_mac(layer, 1), operation, layer))
    if not rows:
        return Finding("G2", title, None, "x", {"convolutions": 0}, "there is no group convolution")
    ratio = sum(mac for mac, *_ in rows) / sum(dense for _, dense, *_ in rows)
    mac, dense, worst, layer = max(rows, key=lambda row: row[0] / row[1])
    groups = sorted({row[3].groups for row in rows})
    details = {
        "convolutions": len(rows),
        "groups": groups,
        "memory_access": round(sum(row[0] for row in rows)),
        "ungrouped_memory_access": round(sum(row[1] for row in rows)),
        "worst": worst.name,
        "worst_ratio": mac / dense,
        "worst_groups": layer.groups,
    }
    counted = ", ".join(map(str, groups))
    text = (
        f"group convolutions ({len(rows)}, g = {counted}) access {ratio:.2f}x the memory of ungrouped ones "
        f"with the same input and FLOPs; the most is {worst.name} ({mac / dense:.2f}x)"
    )
    return Finding("G2", title, ratio, "x", details, text)


@dataclass(frozen=True)
class _Block:
    end: str
    branches: int
    operators: int


def _fragmentation(operations: Sequence[Operation]) -> Finding:
    title = "fragmentation reduces parallelism"
    blocks = _blocks(operations)
    if blocks is None:
        return Finding("G3", title, None, "operators a block", {}, "the graph has too many paths to count")
    if not blocks:
        return Finding(
            "G3",
            title,
            None,
            "operators a block",
            {"blocks": 0},
            "the network is one chain, without branches",
        )
    mean = sum(block.operators for block in blocks) / len(blocks)
    worst = max(blocks, key=lambda block: (block.operators, block.branches))
    widest = max(block.branches for block in blocks)
    details = {
        "blocks": len(blocks),
        "branches": widest,
        "operators": sum(block.operators for block in blocks),
        "worst": worst.end,
        "worst_operators": worst.operators,
    }
    text = (
        f"building blocks ({len(blocks)}) have up to {widest} parallel branches and {mean:.1f} convolutions "
        f"or poolings on average; the most fragmented ends in {worst.end} ({worst.operators})"
    )
    return Finding("G3", title, mean, "operators a block", details, text)


def _blocks(operations: Sequence[Operation]) -> list[_Block] | None:
    """Return the building blocks that compute something: between a merge and the merges before it.

    None for a graph that is too tangled to walk through.
    """
    made = {value.name: index for index, op in enumerate(operations) for value in op.outputs}
    # An operator that two merges can be reached from belongs to the block of the first.
    closed = {index for index, op in enumerate(operations) if _merges(op)}
    blocks = []
    steps = 0
    for end in sorted(closed):
        branches = []
        for name in _read(operations[end]):
            branches.append(_reachable(name, end, operations, made, closed))
            steps += len(branches[-1])
            if steps > _MOST_STEPS:
                return None
        together = set[int]().union(*branches)
        closed |= together
        # What every branch passes through comes before the fork: a stem, the shuffle of the block before.
        inside = together - set[int].intersection(*branches)
        count = sum(operations[index].role in ("convolution", "pooling") for index in inside)
        if count:
            blocks.append(_Block(operations[end].name, len(branches), count))
    return blocks


def _reachable(
    name: str, end: int, operations: Sequence[Operation], made: Mapping[str, int], closed: AbstractSet[int]
) -> set[int]:
    """Return the operators before ``end`` that a tensor is computed with, back to those in ``closed``."""
    found: set[int] = set()
    pending = {name}
    while pending:
        index = made.get(pending.pop(), end)
        if index < end and index not in closed and index not in found:
            found.add(index)
            pending |= _read(operations[index])
    return found


def _read(operation: Operation) -> set[str]:
    return {value.name for value in operation.inputs}


def _merges(operation: Operation) -> bool:
    return operation.role in ("elementwise", "movement") and len(_read(operation)) > 1


def _elementwise(operations: Sequence[Operation], operators: Sequence[OperatorSummary]) -> Finding:
    title = "element-wise operators are not free"
    shares: dict[str, int] = {"elementwise": 0, "movement": 0, "depthwise": 0, "rest": 0}
    counts = dict.fromkeys(shares, 0)
    for operation, operator in zip(operations, operators, strict=True):
        kind = _kind(operation.role, operation.contraction)
        # Traffic is compared in elements: types differ little inside a model, and are unknown more often.
        shares[kind] += operator.memory_access or 0
        counts[kind] += 1
    total = sum(shares.values())
    details: dict[str, object] = {f"{kind}_operators": counts[kind] for kind in shares if kind != "rest"}
    if not total:
        return Finding("G4", title, None, "of memory access", details, "the memory access is unknown")
    figures = {kind: moved / total for kind, moved in shares.items()}
    details |= {f"{kind}_share": figures[kind] for kind in shares if kind != "rest"}
    share = figures["elementwise"] + figures["movement"]
    text = (
        f"{share:.0%} of the memory access is for element-wise operators ({counts['elementwise']}, "
        f"{figures['elementwise']:.0%}) and data movement ({counts['movement']}, {figures['movement']:.0%}); "
        f"depthwise convolutions take another {figures['depthwise']:.0%}"
    )
    return Finding("G4", title, share, "of memory access", details, text)


def _kind(role: Role, layer: Contraction | None) -> str:
    if role in {"elementwise", "movement"}:
        return role
    return "depthwise" if role == "convolution" and layer is not None and layer.depthwise else "rest"
