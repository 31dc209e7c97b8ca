"""What runtimes and delegates make of a file: by rules, and measured where this machine can.

For TFLite the GPU delegate, NNAPI and XNNPACK, for ONNX the graph that ONNX Runtime's optimiser makes, for
Core ML what is known of the Neural Engine. Rules are read off the file; what is measured loads the file in
its runtime, in another process.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from shufflectl.deploy.inspect.delegates import DelegateReport, Refusal, delegate_nodes
from shufflectl.deploy.inspect.gpu import GPU, splits_groups
from shufflectl.deploy.inspect.measure import NotMeasuredError, measure
from shufflectl.deploy.inspect.nnapi import API_LEVELS, nnapi
from shufflectl.deploy.inspect.tflite_graph import Node, read_nodes
from shufflectl.deploy.inspect.xnnpack import XNNPACK
from shufflectl.errors import ArtifactError, UnavailableError

if TYPE_CHECKING:  # both bring the library of their format
    from shufflectl.deploy.inspect.ane import NeuralEngineReport
    from shufflectl.deploy.inspect.ort_layout import LayoutReport

__all__ = ["DELEGATES", "Facts", "Fallback", "Measured", "read_facts"]

DELEGATES: Final[Mapping[str, tuple[str, ...]]] = {
    "tflite": ("xnnpack", "gpu", "nnapi"),
    "onnx": ("onnxruntime",),
    "coreml": ("ane",),
}
"""What can be asked about fallbacks in each format, the default first."""

_NOT_ASKED: Final = "not measured: --no-measure"


@dataclass(frozen=True)
class Fallback:
    """An operator that a delegate leaves to other, slower kernels.

    Attributes:
        name: Its name.
        type: Its type.
        why: Why.
    """

    name: str
    type: str
    why: str


@dataclass(frozen=True)
class Measured:
    """The partitions that XNNPACK took when LiteRT loaded the file.

    Attributes:
        runtime: The runtime and its version.
        partitions: How many.
        delegated: How many operators they hold, those that only unpack constants left out.
        refused: The operators in none of them.
        agrees: Whether rules and measurement name the same operators and number of partitions.
        difference: Where they do not; empty where they agree.
    """

    runtime: str
    partitions: int
    delegated: int
    refused: tuple[Refusal, ...]
    agrees: bool
    difference: str


@dataclass(frozen=True)
class Facts:
    """What is known of a file.

    Attributes:
        format: ``tflite``, ``onnx`` or ``coreml``.
        delegates: TFLite: reports of the GPU delegate, NNAPI at the newest API level, and XNNPACK.
        nnapi_levels: TFLite: operators that NNAPI's rules accept by API level.
        split_groups: TFLite: grouped convolutions that the GPU delegate splits into one for each group.
        xnnpack: TFLite: what was measured; None where nothing was.
        layout: ONNX: the optimised graph; None where it was not measured.
        runtime: ONNX: the runtime and its version; empty where nothing was measured.
        neural_engine: Core ML: what is known of the Neural Engine.
        unknown: Why something that belongs to the format is not known; empty where all is.
    """

    format: str
    delegates: tuple[DelegateReport, ...] = ()
    nnapi_levels: Mapping[int, int] = field(default_factory=dict)
    split_groups: tuple[str, ...] = ()
    xnnpack: Measured | None = None
    layout: "LayoutReport | None" = None
    runtime: str = ""
    neural_engine: "NeuralEngineReport | None" = None
    unknown: str = ""

    def delegate(self, name: str) -> DelegateReport | None:
        """Return a TFLite delegate's report, by rules."""
        return next((report for report in self.delegates if report.delegate == name), None)

    def fallback(self, name: str) -> tuple[Fallback, ...]:
        """Return the operators that a delegate leaves to other kernels.

        XNNPACK's are the measured ones where they were measured. Of ONNX files these are the convolutions and
        poolings that keep the plain layout, of Core ML packages the operations that leave the Neural Engine
        as Apple states or users report.

        Args:
            name: One of `DELEGATES` for the format.

        Raises:
            UnavailableError: Nothing is known of it.
        """
        if name == "onnxruntime" and self.layout is not None:
            return tuple(Fallback(p.name, p.type, p.why) for p in self.layout.plain)
        if name == "ane" and self.neural_engine is not None:
            return tuple(Fallback(n.operation, n.type, n.why) for n in self.neural_engine.leaving)
        report = self.delegate(name)
        if name == "xnnpack" and self.xnnpack is not None:
            return _fallbacks(self.xnnpack.refused)
        if report is not None:
            return _fallbacks(report.fallback)
        raise UnavailableError(
            f"the operators that {name} leaves behind are not known: {self.unknown or 'not asked for'}",
            hint="see what shufflectl doctor says about the runtime",
        )

    def runs_in(self, place: int) -> tuple[str, ...]:
        """Return the delegates that a TFLite file's operator runs in; XNNPACK as measured where it was.

        Args:
            place: The operator's place in the order of execution.
        """
        found = []
        for report in self.delegates:
            refused: tuple[Refusal, ...] = report.fallback
            if report.delegate == "xnnpack" and self.xnnpack is not None:
                refused = self.xnnpack.refused
            if all(refusal.index != place for refusal in refused):
                found.append(report.delegate)
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Return the facts as JSON values; parts of other formats are null."""
        return {
            "delegates": self._delegates_to_json() if self.delegates else None,
            "onnxruntime": self._layout_to_json(),
            "neural_engine": self._neural_engine_to_json(),
            "unknown": self.unknown,
        }

    def _delegates_to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for report in self.delegates:
            entry = asdict(report)
            del entry["delegate"]
            found[report.delegate] = {**entry, "fallback": [asdict(f) for f in report.fallback]}
        found["xnnpack"]["measured"] = None if self.xnnpack is None else asdict(self.xnnpack)
        found["xnnpack"]["not_measured"] = self.unknown if self.xnnpack is None else ""
        found["nnapi"]["taken_by_api_level"] = {str(k): v for k, v in self.nnapi_levels.items()}
        found["gpu"]["split_groups"] = list(self.split_groups)
        return found

    def _layout_to_json(self) -> dict[str, Any] | None:
        if self.layout is None:
            return None
        return {
            "runtime": self.runtime,
            **asdict(self.layout),
            "reorder_input": self.layout.count("ReorderInput"),
            "reorder_output": self.layout.count("ReorderOutput"),
            "reordered_bytes": self.layout.reordered_bytes,
            "blocked": self.layout.blocked,
        }

    def _neural_engine_to_json(self) -> dict[str, Any] | None:
        found = self.neural_engine
        if found is None:
            return None
        return {**asdict(found), "leaving": len(found.leaving)}


def read_facts(path: Path, *, measured: bool = True) -> Facts:
    """Return what runtimes and delegates make of a file.

    Args:
        path: A file that `inspect.summarize` reads.
        measured: Whether to load the file in its runtime; otherwise only rules are applied, and nothing of
            the file runs.

    Raises:
        ArtifactError: A Core ML package is damaged.
        MissingDependencyError: The package that knows the format is not installed.
    """
    match path.suffix.lower():
        case ".tflite":
            return _tflite(path, measured=measured)
        case ".onnx":
            return _onnx(path, measured=measured)
        case _:
            from shufflectl.deploy.inspect.ane import read_neural_engine

            return Facts("coreml", neural_engine=read_neural_engine(path))


def _tflite(path: Path, *, measured: bool) -> Facts:
    try:
        nodes = read_nodes(path)
    except ArtifactError as error:
        # The structure is one that delegates are not asked about: several graphs, weights in other files.
        return Facts("tflite", unknown=error.message)
    by_level = {level: delegate_nodes(nnapi(level), nodes) for level in API_LEVELS}
    by_rule = delegate_nodes(XNNPACK, nodes)
    found, unknown = None, "" if measured else _NOT_ASKED
    if measured:
        try:
            found = _compared(nodes, by_rule, measure("xnnpack", path))
        except NotMeasuredError as error:
            unknown = f"not measured: {error}"
    return Facts(
        "tflite",
        delegates=(delegate_nodes(GPU, nodes), by_level[API_LEVELS[-1]], by_rule),
        nnapi_levels={level: report.taken for level, report in by_level.items()},
        split_groups=tuple(node.name for node in nodes if splits_groups(node)),
        xnnpack=found,
        unknown=unknown,
    )


def _onnx(path: Path, *, measured: bool) -> Facts:
    if not measured:
        return Facts("onnx", unknown=_NOT_ASKED)
    from shufflectl.deploy.inspect.ort_layout import LayoutReport

    try:
        found = measure("layout", path)
        return Facts("onnx", layout=LayoutReport.from_json(found["layout"]), runtime=str(found["runtime"]))
    except NotMeasuredError as error:
        return Facts("onnx", unknown=f"not measured: {error}")


def _compared(nodes: Sequence[Node], by_rule: DelegateReport, found: Mapping[str, Any]) -> Measured:
    """Return what was measured, against what the rules say."""
    inside = {int(place) for partition in found["partitions"] for place in partition}
    counted = [node for node in nodes if not node.unpacks]
    rules = {refusal.index: refusal.why for refusal in by_rule.refused}
    refused = tuple(
        Refusal(n.index, n.name, n.type, rules.get(n.index, "no rule says why"))
        for n in counted
        if n.index not in inside
    )
    partitions = len(found["partitions"])
    differences = []
    if more := [r for r in refused if r.index not in rules]:
        differences.append(f"refused against the rules: {_named(more)}")
    if fewer := [r for r in by_rule.refused if r.index in inside]:
        differences.append(f"taken against the rules: {_named(fewer)}")
    if partitions != by_rule.partitions:
        differences.append(f"{partitions} partitions, and the rules make {by_rule.partitions}")
    return Measured(
        runtime=str(found["runtime"]),
        partitions=partitions,
        delegated=len(counted) - len(refused),
        refused=refused,
        agrees=not differences,
        difference="; ".join(differences),
    )


def _fallbacks(refused: Sequence[Refusal]) -> tuple[Fallback, ...]:
    return tuple(Fallback(r.name, r.type, r.why) for r in refused)


def _named(refused: Sequence[Refusal]) -> str:
    rest = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
    return ", ".join(f"{r.type} {r.name}" for r in refused[:3]) + rest
