"""Say why a layer of a file computes something else than the captured graph.

Each cause that is known is put to the test: *if* it were the cause, what would the tensor be? The
prediction is compared with the file's tensor, and the cause whose prediction fits within the limits is the
answer. Most predictions come from executing the layer again with that one thing changed: other pads, a weight
column of zeros, an image in BGR. Where nothing fits, the answer says ``unknown`` and where the
differences are.

1. Values no longer finite: overflow of half precision, or NaN from finite inputs.
2. Whole tensor: zero, an activation missing or too much, saturated, multiplied, offset, of another layout.
3. Output channels: permuted, zero, each multiplied or offset.
4. The layer's parameters: pads, padding counted in an average, no bias, a kernel that is flipped or
   transposed, an input channel whose weights are missing, scaled or wrong, two input channels that are
   swapped, operands of a concatenation in another order.
5. The image: BGR, not normalised, normalised twice, NHWC read as NCHW.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, permutations, product
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from shufflectl.deploy.parity.figures import figure
from shufflectl.deploy.parity.limits import Limits
from shufflectl.deploy.parity.metrics import Comparison, compare
from shufflectl.deploy.parity.segments import Segment, SegmentedGraph, execute
from shufflectl.deploy.runtimes.base import Arrays
from shufflectl.errors import GraphError
from shufflectl.models.preprocess import Preprocess

__all__ = ["Case", "Diagnosis", "diagnose"]

_HALF_MAX: Final = 65504.0
_GAIN_DB: Final = 10.0
"""By how much a prediction must come closer to the file's tensor than the graph's own result does."""
_ENOUGH_DB: Final = 30.0
"""How far within the limits a fit is as good as any better one."""
_CLEARLY_DB: Final = 6.0
"""By how much a cause with more freedom must fit better than one with less."""
_ACTIVATIONS: Final = frozenset(
    {
        "Relu",
        "Clip",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Elu",
        "Selu",
        "Tanh",
        "Softmax",
        "Gelu",
    }
)
_NAMED: Final = 4
"""Channels that a sentence names one by one."""
_MANY: Final = 24
"""Nodes in a layer above which its nodes are not tried one by one."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Diagnosis:
    """Why a layer diverges.

    Attributes:
        cause: One of ``shape``, ``zero point``, ``overflow``, ``nan``, ``zero``, ``activation``,
            ``saturation``, ``scale``, ``offset``, ``layout``, ``shifted``, ``channels permuted``,
            ``channels zero``,
            ``channels scaled``, ``padding``, ``bias``, ``kernel``, ``input channel``, ``operands``,
            ``image``, ``unrelated``, ``rounding``, ``unknown``.
        sentence: The cause with its evidence, without a full stop.
        fit: How well the cause explains the file's tensor, SQNR in dB; None where nothing was predicted.
        exact: Whether the tensor follows from the cause alone, with no number fitted to it.
    """

    cause: str
    sentence: str
    fit: float | None = None
    exact: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the diagnosis as JSON values."""
        return {
            "cause": self.cause,
            "sentence": self.sentence,
            "fit_db": None if self.fit is None else figure(self.fit),
        }


@dataclass(frozen=True)
class Case:
    """A layer that diverges.

    Attributes:
        graph: The captured graph, cut at the tensors that the file holds.
        segment: The layer.
        sources: The file's own tensors that the layer reads, as the graph has them; one record for each
            group of images that is executed at once.
        actual: The file's tensor, as the graph has it, all groups along the first axis.
        limits: Within which a prediction counts as the explanation.
        preprocess: What happens to an image, where known.
    """

    graph: SegmentedGraph
    segment: Segment
    sources: tuple[Arrays, ...]
    actual: Array
    limits: Limits
    preprocess: Preprocess | None = None

    @cached_property
    def expected(self) -> Array:
        """What the captured graph makes of the file's own sources."""
        return self.run()

    def run(
        self,
        *,
        output: str | None = None,
        nodes: Mapping[int, onnx.NodeProto] | None = None,
        weights: Mapping[str, NDArray[Any]] | None = None,
        change: Callable[[str, NDArray[Any]], NDArray[Any]] | None = None,
    ) -> Array:
        """Execute the layer again, with something changed.

        Args:
            output: What to give back; the layer's tensor unless given.
            nodes: Nodes in place of the graph's, by position.
            weights: Initialisers in place of the graph's, by name.
            change: Maps each source by name.

        Raises:
            GraphError: The changed layer cannot be executed.
        """
        name = output or self.segment.tensor
        model = self.graph.model([self.segment], outputs=[name], nodes=nodes, weights=weights)
        parts = []
        for group in self.sources:
            given = {key: change(key, value) for key, value in group.items()} if change else group
            parts.append(execute(model, self.graph.feeds([self.segment], given))[name])
        return np.concatenate(parts).astype(np.float64)

    def tensor(self, name: str) -> Array:
        """Return a source, or a tensor inside the layer, as the file's own sources make it."""
        if name in self.segment.sources:
            return np.concatenate([group[name] for group in self.sources]).astype(np.float64)
        return self.run(output=name)

    def compare(self, prediction: Array) -> Comparison:
        """Compare the file's tensor with what a cause predicts."""
        return compare(prediction, self.actual, self.limits)

    @property
    def last(self) -> onnx.NodeProto:
        """The node that makes the layer's tensor."""
        return self.graph.nodes[self.graph.producer[self.segment.tensor]]


@dataclass(frozen=True)
class _Hypothesis:
    """A cause and what the tensor would be if it were the one.

    Attributes:
        cause: See `Diagnosis`.
        sentence: Likewise.
        prediction: The tensor.
        freedom: 0 where the prediction follows from the cause alone, 1 where one number was fitted to the
            file's tensor, 2 where many were, or where some positions are left out.
        region: The positions that are predicted; all unless given.
    """

    cause: str
    sentence: str
    prediction: Array
    freedom: int = 0
    region: tuple[slice, ...] | None = None


def diagnose(case: Case) -> Diagnosis:
    """Return the cause that explains the file's tensor best, or ``unknown`` with what is known.

    What has more freedom fits better by itself, so of two causes the one with less freedom is preferred
    unless the other fits clearly better. Fits far within the limits count as equal.
    """
    broken = _nonfinite(case)
    if broken is not None:
        return broken
    least = case.compare(case.expected).sqnr + _GAIN_DB
    enough = case.limits.sqnr + _ENOUGH_DB
    found: list[tuple[int, float, Diagnosis]] = []
    for family in (_whole, _channels, _parameters, _image):
        for guess in _tried(family(case)):
            fit = _fit(case, guess)
            if fit is not None and fit > least:
                answer = Diagnosis(guess.cause, guess.sentence, fit, guess.freedom == 0)
                found.append((guess.freedom, min(fit, enough), answer))
    best: tuple[int, float, Diagnosis] | None = None
    for entry in sorted(found, key=lambda entry: entry[0]):  # stable: from simple to involved
        if best is None or entry[1] > best[1] + (1 if entry[0] == best[0] else _CLEARLY_DB):
            best = entry
    return _leftover(case) if best is None else best[2]


def _tried(guesses: Iterator[_Hypothesis]) -> Iterator[_Hypothesis]:
    """Yield guesses until one cannot be executed; the layer then has no such cause."""
    try:
        yield from guesses
    except GraphError:
        return


def _fit(case: Case, guess: _Hypothesis) -> float | None:
    if guess.prediction.shape != case.actual.shape:
        return None
    region = guess.region or ()
    found = compare(guess.prediction[region], case.actual[region], case.limits)
    return found.sqnr if found and found.elements else None


def _nonfinite(case: Case) -> Diagnosis | None:
    """Case 1."""
    bad = ~np.isfinite(case.actual)
    if not bad.any():
        return None
    count = f"{np.count_nonzero(bad)} of {bad.size} values are NaN or infinite"
    if not all(np.isfinite(value).all() for group in case.sources for value in group.values()):
        return Diagnosis("nan", f"{count}, and so are some that the layer reads")
    inner = {name for index in case.segment.nodes for name in case.graph.nodes[index].output if name}
    peaks = {name: float(np.abs(case.run(output=name)).max()) for name in inner}
    name = max(sorted(peaks), key=peaks.__getitem__)
    if peaks[name] > _HALF_MAX:
        return Diagnosis(
            "overflow",
            f"overflow of half precision: {count}; {name} reaches {peaks[name]:.4g}, "
            f"and fp16 ends at {_HALF_MAX:.0f}",
        )
    area = _summed(case)
    if area > _HALF_MAX:
        return Diagnosis(
            "overflow",
            f"overflow of half precision inside the layer: {count}; its sums reach {area:.4g} before they "
            f"are divided, and fp16 ends at {_HALF_MAX:.0f}",
        )
    peak = float(np.abs(case.expected).max())
    return Diagnosis(
        "nan", f"{count} though all that the layer reads is finite and at most {peak:.4g} is expected"
    )


def _summed(case: Case) -> float:
    """Return the largest sum that a mean in the layer forms."""
    largest = 0.0
    for index in case.segment.nodes:
        node = case.graph.nodes[index]
        if node.op_type in ("ReduceMean", "GlobalAveragePool", "AveragePool"):
            source, mean = case.tensor(node.input[0]), case.tensor(node.output[0])
            largest = max(largest, float(np.abs(mean).max()) * source.size / max(1, mean.size))
    return largest


def _whole(case: Case) -> Iterator[_Hypothesis]:
    """Case 2."""
    expected, actual = case.expected, case.actual
    yield _Hypothesis("zero", "the whole tensor is zero", np.zeros_like(expected))
    before = _before_activation(case)
    if before is not None:
        text = f"the activation {case.last.op_type} is missing"
        yield _Hypothesis("activation", text, before)
    relu = np.maximum(expected, 0)
    yield _Hypothesis("activation", "an activation Relu is applied that the model does not have", relu)
    yield _Hypothesis(
        "activation", "an activation Relu6 is applied that the model does not have", np.minimum(relu, 6)
    )
    low, high = float(actual.min()), float(actual.max())
    if high < expected.max() or low > expected.min():
        share = np.count_nonzero((actual == low) | (actual == high)) / actual.size
        text = f"values saturate at {low:.4g} and {high:.4g} ({share:.1%} of them), "
        text += f"where {expected.min():.4g} to {expected.max():.4g} is expected"
        yield _Hypothesis("saturation", text, np.clip(expected, low, high), 1)
    power = float((expected * expected).sum())
    if power > 0 and expected.size > 1:
        factor = float((expected * actual).sum()) / power
        yield _Hypothesis("scale", f"every value is multiplied by {factor:.4g}", expected * factor, 1)
        offset = float((actual - expected).mean())
        yield _Hypothesis("offset", f"{offset:.4g} is added to every value", expected + offset, 1)
    yield from _layouts(expected)


def _layouts(expected: Array) -> Iterator[_Hypothesis]:
    if expected.ndim != 4:
        return
    n, c, h, w = expected.shape
    if c > 1 and h * w > 1:
        yield _Hypothesis(
            "layout", "the values lie in NHWC order where NCHW is expected",
            expected.transpose(0, 2, 3, 1).reshape(n, c, h, w),
        )  # fmt: skip
        yield _Hypothesis(
            "layout", "the values lie in NCHW order where NHWC is expected",
            expected.reshape(n, h, w, c).transpose(0, 3, 1, 2),
        )  # fmt: skip
    if h == w and h > 1:
        yield _Hypothesis("layout", "height and width are swapped", expected.swapaxes(2, 3))
    if h > 1:
        yield _Hypothesis("layout", "the rows are in reverse order", expected[:, :, ::-1])
    if w > 1:
        yield _Hypothesis("layout", "the columns are in reverse order", expected[:, :, :, ::-1])
    if min(h, w) < 4:
        return
    for dy, dx in product((-1, 0, 1), repeat=2):
        if dy or dx:
            inside = (slice(None), slice(None), slice(1, h - 1), slice(1, w - 1))
            text = f"the map is shifted by {abs(dy)} rows and {abs(dx)} columns: padding on the wrong side"
            yield _Hypothesis("shifted", text, np.roll(expected, (dy, dx), (2, 3)), 2, inside)


def _before_activation(case: Case) -> Array | None:
    """Return what the layer's last activation reads; None where the layer does not end in one."""
    if case.last.op_type not in _ACTIVATIONS or case.last.input[0] in case.segment.sources:
        return None
    before = case.tensor(case.last.input[0])
    return before if before.shape == case.expected.shape else None


def _wrong_channels(case: Case) -> NDArray[np.intp]:
    """Return the channels whose error alone is beyond the limits, measured against the average channel."""
    expected = case.expected
    axes = tuple(axis for axis in range(expected.ndim) if axis != 1)
    noise = np.square(case.actual - expected).sum(axis=axes)
    power = np.square(expected).sum() / expected.shape[1]
    return np.flatnonzero(noise > power * 10 ** (-case.limits.sqnr / 10))


def _channels(case: Case) -> Iterator[_Hypothesis]:
    """Case 3."""
    expected = case.expected
    if expected.ndim < 2 or expected.shape[1] < 2:
        return
    count = expected.shape[1]
    wrong = _wrong_channels(case)
    if wrong.size == 0:
        return
    rows = np.moveaxis(expected, 1, 0).reshape(count, -1)
    held = np.moveaxis(case.actual, 1, 0).reshape(count, -1)

    def restored(values: Array) -> Array:
        shape = (count, *(size for axis, size in enumerate(expected.shape) if axis != 1))
        return np.moveaxis(values.reshape(shape), 0, 1)

    # Squared distances of each wrong channel to every expected one.
    distance = np.square(rows).sum(1)[np.newaxis] - 2 * held[wrong] @ rows.T
    order = np.arange(count)
    order[wrong] = distance.argmin(axis=1)
    if (order[wrong] != wrong).any():
        complete = sorted(order) == list(range(count))
        yield _Hypothesis(
            "channels permuted", _order_text(order), restored(rows[order]), 0 if complete else 1
        )

    silent = wrong[~held[wrong].any(axis=1)]
    if silent.size:
        zeroed = rows.copy()
        zeroed[silent] = 0
        yield _Hypothesis(
            "channels zero", f"{_list('channel', silent)} of {count} hold only zeros", restored(zeroed)
        )
    yield from _fitted_channels(case, wrong, held, restored)


def _fitted_channels(
    case: Case, wrong: NDArray[np.intp], held: Array, restored: Callable[[Array], Array]
) -> Iterator[_Hypothesis]:
    """Yield each wrong channel as ``scale * x + offset``, of what comes before a clipping activation."""
    before = _before_activation(case) if case.last.op_type in ("Relu", "Clip") else None
    base = case.expected if before is None else before
    rows = np.moveaxis(base, 1, 0).reshape(base.shape[1], -1)
    low = -math.inf if before is None else float(case.expected.min())
    high = math.inf if before is None or case.last.op_type == "Relu" else float(case.expected.max())
    fits = {kind: rows.copy() for kind in ("constant", "scale", "offset", "affine")}
    levels, scales, offsets = [], [], []
    for channel in wrong:
        active = (held[channel] > low) & (held[channel] < high)
        x, y = rows[channel][active], held[channel][active]
        if x.size < 3:  # any two numbers lie on a line
            return
        power, spread = float((x * x).sum()), float(np.square(x - x.mean()).sum())
        slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread > 0 else 0.0
        levels.append(float(y.mean()))
        scales.append(float((x * y).sum()) / power if power > 0 else 0.0)
        offsets.append(float((y - x).mean()))
        fits["constant"][channel] = levels[-1]
        fits["scale"][channel] = rows[channel] * scales[-1]
        fits["offset"][channel] = rows[channel] + offsets[-1]
        fits["affine"][channel] = rows[channel] * slope + (levels[-1] - slope * x.mean())
    what = _list("output channel", wrong) + f" of {rows.shape[0]}"
    texts = {
        "constant": f"{what}: constant at {_figures(levels)}, as if without weights",
        "scale": f"{what}: multiplied by {_figures(scales)}",
        "offset": f"{what}: {_figures(offsets)} is added, as of a wrong bias",
        "affine": f"{what}: each with a scale and an offset of its own, as of a batch norm folded wrongly",
    }
    for kind, values in fits.items():
        freedom = 1 if wrong.size == 1 and kind != "affine" else 2
        yield _Hypothesis("channels scaled", texts[kind], np.clip(restored(values), low, high), freedom)


def _order_text(order: NDArray[np.intp]) -> str:
    moved = np.flatnonzero(order != np.arange(order.size))
    count = order.size
    if sorted(order) == list(range(count)):
        if moved.size == 2:
            return f"channels {moved[0]} and {moved[1]} of {count} are swapped"
        for groups in range(2, count):
            if count % groups == 0 and (order == np.arange(count).reshape(groups, -1).T.ravel()).all():
                return f"the {count} channels are shuffled once more, with {groups} groups"
        pairs = ", ".join(f"{c} holds {order[c]}" for c in moved[:_NAMED])
        return f"{moved.size} of {count} channels are permuted: {pairs}" + (
            ", ..." if moved.size > _NAMED else ""
        )
    pairs = ", ".join(f"{c} holds {order[c]}" for c in moved[:_NAMED])
    more = ", ..." if moved.size > _NAMED else ""
    return f"{moved.size} of {count} channels hold another channel's values: {pairs}{more}"


def _list(noun: str, indices: Sequence[int] | NDArray[np.intp]) -> str:
    shown = ", ".join(str(index) for index in indices[:_NAMED])
    if len(indices) == 1:
        return f"{noun} {shown}"
    if len(indices) > _NAMED:
        return f"{len(indices)} {noun}s ({shown}, ...)"
    return f"{noun}s {shown}"


def _figures(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values[:_NAMED]) + (", ..." if len(values) > _NAMED else "")


def _parameters(case: Case) -> Iterator[_Hypothesis]:
    """Case 4. A segment of many nodes is a file without a trace: trying each would take minutes."""
    if len(case.segment.nodes) > _MANY:
        return
    for index in case.segment.nodes:
        node = case.graph.nodes[index]
        label = case.graph.label(index)
        families = {
            "Conv": (_pads, _bias, _kernel, _filters, _columns, _planes),
            "Gemm": (_bias, _columns),
            "MatMul": (_columns,),
            "MaxPool": (_pads,),
            "AveragePool": (_pads, _counting),
            "Concat": (_operands,),
        }.get(node.op_type, ())
        for family in families:
            yield from _tried(family(case, index, label))


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _with(node: onnx.NodeProto, **attributes: Any) -> onnx.NodeProto:
    changed = onnx.NodeProto()
    changed.CopyFrom(node)
    kept = [attribute for attribute in node.attribute if attribute.name not in attributes]
    del changed.attribute[:]
    changed.attribute.extend(kept)
    changed.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    return changed


def _pads(case: Case, index: int, label: str) -> Iterator[_Hypothesis]:
    node = case.graph.nodes[index]
    attributes = _attributes(node)
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b""):
        return
    rank = case.tensor(node.input[0]).ndim - 2
    pads = list(attributes.get("pads", [0] * (2 * rank)))
    if rank != 2:
        return
    top, left, bottom, right = pads
    for t, b, a, z in _other_pads(top, left, bottom, right):
        other = [t, a, b, z]
        try:
            prediction = case.run(nodes={index: _with(node, pads=other)})
        except GraphError:
            continue  # ONNX Runtime refuses these pads
        text = f"{label} pads [top, left, bottom, right] by {other} where {pads} is right"
        yield _Hypothesis("padding", text, prediction)


def _other_pads(top: int, left: int, bottom: int, right: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (top, bottom, left, right) that can give the same shape: wrong in one axis, or in both alike.

    With a stride the last row may go unread, so one pad less can give the same shape.
    """

    def splits(total: int) -> list[tuple[int, int]]:
        return [(first, size - first) for size in (total, total - 1) for first in range(size + 1)]

    for vertical, horizontal in product(splits(top + bottom), splits(left + right)):
        right_one = (vertical == (top, bottom)) + (horizontal == (left, right))
        if right_one == 1 or (right_one == 0 and vertical == horizontal):
            yield (*vertical, *horizontal)


def _counting(case: Case, index: int, label: str) -> Iterator[_Hypothesis]:
    node = case.graph.nodes[index]
    counted = int(_attributes(node).get("count_include_pad", 0))
    text = f"{label} {'leaves padding out of' if counted else 'counts padding in'} its averages"
    changed = _with(node, count_include_pad=1 - counted)
    yield _Hypothesis("padding", text, case.run(nodes={index: changed}))


def _weight(case: Case, node: onnx.NodeProto, position: int) -> NDArray[Any] | None:
    name = node.input[position] if len(node.input) > position else ""
    tensor = case.graph.initializers.get(name)
    return None if tensor is None else numpy_helper.to_array(tensor)


def _bias(case: Case, index: int, label: str) -> Iterator[_Hypothesis]:
    node = case.graph.nodes[index]
    bias = _weight(case, node, 2)
    if bias is not None and bias.any():
        prediction = case.run(weights={node.input[2]: np.zeros_like(bias)})
        yield _Hypothesis("bias", f"the bias of {label} is missing", prediction)


def _kernel(case: Case, index: int, label: str) -> Iterator[_Hypothesis]:
    node = case.graph.nodes[index]
    weight = _weight(case, node, 1)
    if weight is None or weight.ndim != 4 or max(weight.shape[2:]) == 1:
        return
    changes = {
        "flipped in both axes": weight[:, :, ::-1, ::-1],
        "flipped top to bottom": weight[:, :, ::-1],
        "flipped left to right": weight[:, :, :, ::-1],
    }
    if weight.shape[2] == weight.shape[3]:
        changes["transposed"] = weight.swapaxes(2, 3)
    for how, changed in changes.items():
        prediction = case.run(weights={node.input[1]: np.ascontiguousarray(changed)})
        yield _Hypothesis("kernel", f"the kernel of {label} is {how}", prediction)


def _filters(case: Case, index: int, label: str) -> Iterator[_Hypothesis]:
    """Yield swaps of two filters: each reads its own input channels where the convolution is grouped."""
    node = case.graph.nodes[index]
    weight, bias = _weight(case, node, 1), _weight(case, node, 2)
    wrong = _wrong_channels(case) if case.expected.ndim > 1 else np.zeros(0, np.intp)
    if weight is None or not 2 <= wrong.size <= _NAMED or case.expected.shape[1] != weight.shape[0]:
        return
    for i, j in combinations(wrong, 2):
        order = np.arange(weight.shape[0])
        order[[i, j]] = order[[j, i]]
        both = {node.input[1]: weight[order]} | ({} if bias is None else {node.input[2]: bias[order]})
        text = f"the filters of output channels {i} and {j} of {label} are swapped"
        yield _Hypothesis("channels permuted", text, case.run(weights=both))
        if bias is not None:
            text = f"the weights of output channels {i} and {j} of {label} are swapped, their biases are not"
            yield _Hypothesis("channels permuted", text, case.run(weights={node.input[1]: weight[order]}))


def _operands(case: Case, index: int, label: str) -> Iterator[_Hypothesis]:
    node = case.graph.nodes[index]
    names = list(node.input)
    if len(names) > 3:
        return
    for order in permutations(range(len(names))):
        if list(order) != sorted(order):
            changed = _with(node)
            del changed.input[:]
            changed.input.extend(names[position] for position in order)
            text = f"the operands of {label} come in the order {[position + 1 for position in order]}"
            yield _Hypothesis("operands", text, case.run(nodes={index: changed}))


def _columns(case: Case, index: int, label: str) -> Iterator[_Hypothesis]:
    """Yield the input channels whose weights would explain the difference.

    Where the layer is linear (before its activation, at the positions that the activation lets through) a
    wrong weight column leaves a difference of rank one: column times input channel. Projections on all
    columns at once find the likeliest ones; each is then tried by executing the layer with it.
    """
    node = case.graph.nodes[index]
    weight = _weight(case, node, 1)
    found = _linear(case, node, weight)
    if weight is None or found is None:
        return
    matrix, inputs, delta, active = found  # [O, K], [K, P], [O, P], [O, P]
    axis = _input_axis(node, weight)
    response = delta @ inputs.T  # [O, K]
    energy = np.square(inputs).sum(1) + 1e-300
    columns = np.square(matrix).sum(0) + 1e-300
    projected = matrix.T @ response  # [K, K]: column i with input j

    def tried(changed: NDArray[Any], text: str, freedom: int = 0) -> _Hypothesis:
        values = np.ascontiguousarray(changed.astype(weight.dtype))
        return _Hypothesis("input channel", text, case.run(weights={node.input[1]: values}), freedom)

    def replaced(channels: Sequence[int], values: NDArray[Any]) -> NDArray[Any]:
        changed = np.moveaxis(weight.copy(), axis, 0)
        changed[list(channels)] = values
        return np.moveaxis(changed, 0, axis)

    front = np.moveaxis(weight, axis, 0)
    gain = np.diag(projected) ** 2 / (columns * energy)
    for k in _largest(gain, 3):
        text = f"input channel {k} of {label} contributes nothing: its weight column is missing"
        yield tried(replaced([k], np.zeros_like(front[k])), text)
        share = np.outer(matrix[:, k], inputs[k]) * active
        factor = 1 + float((delta * share).sum() / max(float(np.square(share).sum()), 1e-300))
        text = f"the weight column of input channel {k} of {label} is multiplied by {factor:.4g}"
        yield tried(replaced([k], front[k] * factor), text, 1)

    between = np.square(matrix).sum(0)[:, None] + columns[None] - 2 * matrix.T @ matrix
    apart = energy[:, None] + energy[None] - 2 * inputs @ inputs.T
    diagonal = np.diag(projected)
    score = projected + projected.T - diagonal[:, None] - diagonal[None]
    swap = np.where((between > 1e-12) & (apart > 1e-12) & (score > 0), score, 0.0) ** 2
    swap = np.triu(swap / np.maximum(between * apart, 1e-300), 1)
    for flat in _largest(swap.ravel(), 3):
        i, j = divmod(flat, swap.shape[1])
        text = f"input channels {i} and {j} of {label} are swapped"
        yield tried(replaced([i, j], front[[j, i]]), text)

    for k in _largest(np.square(response).sum(0) / energy, 3):
        shift = response[:, k] / np.maximum(active @ np.square(inputs[k]), 1e-300)
        hit = np.flatnonzero(np.abs(shift) > 1e-3 * np.abs(shift).max())
        if hit.size == 1:
            text = f"the weight from input channel {k} to output channel {hit[0]} of {label} is wrong"
            text += f" by {shift[hit[0]]:.4g}"
        else:
            where = _list("output channel", hit)
            text = f"the weight column of input channel {k} of {label} is wrong in {where}"
        yield tried(replaced([k], front[k] + shift.reshape(front[k].shape)), text, 1 if hit.size == 1 else 2)


def _planes(case: Case, index: int, label: str) -> Iterator[_Hypothesis]:
    """Yield the input channels of a dense convolution with a spatial kernel and few inputs, as a stem has."""
    node = case.graph.nodes[index]
    weight = _weight(case, node, 1)
    if weight is None or max(weight.shape[2:]) == 1 or not 1 < weight.shape[1] <= _MANY:
        return
    for k in range(weight.shape[1]):
        changed = weight.copy()
        changed[:, k] = 0
        text = f"input channel {k} of {label} contributes nothing: its weights are missing"
        yield _Hypothesis("input channel", text, case.run(weights={node.input[1]: changed}))


def _largest(scores: Array, count: int) -> list[int]:
    finite = np.where(np.isfinite(scores), scores, 0.0)
    return [int(index) for index in np.argsort(-finite, kind="stable")[:count] if finite[index] > 0]


def _input_axis(node: onnx.NodeProto, weight: NDArray[Any]) -> int:
    if node.op_type == "Conv" or (node.op_type == "Gemm" and _attributes(node).get("transB", 0)):
        return 1
    return weight.ndim - 2


def _linear(
    case: Case, node: onnx.NodeProto, weight: NDArray[Any] | None
) -> tuple[Array, Array, Array, Array] | None:
    """Return a layer's weights ``[O, K]``, inputs ``[K, P]``, differences ``[O, P]`` and which of them count.

    None where the layer is not one pointwise or dense product (before one activation).
    """
    inside = case.last.input[0] if case.last.op_type in ("Relu", "Clip") else case.segment.tensor
    if weight is None or inside != node.output[0]:
        return None
    attributes = _attributes(node)
    if node.op_type == "Conv":
        if weight.ndim != 4 or weight.shape[2:] != (1, 1) or attributes.get("group", 1) != 1:
            return None
        if any(attributes.get("pads", [])):
            return None
        down, across = attributes.get("strides", [1, 1])
        source = case.tensor(node.input[0])[:, :, ::down, ::across]
        matrix = weight[:, :, 0, 0]
        inputs = np.moveaxis(source, 1, 0).reshape(source.shape[1], -1)
    else:
        source = case.tensor(node.input[0])
        if weight.ndim != 2 or source.ndim != 2 or attributes.get("transA", 0):
            return None
        matrix = weight if _input_axis(node, weight) == 1 else weight.T
        inputs = source.T
    linear = case.expected if inside == case.segment.tensor else case.tensor(inside)

    def rows(values: Array) -> Array:
        return np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)

    held = rows(case.actual)
    if inside == case.segment.tensor:
        active = np.ones(held.shape)
    else:
        high = float(held.max()) if case.last.op_type == "Clip" else math.inf
        active = ((held > held.min()) & (held < high)).astype(np.float64)
    delta = (held - rows(linear)) * active
    return matrix.astype(np.float64), inputs, delta, active


def _image(case: Case) -> Iterator[_Hypothesis]:
    """Case 5."""
    for name in case.segment.sources:
        if name in case.graph.inputs and next(iter(case.sources))[name].ndim == 4:
            yield from _tried(_image_forms(case, name))


def _image_forms(case: Case, name: str) -> Iterator[_Hypothesis]:
    forms: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {"": lambda x: x}
    spec = case.preprocess
    channels = next(iter(case.sources))[name].shape[1]
    if spec is not None and channels == 3:
        mean = np.asarray(spec.mean, np.float32).reshape(3, 1, 1)
        std = np.asarray(spec.std, np.float32).reshape(3, 1, 1)
        scale = np.float32(spec.scale)
        forms["not normalised (scaled pixels)"] = lambda x: x * std + mean
        forms["not normalised (pixels from 0 to 255)"] = lambda x: (x * std + mean) / scale
        forms["normalised twice"] = lambda x: (x - mean) / std
        forms["normalised twice, scaling included"] = lambda x: (x * scale - mean) / std
    forms["multiplied by 255"] = lambda x: x * np.float32(255)
    forms["divided by 255"] = lambda x: x / np.float32(255)
    forms["in NHWC order where NCHW is expected"] = lambda x: x.transpose(0, 2, 3, 1).reshape(x.shape)
    forms["in NCHW order where NHWC is expected"] = lambda x: x.reshape(
        x.shape[0], *x.shape[2:], x.shape[1]
    ).transpose(0, 3, 1, 2)
    forms["transposed (height and width swapped)"] = lambda x: (
        x.swapaxes(2, 3) if x.shape[2] == x.shape[3] else x
    )
    forms["upside down"] = lambda x: x[:, :, ::-1]
    forms["mirrored"] = lambda x: x[:, :, :, ::-1]
    orders = ("", "BGR where RGB is expected") if channels == 3 else ("",)
    for (form, change), order in product(forms.items(), orders):
        if not form and not order:
            continue

        def changed(
            key: str,
            value: NDArray[Any],
            change: Callable[[NDArray[Any]], NDArray[Any]] = change,
            order: str = order,
        ) -> NDArray[Any]:
            if key != name:
                return value
            return change(value[:, ::-1] if order else value)

        what = " and ".join(part for part in (order, form) if part)
        yield _Hypothesis("image", f"the file computes as if its image were {what}", case.run(change=changed))


def _leftover(case: Case) -> Diagnosis:
    """Say what is known where no cause fits."""
    expected, actual = case.expected, case.actual
    found = case.compare(expected)
    delta = np.abs(actual - expected)
    allowed = case.limits.max_rel * found.peak
    if expected.ndim == 4 and min(expected.shape[2:]) > 2:
        rows = np.flatnonzero((delta > allowed).any(axis=(0, 1, 3)))
        columns = np.flatnonzero((delta > allowed).any(axis=(0, 1, 2)))
        inner = (delta[:, :, 1:-1, 1:-1] > allowed).any()
        if rows.size and not inner:
            text = "only the outermost rows or columns differ, as they do when padding is wrong "
            text += f"({_list('row', rows)}, {_list('column', columns)} "
            text += f"of {expected.shape[2]}x{expected.shape[3]})"
            return Diagnosis("padding", text)
    if abs(found.cosine) < 0.1:
        return Diagnosis(
            "unrelated",
            f"the whole tensor has nothing to do with what is expected (cosine {found.cosine:.2f}): "
            "other weights, or another tensor",
        )
    worst = np.unravel_index(int(delta.argmax()), delta.shape)
    place = [int(position) for position in worst]
    text = (
        f"no known cause fits; the largest difference is at {place}, {actual[worst]:.4g} "
        f"where {expected[worst]:.4g} is expected"
    )
    if expected.ndim >= 2:
        wrong = _wrong_channels(case)
        text += f"; {wrong.size} of {expected.shape[1]} channels differ"
    return Diagnosis("unknown", text)
