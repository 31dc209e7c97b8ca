"""What `inspect` says about a file: plain data, ready for a table or for JSON."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, get_args

from shufflectl.converters.metadata import ModelInfo
from shufflectl.deploy.inspect.integers import Arithmetic
from shufflectl.deploy.inspect.program import Codes, Role, Shape

__all__ = ["Finding", "LargestRank", "OperatorSummary", "Summary", "TensorSummary"]

SCHEMA = "shufflectl.inspect/1"


@dataclass(frozen=True)
class TensorSummary:
    """An input or output of the model.

    Attributes:
        name: Its name in the file.
        shape: In the file's axis order, None for a free dimension; None where the rank is unknown.
        dtype: A numpy-like name; None where unknown.
        codes: The grid of its codes, or of the codes that it becomes or is made of; None where it has none.
    """

    name: str
    shape: Shape | None
    dtype: str | None
    codes: Codes | None = None


@dataclass(frozen=True)
class OperatorSummary:
    """One operator and its cost for one run; a free batch counts as one image.

    Attributes:
        name: Its name in the file.
        type: The format's own name of the operator.
        role: What it does to memory: see `program.Role`.
        input_shapes: Of the tensors that differ from run to run; constants are left out.
        output_shapes: Of its results.
        dtype: The type of its first result.
        rank: The largest rank among those tensors; None where none is known.
        groups: Groups of a convolution; None for other operators.
        window: Kernel sizes of a convolution, in spatial axis order; None for other operators.
        parameters: Elements of the trained constants that it reads.
        multiply_adds: Multiplications of a convolution, dense layer or matrix product; 0 for operators
            that multiply no matrices, as in the papers; None where unknown.
        memory_access: Elements read and written: activations in, activations out, weights without biases.
            0 for a reshape, which moves nothing. None where a shape is unknown.
        memory_bytes: The same in bytes; None where a shape or a type is unknown.
        arithmetic: What it computes in: see `integers.Arithmetic`; None for one that only prepares weights.
    """

    name: str
    type: str
    role: Role
    input_shapes: tuple[Shape | None, ...]
    output_shapes: tuple[Shape | None, ...]
    dtype: str | None
    rank: int | None
    groups: int | None
    window: tuple[int, ...] | None
    parameters: int | None
    multiply_adds: int | None
    memory_access: int | None
    memory_bytes: int | None
    arithmetic: Arithmetic | None = None


@dataclass(frozen=True)
class LargestRank:
    """The largest rank over the activation tensors, and the tensors and operators where it occurs.

    Attributes:
        rank: The number of axes.
        tensor: The first tensor of that rank.
        operator: The operator that writes it; empty where it is an input of the model.
        count: How many activation tensors have that rank.
    """

    rank: int
    tensor: str
    operator: str
    count: int


@dataclass(frozen=True)
class Finding:
    """What one guideline of the ShuffleNet V2 paper says about the model.

    Attributes:
        guideline: ``G1`` to ``G4``.
        title: The guideline in a few words.
        figure: The figure that sums it up; None where it does not apply or is unknown.
        unit: What the figure counts.
        details: Further figures by name.
        text: The finding in plain language.
    """

    guideline: str
    title: str
    figure: float | None
    unit: str
    details: dict[str, Any]
    text: str


@dataclass(frozen=True)
class Summary:
    """What a file holds and what a run of it costs.

    Totals are None where an operator's share is unknown; `unknown` names those operators. Figures are for
    one run, in which a free batch counts as one image.

    Attributes:
        name: The file's name, without folders.
        format: ``onnx``, ``tflite``, ``coreml``, or ``graph`` for a captured graph.
        bytes: Size on disk, weights included; None for a captured graph.
        producer: The program that wrote the file, as far as it says so.
        inputs: The model's inputs.
        outputs: The model's outputs.
        metadata: The model's description where shufflectl wrote the file, otherwise None.
        operators: In execution order. Constants are not operators.
        largest_rank: Over activation tensors; None where no rank is known.
        parameters: Elements of trained constants. A constant is counted for every operator that reads it:
            converters merge equal constants, and the formats of one model would disagree otherwise.
        parameters_by_type: The same by the type that the file holds them in, as far as known, the most first.
        multiply_adds: As the papers count them: convolutions, dense layers and matrix products.
        memory_access: Elements read and written.
        memory_bytes: The same in bytes.
        findings: One for each of the guidelines G1 to G4.
        unknown: Names of the operators whose cost is not known.
    """

    name: str
    format: str
    bytes: int | None
    producer: str
    inputs: tuple[TensorSummary, ...]
    outputs: tuple[TensorSummary, ...]
    metadata: ModelInfo | None
    operators: tuple[OperatorSummary, ...]
    largest_rank: LargestRank | None
    parameters: int | None
    parameters_by_type: dict[str, int]
    multiply_adds: int | None
    memory_access: int | None
    memory_bytes: int | None
    findings: tuple[Finding, ...]
    unknown: tuple[str, ...]

    @property
    def histogram(self) -> dict[str, int]:
        """How many operators of each type there are, the most frequent first, then by name."""
        counts = Counter(operator.type for operator in self.operators)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    @property
    def arithmetic(self) -> dict[str, int]:
        """How many operators compute in codes of eight bits and in floats, and how many convert."""
        counts = Counter(operator.arithmetic for operator in self.operators)
        return {kind: counts[kind] for kind in get_args(Arithmetic)}

    @property
    def multiply_adds_in_codes(self) -> int | None:
        """Those of the multiply-adds that are of codes; None where some are unknown."""
        if self.multiply_adds is None:
            return None
        return sum(o.multiply_adds or 0 for o in self.operators if o.arithmetic == "codes")

    @property
    def memory_by_role(self) -> dict[str, int]:
        """Elements read and written, as far as known, by what operators do to memory, the most first."""
        totals: Counter[str] = Counter()
        for operator in self.operators:
            totals[operator.role] += operator.memory_access or 0
        return dict(sorted(totals.items(), key=lambda item: (-item[1], item[0])))

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        data = asdict(self)
        data["metadata"] = None if self.metadata is None else self.metadata.to_json()
        return {
            "schema": SCHEMA,
            **data,
            "histogram": self.histogram,
            "arithmetic": self.arithmetic,
            "multiply_adds_in_codes": self.multiply_adds_in_codes,
            "memory_by_role": self.memory_by_role,
        }
