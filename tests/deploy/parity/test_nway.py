import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from shufflectl.converters.graph import Graph
from shufflectl.converters.trace import TensorView, Trace
from shufflectl.deploy.parity.limits import Limits, default_limits
from shufflectl.deploy.parity.nway import Member, check_parity
from shufflectl.deploy.parity.segments import execute
from shufflectl.deploy.runtimes.base import TensorSpec
from shufflectl.errors import ArtifactError, DataError, ParityError, UsageError

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def reference(small: Graph) -> Member:
    proto = small.to_proto()
    return Member("torch", "fp32", lambda images: (execute(proto, {"image": images})["logits"],))


def member(
    name: str, change: Callable[[np.ndarray], np.ndarray], reference: Member, precision: str = "fp32"
) -> Member:
    return Member(name, precision, lambda images: (change(reference.run(images)[0]),))


def test_every_candidate_meets_the_reference_and_each_other(
    reference: Member, make_session: Make, images: np.ndarray
) -> None:
    candidates = [
        Member.from_session("a.onnx", "fp32", make_session()),
        Member.from_session("b.tflite", "fp32", make_session(nhwc=True, batch=1)),
        Member.from_session("c.onnx", "fp16", make_session(fp16=True)),
    ]
    report = check_parity(reference, candidates, {"real": images, "random": -images[:2]})
    pairs = [(row.reference, row.candidate, row.kind) for row in report.rows]
    expected = [
        (a, b, kind)
        for a, b in [
            ("torch", "a.onnx"),
            ("torch", "b.tflite"),
            ("torch", "c.onnx"),
            ("a.onnx", "b.tflite"),
            ("a.onnx", "c.onnx"),
            ("b.tflite", "c.onnx"),
        ]
        for kind in ("real", "random")
    ]
    assert expected == pairs
    assert report.passed
    assert (6, 6) == (len(report.against_reference), len(report.pairwise))
    fp16 = report.worst("c.onnx").comparison
    assert 40 < fp16.sqnr < 80


def test_figures_are_those_of_all_batches_together(reference: Member, images: np.ndarray) -> None:
    candidate = member("x", lambda y: y + 0.001, reference)
    whole = check_parity(reference, [candidate], {"real": images}, batch=4)
    parts = check_parity(reference, [candidate], {"real": images}, batch=3)
    assert whole.to_json() == parts.to_json()


def test_one_bad_candidate_fails_alone_and_in_its_pairs(reference: Member, images: np.ndarray) -> None:
    good = member("good", lambda y: y, reference)
    bad = member("bad", lambda y: y[:, ::-1], reference)
    report = check_parity(reference, [good, bad], {"real": images})
    assert [("torch", "bad"), ("good", "bad")] == [(row.reference, row.candidate) for row in report.failures]
    assert (True, False, False) == (report.verdict("good"), report.verdict("bad"), bool(report))


def test_nan_fails(reference: Member, images: np.ndarray) -> None:
    report = check_parity(reference, [member("x", lambda y: y * np.nan, reference)], {"real": images})
    assert (False, images.shape[0] * 6) == (report.passed, report.worst("x").comparison.nonfinite)


def test_limits_follow_the_precision_and_can_be_given(reference: Member, images: np.ndarray) -> None:
    off = member("half", lambda y: y * 1.005, reference, "fp16")
    full = member("full", lambda y: y * 1.005, reference, "fp32")
    report = check_parity(reference, [off, full], {"real": images})
    assert (True, False) == (report.verdict("half"), report.verdict("full"))
    loose = check_parity(
        reference, [full], {"real": images}, limits=lambda p: default_limits(p).override(max_rel=0.1, sqnr=10)
    )
    assert loose.passed
    assert Limits(0.1, 10, 1.0) == loose.rows[0].comparison.limits


def test_accuracy_is_counted_for_every_member(reference: Member, images: np.ndarray) -> None:
    labels = reference.run(images)[0].argmax(axis=1)
    labels[0] = (labels[0] + 1) % 6
    wrong = member("wrong", np.negative, reference)
    report = check_parity(reference, [wrong], {"real": images}, labels={"real": labels})
    assert [("torch", 3, 4)] == [(a.member, a.correct, a.total) for a in report.accuracy[:1]]
    assert 0.75 == report.accuracy[0].share
    assert report.accuracy[1].correct < 3


def test_progress_counts_every_image_once_a_member(reference: Member, images: np.ndarray) -> None:
    seen: list[tuple[int, int]] = []
    candidate = member("x", lambda y: y, reference)
    check_parity(reference, [candidate], {"real": images}, batch=3, progress=lambda *now: seen.append(now))
    assert [(3, 8), (6, 8), (7, 8), (8, 8)] == seen


def test_the_report_is_stable_json(reference: Member, images: np.ndarray) -> None:
    candidates = [member("x", lambda y: y + np.float32(1e-6), reference)]
    texts = {
        json.dumps(check_parity(reference, candidates, {"real": images}).to_json(), allow_nan=False)
        for _ in range(2)
    }
    assert 1 == len(texts)
    document = json.loads(texts.pop())
    assert "shufflectl.parity/1" == document["schema"]
    assert [{"name": "torch", "precision": "fp32"}, {"name": "x", "precision": "fp32"}] == document["members"]


def test_bad_requests_are_refused(reference: Member, images: np.ndarray) -> None:
    x = member("x", lambda y: y, reference)
    with pytest.raises(UsageError, match="one name"):
        check_parity(reference, [x, x], {"real": images})
    with pytest.raises(DataError, match="no images"):
        check_parity(reference, [x], {"real": images[:0]})
    with pytest.raises(DataError, match="2 labels are given for 4 real images"):
        check_parity(reference, [x], {"real": images}, labels={"real": np.zeros(2, np.int64)})
    narrow = member("x", lambda y: y[:, :5], reference)
    with pytest.raises(ParityError, match=r"output 'logits' of x has shape \[4, 5\]"):
        check_parity(reference, [narrow], {"real": images}, output_names=["logits"])
    with pytest.raises(ArtifactError, match="x has 2 outputs where the reference has 1"):
        check_parity(reference, [Member("x", "fp32", lambda _: (np.zeros(1), np.zeros(1)))], {"real": images})


class TestFromSession:
    def test_a_fixed_batch_is_filled_up(
        self, reference: Member, make_session: Make, images: np.ndarray
    ) -> None:
        session = make_session(batch=3)
        (logits,) = Member.from_session("x", "fp32", session).run(images)
        np.testing.assert_allclose(logits, reference.run(images)[0], rtol=1e-5)
        assert [3, 3] == session.batches

    def test_any_batch_is_run_at_once(self, make_session: Make, images: np.ndarray) -> None:
        session = make_session()
        Member.from_session("x", "fp32", session).run(images)
        assert [4] == session.batches

    def test_half_precision_inputs_are_cast(
        self, reference: Member, make_session: Make, images: np.ndarray
    ) -> None:
        (logits,) = Member.from_session("x", "fp32", make_session(dtype=np.float16)).run(images)
        np.testing.assert_allclose(logits, reference.run(images)[0], atol=1e-2)

    def test_integer_inputs_are_refused(self, make_session: Make) -> None:
        with pytest.raises(ArtifactError, match="takes int8 at its input"):
            Member.from_session("x", "fp32", make_session(dtype=np.int8))

    @pytest.mark.parametrize("nhwc", [False, True])
    def test_a_foreign_layout_is_read_from_the_shape(
        self, nhwc: bool, reference: Member, make_session: Make, images: np.ndarray
    ) -> None:
        candidate = Member.from_session("x", "fp32", make_session(traced=False, nhwc=nhwc))
        assert check_parity(reference, [candidate], {"real": images})

    def test_a_foreign_layout_that_could_be_both_is_refused(
        self, make_session: Make, images: np.ndarray
    ) -> None:
        session = make_session(traced=False)
        session.inputs = (TensorSpec("file/image", (None, None, None, None), np.dtype(np.float32)),)
        with pytest.raises(ArtifactError, match="fits both NCHW and NHWC"):
            Member.from_session("x", "fp32", session).run(images)

    def test_a_foreign_file_of_another_size_is_refused(self, make_session: Make, images: np.ndarray) -> None:
        session = make_session(traced=False)
        session.inputs = (TensorSpec("file/image", (None, 3, 16, 16), np.dtype(np.float32)),)
        with pytest.raises(DataError, match="fits no layout of"):
            Member.from_session("x", "fp32", session).run(images)

    def test_a_trace_without_the_input_is_refused(self, make_session: Make) -> None:
        session = make_session()
        session.trace = Trace({"logits": TensorView("file/logits")})
        with pytest.raises(ArtifactError, match="does not say where its input 'file/image' is"):
            Member.from_session("x", "fp32", session)
        with pytest.raises(ArtifactError, match="does not say where its input 'image' is"):
            Member.from_session("x", "fp32", session, inputs=["image"])

    def test_outputs_come_in_the_order_of_their_logical_names(
        self, make_session: Make, images: np.ndarray
    ) -> None:
        session = make_session()
        session.outputs = (
            TensorSpec("file/mean", (None, 16), np.dtype(np.float32)),
            *session.outputs,
        )
        run = Member.from_session("x", "fp32", session, outputs=["logits", "mean"]).run
        assert [(4, 6), (4, 16)] == [array.shape for array in run(images)]


class TestForeignOutputs:
    IMAGES = np.zeros((1, 3, 4, 4), np.float32)

    @staticmethod
    def fixed(shape: tuple[int, ...], axes: tuple[int, ...], *, foreign: bool) -> Member:
        array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        return Member("x", "fp32", lambda _: (array.transpose(axes),), foreign)

    def test_an_nhwc_map_is_recognised(self) -> None:
        reference = Member("torch", "fp32", lambda _: (np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4),))
        assert check_parity(
            reference, [self.fixed((1, 2, 3, 4), (0, 2, 3, 1), foreign=True)], {"real": self.IMAGES}
        )

    def test_a_map_that_fits_both_layouts_is_refused(self) -> None:
        reference = Member("torch", "fp32", lambda _: (np.zeros((1, 3, 3, 3), np.float32),))
        with pytest.raises(ArtifactError, match="fits both"):
            check_parity(
                reference, [self.fixed((1, 3, 3, 3), (0, 1, 2, 3), foreign=True)], {"real": self.IMAGES}
            )


class TestFromModule:
    def test_a_module_runs_in_evaluation_mode_and_keeps_its_own(self, images: np.ndarray) -> None:
        module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.9), torch.nn.Linear(432, 5))
        module.train()
        run = Member.from_module("torch", module).run
        np.testing.assert_array_equal(run(images)[0], run(images)[0])
        assert module.training

    def test_several_outputs_keep_their_order(self, images: np.ndarray) -> None:
        class Two(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
                return {"b": x.mean((2, 3)), "a": x}

        assert [(4, 3), (4, 3, 12, 12)] == [y.shape for y in Member.from_module("torch", Two()).run(images)]
