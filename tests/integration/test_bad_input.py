"""Bad input is normal: one clear sentence, the right exit code, nothing left behind, no traceback."""

import io
import json
import os
import pickle
import resource
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from shufflectl.models import create

MODEL = "shufflenet_v2_x0_5"
Make = Callable[[Path], Path]


class Bomb:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


def missing(folder: Path) -> Path:
    return folder / "missing.pt"


def empty(folder: Path) -> Path:
    path = folder / "empty.pt"
    path.touch()
    return path


def good(folder: Path) -> Path:
    path = folder / "good.pt"
    torch.save(create(MODEL, weights="random:1", num_classes=10).state_dict(), path)
    return path


def truncated_pt(folder: Path) -> Path:
    path = good(folder)
    path.write_bytes(path.read_bytes()[:-5000])
    return path


def truncated_safetensors(folder: Path) -> Path:
    path = folder / "cut.safetensors"
    save_file(create(MODEL, weights="random:1", num_classes=10).state_dict(), path)
    path.write_bytes(path.read_bytes()[:-5000])
    return path


def huge_header(folder: Path) -> Path:
    path = folder / "huge.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    return path


def noise(folder: Path) -> Path:
    path = folder / "noise.pth"
    path.write_bytes(np.random.default_rng(0).bytes(10_000))
    return path


def malicious(folder: Path) -> Path:
    path = folder / "malicious.pt"
    torch.save({"state_dict": Bomb()}, path)
    return path


def malicious_legacy(folder: Path) -> Path:
    path = folder / "legacy.pt"
    path.write_bytes(pickle.dumps(Bomb()))
    return path


def zip_bomb(folder: Path) -> Path:
    path = folder / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", io.BytesIO(b"\0" * (64 << 20)).getvalue())
    return path


def other_layout(folder: Path) -> Path:
    path = folder / "other.safetensors"
    save_file({"backbone.conv.weight": torch.zeros(3, 3)}, path)
    return path


def other_width(folder: Path) -> Path:
    path = folder / "wide.safetensors"
    save_file(create("shufflenet_v2_x1_0", weights="random:1", num_classes=10).state_dict(), path)
    return path


def no_checkpoint(folder: Path) -> Path:
    path = folder / "weights.txt"
    path.write_text("hello")
    return path


def a_folder(folder: Path) -> Path:
    path = folder / "folder.pt"
    path.mkdir()
    return path


def assert_clear(run: Any, status: int, *words: str) -> None:
    assert status == run.status, run.stderr + run.stdout
    assert "Traceback" not in run.stderr
    assert run.stderr.startswith("error: "), run.stderr
    assert len(run.stderr.strip().splitlines()) <= 2, run.stderr  # the sentence, and what to do
    for word in words:
        assert word in run.stderr, run.stderr


@pytest.mark.parametrize(
    "make",
    [
        missing,
        empty,
        truncated_pt,
        truncated_safetensors,
        huge_header,
        noise,
        malicious,
        malicious_legacy,
        zip_bomb,
        other_layout,
        other_width,
        no_checkpoint,
        a_folder,
    ],
)
def test_a_bad_checkpoint_is_refused_by_name(make: Make, tmp_path: Path, run_cli: Any) -> None:
    path, out = make(tmp_path), tmp_path / "dist"
    run = run_cli("export", MODEL, "--weights", path, "--target", "onnx", "--out", out)
    assert_clear(run, 3, path.name)
    assert not out.exists() or [] == list(out.iterdir())
    assert not Path("pwned").exists()
    assert "hint: " in run.stderr


def test_a_number_of_classes_that_does_not_fit_names_both(tmp_path: Path, run_cli: Any) -> None:
    run = run_cli(
        "export",
        MODEL,
        "--weights",
        good(tmp_path),
        "--num-classes",
        "7",
        "--target",
        "onnx",
        "--out",
        tmp_path / "o",
    )
    assert_clear(run, 3, "10", "7")
    assert not (tmp_path / "o").exists() or [] == list((tmp_path / "o").iterdir())


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (["export", "shufflenet_v2_x05"], 2, ["shufflenet_v2_x05", "shufflenet_v2_x0_5"]),
        (["export", MODEL, "--target", "tensorflow"], 2, ["tensorflow"]),
        (["export", MODEL, "--target", "tflight"], 2, ["tflight", "tflite"]),
        (["export", MODEL, "--precision", "fp61"], 2, ["fp61", "fp16"]),
        (["export", MODEL, "--layout", "nwhc"], 2, ["nwhc", "nhwc"]),
        (["export", MODEL, "--batch", "0"], 2, ["'0'"]),
        (["export", MODEL, "--shuffle", "fold_split"], 2, ["fold_split", "fold-split"]),
        (["export", MODEL, "--shuffle", "gather", "--align", "8"], 2, ["gather", "fold"]),
        (["export", MODEL, "--align", "0"], 2, ["'0'"]),
        (["export", MODEL, "--images", "none"], 2, ["none"]),
        (["export", MODEL, "--runtime", "onnx-runtime"], 2, ["onnx-runtime", "onnxruntime"]),
        (["export", MODEL, "--weights", "cifar"], 2, ["cifar"]),
        (["export", MODEL, "--weights", "random:x"], 2, ["random:x"]),
        (["export", "mobilenet_v2_x1_0", "--weights", "digits"], 2, ["digits", MODEL]),
        (["export", MODEL, "--target", "coreml", "--minimum-deployment-target", "iOS99"], 2, ["iOS99"]),
        (["models", "--family", "shufflenet"], 2, ["shufflenet"]),
        (["inspect", "nothing.onnx"], 3, ["nothing.onnx"]),
        (["check", "nothing"], 3, ["nothing"]),
    ],
)
def test_a_wrong_word_is_named_and_the_nearest_suggested(
    argv: list[str], status: int, words: list[str], tmp_path: Path, run_cli: Any
) -> None:
    out = tmp_path / "dist"
    extra = ["--out", out] if argv[0] == "export" else []
    assert_clear(run_cli(*argv, *extra), status, *words)
    assert not out.exists() or [] == list(out.iterdir())


def test_an_error_is_one_document_with_json(run_cli: Any) -> None:
    run = run_cli("export", "shufflenet", "--json")
    assert 2 == run.status
    assert {"type": "UsageError", "exit_code": 2} == {
        key: run.document["error"][key] for key in ("type", "exit_code")
    }


def test_an_output_folder_that_is_a_file_is_refused_before_the_work(tmp_path: Path, run_cli: Any) -> None:
    out = tmp_path / "dist"
    out.write_text("mine")
    assert_clear(run_cli("export", MODEL, "--target", "onnx", "--out", out), 3, str(out))
    assert "mine" == out.read_text()


def test_an_unwritable_output_folder_is_refused(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    argv = [sys.executable, "-m", "shufflectl", "export", MODEL, "--target", "onnx", "--out", locked / "dist"]
    if os.geteuid() == 0:  # root may write anywhere, unless that right is taken away
        rights = "-dac_override,-dac_read_search"
        argv = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}", *argv]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert 3 == done.returncode, done.stderr
    assert "error: " in done.stderr
    assert "permission is denied" in done.stderr
    assert "Traceback" not in done.stderr
    assert [] == list(locked.iterdir())


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path: Path, run_cli: Any) -> None:
    # A limit on the size of files is what a full disk is to the writer: the call fails in the middle.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    out = tmp_path / "dist"
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        run = run_cli("export", MODEL, "--target", "tflite", "--images", "2", "--out", out, fresh=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_clear(run, 3, "dist")
    assert not out.exists() or [] == list(out.iterdir())


def damaged(dist: Path, tmp_path: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    copy = tmp_path / name
    source = dist / name
    if source.is_dir():
        shutil.copytree(source, copy)
        weights = next(copy.rglob("weight.bin"))
        weights.write_bytes(change(weights.read_bytes()))
    else:
        copy.write_bytes(change(source.read_bytes()))
    return copy


@pytest.mark.parametrize("name", [f"{MODEL}-fp32.{e}" for e in ("onnx", "mlpackage", "tflite")])
@pytest.mark.parametrize("command", ["check", "inspect"])
def test_a_truncated_artifact_is_refused(
    name: str, command: str, digits_dist: Path, tmp_path: Path, run_cli: Any
) -> None:
    path = damaged(digits_dist, tmp_path, name, lambda data: data[: len(data) // 2])
    assert_clear(run_cli(command, path), 3, name)


@pytest.mark.parametrize("extension", ["onnx", "mlpackage", "tflite"])
@pytest.mark.parametrize("command", ["check", "inspect"])
def test_an_artifact_of_the_wrong_kind_is_refused(
    extension: str, command: str, digits_dist: Path, tmp_path: Path, run_cli: Any
) -> None:
    path = tmp_path / f"model.{extension}"
    source = "tflite" if extension != "tflite" else "onnx"
    path.write_bytes((digits_dist / f"{MODEL}-fp32.{source}").read_bytes())
    assert_clear(run_cli(command, path), 3, path.name)


@pytest.mark.parametrize("command", ["check", "inspect"])
def test_a_package_without_its_weights_is_refused(
    command: str, digits_dist: Path, tmp_path: Path, run_cli: Any
) -> None:
    path = tmp_path / f"{MODEL}-fp32.mlpackage"
    shutil.copytree(digits_dist / path.name, path)
    next(path.rglob("weight.bin")).unlink()
    assert_clear(run_cli(command, path), 3, path.name)


def test_a_manifest_that_names_files_outside_is_refused(
    digits_dist: Path, tmp_path: Path, run_cli: Any
) -> None:
    dist = tmp_path / "dist"
    shutil.copytree(digits_dist, dist)
    data = json.loads((dist / "manifest.json").read_text())
    data["models"][0]["artifacts"][0]["file"] = "../../etc/passwd"
    (dist / "manifest.json").write_text(json.dumps(data))
    assert_clear(run_cli("check", dist), 3, "manifest.json")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "shufflectl.manifest/99"}'])
def test_a_broken_manifest_is_refused(text: str, tmp_path: Path, run_cli: Any) -> None:
    (tmp_path / "manifest.json").write_text(text)
    assert_clear(run_cli("check", tmp_path), 3, "manifest.json")


def test_an_empty_folder_is_refused(tmp_path: Path, run_cli: Any) -> None:
    assert_clear(run_cli("check", tmp_path), 3, tmp_path.name)


def test_a_file_that_was_changed_after_the_export_is_reported(
    digits_dist: Path, tmp_path: Path, run_cli: Any
) -> None:
    dist = tmp_path / "dist"
    shutil.copytree(digits_dist, dist)
    # The same function in other bytes: an unknown field at the end of a protobuf.
    with (dist / f"{MODEL}-fp32.onnx").open("ab") as stream:
        stream.write(b"\xfa\x7f\x00")
    run = run_cli("check", dist, "--images", "2")
    assert 3 == run.status
    assert f"{MODEL}-fp32.onnx" in run.stderr


def test_a_runtime_that_is_not_on_this_platform_says_so(digits_dist: Path, run_cli: Any) -> None:
    run = run_cli("check", digits_dist, "--runtime", "coreml", "--images", "2")
    assert_clear(run, 7, "coreml")


def test_missing_packages_name_their_extra(tmp_path: Path, run_cli: Any) -> None:
    hide = tmp_path / "hide"
    hide.mkdir()
    (hide / "sitecustomize.py").write_text(
        "import sys\nfor name in ('coremltools', 'ai_edge_litert'):\n    sys.modules[name] = None\n"
    )
    env = {"PYTHONPATH": str(hide)}
    for target, extra in (("coreml", "coreml"), ("tflite", "tflite")):
        run = run_cli("export", MODEL, "--target", target, "--out", tmp_path / "dist", env=env)
        assert_clear(run, 8, f"shufflectl[{extra}]")


def test_an_empty_output_folder_is_not_the_current_one(run_cli: Any) -> None:
    assert_clear(run_cli("export", MODEL, "--out", ""), 2, "empty name")
