import os
import subprocess
from pathlib import Path

import pytest

from shufflectl.deploy.digests import digest, size
from shufflectl.errors import ArtifactError


def test_a_file_is_hashed_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" == digest(tmp_path / "x")
    assert 3 == size(tmp_path / "x")


def test_a_folder_is_hashed_as_the_documentation_says(tmp_path: Path) -> None:
    folder = tmp_path / "net.mlpackage"
    (folder / "Data" / "weights").mkdir(parents=True)
    (folder / "Data" / "weights" / "weight.bin").write_bytes(b"1" * 4000)
    (folder / "Manifest.json").write_bytes(b"{}")
    (folder / "Data.json").write_bytes(b"sorts between the folder Data and what is in it")
    (folder / "ünï code").write_bytes(b"x")
    command = "find . -type f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0r sha256sum | sha256sum"
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == digest(folder)


def test_names_and_contents_both_count(tmp_path: Path) -> None:
    for folder, name, content in (("a", "x", b"1"), ("b", "y", b"1"), ("c", "x", b"2"), ("d", "x", b"1")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(content)
    found = [digest(tmp_path / folder) for folder in "abcd"]
    assert 3 == len(set(found))
    assert found[0] == found[3]
    assert 1 == size(tmp_path / "a")


def test_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "x").symlink_to("/etc/passwd")
    with pytest.raises(ArtifactError, match="holds a link: 'x'"):
        digest(tmp_path / "p")


def test_special_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    os.mkfifo(tmp_path / "p" / "x")
    with pytest.raises(ArtifactError, match="special file"):
        digest(tmp_path / "p")


def test_a_missing_artifact_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read: No such file"):
        digest(tmp_path / "x")
