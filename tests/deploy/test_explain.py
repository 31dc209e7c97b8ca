"""Graphs of other exporters are understood, and what becomes of their shuffles is told truthfully."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import onnxsim
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from converters.rewrite.nets import MegviiV2, run
from shufflectl.converters.capture.adopt import adopt
from shufflectl.converters.rewrite.choose import NO_CODES, Candidate, candidates, choose
from shufflectl.converters.rewrite.lowering import LOWERINGS
from shufflectl.converters.targets import TARGETS
from shufflectl.deploy.explanation.explain import explain, explain_graph
from shufflectl.deploy.explanation.request import ExplainRequest
from shufflectl.deploy.explanation.result import Explanation
from shufflectl.deploy.onnx_weights import load_weights, parse
from shufflectl.errors import ArtifactError, GraphError, InputError, UsageError
from support.exporters import MegviiV1, export, quantise, torchvision_v2
from support.nets import ShuffleNetV2, randomise, tiny_graph

UNITS = (4, 8, 4)


def told(path: Path | str, **options: Any) -> Explanation:
    """Explain with the form that costs no time, unless another is asked for."""
    given = {"targets": ["onnx"], "precisions": ["fp32"], "shuffle": "native", **options}
    return explain(ExplainRequest.parse(subject=str(path), **given))


def shuffles(found: Explanation) -> list[tuple[int | None, int]]:
    return [
        (s.site.form.groups, s.site.channels) for s in found.sites if s.site.form and s.site.kind == "shuffle"
    ]


def expected_v2(widths: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(2, width) for count, width in zip(UNITS, widths, strict=True) for _ in range(count)]


@pytest.fixture(scope="session")
def half_width() -> nn.Module:
    return torchvision_v2("shufflenet_v2_x0_5")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foreign")


@pytest.fixture(scope="session")
def torchscript(folder: Path, half_width: nn.Module) -> Path:
    """TorchScript's file with a dynamic batch: it computes every shape."""
    return export(half_width, folder / "ts.onnx", opset=17, dynamo=False, dynamic=True)


@pytest.fixture(scope="session")
def official(folder: Path, half_width: nn.Module) -> Path:
    """The newest exporter's file, with a dynamic batch and weights beside it."""
    return export(half_width, folder / "dynamo.onnx", opset=18, dynamo=True, dynamic=True)


class TestSixteenSites:
    @pytest.mark.parametrize(("opset", "dynamic"), [(11, True), (13, False), (18, True), (20, False)])
    def test_of_torchscript(self, folder: Path, opset: int, dynamic: bool) -> None:
        module = torchvision_v2("shufflenet_v2_x1_0")
        path = export(
            module, folder / f"x1_{opset}_{dynamic}.onnx", opset=opset, dynamo=False, dynamic=dynamic
        )
        found = told(path)
        assert expected_v2((116, 232, 464)) == shuffles(found)
        assert 16 == len(found.sites)
        assert () == found.left_alone
        assert "stage2.0 to stage2.1" == found.sites[0].where
        assert ("/stage2/stage2.0/Concat", "Concat") == found.sites[0].nodes[0]

    def test_of_the_newest_exporter(self, official: Path) -> None:
        found = told(official)
        assert expected_v2((48, 96, 192)) == shuffles(found)
        assert () == found.left_alone
        assert "node_cat" == found.sites[0].nodes[0][0]
        assert "stage2.0" == found.sites[0].where
        assert (None, 3, 64, 64) == found.subject.inputs[0][1]

    def test_of_onnxsim(self, torchscript: Path, folder: Path) -> None:
        simplified, _ = onnxsim.simplify(onnx.load(torchscript))
        onnx.save(simplified, folder / "sim.onnx")
        found = told(folder / "sim.onnx")
        assert expected_v2((48, 96, 192)) == shuffles(found)
        assert () == found.left_alone

    def test_of_onnx_runtimes_quantiser(self, torchscript: Path, folder: Path) -> None:
        static = {"image": [1, 3, 64, 64]}
        simplified, _ = onnxsim.simplify(onnx.load(torchscript), overwrite_input_shapes=static)
        onnx.save(simplified, folder / "static.onnx")
        found = told(quantise(folder / "static.onnx", folder / "codes.onnx", 64), shuffle="fold")
        assert expected_v2((48, 96, 192)) == shuffles(found)
        assert () == found.left_alone
        assert any("rounded to codes" in change for change in found.subject.changes)
        assert "fold" == found.results[0].sites[0].form

    def test_of_half_precision(self, torchscript: Path, folder: Path) -> None:
        half = onnx.load(torchscript)
        for tensor in half.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT:
                array = numpy_helper.to_array(tensor).astype(np.float16)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        del half.graph.value_info[:]
        for value in (*half.graph.input, *half.graph.output):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
        onnx.save(half, folder / "half.onnx")
        found = told(folder / "half.onnx")
        assert expected_v2((48, 96, 192)) == shuffles(found)
        assert told(torchscript).subject.bytes_moved == 2 * found.subject.bytes_moved

    def test_with_batch_norm_unfolded(self, folder: Path, half_width: nn.Module) -> None:
        import torch

        path = export(
            half_width,
            folder / "norms.onnx",
            opset=17,
            dynamo=False,
            dynamic=True,
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
        )
        assert "BatchNormalization" in {n.op_type for n in onnx.load(path).graph.node}
        found = told(path, shuffle="fold-split")
        assert expected_v2((48, 96, 192)) == shuffles(found)
        assert "56 batch norms were folded into the convolutions before them" in found.subject.changes
        assert "fold-split" == found.results[0].sites[0].form

    def test_of_the_registry(self) -> None:
        found = told("shufflenet_v2_x0_5", input_size=64)
        assert expected_v2((48, 96, 192)) == shuffles(found)
        assert "stage4.3" == found.sites[-1].where

    def test_of_megviis_form(self, folder: Path) -> None:
        # Thirteen shuffles, of even and odd channels, and the three concats at the ends of stages.
        module = randomise(MegviiV2(UNITS, (24, 48, 96, 192, 64)))
        for dynamic in (False, True):
            path = export(module, folder / f"megvii-{dynamic}.onnx", opset=16, dynamo=False, dynamic=dynamic)
            found = told(path)
            assert () == found.left_alone
            kinds = ["shuffle"] * 3 + ["concat"] + ["shuffle"] * 7 + ["concat"] + ["shuffle"] * 3 + ["concat"]
            assert kinds == [s.site.kind for s in found.sites]
            assert [s.site.channels // 2 for s in found.sites if s.site.kind == "shuffle"] == [
                groups for groups, _ in shuffles(found)
            ]


@pytest.mark.parametrize("group", [2, 3])
def test_every_shuffle_of_megviis_v1_is_found(folder: Path, group: int) -> None:
    path = export(
        randomise(MegviiV1(group)), folder / f"v1-{group}.onnx", opset=13, dynamo=False, dynamic=True
    )
    found = told(path)
    assert () == found.left_alone
    # Its convention is the other one: of C/g groups.
    assert [(18 // group, 18)] * 3 == shuffles(found)


def test_torchs_channel_shuffle_is_found(folder: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 24, 1), nn.ChannelShuffle(3), nn.Conv2d(24, 6, 1, groups=3))
    path = export(randomise(module), folder / "library.onnx", opset=18, dynamo=True, dynamic=False, size=8)
    assert [(3, 24)] == shuffles(told(path))


@pytest.mark.parametrize("name", ["ts", "megvii", "v1"])
@pytest.mark.parametrize("form", ["native", "fold", "rank4"])
def test_a_file_computes_the_same_after_it_is_adopted_and_rewritten(
    folder: Path, torchscript: Path, name: str, form: str
) -> None:
    modules = {"megvii": lambda: MegviiV2((2, 2), (24, 48, 96, 64)), "v1": lambda: MegviiV1(3)}
    path = torchscript
    if name in modules:
        path = folder / f"same-{name}.onnx"
        if not path.exists():
            export(randomise(modules[name]()), path, opset=14, dynamo=False, dynamic=True)
    proto, _ = parse(path)
    load_weights(proto, path)
    feeds = {"image": np.random.default_rng(0).standard_normal((3, 3, 64, 64), dtype=np.float32)}
    expected = run(proto, feeds)["logits"]
    adopted = adopt(proto)
    assert "" == adopted.frozen
    after, _ = Candidate(form).apply(adopted.graph)
    np.testing.assert_allclose(
        expected, run(after, feeds)["logits"], rtol=1e-4, atol=1e-4 * np.abs(expected).max()
    )


class TestDocument:
    def test_has_the_schema(self, torchscript: Path) -> None:
        document = told(torchscript, targets=["all"], shuffle="auto").to_json()
        tiny = ExplainRequest.parse(subject="t", targets=["onnx"], precisions=["fp32"], all_forms=True)
        document["forms"] = explain_graph(tiny_graph(), tiny).to_json()["forms"]
        assert document["forms"]
        text = (
            resources.files("shufflectl.deploy").joinpath("schemas/explain-1.schema.json").read_text("utf-8")
        )
        jsonschema.Draft202012Validator.check_schema(json.loads(text))
        jsonschema.validate(document, json.loads(text))
        assert document == json.loads(json.dumps(document))

    def test_is_the_same_each_time(self, torchscript: Path) -> None:
        first, second = (told(torchscript, shuffle="fold").to_json() for _ in range(2))
        assert first == second

    def test_figures_of_sites_add_up_to_the_graphs(self, torchscript: Path) -> None:
        found = told(torchscript, targets=["all"], shuffle="auto")
        assert found.subject.bytes_moved == sum(site.bytes_moved for site in found.sites)
        for made in found.results:
            after = sum(site.bytes_after for site in (*made.sites, *made.added))
            assert made.report.bytes_after == after
            assert [s.site.name for s in found.sites] == [s.name for s in made.sites]

    def test_every_target_says_why_and_on_what_evidence(self) -> None:
        request = ExplainRequest.parse(subject="tiny", targets=["all"], precisions=["fp32,fp16"])
        found = explain_graph(tiny_graph(), request)
        assert 2 * len(TARGETS) == len(found.results)
        for made in found.results:
            assert made.choice.why
            assert made.choice.source

    def test_all_forms_lists_every_lowering_and_candidate_once(self) -> None:
        request = ExplainRequest.parse(subject="t", targets=["tflite"], precisions=["fp32"], all_forms=True)
        found = [form.candidate for form in explain_graph(tiny_graph(), request).forms]
        assert {Candidate(n) for n in LOWERINGS} | set(candidates("tflite", "fp32")) == set(found)
        assert len(set(found)) == len(found)

    def test_int8_has_its_own_forms_and_reasons(self) -> None:
        request = ExplainRequest.parse(subject="t", targets=["all"], precisions=["int8"], all_forms=True)
        found = explain_graph(tiny_graph(), request)
        for made in found.results:
            wanted = choose(made.target, "int8")
            assert made.choice.candidate in (
                wanted.candidate,
                wanted.otherwise and wanted.otherwise.candidate,
            )
            assert made.choice.why
            assert 0 == made.choice.candidate.options.carry
        assert {form.candidate.form for form in found.forms} == set(LOWERINGS) - set(NO_CODES)
        assert not any(form.candidate.options.carry for form in found.forms)

    def test_beside_int8_the_forms_of_floats_are_listed(self) -> None:
        request = ExplainRequest.parse(
            subject="t", targets=["onnx"], precisions=["fp32,int8"], all_forms=True
        )
        found = explain_graph(tiny_graph(), request).forms
        assert set(LOWERINGS) == {form.candidate.form for form in found}

    def test_a_form_that_is_asked_for_is_taken(self) -> None:
        request = ExplainRequest.parse(
            subject="t", targets=["tflite"], precisions=["fp32"], shuffle="fold", align="8"
        )
        (made,) = explain_graph(tiny_graph(), request).results
        assert ("fold", 8) == (made.applied.form, made.applied.options.align)
        assert made.report.rank_after < made.report.rank_before

    def test_a_refusal_is_listed(self) -> None:
        request = ExplainRequest.parse(
            subject="t", targets=["onnx"], precisions=["fp32"], shuffle="interleave"
        )
        graph = adopt(_grouped()).graph
        (made,) = explain_graph(graph, request).results
        assert any("interleave" in reason for site in made.sites for reason in site.refused)


def _grouped() -> onnx.ModelProto:
    """A shuffle of one tensor, as in V1."""
    return onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 17]>
        g (float[n,6,4,4] x) => (float[n,6,4,4] z)
        <int64[5] five = {0, 3, 2, 4, 4}, int64[4] four = {0, 6, 4, 4}> {
            r = Reshape (x, five)
            t = Transpose <perm = [0, 2, 1, 3, 4]> (r)
            y = Reshape (t, four)
            z = Relu (y)
        }"""
    )


class TestOldOperatorSets:
    def test_are_analysed_and_not_rewritten(self, folder: Path, half_width: nn.Module) -> None:
        path = export(half_width, folder / "old.onnx", opset=11, dynamo=False, dynamic=False)
        found = told(path, targets=["all"], shuffle="auto", all_forms=True)
        assert 16 == len(shuffles(found))
        assert "operator set 11 is older than 13" in found.subject.frozen
        for made in found.results:
            assert not made.report.changed
            assert made.report.bytes_before == made.report.bytes_after
            assert "native" == made.applied.form
        assert all(form.why_not or "native" == form.candidate.form for form in found.forms)


class TestBadInput:
    @pytest.mark.parametrize("suffix", [".tflite", ".mlpackage"])
    def test_a_finished_file(self, tmp_path: Path, suffix: str) -> None:
        with pytest.raises(ArtifactError) as caught:
            told(tmp_path / f"model{suffix}")
        assert "explain the model or the ONNX file" in caught.value.hint

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="does not exist"):
            told(tmp_path / "none.onnx")

    def test_an_unknown_model(self) -> None:
        with pytest.raises(UsageError) as caught:
            told("shufflenet_v2_x1_00")
        assert "shufflenet_v2_x1_0" in caught.value.hint

    def test_weights_of_a_file(self, torchscript: Path) -> None:
        with pytest.raises(UsageError, match="--weights"):
            told(torchscript, weights="digits")

    def test_an_input_size_where_it_is_fixed(self, torchscript: Path) -> None:
        with pytest.raises(UsageError, match="fixes the size"):
            told(torchscript, input_size=32)

    def test_a_free_size_needs_a_number(self, folder: Path, half_width: nn.Module) -> None:
        path = export(half_width, folder / "free.onnx", opset=17, dynamo=False, dynamic=False)
        model = onnx.load(path)
        dims = model.graph.input[0].type.tensor_type.shape.dim
        dims[2].dim_param, dims[3].dim_param = "h", "w"
        del model.graph.value_info[:]
        onnx.save(model, path)
        with pytest.raises(GraphError) as caught:
            told(path)
        assert "--input-size" in caught.value.hint
        assert (32, 32) == told(path, input_size=32).subject.inputs[0][1][2:]

    def test_truncated_and_mutated_files_give_one_sentence(self, folder: Path) -> None:
        data = _grouped().SerializeToString()
        rng = np.random.default_rng(0)
        path = folder / "mutated.onnx"
        messages = []
        for round_ in range(120):
            if round_ % 3 == 0:
                bad = data[: int(rng.integers(1, len(data)))]
            else:
                array = np.frombuffer(data, np.uint8).copy()
                array[rng.integers(0, len(array), 2)] = rng.integers(0, 256, 2)
                bad = array.tobytes()
            path.write_bytes(bad)
            try:
                told(path)
            except InputError as error:
                messages.append(error.message)
        assert len(messages) > 40  # some changes are harmless
        assert [] == [message for message in messages if "\n" in message]

    def test_weights_outside_of_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "inner").mkdir()
        (tmp_path / "secret").write_bytes(b"\0" * 64)
        model = _grouped()
        tensor = TensorProto(
            name="w", data_type=TensorProto.FLOAT, dims=[16], data_location=TensorProto.EXTERNAL
        )
        tensor.external_data.add(key="location", value="../secret")
        model.graph.initializer.append(tensor)
        (tmp_path / "inner" / "m.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(ArtifactError, match="outside of its folder"):
            told(tmp_path / "inner" / "m.onnx")

    def test_one_large_file_that_every_tensor_names(self, tmp_path: Path) -> None:
        with (tmp_path / "w").open("wb") as stream:
            stream.truncate(1 << 30)  # sparse: it takes no room
        model = _grouped()
        for index in range(3):
            tensor = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[1 << 28])
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="w")
            model.graph.initializer.append(tensor)
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(ArtifactError, match="more than 2 GiB"):
            told(tmp_path / "m.onnx")

    def test_an_enormous_input_is_refused(self, tmp_path: Path) -> None:
        model = _grouped()
        for axis, size in enumerate((1, 6, 1 << 20, 1 << 20)):
            model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
            model.graph.output[0].type.tensor_type.shape.dim[axis].dim_value = size
        for tensor in model.graph.initializer:
            shape = [0, 3, 2, 1 << 20, 1 << 20] if tensor.name == "five" else [0, 6, 1 << 20, 1 << 20]
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(shape), tensor.name))
        onnx.save(model, tmp_path / "m.onnx")
        with pytest.raises(GraphError, match="too large to be followed"):
            told(tmp_path / "m.onnx")

    def test_functions_that_multiply_are_not_written_out(self, tmp_path: Path) -> None:
        model = helper.make_model(
            helper.make_graph(
                [helper.make_node("f30", ["x"], ["y"], domain="own")],
                "g",
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 4, 4])],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 4, 4])],
            ),
            opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("own", 1)],
            ir_version=10,
        )
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        for level in range(31):
            inner = ("own", f"f{level - 1}") if level else ("", "Relu")
            nodes = [
                helper.make_node(inner[1], ["a"], ["b"], domain=inner[0]),
                helper.make_node(inner[1], ["b"], ["c"], domain=inner[0]),
            ]
            model.functions.append(helper.make_function("own", f"f{level}", ["a"], ["c"], nodes, imports))
        onnx.save(model, tmp_path / "m.onnx")
        with pytest.raises(InputError, match="more than 200000 nodes"):
            told(tmp_path / "m.onnx")


def test_the_table_fits_a_hundred_columns(capsys: Any, monkeypatch: Any, torchscript: Path) -> None:
    from shufflectl.console import Output
    from shufflectl.render.explanation import explained

    monkeypatch.setenv("COLUMNS", "100")
    explained(Output(), told(torchscript, targets=["all"], shuffle="auto"))
    tiny = ExplainRequest.parse(subject="t", targets=["all"], precisions=["fp32"], all_forms=True)
    explained(Output(), explain_graph(tiny_graph(), tiny))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    rows = [line for line in lines if "stage" in line and "2xReshape" in line]
    assert 16 + 4 == len(rows)


def test_a_network_without_shuffles_says_so(capsys: Any) -> None:
    from shufflectl.console import Output
    from shufflectl.render.explanation import explained

    graph = adopt(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 17]>'
            "g (float[1,2,4,4] x) => (float[1,2,4,4] y) {y = Relu(x)}"
        )
    ).graph
    request = ExplainRequest.parse(subject="t", targets=["onnx"], precisions=["fp32"])
    explained(Output(), explain_graph(graph, request))
    assert "there is no channel shuffle" in capsys.readouterr().out


def test_both_exporters_of_a_module_give_the_same_sites(folder: Path) -> None:
    module = randomise(ShuffleNetV2((2, 3), (8, 16, 24, 32), 10))
    told_of = [
        told(export(module, folder / f"both-{dynamo}.onnx", opset=18, dynamo=dynamo, dynamic=False, size=32))
        for dynamo in (False, True)
    ]
    first, second = ([(s.site.description, s.size, s.bytes_moved) for s in found.sites] for found in told_of)
    assert len(first) == 5
    assert [(d, s) for d, s, _ in first] == [(d, s) for d, s, _ in second]


class TestCommandLine:
    def test_json_of_a_file(self, run_cli: Any, torchscript: Path) -> None:
        done = run_cli("explain", torchscript, "--target", "tflite", "--json")
        assert 0 == done.status, done.stderr
        assert "shufflectl.explain/1" == done.document["schema"]
        assert 16 == len(done.document["sites"])
        assert ["tflite"] == [made["target"] for made in done.document["targets"]]

    def test_a_damaged_file_is_exit_code_3(self, run_cli: Any, tmp_path: Path) -> None:
        (tmp_path / "bad.onnx").write_bytes(b"\x08\x0a\xff\xff")
        done = run_cli("explain", tmp_path / "bad.onnx")
        assert 3 == done.status
        assert "Traceback" not in done.stderr

    def test_an_unknown_form_is_exit_code_2(self, run_cli: Any) -> None:
        done = run_cli("explain", "shufflenet_v2_x0_5", "--shuffle", "folds")
        assert 2 == done.status
        assert "did you mean 'fold'?" in done.stderr
