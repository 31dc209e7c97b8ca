"""Which files are checked together, and what is said of those that cannot be."""

from dataclasses import replace
from pathlib import Path

import pytest

from shufflectl.converters.capture import capture
from shufflectl.converters.metadata import ModelInfo
from shufflectl.converters.rewrite.lowering import Options, apply
from shufflectl.converters.targets import TARGETS, EmitOptions, Layout
from shufflectl.deploy.check import _reproducible, check
from shufflectl.deploy.options import ParityOptions
from shufflectl.errors import ArtifactError, DataError
from support.nets import example, tiny_v2

FEW = ParityOptions(images=2, random_images=1)


def emit(folder: Path, size: int, *targets: str, weights: str = "best.pt", sha256: str = "00") -> list[Path]:
    """Write the tiny network, whose weights nobody else has, for images of one size."""
    info = ModelInfo("tiny", weights, sha256)
    graph = capture(tiny_v2(), (example(size),), name="tiny")
    paths = []
    for target in targets:
        path = folder / f"tiny-{size}{TARGETS[target].extension}"
        TARGETS[target].emit(graph, info, EmitOptions(), path)
        paths.append(path)
    return paths


def test_files_for_two_sizes_of_image_are_compared_each_with_its_own(tmp_path: Path) -> None:
    small, large = emit(tmp_path, 32, "onnx", "tflite"), emit(tmp_path, 40, "onnx", "tflite")
    result = check([small[0], large[0], small[1], large[1]], parity=FEW)
    assert result.passed
    found = [{r.artifact.file for r in v.results} for v in result.verifications]
    assert [{"tiny-32.onnx", "tiny-32.tflite"}, {"tiny-40.onnx", "tiny-40.tflite"}] == found


def test_a_file_without_metadata_that_takes_other_images_is_named(tmp_path: Path) -> None:
    import onnx

    ours = emit(tmp_path, 32, "onnx", "tflite")
    (foreign,) = emit(tmp_path, 40, "onnx")
    proto = onnx.load(foreign)
    del proto.metadata_props[:]
    onnx.save(proto, foreign)
    with pytest.raises(DataError, match=r"'image' of tiny-40\.onnx has shape") as caught:
        check([*ours, foreign], parity=FEW)
    assert caught.value.hint


def test_a_file_in_the_place_of_another_is_named(tmp_path: Path) -> None:
    from shufflectl.deploy.parity.nway import Member
    from shufflectl.deploy.runtimes.ort import OnnxRuntime

    (path,) = emit(tmp_path, 40, "onnx")
    with OnnxRuntime().load(path) as session:
        member = Member.from_session(path.name, "fp32", session)
        with pytest.raises(DataError) as caught:
            member.run(example(32).numpy())
    expected = "tiny-40.onnx takes 'image' of shape [1, 3, 40, 40], and the images are [1, 3, 32, 32]"
    assert expected == caught.value.message
    assert "another model" in caught.value.hint


def test_a_path_that_leads_nowhere_is_said_not_to_exist(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="dist does not exist"):
        check([tmp_path / "dist"])


def test_the_folder_is_asked_for_where_its_manifest_is_given(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_text("{}")
    with pytest.raises(ArtifactError, match="is a manifest") as caught:
        check([manifest])
    assert f"pass its folder: {tmp_path}" == caught.value.hint


def test_other_files_are_refused_with_what_is_taken(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("")
    with pytest.raises(ArtifactError, match="not an exported file") as caught:
        check([text])
    assert ".onnx" in caught.value.hint


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_rewritten_file_serves_as_the_reference(layout: Layout, tmp_path: Path) -> None:
    graph, info = capture(tiny_v2(), (example(32),), name="tiny"), ModelInfo("tiny", "best.pt", "00")
    first, second = tmp_path / "first.onnx", tmp_path / "second.tflite"
    split, _ = apply("fold-split", graph, Options(align=8))
    folded, _ = apply("fold", graph, Options(align=4))
    TARGETS["onnx"].emit(split, replace(info, precision="fp32"), EmitOptions(layout=layout), first)
    TARGETS["tflite"].emit(folded, replace(info, precision="fp16"), EmitOptions("fp16"), second)
    result = check([first, second], parity=FEW)
    assert result.passed
    (verification,) = result.verifications
    examination = next(r.examination for r in verification.results if r.artifact.path == second)
    assert (examination is None) == (layout == "nhwc")
    if examination is not None:
        # What both files hold as the captured graph has it: one is padded or permuted nearly everywhere.
        assert {"conv1.2", "maxpool", "logits"} <= {layer.tensor for layer in examination.layers}
        assert [] == [layer.problem for layer in examination.layers if layer.problem]


def test_a_check_downloads_no_weights_that_nobody_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHUFFLECTL_CACHE", str(tmp_path))
    assert not _reproducible("imagenet", "shufflenet_v2_x1_0")
    assert _reproducible("digits", "shufflenet_v2_x0_5")
    assert _reproducible("random:3", "shufflenet_v2_x1_0")
    assert not _reproducible("best.pth", "shufflenet_v2_x1_0")
