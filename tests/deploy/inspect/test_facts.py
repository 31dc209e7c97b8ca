"""What runtimes make of files: measured in another process, and what is said where they cannot be asked."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from shufflectl.converters.rewrite.lowering import Options, apply
from shufflectl.converters.targets import TARGETS, EmitOptions
from shufflectl.deploy.inspect import facts as facts_module
from shufflectl.deploy.inspect.facts import Facts, read_facts
from shufflectl.deploy.inspect.measure import NotMeasuredError, measure
from shufflectl.deploy.inspect.ort_layout import LayoutReport, analyse
from shufflectl.deploy.runtimes.ort import block_size, optimised_graph
from shufflectl.errors import UnavailableError
from support.nets import tiny_graph
from support.tflite import INFO, emit_bytes, graph_of

SOUND = emit_bytes(
    graph_of(
        "a = Conv<group=2>(x, w) b = Softmax<axis=1>(a) y = Concat<axis=1>(a, b)",
        {"w": np.ones((8, 4, 1, 1), np.float32)},
    )
)


def tflite(path: Path, form: str = "native", precision: str = "fp32") -> Path:
    graph, _ = apply(form, tiny_graph().clone())
    path.write_bytes(emit_bytes(graph, precision=precision))
    return path


def onnx_file(
    path: Path, form: str = "native", options: Options | None = None, precision: Any = "fp32"
) -> Path:
    graph, _ = apply(form, tiny_graph().clone(), options or Options())
    TARGETS["onnx"].emit(graph, INFO, EmitOptions(precision), path)
    return path


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a package before the installed one, for other processes only: this one has it loaded already."""

    def make(package: str, module: str, body: str) -> None:
        folder = tmp_path / "fake" / package
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
        (folder / f"{module}.py").write_text(body)
        monkeypatch.syspath_prepend(str(folder.parent))

    return make


def test_xnnpack_takes_a_native_network_in_one_partition(tmp_path: Path) -> None:
    found = read_facts(tflite(tmp_path / "a.tflite"))
    assert found.xnnpack is not None
    assert (1, True, "") == (found.xnnpack.partitions, found.xnnpack.agrees, found.xnnpack.difference)
    assert () == found.fallback("xnnpack")
    assert found.xnnpack.runtime.startswith("LiteRT ")
    assert "" == found.unknown


def test_gathers_break_xnnpacks_partitions(tmp_path: Path) -> None:
    found = read_facts(tflite(tmp_path / "a.tflite", "gather"))
    assert found.xnnpack is not None
    assert found.xnnpack.partitions > 1
    assert found.xnnpack.agrees
    assert {"GATHER"} == {left.type for left in found.fallback("xnnpack")}


def test_an_operator_says_where_it_runs(tmp_path: Path) -> None:
    found = read_facts(tflite(tmp_path / "a.tflite", "gather"))
    gather = found.fallback("xnnpack")[0].name
    report = found.delegate("gpu")
    assert report is not None
    places = {left.name: left.index for left in found.xnnpack.refused} if found.xnnpack else {}
    assert ("gpu", "nnapi") == found.runs_in(places[gather])
    assert ("gpu", "nnapi", "xnnpack") == found.runs_in(0)


def test_the_facts_are_json_with_stable_keys(tmp_path: Path, artifacts: dict[str, Path]) -> None:
    keys = ["delegates", "onnxruntime", "neural_engine", "unknown"]
    for path in (*(artifacts[f"{target}-fp16"] for target in TARGETS), tflite(tmp_path / "a.tflite")):
        data = json.loads(json.dumps(read_facts(path).to_json(), allow_nan=False))
        assert keys == list(data)
    assert {"gpu", "nnapi", "xnnpack"} == set(data["delegates"])
    common = {"title", "source", "operators", "taken", "delegated", "partitions", "refused", "fallback"}
    assert all(common <= set(entry) for entry in data["delegates"].values())
    assert {"27", "28", "29", "30"} == set(data["delegates"]["nnapi"]["taken_by_api_level"])
    assert 1 == data["delegates"]["xnnpack"]["measured"]["partitions"]
    assert [] == data["delegates"]["gpu"]["split_groups"]


def test_a_difference_from_the_rules_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tflite(tmp_path / "a.tflite")
    answer = {"runtime": "LiteRT 9", "partitions": [list(range(1, 20)), list(range(20, 60))]}
    monkeypatch.setattr(facts_module, "measure", lambda *_: answer)
    found = read_facts(path).xnnpack
    assert found is not None
    assert not found.agrees
    assert found.difference.startswith("refused against the rules: PAD conv1.2/pad; 2 partitions")
    assert ["no rule says why"] == [r.why for r in found.refused]


def test_without_measuring_only_rules_speak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts_module, "measure", lambda *_: pytest.fail("a process was started"))
    found = read_facts(tflite(tmp_path / "a.tflite", "gather"), measured=False)
    assert (None, "not measured: --no-measure") == (found.xnnpack, found.unknown)
    assert {"GATHER"} == {left.type for left in found.fallback("xnnpack")}
    with pytest.raises(UnavailableError, match="not measured"):
        read_facts(onnx_file(tmp_path / "a.onnx"), measured=False).fallback("onnxruntime")


def test_a_missing_runtime_is_the_reason_why_nothing_was_measured(tmp_path: Path, fake: Any) -> None:
    fake("ai_edge_litert", "schema_py_generated", "")
    found = read_facts(tflite(tmp_path / "a.tflite"))
    assert found.xnnpack is None
    assert "not measured" in found.unknown
    assert "ai-edge-litert, which is not installed" in found.unknown
    assert found.to_json()["delegates"]["xnnpack"]["not_measured"] == found.unknown


def test_a_runtime_that_crashes_takes_nothing_with_it(tmp_path: Path, fake: Any) -> None:
    fake("ai_edge_litert", "interpreter", "import os\nprint('noise')\nos._exit(11)")
    assert "ended with status 11" in read_facts(tflite(tmp_path / "a.tflite")).unknown


def test_a_runtime_that_hangs_is_ended(tmp_path: Path) -> None:
    with pytest.raises(NotMeasuredError, match=r"did not end within 0\.01 s"):
        measure("xnnpack", tflite(tmp_path / "a.tflite"), timeout=0.01)


def test_modules_of_the_current_folder_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tflite(tmp_path / "a.tflite")
    for name in ("json", "numpy", "ai_edge_litert", "onnx"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    assert 1 == len(measure("xnnpack", path)["partitions"])
    assert not (tmp_path / "pwned").exists()


def test_a_file_that_the_runtime_refuses_is_not_measured(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["" : 20, "mine" : 1]> g (float[1,8] x) => (float[1,8] y) '
    model = onnx.parser.parse_model(f"{text} {{ y = mine.Thing(x) }}")
    path = tmp_path / "a.onnx"
    onnx.save(model, path)
    found = read_facts(path)
    assert found.layout is None
    assert "not measured" in found.unknown
    assert "Thing" in found.unknown


SPOILT = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8)


@given(SPOILT)
@settings(max_examples=80, deadline=None)
def test_the_rules_survive_spoilt_files(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]]
) -> None:
    data = bytearray(SOUND)
    for where, byte in changes:
        data[int(where * (len(data) - 1))] = byte
    path = tmp_path_factory.mktemp("spoilt") / "a.tflite"
    path.write_bytes(data)
    found = read_facts(path, measured=False)
    assert found.unknown
    for report in found.delegates:
        assert report.operators == report.delegated + len(report.fallback)


@pytest.fixture(scope="session")
def blocks() -> int:
    found = block_size()
    if found is None:
        pytest.skip("ONNX Runtime has no blocked layout on this CPU")
    return found


def test_a_native_shuffle_costs_reorders_in_onnx_runtime(tmp_path: Path, blocks: int) -> None:
    layout = read_facts(onnx_file(tmp_path / "a.onnx")).layout
    assert layout is not None
    assert blocks == layout.block
    assert layout.count("ReorderInput") > 0
    assert layout.count("ReorderOutput") > 1
    assert layout.fused > 0
    assert len(layout.reorders) == layout.count("ReorderInput") + layout.count("ReorderOutput")
    assert "Reshape" in {kind for reorder in layout.reorders for kind in reorder.neighbours}
    assert layout.reordered_bytes is not None
    assert layout.reordered_bytes > 0


def test_an_aligned_fold_stays_in_blocks_up_to_the_classifier(tmp_path: Path, blocks: int) -> None:
    path = onnx_file(tmp_path / "a.onnx", "fold-split", Options(align=blocks))
    layout = read_facts(path).layout
    assert layout is not None
    assert ["ReduceMean"] == [kind for reorder in layout.reorders for kind in reorder.neighbours]
    assert () == layout.plain


def test_half_precision_costs_casts_in_onnx_runtime(tmp_path: Path) -> None:
    single, half = (
        read_facts(onnx_file(tmp_path / f"{precision}.onnx", precision=precision)).layout
        for precision in ("fp32", "fp16")
    )
    assert single is not None
    assert half is not None
    assert 0 == single.casts
    assert half.casts > 0


def test_the_report_survives_json(tmp_path: Path) -> None:
    found = measure("layout", onnx_file(tmp_path / "a.onnx"))
    again = LayoutReport.from_json(json.loads(json.dumps(found["layout"])))
    assert LayoutReport.from_json(found["layout"]) == again


def convolution(path: Path, groups: int, sources: int, results: int) -> Path:
    """Write a file with one convolution: ``sources`` input and ``results`` output channels in each group."""
    shape, made = [1, groups * sources, 6, 6], [1, groups * results, 6, 6]
    weight = np.ones((groups * results, sources, 1, 1), np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", group=groups)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, made)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


@given(st.sampled_from([1, 2, 3, 5, 8, 24]), st.integers(1, 36), st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_every_plain_convolution_has_a_known_reason(
    tmp_path_factory: pytest.TempPathFactory, blocks: int, groups: int, sources: int, results: int
) -> None:
    path = convolution(tmp_path_factory.mktemp("conv") / "a.onnx", groups, sources, results)
    report = analyse(optimised_graph(path), {}, casts=0, block=blocks)
    assert 1 == report.blocked + len(report.plain)
    assert all("no multiple" in p.why or "not multiples" in p.why for p in report.plain)


@pytest.mark.parametrize(
    ("groups", "channels", "why"),
    [
        (1, 58, "58 input channels are no multiple of 4"),
        (58, 1, "58 channels are no multiple of 4"),
        (3, 20, "20 input and 20 output channels in a group are not multiples of the block"),
    ],
)
def test_a_plain_convolution_says_why(
    groups: int, channels: int, why: str, tmp_path: Path, blocks: int
) -> None:
    layout = read_facts(convolution(tmp_path / "a.onnx", groups, channels, channels)).layout
    assert layout is not None
    assert [why] == [p.why.removesuffix(f", {blocks}") for p in layout.plain]


def test_without_a_blocked_layout_that_is_the_reason(tmp_path: Path) -> None:
    path = convolution(tmp_path / "a.onnx", 1, 58, 58)
    (plain,) = analyse(optimised_graph(path), {}, casts=0, block=None).plain
    assert "has no blocked layout on this CPU" in plain.why


def test_float32_leaves_the_neural_engine_as_apple_states(artifacts: dict[str, Path]) -> None:
    found = read_facts(artifacts["coreml-fp32"]).neural_engine
    assert found is not None
    assert {"stated"} == {note.certainty for note in found.notes}
    assert found.operations == len(found.leaving)
    assert "MLComputePlan" in found.caveat


def test_half_precision_may_stay_with_its_shuffles_interleaved(artifacts: dict[str, Path]) -> None:
    found = read_facts(artifacts["coreml-fp16"])
    assert found.neural_engine is not None
    assert (4, 0) == (len(found.neural_engine.interleaved), len(found.neural_engine.shuffles))
    assert ((), ()) == (found.neural_engine.notes, found.fallback("ane"))


def test_shuffles_that_core_ml_cannot_interleave_are_named(tmp_path: Path) -> None:
    graph, _ = apply("native", tiny_graph(dynamic_batch=True).clone())
    path = tmp_path / "a.mlpackage"
    TARGETS["coreml"].emit(graph, INFO, EmitOptions("fp16"), path)
    found = read_facts(path).neural_engine
    assert found is not None
    assert () == found.interleaved
    assert len(found.shuffles) >= 8
    assert {"conflicting"} == {note.certainty for note in found.notes}
    assert () == found.leaving
    assert all("rank 5" in note.why for note in found.notes)


@pytest.mark.parametrize(
    ("body", "weights", "certainty", "why"),
    [
        ("y = Conv<dilations=[2,2]>(x, w)", (8, 8, 3, 3), "conflicting", "dilation 2"),
        ("y = Conv<pads=[7,7,7,7]>(x, w)", (8, 8, 15, 15), "reported", "a window of 15"),
        ("y = AveragePool<kernel_shape=[14,14]>(x)", None, "reported", "a window of 14"),
        (
            "i = Constant<value_ints=[3,1,2]>() y = Gather<axis=1>(x, i)",
            None,
            "reported",
            "gathers or scatters",
        ),
    ],
)
def test_forms_that_are_said_to_leave_the_neural_engine(
    body: str, weights: tuple[int, ...] | None, certainty: str, why: str, tmp_path: Path
) -> None:
    constants = {} if weights is None else {"w": np.ones(weights, np.float32)}
    path = tmp_path / "a.mlpackage"
    TARGETS["coreml"].emit(graph_of(body, constants, (1, 8, 20, 20)), INFO, EmitOptions("fp16"), path)
    found = read_facts(path).neural_engine
    assert found is not None
    assert [(certainty, why)] == [(note.certainty, note.why) for note in found.notes]
    assert all(note.source for note in found.notes)


def test_an_unknown_fallback_is_no_fallback(tmp_path: Path) -> None:
    nothing = Facts("tflite", unknown="it keeps its weights in other files")
    with pytest.raises(UnavailableError, match="in other files"):
        nothing.fallback("gpu")
    assert replace(nothing).to_json()["delegates"] is None
