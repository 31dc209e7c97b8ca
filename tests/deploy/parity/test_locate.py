import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from shufflectl.converters.graph import Graph
from shufflectl.converters.trace import TensorView, Trace
from shufflectl.deploy.parity.limits import LIMITS, Limits
from shufflectl.deploy.parity.locate import examine, locate
from shufflectl.errors import ArtifactError, DataError

FP32, FP16 = LIMITS["fp32"], LIMITS["fp16"]
Make = Callable[..., Any]


def attribute(name: str, value: Any) -> Callable[[onnx.NodeProto], None]:
    def change(node: onnx.NodeProto) -> None:
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def put(index: Any, value: Any) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[index] = value
        return array

    return change


def swap(i: int, j: int, axis: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        order = np.arange(array.shape[axis])
        order[[i, j]] = order[[j, i]]
        return np.take(array, order, axis)

    return change


def operator(op_type: str, inputs: int | None = None) -> Callable[[onnx.NodeProto], None]:
    def change(node: onnx.NodeProto) -> None:
        node.op_type = op_type
        del node.attribute[:]

    return change


def bigger(factor: float, index: Any = ...) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[index] *= np.float32(factor)
        return array

    return change


def nhwc_bytes(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 2, 3, 1).reshape(x.shape)


def reversed_concat(node: onnx.NodeProto) -> None:
    names = list(node.input)[::-1]
    del node.input[:]
    node.input.extend(names)


ANOTHER = np.random.default_rng(11).standard_normal((4, 8, 6, 6)).astype(np.float32)

# What is wrong in the file -> the tensor that it shows at, the cause, what the sentence says.
CASES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "weight column zero": (
        {"weights": {"pw_w": put(np.s_[:, 5], 0)}},
        "stage_1",
        "input channel",
        "input channel 5 of stage_0 (Conv) contributes nothing",
    ),
    "weight column scaled": (
        {"weights": {"pw_w": bigger(3, np.s_[:, 5])}},
        "stage_1",
        "input channel",
        "column of input channel 5 of stage_0 (Conv) is multiplied by 3",
    ),
    "one weight": (
        {"weights": {"pw2_w": put(np.s_[2, 6], 2.0)}},
        "stage_4",
        "input channel",
        "from input channel 6 to output channel 2 of stage_3 (Conv)",
    ),
    "weight column garbage": (
        {"weights": {"pw2_w": put(np.s_[:, 6, 0, 0], np.linspace(-2, 2, 8))}},
        "stage_4",
        "input channel",
        "weight column of input channel 6 of stage_3 (Conv) is wrong",
    ),
    "input channels swapped": (
        {"weights": {"pw_w": swap(1, 6, 1)}},
        "stage_1",
        "input channel",
        "input channels 1 and 6 of stage_0 (Conv) are swapped",
    ),
    "dense column zero": (
        {"weights": {"fc_w": put(np.s_[:, 9], 0)}},
        "logits",
        "input channel",
        "input channel 9 of logits (Gemm) contributes nothing",
    ),
    "stem column zero": (
        {"weights": {"stem_w": put(np.s_[:, 1], 0)}},
        "stem_1",
        "input channel",
        "input channel 1 of stem_0 (Conv) contributes nothing",
    ),
    "output channels swapped": (
        {"weights": {"pw_w": swap(2, 3, 0), "pw_b": swap(2, 3, 0)}},
        "stage_1",
        "channels permuted",
        "channels 2 and 3 of 8 are swapped",
    ),
    "channels shuffled": (
        {"spoil": {"stage_concat": lambda x: x[:, np.arange(16).reshape(2, 8).T.ravel()]}},
        "stage_concat",
        "channels permuted",
        "shuffled once more, with 2 groups",
    ),
    "channel twice": (
        {"spoil": {"stage_4": lambda x: x[:, [0, 1, 2, 3, 4, 5, 6, 6]]}},
        "stage_4",
        "channels permuted",
        "1 of 8 channels hold another channel's values: 7 holds 6",
    ),
    "logits swapped": (
        {"weights": {"fc_w": swap(0, 4, 0), "fc_b": swap(0, 4, 0)}},
        "logits",
        "channels permuted",
        "channels 0 and 4 of 6 are swapped",
    ),
    "channel zero": (
        {"spoil": {"stage_2": lambda x: x * (np.arange(8) != 4).reshape(8, 1, 1)}},
        "stage_2",
        "channels zero",
        "channel 4 of 8 hold only zeros",
    ),
    "depthwise filter missing": (
        {"weights": {"dw_w": put(3, 0)}},
        "stage_2",
        "channels scaled",
        "output channel 3 of 8: constant at",
    ),
    "channel scaled": (
        {"weights": {"dw_w": bigger(0.5, 3), "dw_b": bigger(0.5, 3)}},
        "stage_2",
        "channels scaled",
        "output channel 3 of 8: multiplied by 0.5",
    ),
    "channel offset": (
        {"weights": {"pw_b": lambda b: b + np.eye(8, dtype=np.float32)[2]}},
        "stage_1",
        "channels scaled",
        "output channel 2 of 8: 1 is added",
    ),
    "batch norm lost": (
        {"weights": {"pw_w": lambda w: w * np.linspace(0.5, 2, 8, dtype=np.float32).reshape(8, 1, 1, 1)}},
        "stage_1",
        "channels scaled",
        "batch norm",
    ),
    "bias missing": (
        {"weights": {"stem_b": lambda b: b * 0}},
        "stem_1",
        "bias",
        "the bias of stem_0 (Conv) is missing",
    ),
    "pads shifted": (
        {"nodes": {"stem_0": attribute("pads", [0, 0, 2, 2])}},
        "stem_1",
        "padding",
        r"stem_0 \(Conv\) pads .* by \[0, 0, [12], [12]\] where \[1, 1, 1, 1\] is right",
    ),
    "pads shifted down": (
        {"nodes": {"stage_2": attribute("pads", [2, 1, 0, 1])}},
        "stage_2",
        "padding",
        "by [2, 1, 0, 1]",
    ),
    "pool pads shifted": (
        {"nodes": {"pool": attribute("pads", [0, 0, 2, 2])}},
        "pool",
        "padding",
        "pool (MaxPool) pads",
    ),
    "kernel flipped": (
        {"weights": {"dw_w": lambda w: w[:, :, ::-1, ::-1]}},
        "stage_2",
        "kernel",
        "kernel of stage_2 (Conv) is flipped in both axes",
    ),
    "kernel transposed": (
        {"weights": {"stem_w": lambda w: w.swapaxes(2, 3)}},
        "stem_1",
        "kernel",
        "transposed",
    ),
    "operands": (
        {"nodes": {"stage_concat": reversed_concat}},
        "stage_concat",
        "channels permuted",
        "shuffled|permuted",
    ),
    "activation missing": (
        {"nodes": {"stage_4": operator("Identity")}},
        "stage_4",
        "activation",
        "the activation Relu is missing",
    ),
    "activation extra": (
        {"spoil": {"stage_2": lambda x: np.maximum(x, 0)}},
        "stage_2",
        "activation",
        "Relu is applied that the model does not have",
    ),
    "saturation": (
        {"spoil": {"stage_2": lambda x: np.clip(x, -0.2, 0.4)}},
        "stage_2",
        "saturation",
        "saturate at -0.2 and 0.4",
    ),
    "zero": ({"spoil": {"stage_4": lambda x: x * 0}}, "stage_4", "zero", "whole tensor is zero"),
    "scale": ({"spoil": {"mean": lambda x: x * 36}}, "mean", "scale", "multiplied by 36"),
    "offset": ({"spoil": {"stage_2": lambda x: x + 1}}, "stage_2", "offset", "1 is added to every value"),
    "layout": ({"spoil": {"stage_2": nhwc_bytes}}, "stage_2", "layout", "NHWC order where NCHW"),
    "transposed": (
        {"spoil": {"stage_2": lambda x: x.swapaxes(2, 3)}},
        "stage_2",
        "layout",
        "height and width are swapped",
    ),
    "shifted": (
        {"spoil": {"stage_concat": lambda x: np.pad(x, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]}},
        "stage_concat",
        "shifted",
        "shifted by 1 rows and 0 columns",
    ),
    "border": (
        {"spoil": {"stage_2": put(np.s_[:, :, 0], 7.0)}},
        "stage_2",
        "padding",
        "only the outermost rows or columns differ",
    ),
    "overflow": (
        {"spoil": {"stage_2": put(np.s_[0, 0, 0, 0], np.inf)}},
        "stage_2",
        "nan",
        "1 of 1152 values are NaN or infinite",
    ),
    "unrelated": (
        {"spoil": {"stage_2": lambda x: ANOTHER[: len(x)]}},
        "stage_2",
        "unrelated",
        "nothing to do with",
    ),
    "unknown": (
        {"spoil": {"stage_2": put(np.s_[:, 1, 2:4, 3], 7.0)}},
        "stage_2",
        "unknown",
        r"no known cause fits; the largest difference is at .* 1 of 8 channels differ",
    ),
    "bgr": ({"before": lambda x: x[:, ::-1]}, "stem_1", "image", "its image were BGR where RGB is expected"),
    "not normalised": (
        {"before": lambda x: x * 0.5 + 0.5},
        "stem_1",
        "image",
        "not normalised (scaled pixels)",
    ),
    "pixels": (
        {"before": lambda x: (x * 0.5 + 0.5) * 255},
        "stem_1",
        "image",
        "not normalised (pixels from 0 to 255)",
    ),
    "bgr pixels": (
        {"before": lambda x: (x[:, ::-1] * 0.5 + 0.5) * 255},
        "stem_1",
        "image",
        "BGR where RGB is expected and not normalised (pixels",
    ),
    "twice": ({"before": lambda x: (x - 0.5) / 0.5}, "stem_1", "image", "normalised twice"),
    "image layout": ({"before": nhwc_bytes}, "stem_1", "image", "in NHWC order where NCHW"),
}


def said(pattern: str, sentence: str) -> bool:
    return pattern in sentence or re.search(pattern, sentence) is not None


@pytest.mark.parametrize("nhwc", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("case", CASES)
def test_every_cause_is_found_and_named(
    case: str, nhwc: bool, small: Graph, make_session: Make, images: np.ndarray
) -> None:
    wrong, tensor, cause, text = CASES[case]
    found = locate(small, make_session(**wrong, nhwc=nhwc), {"image": images}, FP32)
    assert found is not None
    assert (tensor, cause) == (found.tensor, found.diagnosis.cause), found.sentence
    assert said(text, found.diagnosis.sentence), found.sentence
    assert "jump" == found.kind
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    "case",
    [
        "weight column zero",
        "output channels swapped",
        "pads shifted",
        "one weight",
        "bgr",
        "bias missing",
        "input channels swapped",
    ],
)
def test_causes_are_found_in_half_precision(
    case: str, small: Graph, make_session: Make, images: np.ndarray
) -> None:
    wrong, tensor, cause, text = CASES[case]
    found = locate(small, make_session(**wrong, fp16=True), {"image": images}, FP16)
    assert found is not None
    assert (tensor, cause) == (found.tensor, found.diagnosis.cause), found.sentence
    assert said(text, found.diagnosis.sentence), found.sentence


@pytest.mark.parametrize("fp16", [False, True])
@pytest.mark.parametrize("nhwc", [False, True])
def test_a_sound_file_has_no_divergence(
    fp16: bool, nhwc: bool, small: Graph, make_session: Make, images: np.ndarray
) -> None:
    limits = FP16 if fp16 else FP32
    assert locate(small, make_session(fp16=fp16, nhwc=nhwc), {"image": images}, limits) is None


def test_rounding_that_adds_up_blames_no_layer(small: Graph, make_session: Make, images: np.ndarray) -> None:
    session = make_session(fp16=True)
    table = examine(small, session, {"image": images}, Limits(1.0, 0.0, 0.0))
    owns = [layer.own.sqnr for layer in table.layers if layer.own is not None]
    end = table.layers[-1].total
    assert end is not None
    tight = Limits(1.0, end.sqnr + 0.01, 0.0)
    assert min(owns) > tight.sqnr
    found = locate(small, session, {"image": images}, tight)
    assert found is not None
    assert ("gradual", "rounding") == (found.kind, found.diagnosis.cause)


def test_a_layer_that_stands_out_within_the_limits_is_blamed(
    small: Graph, make_session: Make, images: np.ndarray
) -> None:
    session = make_session(weights={"pw_w": bigger(1 + 2e-3, np.s_[:, 5])})
    end = examine(small, session, {"image": images}, FP16).layers[-1].total
    assert end is not None
    limits = Limits(1.0, end.sqnr + 0.01, 0.0)
    found = locate(small, session, {"image": images}, limits)
    assert found is not None
    assert "stage_1" == found.tensor


def test_layers_below_the_culprit_have_no_error_of_their_own(
    small: Graph, make_session: Make, images: np.ndarray
) -> None:
    table = examine(small, make_session(weights={"pw_w": put(np.s_[:, 5], 0)}), {"image": images}, FP32)
    assert ["stage_1"] == [layer.tensor for layer in table.layers if layer.diverges]
    below = [layer for layer in table.layers if layer.tensor in ("stage_2", "logits")]
    assert [False, False] == [bool(layer.total) for layer in below]
    assert [True, True] == [bool(layer.own) for layer in below]


def test_two_culprits_are_both_named(small: Graph, make_session: Make, images: np.ndarray) -> None:
    session = make_session(weights={"pw_w": put(np.s_[:, 5], 0), "fc_b": bigger(2)})
    found = locate(small, session, {"image": images}, FP32)
    assert found is not None
    assert ("stage_1", ("logits",)) == (found.tensor, found.others)
    assert "1 further layers diverge: logits" in found.sentence


def test_the_layer_is_named_by_its_nodes(small: Graph, make_session: Make, images: np.ndarray) -> None:
    found = locate(small, make_session(weights={"pw_w": put(np.s_[:, 5], 0)}), {"image": images}, FP32)
    assert found is not None
    assert ("stage_0 (Conv)", "stage_1 (Relu)") == found.layer.nodes
    assert ("stem_1",) == found.layer.sources


def test_overflow_of_half_precision_is_told_from_other_nans(
    small: Graph, make_session: Make, images: np.ndarray
) -> None:
    large = images * np.float32(1e6)
    found = locate(small, make_session(fp16=True), {"image": large}, FP16)
    assert found is not None
    assert ("stem_1", "overflow") == (found.tensor, found.diagnosis.cause)
    assert "fp16 ends at 65504" in found.sentence


def test_another_shape_is_reported_as_such(small: Graph, make_session: Make, images: np.ndarray) -> None:
    session = make_session(nodes={"stem_0": attribute("pads", [2, 2, 2, 2])})
    found = locate(small, session, {"image": images}, FP32)
    assert found is not None
    assert ("stem_1", "shape") == (found.tensor, found.diagnosis.cause)
    assert "[4, 8, 7, 7] where [4, 8, 6, 6] is expected" in found.sentence


def test_a_file_without_a_trace_is_compared_at_its_outputs(
    small: Graph, make_session: Make, images: np.ndarray
) -> None:
    table = examine(
        small, make_session(traced=False, weights={"pw_w": put(np.s_[:, 5], 0)}), {"image": images}, FP32
    )
    assert table.divergence is not None
    assert (True, ["logits"]) == (table.blind, [layer.tensor for layer in table.layers])
    assert "the file carries no trace" in table.divergence.sentence


def test_a_foreign_file_that_wants_bgr_is_recognised_by_its_outputs(
    small: Graph, make_session: Make, images: np.ndarray
) -> None:
    found = locate(small, make_session(traced=False, before=lambda x: x[:, ::-1]), {"image": images}, FP32)
    assert found is not None
    assert ("image", True) == (found.diagnosis.cause, "BGR" in found.sentence)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_fixed_batch_is_run_group_by_group(
    count: int, small: Graph, make_session: Make, images: np.ndarray
) -> None:
    session = make_session(batch=2, weights={"pw_w": put(np.s_[:, 5], 0)})
    found = locate(small, session, {"image": images[:count]}, FP32)
    assert found is not None
    assert ("stage_1", {2}) == (found.tensor, set(session.batches))


def test_channels_that_the_file_holds_in_another_order_agree(
    small: Graph, make_session: Make, images: np.ndarray
) -> None:
    session = make_session(nhwc=True)
    order = (7, -1, 0, 3, 2, 1, 4, 6, 5)
    view = TensorView("file/stage_2", (0, 2, 3, 1), order)
    session.views["stage_2"] = view
    session.trace = Trace({**session.trace, "stage_2": view})
    table = examine(small, session, {"image": images}, FP32)
    assert table.divergence is None
    assert "stage_2" in [layer.tensor for layer in table.layers]


def test_a_trace_that_does_not_fit_is_refused(small: Graph, make_session: Make, images: np.ndarray) -> None:
    session = make_session()
    session.trace = Trace({**session.trace, "mean": TensorView("file/mean", (0, 2, 3, 1))})
    with pytest.raises(ArtifactError, match=r"the trace in net\.onnx does not fit its tensor 'mean'"):
        examine(small, session, {"image": images}, FP32, file="net.onnx")


def test_missing_and_empty_inputs_are_refused(small: Graph, make_session: Make, images: np.ndarray) -> None:
    with pytest.raises(DataError, match="no input is given for 'image'"):
        locate(small, make_session(), {}, FP32)
    with pytest.raises(DataError, match="no images"):
        locate(small, make_session(), {"image": images[:0]}, FP32)


def test_small_chunks_give_the_same_table(
    small: Graph, make_session: Make, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make_session(weights={"pw_w": put(np.s_[:, 5], 0)})
    whole = examine(small, session, {"image": images}, FP32)
    monkeypatch.setattr("shufflectl.deploy.parity.locate._CHUNK", 5000)
    assert whole.to_json() == examine(small, session, {"image": images}, FP32).to_json()
