"""A user's own detector, from the page that documents it to files that agree with torch; real processes."""

import json
import re
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from shufflectl.models.factory import Factory, build

pytestmark = pytest.mark.integration

PAGE = Path(__file__).parents[2] / "docs" / "any-module.md"
SIZE = ("--input", "image=1x3x64x64", "--images", "2")
OUTPUTS = ["scores_0", "scores_1", "boxes_0", "boxes_1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's example, which says that it runs."""
    code = re.search(r"<!-- example:begin -->\n```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert code is not None
    path = tmp_path_factory.mktemp("user") / "net_of_mine"
    path.mkdir()
    trace = "\nprint('the code ran')\n"
    (path / "detector.py").write_text(code[1] + trace, "utf-8")
    return path.parent


@pytest.fixture(scope="module")
def call(folder: Path, run_cli: Any) -> Any:
    """The command line in that folder."""
    return lambda *argv, **options: run_cli(*argv, cwd=folder, **options)


@pytest.fixture(scope="module")
def weights(folder: Path) -> Path:
    """A checkpoint of a detector for five classes, as a training loop with DataParallel keeps it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        module = build(Factory.parse("net_of_mine.detector:build", arguments=["classes=5"]))
    generator = torch.Generator().manual_seed(3)
    state = {
        f"module.{name}": tensor + 0.01 * torch.rand(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in module.state_dict().items()
    }
    path = folder / "best.pt"
    torch.save({"state_dict": state}, path)
    return path


@pytest.fixture(scope="module")
def dist(folder: Path, weights: Path, call: Any) -> Path:
    """All formats of it. Read-only."""
    run = call(
        *("export", "net_of_mine.detector:build", "--arg", "classes=5", "--weights", weights.name, *SIZE),
        *("--target", "all", "--precision", "fp32,fp16", "--out", "dist", "--json"),
    )
    assert 0 == run.status, run.stderr
    assert run.document["passed"]
    assert "the code ran" in run.stderr
    assert set(OUTPUTS) == {row["output"] for row in run.document["parity"]["against_reference"]}
    return folder / "dist"


def test_every_format_gives_every_output(dist: Path) -> None:
    assert 6 == len([file for file in dist.iterdir() if file.name.startswith("build-")])
    graph = onnx.load(dist / "build-fp32.onnx").graph
    assert OUTPUTS == [value.name for value in graph.output]
    sizes = [[d.dim_value for d in value.type.tensor_type.shape.dim] for value in graph.output]
    assert [[1, 5, 4, 4], [1, 5, 2, 2], [1, 4, 4, 4], [1, 4, 2, 2]] == sizes


def test_shuffles_are_folded_behind_two_taps(dist: Path) -> None:
    operators = {node.op_type for node in onnx.load(dist / "build-fp32.onnx").graph.node}
    assert "Transpose" not in operators


def test_the_manifest_records_function_and_arguments(dist: Path) -> None:
    (model,) = json.loads((dist / "manifest.json").read_text("utf-8"))["models"]
    assert "net_of_mine.detector:build" == model["factory"]["name"]
    assert {"classes": "5"} == model["factory"]["arguments"]
    assert OUTPUTS == model["factory"]["outputs"] == model["options"]["outputs"]
    assert "best.pt" == model["weights"]["spec"]


class TestCheck:
    def test_no_code_runs_unless_it_is_named(self, dist: Path, call: Any) -> None:
        run = call("check", dist, "--images", "2")
        assert 0 == run.status, run.stderr
        assert "the code ran" not in run.stderr + run.stdout
        assert "--model net_of_mine.detector:build --arg classes=5" in run.stderr

    def test_the_network_is_the_reference_where_it_is_named(
        self, dist: Path, weights: Path, call: Any
    ) -> None:
        run = call(
            *("check", dist / "build-fp32.tflite", "--model", "net_of_mine.detector:build"),
            *("--arg", "classes=5", "--weights", weights.name, "--images", "2", "--json"),
        )
        assert 0 == run.status, run.stderr
        assert "torch" == run.document["verifications"][0]["reference"]
        assert OUTPUTS == [
            row["output"]
            for row in run.document["verifications"][0]["parity"]["against_reference"]
            if row["kind"] == "real"
        ]

    @pytest.mark.parametrize(
        ("argv", "status", "words"),
        [
            (["--weights", "best.pt"], 2, "runs only where it is named"),
            (["--model", "net_of_mine.detector:build", "--arg", "classes=5"], 2, "best.pt"),
            (
                ["--model", "net_of_mine.detector:build", "--arg", "classes=4", "--weights", "best.pt"],
                3,
                "'module.scores.weight' has shape",
            ),
            (
                ["--model", "net_of_mine.detector:build", "--arg", "classes=5", "--weights", "random:0"],
                3,
                "is not what the files were made from",
            ),
            (["--arg", "classes=5"], 2, "--arg is for a network of one's own"),
        ],
    )
    def test_what_does_not_fit_is_one_sentence(
        self, dist: Path, call: Any, argv: list[str], status: int, words: str
    ) -> None:
        run = call("check", dist / "build-fp32.onnx", *argv)
        assert status == run.status, run.stderr
        assert words in run.stderr
        assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (["net_of_mine.detector:bild"], 2, "has no attribute 'bild'"),
        (["net_of_mine/detector.py:build"], 2, "write net_of_mine.detector:build"),
        (["net_of_mine.detector:build", "--arg", "clases=3"], 2, "'clases'"),
        (["net_of_mine.detector:build", "--num-classes", "3"], 2, "--arg key=value"),
        (["net_of_mine.detector:build", "--arg", "classes='three'"], 3, "raised TypeError"),
        (["net_of_mine.detector:build", "--input", "image=1x4x64x64"], 3, "raised on image [1, 4, 64, 64]"),
        (["net_of_mine.detector:build", "--output", "a,b", *SIZE], 2, "2 names are given for 4 outputs"),
        (["shufflenet_v2_x0_5", "--input", "image=1x3x64x64"], 2, "--input is for a network of one's own"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(
    argv: list[str], status: int, words: str, folder: Path, call: Any
) -> None:
    run = call("export", *argv, "--target", "onnx", "--out", "nothing")
    assert status == run.status, run.stderr
    assert words in run.stderr
    assert "Traceback" not in run.stderr
    assert not (folder / "nothing").exists()


def test_the_traceback_is_there_with_v(call: Any) -> None:
    argv = ("export", "net_of_mine.detector:build", "--arg", "classes='three'", "--target", "onnx", "-v")
    run = call(*argv, "--out", "nothing")
    assert "Traceback" in run.stderr
    assert "detector.py" in run.stderr


def test_explain_knows_the_shuffles_of_the_backbone(call: Any) -> None:
    run = call(
        *(
            "explain",
            "net_of_mine.detector:build",
            "--input",
            "image=1x3x64x64",
            "--target",
            "tflite",
            "--json",
        )
    )
    assert 0 == run.status, run.stderr
    kinds = [site["kind"] for site in run.document["sites"]]
    assert 16 == kinds.count("shuffle")
