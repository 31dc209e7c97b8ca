"""Which operators of a TFLite file a delegate takes, and in how many partitions.

A delegate is a table: for every operator that it knows, the newest version that it takes and what else it
asks of the operator, each entry transcribed from the delegate's own source. The partitions that follow are
made as TFLite's partitioner makes them, so two operators that a delegate takes fall into different partitions
where one that it refuses lies between them.

The rules are those of LiteRT's source tree (github.com/google-ai-edge/LiteRT) as of 2026; older runtimes
take less, and a device's driver may refuse what the delegate accepts.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from shufflectl.deploy.inspect.tflite_graph import Node, Tensor

__all__ = [
    "Check",
    "Delegate",
    "DelegateReport",
    "Partition",
    "Refusal",
    "Support",
    "delegate_nodes",
    "partitions",
    "table",
]

Check = Callable[[Node], str]
"""Says in a few words why a delegate refuses an operator; empty where it does not."""


@dataclass(frozen=True)
class Support:
    """What a delegate asks of one operator.

    Attributes:
        version: The newest version of the operator that it takes; None where it does not look.
        checks: What else it asks, in its own order.
    """

    version: int | None = None
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True)
class Delegate:
    """A delegate's rules.

    Attributes:
        name: What users call it.
        title: Its name in tables.
        source: Where the rules are from: files of the source tree.
        operators: What it asks of each operator that it knows.
        checks: What it asks of every operator.
        most_partitions: How many partitions it takes by default, the largest first; None for all.
        unpacks: Whether operators that only unpack constants go to the delegate with those that use them;
            otherwise they do so only where the delegate takes everything else.
    """

    name: str
    title: str
    source: str
    operators: Mapping[str, Support]
    checks: tuple[Check, ...] = ()
    most_partitions: int | None = None
    unpacks: bool = False

    def refuses(self, node: Node) -> str:
        """Return why the delegate refuses an operator; empty where it takes it."""
        support = self.operators.get(node.type)
        if support is None:
            return f"it has no {node.type}"
        if support.version is not None and node.version > support.version:
            return f"{node.type} of version {node.version}, and it takes up to {support.version}"
        return next((why for check in (*support.checks, *self.checks) if (why := check(node))), "")


@dataclass(frozen=True)
class Refusal:
    """An operator that stays on the CPU.

    Attributes:
        index: Its place in the order of execution.
        name: Its name, as `inspect` lists it.
        type: Its type.
        why: The rule that it breaks.
    """

    index: int
    name: str
    type: str
    why: str


@dataclass(frozen=True)
class DelegateReport:
    """What a delegate makes of a file, by its rules.

    Operators that only unpack constants of the file are not counted: they run once, when the model is loaded.

    Attributes:
        delegate: The delegate's name.
        title: Its name in tables.
        source: Where its rules are from.
        operators: How many operators there are.
        taken: How many of them the rules accept.
        delegated: How many of them run in it: those in the partitions that it takes.
        partitions: How many partitions the accepted operators fall into.
        most_partitions: How many of them it takes by default; None for all.
        refused: The operators that the rules refuse.
        left_out: Operators that the rules accept, in partitions that it does not take.
    """

    delegate: str
    title: str
    source: str
    operators: int
    taken: int
    delegated: int
    partitions: int
    most_partitions: int | None
    refused: tuple[Refusal, ...] = ()
    left_out: tuple[Refusal, ...] = field(default=())

    @property
    def fallback(self) -> tuple[Refusal, ...]:
        """The operators that run on the CPU's own kernels, in the order of execution."""
        return tuple(sorted((*self.refused, *self.left_out), key=lambda refusal: refusal.index))


@dataclass(frozen=True)
class Partition:
    """A run of operators that are executed together.

    Attributes:
        delegated: Whether they are the delegate's.
        nodes: Their places in the order of execution, in the order of this run.
    """

    delegated: bool
    nodes: tuple[int, ...]


def table(rows: Mapping[str, Support]) -> dict[str, Support]:
    """Return what is asked of each operator, from what is asked of several (names between blanks)."""
    return {name: support for names, support in rows.items() for name in names.split()}


def delegate_nodes(delegate: Delegate, nodes: Sequence[Node]) -> DelegateReport:
    """Return what a delegate makes of operators.

    Args:
        delegate: Its rules.
        nodes: All operators of a file, in the order of execution.
    """
    counted = [node for node in nodes if not node.unpacks]
    reasons = {node.index: delegate.refuses(node) for node in counted}
    refused = tuple(Refusal(n.index, n.name, n.type, reasons[n.index]) for n in counted if reasons[n.index])
    runs = partitions(nodes, _wanted(delegate, nodes, reasons))
    own = sorted((run for run in runs if run.delegated), key=lambda run: -len(run.nodes))
    kept = {index for run in own[: delegate.most_partitions] for index in run.nodes}
    why = f"in a smaller partition; it takes the largest {delegate.most_partitions or ''}".rstrip()
    left_out = tuple(
        Refusal(n.index, n.name, n.type, why) for n in counted if not reasons[n.index] and n.index not in kept
    )
    return DelegateReport(
        delegate=delegate.name,
        title=delegate.title,
        source=delegate.source,
        operators=len(counted),
        taken=len(counted) - len(refused),
        delegated=len(counted) - len(refused) - len(left_out),
        partitions=len(own),
        most_partitions=delegate.most_partitions,
        refused=refused,
        left_out=left_out,
    )


def _wanted(delegate: Delegate, nodes: Sequence[Node], reasons: Mapping[int, str]) -> set[int]:
    """Return the operators that a delegate asks the partitioner for, those that unpack constants included."""
    wanted = {index for index, why in reasons.items() if not why}
    unpacking = {node.index for node in nodes if node.unpacks}
    if delegate.unpacks:
        plain = {t.index for n in nodes if n.index not in wanted | unpacking for t in n.given}
        return wanted | {n.index for n in nodes if n.unpacks and not any(t.index in plain for t in n.outputs)}
    return wanted | unpacking if len(wanted) == len(reasons) else wanted


def partitions(nodes: Sequence[Node], wanted: set[int]) -> list[Partition]:
    """Return the runs of operators that TFLite's partitioner makes.

    Greedy, as `Subgraph::PartitionGraph` asks for it: the first operator whose inputs are ready decides
    whether a run is delegated, and all of its kind that become ready join it, wherever they stand in the file
    (``tflite/graph_info.cc``, `PartitionGraphIntoIndependentNodeSubsetsImpl`).

    Args:
        nodes: All operators, in the order of execution.
        wanted: The indices of those that the delegate asks for.
    """
    by_index = {node.index: node for node in nodes}
    made = {t.index for node in nodes for t in node.outputs}
    readers: dict[int, list[int]] = {}
    waiting: dict[int, int] = {}
    for node in nodes:
        needed = {t.index for t in node.given if t.index in made}
        waiting[node.index] = len(needed)
        for tensor in needed:
            readers.setdefault(tensor, []).append(node.index)
    ready: dict[bool, list[int]] = {True: [], False: []}
    for index, count in waiting.items():
        if not count:
            heapq.heappush(ready[index in wanted], index)
    runs = []
    while ready[True] or ready[False]:
        kind = not ready[False] or bool(ready[True] and ready[True][0] < ready[False][0])
        run = []
        while ready[kind]:
            index = heapq.heappop(ready[kind])
            run.append(index)
            for reader in _freed(by_index[index].outputs, readers, waiting):
                heapq.heappush(ready[reader in wanted], reader)
        runs.append(Partition(kind, tuple(run)))
    return runs


def _freed(
    outputs: Sequence[Tensor], readers: Mapping[int, Sequence[int]], waiting: dict[int, int]
) -> list[int]:
    """Count down what waits for tensors; return the operators that wait for nothing more."""
    freed = []
    for tensor in {t.index for t in outputs}:
        for reader in readers.get(tensor, ()):
            waiting[reader] -= 1
            if not waiting[reader]:
                freed.append(reader)
    return freed
