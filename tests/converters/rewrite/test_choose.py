"""The form that each target gets: every row has its evidence, and what was asked for is what is taken."""

import re
from pathlib import Path

import pytest

from converters.rewrite.nets import captured, difference
from shufflectl.converters.pixels import fold_preprocess, take_bytes
from shufflectl.converters.rewrite.choose import (
    NATIVE,
    Candidate,
    candidates,
    choose,
    lower,
    parse_align,
    settle,
)
from shufflectl.converters.rewrite.lowering import LOWERINGS, Options
from shufflectl.converters.targets import TARGETS
from shufflectl.errors import UsageError
from shufflectl.models import load
from shufflectl.models.shufflenet_v2 import ShuffleNetV2Large
from support.graphs import graph_from_text
from support.nets import ShuffleNetV2

ROOT = Path(__file__).resolve().parents[3]
PAIRS = [(target.name, precision) for target in TARGETS.values() for precision in target.precisions]


@pytest.mark.parametrize(("target", "precision"), PAIRS)
def test_every_target_has_a_form_with_its_evidence(target: str, precision: str) -> None:
    choice = choose(target, precision)
    assert choice.why
    page = re.match(r"docs/[\w-]+\.md", choice.source)
    assert choice.source
    assert page is None or (ROOT / page.group()).is_file()
    assert choice.candidate == candidates(target, precision)[0]


@pytest.mark.parametrize(("target", "precision"), PAIRS)
def test_candidates_are_every_form_once(target: str, precision: str) -> None:
    found = candidates(target, precision)
    assert len(found) == len(set(found))
    assert len({candidate.label for candidate in found}) == len(found)
    refused = {"conv", "masked"} if precision == "int8" else set()
    assert set(LOWERINGS) - refused == {candidate.form for candidate in found}


def test_a_precision_that_a_target_has_not_is_refused() -> None:
    with pytest.raises(UsageError, match="tflite files do not hold numbers as palette4") as caught:
        choose("tflite", "palette4")
    assert "coreml" in str(caught.value.hint)


@pytest.mark.parametrize(("form", "says"), [("masked", "tensors of several scales"), ("conv", "would round")])
def test_a_form_that_int8_has_not_is_refused_with_the_reason(form: str, says: str) -> None:
    with pytest.raises(UsageError, match=f"'{form}' does not exist in int8: .*{says}"):
        choose("onnx", "int8", shuffle=form)
    assert form == choose("onnx", "fp32", shuffle=form).candidate.form


def test_tflite_concats_have_no_more_inputs_than_xnnpack_takes() -> None:
    assert {5} == {c.options.max_concat for c in candidates("tflite", "fp32") if LOWERINGS[c.form].folds}


def test_core_ml_keeps_the_spelling_that_coremltools_looks_for() -> None:
    assert NATIVE == choose("coreml", "fp16").candidate


@pytest.mark.parametrize("target", TARGETS)
def test_an_alignment_goes_to_forms_that_pad(target: str) -> None:
    choice = choose(target, "fp32", align=8)
    folds = LOWERINGS[choice.candidate.form].folds
    assert (8 if folds else 1) == choice.candidate.options.align
    assert folds or "does not pad" in choice.why


def test_what_fills_padding_follows_the_alignment() -> None:
    assert Options(align=8, merge=8, carry=8) == choose("onnx", "fp32", align=8).candidate.options
    assert Candidate("fold") == choose("onnx", "fp32", align=1).candidate  # splitting pays with padding only
    named = choose("onnx", "fp32", shuffle="fold-split", align=8)
    assert Options(align=8, merge=8, carry=8) == named.candidate.options


def test_an_unknown_form_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="'fold_split'") as caught:
        choose("onnx", "fp32", shuffle="fold_split")
    assert "fold-split" in caught.value.hint


def test_a_form_that_does_not_pad_says_which_do() -> None:
    with pytest.raises(UsageError, match="'gather' does not pad") as caught:
        choose("tflite", "fp32", shuffle="gather", align=8)
    assert "fold" in caught.value.hint


@pytest.mark.parametrize("text", ["0", "-4", "257", "1.5", "", "²", "eight"])
def test_an_alignment_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="padded to a multiple of"):
        parse_align(text)


def test_alignments() -> None:
    assert parse_align("auto") is None
    assert 16 == parse_align("16")


def test_a_graph_with_no_shuffle_stays_as_it_is() -> None:
    graph = graph_from_text("g (float[1,3,8,8] x) => (float[1,3,8,8] y) { y = Relu (x) }")
    after, report = lower(graph, choose("onnx", "fp32").candidate)
    assert not report.changed
    assert [n.op_type for n in graph.nodes] == [n.op_type for n in after.nodes]


@pytest.mark.parametrize("target", TARGETS)
def test_the_choice_computes_the_same(target: str) -> None:
    graph = captured(ShuffleNetV2((3, 5), (8, 16, 24, 16), 10), size=64)
    after, _ = lower(graph, choose(target, "fp32").candidate)
    assert difference(graph, after) < 1e-5


def test_a_label_tells_candidates_apart() -> None:
    assert "fold-split, align 16, merge 16, carry 16" == Candidate("fold-split", Options(16, 0, 16, 16)).label


def test_padding_is_left_out_where_counts_are_whole_blocks_already() -> None:
    """Branches of 48 channels would be divided into blocks that hold 24, 12 and 12."""
    whole = captured(ShuffleNetV2((3, 5), (16, 96, 192, 32), 10), size=64)
    odd = captured(ShuffleNetV2((3, 5), (16, 100, 164, 32), 10), size=64)
    choice = choose("onnx", "fp32")
    assert choice == settle(odd, choice)
    settled = settle(whole, choice)
    assert "fold" == settled.candidate.form
    assert 1 == settled.candidate.options.align
    assert difference(whole, lower(whole, settled.candidate)[0]) < 1e-5


def test_a_network_that_takes_bytes_gets_the_form_of_one_that_takes_floats() -> None:
    """What prepares an image in front of the first convolution makes no channels of a network."""
    model = load("shufflenet_v2_x0_5", weights="digits")
    plain = captured(model.module, size=32)
    pixels = take_bytes(fold_preprocess(plain, model.preprocess)[0])
    choice = choose("onnx", "int8")
    assert settle(plain, choice) == settle(pixels, choice)


def test_what_was_asked_for_stays() -> None:
    whole = captured(ShuffleNetV2((3, 5), (16, 96, 192, 32), 10), size=64)
    asked = choose("onnx", "fp32", shuffle="fold-split", align=16)
    assert asked == settle(whole, asked)


def test_tflite_gets_no_gather() -> None:
    """Residual connections scatter what a unit reads over single channels; XNNPACK has no gather."""
    large = ShuffleNetV2Large((8,), (16, 80, 88, 96), (1, 8, 1, 1), excite=True, num_classes=10)
    graph = captured(large, size=64)
    choice = choose("tflite", "fp32")
    assert "Gather" in {n.op_type for n in choice.candidate.apply(graph)[0].nodes}
    after, report = lower(graph, settle(graph, choice).candidate)
    assert "Gather" not in report.operators_after
    assert report.rank_after == 4
    assert difference(graph, after) < 1e-5
