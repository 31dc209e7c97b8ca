"""ONNX files of other exporters become every format, held against the file itself in ONNX Runtime."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from shufflectl.deploy import check as checking
from shufflectl.deploy.evaluation.evaluate import evaluate
from shufflectl.deploy.export import export
from shufflectl.deploy.options import ExportRequest, ParityOptions
from shufflectl.deploy.runtimes import choose
from shufflectl.deploy.verify import Verification
from shufflectl.errors import ArtifactError, CheckpointError, GraphError, UsageError
from support import exporters, foreign
from support.nets import tiny_v2

PARITY = ParityOptions(images=3, random_images=3)
IMAGE = torch.zeros(1, 3, 32, 32)


@dataclass(frozen=True)
class Exported:
    """A file, what came of it, and where."""

    source: Path
    out: Path
    found: Verification

    @property
    def manifest(self) -> Any:
        (model,) = json.loads((self.out / "manifest.json").read_text("utf-8"))["models"]
        return model


def exported(source: Path, out: Path, **options: Any) -> Exported:
    given = {
        "targets": ["onnx", "tflite"],
        "precisions": ["fp32"],
        "batch": "1",
        "layout": None,
        "parity": PARITY,
        **options,
    }
    request = ExportRequest.parse(model=str(source), out=out, **given)
    return Exported(source, out, export(request))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("anyonnx")


@pytest.fixture(scope="session")
def torchscript(folder: Path) -> Path:
    """A file of TorchScript's exporter with a free batch: its shuffles compute their shapes."""
    return exporters.export(tiny_v2(), folder / "ts.onnx", opset=13, dynamo=False, dynamic=True, size=32)


@pytest.fixture(scope="session")
def dist(folder: Path, torchscript: Path) -> Exported:
    """All formats and precisions of it. Read-only."""
    return exported(torchscript, folder / "dist", targets=["all"], precisions=["fp32", "fp16"])


class TestExporters:
    @pytest.mark.parametrize("dynamic", [False, True])
    @pytest.mark.parametrize("opset", [11, 13, 17, 20])
    def test_torchscript(self, folder: Path, opset: int, dynamic: bool) -> None:
        path = folder / f"ts{opset}{dynamic}.onnx"
        exporters.export(tiny_v2(), path, opset=opset, dynamo=False, dynamic=dynamic, size=32)
        batch = "dynamic" if dynamic else "1"
        run = exported(path, folder / path.stem, batch=batch)
        assert run.found.passed, run.found.failure

    @pytest.mark.parametrize(("opset", "dynamic"), [(18, True), (20, False), (23, False)])
    def test_dynamo(self, folder: Path, opset: int, dynamic: bool) -> None:
        path = folder / f"dynamo{opset}.onnx"
        exporters.export(tiny_v2(), path, opset=opset, dynamo=True, dynamic=dynamic, size=32)
        run = exported(path, folder / path.stem)
        assert run.found.passed, run.found.failure
        assert [1, 3, 32, 32] == run.manifest["input"]["shape"]

    def test_every_format_and_precision(self, dist: Exported) -> None:
        assert dist.found.passed, dist.found.failure
        assert 6 == len(dist.found.results)

    def test_a_file_of_shufflectl_in_channels_last(self, dist: Exported, folder: Path) -> None:
        first = exported(dist.source, folder / "nhwc", targets=["onnx"], layout="nhwc")
        again = exported(first.out / "ts-fp32.onnx", folder / "nhwc2")
        assert again.found.passed, again.found.failure
        for row in again.found.results:
            with choose(row.artifact.target).load(again.out / row.artifact.file) as session:
                assert (1, 32, 32, 3) == session.inputs[0].shape


class TestHandMade:
    @pytest.mark.parametrize("opset", [9, 11, 13])
    def test_batch_norm_is_folded(self, folder: Path, opset: int) -> None:
        run = exported(foreign.unfolded_norm(folder / f"bn{opset}.onnx", opset), folder / f"bn{opset}")
        assert run.found.passed, run.found.failure
        model = onnx.load(run.out / f"bn{opset}-fp32.onnx")
        assert "BatchNormalization" not in {node.op_type for node in model.graph.node}

    def test_shape_arithmetic_of_a_shuffle_folds_once_the_size_is_given(self, folder: Path) -> None:
        path = foreign.dynamic_shuffle(folder / "dyn.onnx")
        run = exported(path, folder / "dyn", input_size=16)
        assert run.found.passed, run.found.failure
        left = {node.op_type for node in onnx.load(run.out / "dyn-fp32.onnx").graph.node}
        assert left.isdisjoint({"Shape", "Gather", "Unsqueeze"})

    def test_without_a_size_the_error_says_what_to_do(self, folder: Path) -> None:
        path = foreign.dynamic_shuffle(folder / "free.onnx")
        with pytest.raises(GraphError, match="no fixed length") as caught:
            exported(path, folder / "free")
        assert "--input-size" in caught.value.hint

    def test_half_precision_is_held_to_its_own_limits(self, folder: Path, torchscript: Path) -> None:
        path = foreign.half_file(torchscript, folder / "half.onnx")
        run = exported(path, folder / "half", precisions=["fp32", "fp16"])
        assert run.found.passed, run.found.failure
        rows = {row.candidate: row.comparison for row in run.found.report.against_reference}
        assert 39 < rows["half-fp32.onnx"].limits.sqnr < 41
        assert any("half precision" in note for note in run.found.notes)

    def test_weights_of_a_half_file_are_kept_exactly(self, folder: Path, torchscript: Path) -> None:
        path = foreign.half_file(torchscript, folder / "exact.onnx")
        run = exported(path, folder / "exact", targets=["onnx"], shuffle="native")

        def largest(file: Path) -> np.ndarray[Any, Any]:
            arrays = [onnx.numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer]
            return max(arrays, key=lambda a: a.size)

        assert np.array_equal(largest(path).astype(np.float32), largest(run.out / "exact-fp32.onnx"))

    @pytest.mark.parametrize("mode", ["linear", "nearest"])
    @pytest.mark.parametrize(("opset", "operator"), [(9, "Upsample"), (10, "Resize")])
    def test_old_sets_sample_at_corners(self, folder: Path, opset: int, operator: str, mode: str) -> None:
        path = foreign.save(
            folder / f"{operator}_{mode}.onnx",
            f"""<ir_version: 4, opset_import: ["" : {opset}]>
            net (float[1, 3, 8, 8] image) => (float[1, 3, 16, 16] y) {{
                y = {operator} <mode = "{mode}"> (image, scales)
            }}""",
            {"scales": np.array([1, 1, 2, 2], np.float32)},
        )
        run = exported(path, folder / path.stem)
        assert run.found.passed, run.found.failure

    def test_what_cannot_be_converted_is_taken_as_it_is_or_refused(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any) -> onnx.ModelProto:
            raise RuntimeError("no adapter")

        monkeypatch.setattr(onnx.version_converter, "convert_version", fail)
        new = foreign.unfolded_norm(folder / "kept.onnx", 13)
        assert exported(new, folder / "kept").found.passed
        old = foreign.unfolded_norm(folder / "refused.onnx", 11)
        with pytest.raises(GraphError, match="older than 13 and cannot be converted: no adapter"):
            exported(old, folder / "refused")


class TestInterface:
    def test_two_outputs_keep_their_names_and_are_both_compared(self, folder: Path) -> None:
        path = foreign.torchscript(
            foreign.TwoHeads(),
            folder / "heads.onnx",
            (IMAGE,),
            opset_version=13,
            input_names=["in put"],
            output_names=["scores", "boxes"],
        )
        run = exported(path, folder / "heads", targets=["all"])
        assert run.found.passed, run.found.failure
        assert {"scores", "boxes"} == {row.output for row in run.found.report.rows}
        assert ["scores", "boxes"] == run.manifest["options"]["outputs"]
        assert ["scores", "boxes"] == [v.name for v in onnx.load(run.out / "heads-fp32.onnx").graph.output]
        assert checking.check([run.out], parity=PARITY).passed

    def test_two_inputs(self, folder: Path) -> None:
        path = foreign.torchscript(
            foreign.TwoInputs(),
            folder / "two.onnx",
            (IMAGE, torch.zeros(1, 6)),
            opset_version=17,
            input_names=["image", "extra"],
            output_names=["scores"],
        )
        run = exported(path, folder / "two", precisions=["fp32", "fp16"])
        assert run.found.passed, run.found.failure
        assert ["image", "extra"] == run.manifest["options"]["inputs"]
        assert checking.check([run.out], model=str(path), parity=PARITY).passed

    def test_a_wide_image(self, folder: Path) -> None:
        path = foreign.torchscript(
            foreign.TwoHeads(), folder / "wide.onnx", (torch.zeros(1, 3, 16, 40),), opset_version=13
        )
        run = exported(path, folder / "wide")
        assert run.found.passed, run.found.failure
        assert {"real", "random"} == {row.kind for row in run.found.report.rows}

    def test_a_wrong_file_fails_against_the_original(
        self, folder: Path, torchscript: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from shufflectl.converters.capture import foreign as capturing

        def spoilt(proto: onnx.ModelProto) -> onnx.ModelProto:
            weight = max(proto.graph.initializer, key=lambda t: len(t.raw_data))
            array = onnx.numpy_helper.to_array(weight).copy()
            array[:, 1] = 0
            weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
            return proto

        monkeypatch.setattr(capturing, "_modern", spoilt)
        run = exported(torchscript, folder / "spoilt")
        assert not run.found.passed
        assert not run.out.exists()


class TestRecords:
    def test_the_manifest_names_the_file_and_its_digest(self, dist: Exported) -> None:
        digest = hashlib.sha256(dist.source.read_bytes()).hexdigest()
        assert {"spec": "ts.onnx", "sha256": digest} == dist.manifest["weights"]
        assert "ts.onnx" == dist.manifest["reference"]["name"]

    def test_each_file_says_so_too(self, dist: Exported) -> None:
        for row in dist.found.results:
            with choose(row.artifact.target).load(dist.out / row.artifact.file) as session:
                assert session.info is not None
                assert ("ts", "ts.onnx") == (session.info.name, session.info.weights)

    def test_unknown_preprocessing_is_said_to_be_unknown(self, dist: Exported) -> None:
        assert any("prepared" in note for note in dist.found.notes)
        assert [0, 0, 0] == dist.manifest["input"]["preprocess"]["mean"]

    def test_two_exports_are_byte_identical(self, dist: Exported, folder: Path) -> None:
        again = exported(dist.source, folder / "again", targets=["onnx", "tflite"])
        for row in again.found.results:
            file = row.artifact.file
            assert (dist.out / file).read_bytes() == (again.out / file).read_bytes()


class TestCheck:
    def test_a_folder_alone(self, dist: Exported) -> None:
        found = checking.check([dist.out], parity=PARITY)
        assert found.passed
        assert "ts-fp32.onnx" == found.verifications[0].reference

    def test_one_file_against_the_original(self, dist: Exported) -> None:
        found = checking.check([dist.out / "ts-fp32.tflite"], model=str(dist.source), parity=PARITY)
        assert found.passed
        assert "ts.onnx" == found.verifications[0].reference

    def test_one_file_alone_is_told_of_the_original(self, dist: Exported) -> None:
        with pytest.raises(UsageError) as caught:
            checking.check([dist.out / "ts-fp32.tflite"], parity=PARITY)
        assert "--model" in caught.value.hint

    def test_another_file_is_not_the_original(self, dist: Exported, folder: Path) -> None:
        other = foreign.unfolded_norm(folder / "other.onnx")
        with pytest.raises((CheckpointError, UsageError)):
            checking.check([dist.out / "ts-fp32.tflite"], model=str(other), parity=PARITY)


def _truncated(folder: Path, source: Path) -> Path:
    path = folder / "cut.onnx"
    path.write_bytes(source.read_bytes()[:-2000])
    return path


def _missing_weights(folder: Path, _source: Path) -> Path:
    path = folder / "external.onnx"
    model = onnx.load(foreign.unfolded_norm(folder / "whole.onnx"))
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    (folder / "w.bin").unlink()
    return path


def _integers(folder: Path, _source: Path) -> Path:
    return foreign.save(
        folder / "ints.onnx",
        """<ir_version: 7, opset_import: ["" : 13]>
        net (float[1, 3, 8, 8] image) => (int64[1, 1, 8, 8] y) { y = ArgMax <axis = 1> (image) }""",
        {},
    )


def _outside(folder: Path, _source: Path) -> Path:
    path = folder / "outside.onnx"
    whole = foreign.unfolded_norm(folder / "whole.onnx")
    onnx.save(onnx.load(whole), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../../etc/passwd"
    path.write_bytes(model.SerializeToString())
    return path


def _gigantic(folder: Path, _source: Path) -> Path:
    return foreign.save(
        folder / "huge.onnx",
        """<ir_version: 7, opset_import: ["" : 13]>
        net (float[1, 3, 8, 8] image) => (float[1, 3, 9000000, 9000000] y) {
            y = Pad (image, pads)
        }""",
        {"pads": np.array([0, 0, 0, 0, 0, 0, 8999992, 8999992])},
    )


def _codes(folder: Path, _source: Path) -> Path:
    return foreign.save(
        folder / "codes.onnx",
        """<ir_version: 7, opset_import: ["" : 13]>
        net (float[1, 3, 8, 8] image) => (float[1, 3, 8, 8] y) {
            codes = QuantizeLinear (image, step)
            y = DequantizeLinear (codes, step)
        }""",
        {"step": np.array(0.5, np.float32)},
    )


def _vector(folder: Path, _source: Path) -> Path:
    return foreign.save(
        folder / "vector.onnx",
        """<ir_version: 7, opset_import: ["" : 13]>
        net (float[1, 3, 8, 8] image, float[3] factor) => (float[1, 3, 8, 8] y) {
            one = Constant <value_ints = [1, 3, 1, 1]> ()
            column = Reshape (factor, one)
            y = Mul (image, column)
        }""",
        {},
    )


Maker = Callable[[Path, Path], Path]


class TestRefused:
    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda folder, _: folder / "absent.onnx", "does not exist"),
            (lambda folder, _: folder, "is a folder"),
            (_truncated, "onnx"),
            (_missing_weights, "which is missing"),
            (_integers, "holds int64"),
            (lambda folder, _: foreign.nested(folder / "nested.onnx"), r"\(If\) holds a graph of its own"),
            (_outside, "outside of its folder"),
            (_gigantic, "bytes|large"),
            (_vector, "holds no batch"),
            (_codes, "holds codes of eight bits"),
        ],
    )
    def test_a_bad_file_is_one_sentence(
        self, tmp_path: Path, torchscript: Path, make: Maker, words: str
    ) -> None:
        path = make(tmp_path, torchscript)
        with pytest.raises((ArtifactError, GraphError), match=words) as caught:
            exported(path, tmp_path / "out")
        assert 3 == caught.value.exit_code
        assert "\n" not in caught.value.message
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        "options",
        [
            {"weights": "random:0"},
            {"num_classes": 10},
            {"input_size": 48},
        ],
    )
    def test_options_of_the_registry_do_not_fit_a_file(
        self, torchscript: Path, tmp_path: Path, options: dict[str, Any]
    ) -> None:
        with pytest.raises(UsageError):
            exported(torchscript, tmp_path / "out", **options)

    def test_a_fixed_batch_is_not_changed(self, dist: Exported, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="fixes its batch at 1"):
            exported(dist.out / "ts-fp32.onnx", tmp_path / "out", batch="4")

    def test_a_finished_file_is_not_a_source(self, dist: Exported, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="finished TFLite"):
            exported(dist.out / "ts-fp32.tflite", tmp_path / "out")

    def test_a_checkpoint_is_pointed_to_its_option(self, tmp_path: Path) -> None:
        path = tmp_path / "best.pt"
        torch.save({"fc.weight": torch.zeros(1)}, path)
        with pytest.raises(UsageError) as caught:
            exported(path, tmp_path / "out")
        assert "--weights" in caught.value.hint


def test_the_command_line(torchscript: Path, tmp_path: Path, run_cli: Any) -> None:
    run = run_cli(
        *("export", torchscript, "--target", "onnx", "--out", tmp_path / "dist", "--images", "2", "--json")
    )
    assert 0 == run.status, run.stderr
    assert run.document["passed"]
    assert "ts.onnx" == run.document["reference"]


class TestEvaluate:
    """Files that were made from an ONNX file, over labelled images."""

    def test_the_original_is_the_reference(self, digits_dist: Path, folder: Path) -> None:
        source = folder / "classifier.onnx"
        source.write_bytes((digits_dist / "shufflenet_v2_x0_5-fp32.onnx").read_bytes())
        made = exported(source, folder / "classifier", targets=["tflite"])
        found = evaluate(
            [made.out], data="digits", model=str(source), options=ParityOptions(images=20)
        ).to_json()["models"][0]
        assert "classifier.onnx" == found["reference"]["name"]
        assert 20 == found["files"][0]["agreement"]["same"]
        assert found["reference"]["top1"] == found["files"][0]["top1"]

    def test_another_file_is_not_the_original(self, dist: Exported, folder: Path) -> None:
        other = exporters.export(
            tiny_v2(1), folder / "other.onnx", opset=17, dynamo=False, dynamic=False, size=32
        )
        with pytest.raises(CheckpointError, match="is not what the files were made from"):
            evaluate([dist.out / "ts-fp32.onnx"], data="digits", model=str(other))
