from pathlib import Path
from typing import Any

import pytest

from shufflectl.deploy.options import ExportRequest, ParityOptions
from shufflectl.errors import UsageError


def request(**changes: Any) -> ExportRequest:
    words = {"targets": ["all"], "precisions": ["fp32"], "batch": "1", "layout": None, **changes}
    return ExportRequest.parse(model="m", out=Path("o"), **words)


def test_all_stands_for_every_target_in_the_order_of_the_table() -> None:
    assert ("onnx", "coreml", "tflite") == request(targets=["all"]).targets


def test_words_are_repeatable_and_separated_by_commas_and_kept_once() -> None:
    assert ("onnx", "tflite") == request(targets=["tflite, onnx", "tflite"]).targets
    assert ("fp32", "fp16") == request(precisions=["fp16", "fp32"]).precisions


@pytest.mark.parametrize(
    "changes",
    [
        {"targets": ["onnxx"]},
        {"targets": [""]},
        {"targets": ["onnx,ALL"]},
        {"precisions": ["int4"]},
        {"precisions": ["palette4"], "targets": ["tflite"]},
        {"batch": "-1"},
        {"batch": "1.5"},
        {"batch": "many"},
        {"batch": "\u0661"},
        {"batch": "100000"},
        {"layout": "NHWC"},
        {"input_size": 2049},
        {"minimum_deployment_target": "iOS14"},
        {"minimum_deployment_target": "16"},
    ],
)
def test_a_word_that_is_not_a_choice_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        request(**changes)
    assert caught.value.hint


def test_a_deployment_target_in_other_letters_is_suggested_not_taken() -> None:
    with pytest.raises(UsageError) as caught:
        request(minimum_deployment_target="ios16")
    assert "did you mean 'iOS16'?" == caught.value.hint


@pytest.mark.parametrize(
    "changes",
    [
        {"precisions": ["fp32"]},
        {"precisions": ["fp16"], "targets": ["tflite"]},
        {"precisions": ["fp16"], "minimum_deployment_target": "iOS15"},
    ],
)
def test_half_io_that_nothing_can_have_is_refused_before_any_work(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        request(half_io=True, **changes)
    assert caught.value.hint


def test_half_io_goes_with_any_fp16_file_that_has_it() -> None:
    assert request(half_io=True, precisions=["fp32", "fp16"]).half_io
    assert request(half_io=True, precisions=["fp16"], targets=["onnx"], minimum_deployment_target="iOS15")


def test_a_batch_is_a_number_or_dynamic() -> None:
    assert 4 == request(batch="4").batch
    assert "dynamic" == request(batch="dynamic").batch


def test_images_is_a_number_or_all() -> None:
    assert ParityOptions.parse(images="all", runtimes=()).images is None
    assert 3 == ParityOptions.parse(images="3", runtimes=()).images


@pytest.mark.parametrize("text", ["0", "-3", "x", "", "1e3"])
def test_other_numbers_of_images_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        ParityOptions.parse(images=text, runtimes=())


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": -1},
        {"threads": 0},
        {"threads": 100_000},
        {"sqnr": float("nan")},
        {"max_rel": -1.0},
        {"top1": 2.0},
    ],
)
def test_numbers_out_of_range_are_refused_before_any_work(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        ParityOptions.parse(images="1", runtimes=(), **changes)
    assert caught.value.hint


def test_limits_take_what_the_user_gave_over_the_defaults() -> None:
    limits = ParityOptions(sqnr=12.0).limits("fp32")
    assert 12.0 == limits.sqnr
    assert ParityOptions().limits("fp32").max_rel == limits.max_rel


def test_an_unknown_runtime_is_refused() -> None:
    with pytest.raises(UsageError, match="onnx-runtime"):
        ParityOptions.parse(images="1", runtimes=["onnx-runtime"])
