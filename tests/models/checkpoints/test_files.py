"""Files that nobody vouches for: read if they are what they say, refused in one sentence otherwise."""

import collections
import hashlib
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import nn

from shufflectl.errors import CheckpointError
from shufflectl.models.checkpoints import files
from shufflectl.models.checkpoints.files import read, sha256

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.0, -1.0])}


class Harmful:
    """Unpickles to a call that leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


def holds_all(found: Any) -> bool:
    return list(TENSORS) == sorted(found, reverse=True) and all(
        torch.equal(TENSORS[n], found[n]) for n in TENSORS
    )


def rezip(source: Path, target: Path, compression: int = zipfile.ZIP_STORED, **replaced: bytes) -> Path:
    """Copy an archive of torch.save, with other contents for some entries."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for entry in old.infolist():
            name = entry.filename.rpartition("/")[2].replace(".", "_")
            new.writestr(entry.filename, replaced.get(name, old.read(entry)))
    return target


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "source.pth"
    torch.save(TENSORS, path)
    return path


def test_safetensors_are_read_with_their_metadata(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(TENSORS, path, {"key": "value"})
    file = read(path)
    assert holds_all(file.tensors)
    assert {"key": "value"} == dict(file.metadata)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".PTH", ".ckpt", ".pth.tar"])
@pytest.mark.parametrize("archived", [True, False], ids=["zip", "before torch 1.6"])
def test_what_torch_saved_is_read(tmp_path: Path, suffix: str, archived: bool) -> None:
    path = tmp_path / f"w{suffix}"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=archived)
    assert holds_all(read(path).tensors)


@pytest.mark.parametrize(
    "wrap",
    [
        collections.OrderedDict,
        lambda t: {n: nn.Parameter(v) for n, v in t.items()},
        lambda t: {"state_dict": t, "epoch": 3, "best": 71.2, "arch": "shufflenet"},
        lambda t: {"model": {"state_dict": t}, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
        lambda t: {"model_state_dict": t},
        lambda t: {"net": t},
    ],
    ids=["ordered", "parameters", "state_dict", "model", "model_state_dict", "net"],
)
def test_wrappings_are_taken_off(tmp_path: Path, wrap: Any) -> None:
    path = tmp_path / "w.pth"
    torch.save(wrap(TENSORS), path)
    assert holds_all(read(path).tensors)


def test_a_prefix_that_only_some_names_have_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, path)
    assert {"module.a", "b"} == set(read(path).tensors)


def test_a_wrapping_that_holds_itself_ends(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    loop: dict[str, Any] = {}
    loop["model"] = loop
    torch.save(loop, path)
    with pytest.raises(CheckpointError, match="not a state dict"):
        read(path)


@pytest.mark.parametrize("archived", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_pickle_is_named_and_does_not_run(tmp_path: Path, archived: bool, protocol: int) -> None:
    path, trace = tmp_path / "w.pth", tmp_path / "ran"
    contents = {"state_dict": TENSORS, "hook": Harmful(trace)}
    torch.save(contents, path, pickle_protocol=protocol, _use_new_zipfile_serialization=archived)
    with pytest.raises(CheckpointError, match=r"w\.pth is refused.* refers to posix\.system") as caught:
        read(path)
    assert "torch.save(model.state_dict()" in caught.value.hint
    assert not trace.exists()


def test_a_bare_pickle_with_code_does_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "w.pt", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Harmful(trace), protocol=2))
    with pytest.raises(CheckpointError, match="refused"):
        read(path)
    assert not trace.exists()


def test_a_whole_module_is_refused_by_the_name_of_its_class(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(CheckpointError, match=r"refers to torch\.nn\.modules\.linear\.Linear"):
        read(path)


def test_a_pickle_that_would_allocate_is_refused(tmp_path: Path, archive: Path) -> None:
    bomb = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R."
    path = rezip(archive, tmp_path / "w.pth", data_pkl=bomb)
    with pytest.raises(CheckpointError, match=r"refers to builtins\.bytearray"):
        read(path)


def test_a_compressed_archive_is_refused(tmp_path: Path, archive: Path) -> None:
    path = rezip(archive, tmp_path / "w.pth", zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed archive"):
        read(path)


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.ones(1).expand(10**6, 10**6)}, path)
    with pytest.raises(CheckpointError, match=r"'a' of w\.pth claims to be larger than the file") as caught:
        read(path)
    assert "contiguous" in caught.value.hint


def test_another_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w") as new:
        new.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="is another archive"):
        read(path)


def test_torchscript_is_refused_as_such(tmp_path: Path, archive: Path) -> None:
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        new.writestr("source/code/__torch__.py", "class Net: pass")
    with pytest.raises(CheckpointError, match="is a TorchScript program"):
        read(path)


@pytest.mark.parametrize("kind", [".safetensors", ".pth"])
def test_the_other_kind_under_the_wrong_suffix_says_which(tmp_path: Path, archive: Path, kind: str) -> None:
    path = tmp_path / f"w{kind}"
    path.write_bytes(archive.read_bytes() if kind == ".safetensors" else save(TENSORS))
    other = ".pth" if kind == ".safetensors" else ".safetensors"
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert f"give it the suffix {other}" == caught.value.hint


def test_a_missing_file_lists_the_weights_beside_it(tmp_path: Path, archive: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no weights file") as caught:
        read(tmp_path / "w.pth")
    assert archive.name in caught.value.hint


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path / "none" / "w.pth")
    assert f"the folder {str(tmp_path / 'none')!r} does not exist" == caught.value.hint


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path / "w.pth")
    assert "holds no weights file" in caught.value.hint


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "w.pth").mkdir()
    with pytest.raises(CheckpointError, match="is not a file"):
        read(tmp_path / "w.pth")


def test_an_unknown_suffix_lists_those_that_are_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"end in \.safetensors, \.pt, \.pth, \.ckpt"):
        read(tmp_path / "w.h5")


@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_an_empty_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.touch()
    with pytest.raises(CheckpointError, match="is empty"):
        read(path)


def test_a_file_over_the_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with path.open("wb") as stream:
        stream.truncate(5 << 30)  # sparse: it takes no space
    with pytest.raises(CheckpointError, match=r"holds 5\.0 GiB"):
        read(path)


def test_a_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(CheckpointError, match="truncated or corrupt: its header"):
        read(path)


def test_offsets_outside_the_file_are_refused(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        read(path)


@pytest.mark.parametrize(
    "contents", [[1, 2], torch.ones(2), "text", 7], ids=["list", "tensor", "text", "number"]
)
def test_other_contents_are_refused(tmp_path: Path, contents: Any) -> None:
    path = tmp_path / "w.pth"
    torch.save(contents, path)
    with pytest.raises(CheckpointError, match="not a state dict"):
        read(path)


def test_entries_that_are_not_tensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({**TENSORS, "epoch": 3, 4: torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="is not a state dict: 'epoch', 4 are not named tensors"):
        read(path)


def test_sparse_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.eye(3).to_sparse()}, path)
    with pytest.raises(CheckpointError):
        read(path)


def test_an_unreadable_file_says_why(tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "sha256", denied)
    with pytest.raises(CheckpointError, match=r"source\.pth cannot be read: Permission denied"):
        read(archive)


def stored(kind: str) -> bytes:
    if kind == "safetensors":
        return save(TENSORS, {"key": "value"})
    buffer = io.BytesIO()
    torch.save(TENSORS, buffer, _use_new_zipfile_serialization=kind == "zip")
    return buffer.getvalue()


WHOLE = {"safetensors": stored("safetensors"), "zip": stored("zip"), "old": stored("old")}


def test_a_truncated_header_whose_length_begins_as_a_pickle_does_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes((0x6680).to_bytes(8, "little") + b'{"net' + b" " * 100)
    with pytest.raises(CheckpointError, match="truncated or corrupt: its header"):
        read(path)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(sorted(WHOLE)), share=st.floats(0, 1))
def test_a_truncated_file_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    whole = WHOLE[kind]
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    path.write_bytes(whole[: int(share * (len(whole) - 1))])
    with pytest.raises(CheckpointError):
        read(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(sorted(WHOLE)), data=st.data())
def test_a_damaged_file_is_read_or_refused_and_nothing_else(
    tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    damaged = bytearray(WHOLE[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    path.write_bytes(damaged)
    try:
        read(path)
    except CheckpointError as error:
        message = str(error)
    else:
        return
    assert message.startswith(("w.", "tensor "))
    assert 1 == len(message.splitlines())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(min_size=1, max_size=200), suffix=st.sampled_from(files.SUFFIXES))
def test_noise_is_refused(tmp_path: Path, noise: bytes, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(noise)
    with pytest.raises(CheckpointError):
        read(path)


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "any"
    path.write_bytes(b"abc")
    assert "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" == sha256(path)


def test_control_codes_of_a_file_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"\x1b[2J\nname": 3}, path)
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert caught.value.message.isprintable()


def test_printable_text_is_cut_and_escaped() -> None:
    assert "a\\x1bb..." == files.printable("a\x1bbc", 3)
