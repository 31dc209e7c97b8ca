"""A graph that takes pixels: the preprocessing moves into the first weights, or becomes operators in front.

Let ``p`` be the pixels, RGB and 0 to 255, ``k`` the order of the colours, and ``x`` what the network takes::

    x[c] = (p[k(c)] * scale - mean[c]) / std[c]
         = a[c] * (p[k(c)] - b[c])                  with a = scale / std, b = mean / scale

A convolution of ``x`` has ``y[o] = bias[o] + sum over c, i of W[o, c, i] * x[c]`` at tap ``i``.

1. *Order and factor* always fold: ``W'[o, k(c), i] = a[c] * W[o, c, i]``. A tap in the padding adds nothing
   before and after.
2. *The shift* folds where no tap is ever in the padding:
   ``bias'[o] = bias[o] - sum over c, i of W[o, c, i] * a[c] * b[c]``.
3. *Zero padding* means ``x = 0``, which is the pixel ``b`` and not the pixel 0. Taps in the padding must not
   add their share of the shift, so the bias would have to differ along the border. The shift is then one
   ``Sub`` in front, ``p - b``, whose zero is the padding's; order and factor fold as in 1. A padding with the
   pixel ``b`` instead would copy the image just as well, and differs from colour to colour, which no format's
   operator can.
4. Where the first operator is no such convolution (it has groups or computed weights, the image is read by
   something else too), there are up to three operators: ``Gather`` (order), ``Sub`` (shift) and ``Mul``
   (factor).

::

    Given                                        Result (case 3, 8-bit input)
    image [N, 3, H, W] float                     image        [N, 3, H, W] uint8, RGB
                                                 image.float  = Cast(image)
                                                 image.shift  = Sub(image.float, b [1, 3, 1, 1])
    conv1.0 = Conv(image, W, bias, pads=1)       conv1.0      = Conv(image.shift, W', bias, pads=1)

Weights are multiplied in fp64 and rounded once. Every tensor behind the first convolution is the captured
one, so parity compares layer by layer as before; the input itself is on record as `pixels_of` its name.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from shufflectl.converters.graph import Graph, TensorRecord
from shufflectl.converters.metadata import Inside
from shufflectl.converters.rewrite.edit import Editor
from shufflectl.converters.trace import NCHW, pixels_of
from shufflectl.errors import GraphError
from shufflectl.models.preprocess import Preprocess

__all__ = ["Fold", "fold_preprocess", "image_inputs", "take_bytes"]

_COLOURS: Final = 3


@dataclass(frozen=True)
class Fold:
    """What became of one input's preprocessing.

    Attributes:
        input: The input's name.
        how: ``weights``: all of it is in the weights; ``shift``: all but the mean, which an operator takes
            away; ``operators``: operators do it; ``nothing``: pixels are what the network takes.
        why: In one sentence, with the names of the nodes.
    """

    input: str
    how: Inside
    why: str


def image_inputs(graph: Graph) -> list[tuple[ir.Value, int]]:
    """Return the inputs that are images of three colours, with the axis of the colours.

    ``[N, 3, H, W]`` has them on axis 1, ``[N, H, W, 3]`` on axis 3.
    """
    found = []
    for value in graph.inputs:
        shape = Graph.shape(value)
        if len(shape) == 4 and _COLOURS in (shape[1], shape[3]):
            found.append((value, 1 if shape[1] == _COLOURS else 3))
    return found


def fold_preprocess(graph: Graph, preprocess: Preprocess) -> tuple[Graph, tuple[Fold, ...]]:
    """Return the graph whose images are pixels, RGB and 0 to 255, and what was done for each.

    Args:
        graph: The captured graph; it is not changed.
        preprocess: What the network's images go through.

    Raises:
        GraphError: No input is an image, or one is an output as well.
    """
    if not image_inputs(graph):
        raise GraphError(
            "no input is an image of three colours, so there is no preprocessing to fold",
            hint="leave out --fold-preprocess",
        )
    editor = Editor(graph)
    folds = tuple(_fold(editor, value, axis, preprocess) for value, axis in image_inputs(editor.graph))
    return editor.finish(), folds


def take_bytes(graph: Graph) -> Graph:
    """Return the graph whose images are 8-bit unsigned integers, which a ``Cast`` makes the same numbers.

    Raises:
        GraphError: No input is an image, or one is an output as well.
    """
    editor = Editor(graph)
    found = image_inputs(editor.graph)
    if not found:
        raise GraphError(
            "no input is an image of three colours, so none can be 8-bit", hint="leave out --input-type"
        )
    for value, _ in found:
        _refuse_output(value)
        record = editor.graph.record(str(value.name))
        given = value.type
        value.type = ir.TensorType(ir.DataType.UINT8)
        uses = tuple(value.uses())
        made = editor.node(
            "Cast", [value], [Graph.shape(value)], f"{value.name}.float", to=int(ir.DataType.FLOAT)
        )[0]
        made.type = given
        _redirect(uses, made)
        if record == TensorRecord(str(value.name)):
            # Its pixels are the network's own: the numbers that the cast gives are the captured input.
            editor.graph.records[str(made.name)] = record
            editor.graph.records[str(value.name)] = TensorRecord(pixels_of(record.origin))
    return editor.finish()


def _fold(editor: Editor, image: ir.Value, axis: int, preprocess: Preprocess) -> Fold:
    _refuse_output(image)
    name = str(image.name)
    step = [2, 1, 0] if preprocess.color == "bgr" else [0, 1, 2]
    factor = preprocess.scale / np.asarray(preprocess.std, np.float64)
    shift = np.asarray(preprocess.mean, np.float64) / preprocess.scale
    record = editor.graph.record(name)
    editor.graph.records[name] = TensorRecord(pixels_of(record.origin))
    if preprocess.takes_pixels and preprocess.color == "rgb":
        return Fold(name, "nothing", "the network takes RGB pixels from 0 to 255 as they are")
    uses = tuple(image.uses())
    hindrance, readers = _readers(image, axis)
    if hindrance:
        value = _operators(editor, image, axis, step, factor, shift)
        _redirect(uses, value)
        editor.graph.records[str(value.name)] = TensorRecord(record.origin)
        return Fold(name, "operators", f"operators prepare the image: {hindrance}")
    where = ", ".join(str(node.name) for node in readers)
    padded = [str(node.name) for node in readers if _is_padded(node)]
    remains = bool(np.any(shift)) and bool(padded)
    for node in readers:
        _into_weights(editor, node, step, factor, None if remains else shift)
    if not remains:
        return Fold(name, "weights", f"the preprocessing is in the weights of {where}")
    value = _subtract(editor, image, axis, shift[step])
    _redirect(uses, value)
    return Fold(
        name,
        "shift",
        f"the preprocessing is in the weights of {where}, but for the mean, which one Sub takes away: "
        f"{padded[0]} pads the prepared image with zeros",
    )


def _readers(image: ir.Value, axis: int) -> tuple[str, list[ir.Node]]:
    """Return why order and factor cannot go into weights, and the convolutions that they can go into."""
    found: list[ir.Node] = []
    for node, tensor in _uses(image, axis):
        label = f"{node.name or node.outputs[0].name} ({node.op_type})"
        if tensor is None or node.op_type != "Conv" or node.inputs[0] is not tensor:
            return f"{label} reads it", []
        if node.attributes.get_int("group", 1) != 1:
            return f"{label}, which reads it, has groups", []
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if Graph.constant(node.inputs[1]) is None or (bias is not None and Graph.constant(bias) is None):
            return f"the weights of {label}, which reads it, are computed", []
        found.append(node)
    return ("", found) if found else ("nothing reads it", [])


def _uses(image: ir.Value, axis: int) -> Iterator[tuple[ir.Node, ir.Value | None]]:
    """Yield what reads the image, and the tensor ``[N, 3, H, W]`` that it reads; None where it is another.

    A transposition from NHWC is looked through.
    """
    for use in image.uses():
        node, turned = use.node, use.node.outputs[0]
        if axis == 1:
            yield node, image
        elif (
            node.op_type == "Transpose"
            and tuple(node.attributes.get_ints("perm", ())) == NCHW
            and not turned.is_graph_output()
        ):
            yield from ((inner.node, turned) for inner in turned.uses())
        else:
            yield node, None


def _is_padded(node: ir.Node) -> bool:
    """Say whether a convolution may read outside of the image."""
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    return auto.startswith("SAME") or (auto != "VALID" and any(node.attributes.get_ints("pads", ())))


def _into_weights(
    editor: Editor,
    node: ir.Node,
    step: list[int],
    factor: NDArray[np.float64],
    shift: NDArray[np.float64] | None,
) -> None:
    """Put order, factor (case 1) and, unless it is None, the shift (case 2) into a convolution."""
    held = Graph.constant(node.inputs[1])
    assert held is not None  # noqa: S101 - `_readers` looked at it
    dtype = held.dtype
    weight = held.astype(np.float64) * factor.reshape(1, _COLOURS, *[1] * (held.ndim - 2))
    editor.own_constant(node, 1, weight[:, step].astype(dtype))
    if shift is None or not shift.any():
        return
    moved = weight.reshape(*weight.shape[:2], -1).sum(2) @ shift
    if len(node.inputs) < 3 or node.inputs[2] is None:
        node.resize_inputs(3)
        node.replace_input_with(2, editor.constant(f"{node.name}.bias", (-moved).astype(dtype)))
        return
    bias = Graph.constant(node.inputs[2])
    assert bias is not None  # noqa: S101 - `_readers` looked at it
    editor.own_constant(node, 2, (bias.astype(np.float64) - moved).astype(dtype))


def _operators(
    editor: Editor,
    image: ir.Value,
    axis: int,
    step: list[int],
    factor: NDArray[np.float64],
    shift: NDArray[np.float64],
) -> ir.Value:
    """Return the prepared image (case 4)."""
    value, shape = image, Graph.shape(image)
    if step != [0, 1, 2]:
        index = editor.constant(f"{image.name}.order", np.asarray(step, np.int64))
        value = editor.node("Gather", [value, index], [shape], f"{image.name}.colours", axis=axis)[0]
    if shift.any():
        value = _subtract(editor, value, axis, shift)
    if not np.all(factor == 1):
        by = editor.constant(f"{image.name}.factor", _along(axis, factor))
        value = editor.node("Mul", [value, by], [shape], f"{image.name}.prepared")[0]
    return value


def _subtract(editor: Editor, value: ir.Value, axis: int, shift: NDArray[np.float64]) -> ir.Value:
    base = str(value.name).removesuffix(".colours")
    by = editor.constant(f"{base}.mean", _along(axis, shift))
    return editor.node("Sub", [value, by], [Graph.shape(value)], f"{base}.shift")[0]


def _along(axis: int, figures: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return one figure a colour in a shape that broadcasts over an image."""
    return figures.astype(np.float32).reshape((1, _COLOURS, 1, 1) if axis == 1 else (1, 1, 1, _COLOURS))


def _redirect(uses: Iterable[Any], value: ir.Value) -> None:
    for use in uses:
        use.node.replace_input_with(use.idx, value)


def _refuse_output(image: ir.Value) -> None:
    if image.is_graph_output():
        raise GraphError(
            f"the image {image.name!r} is an output as well, and would then be pixels",
            hint="export the network without that output",
        )
