"""The cache of programs that measure on phones."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from shufflectl.benchmarks.android import store
from shufflectl.errors import ArtifactError, UnavailableError, UsageError
from shufflectl.models.download import CACHE_VARIABLE, Patience
from support.adb_daemon import program

DATA = program("# Inference timings in us: ")
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "runners"


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    path = tmp_path / "benchmark model"
    path.write_bytes(DATA)
    return path


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()
        self.wfile.write(DATA)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/benchmark_model"
        server.shutdown()


def test_a_program_is_kept_under_its_name(tool: Path, cache: Path) -> None:
    added = store.add("tflite-arm64", str(tool))
    assert ("tflite-arm64", "tflite", "arm64-v8a", SHA256) == (
        added.name,
        added.kind,
        added.abi,
        added.sha256,
    )
    assert (added,) == store.installed()
    assert added == store.find("tflite-arm64")
    assert DATA == added.path.read_bytes()
    tool.unlink()
    assert added == store.find("tflite-arm64")
    assert ["tflite-arm64"] == [path.name for path in cache.iterdir()]


def test_one_of_that_name_is_replaced(tool: Path, tmp_path: Path) -> None:
    store.add("mine", str(tool))
    other = tmp_path / "other"
    other.write_bytes(program("onnxruntime_perf_test"))
    assert "onnxruntime" == store.add("mine", str(other)).kind
    assert ["onnxruntime"] == [item.kind for item in store.installed()]


def test_libraries_are_kept_with_it(tool: Path, tmp_path: Path) -> None:
    library = tmp_path / "libLiteRt.so"
    library.write_bytes(program("library"))
    added = store.add("own", str(tool), kind="shufflectl", libraries=[library])
    assert [library.read_bytes()] == [path.read_bytes() for path in added.libraries]
    assert ["libLiteRt.so"] == [item["file"] for item in added.to_json()["libraries"]]


def test_a_library_for_another_instruction_set_is_refused(tool: Path, tmp_path: Path) -> None:
    library = tmp_path / "libLiteRt.so"
    library.write_bytes(program("library", machine=62))
    with pytest.raises(ArtifactError, match="is for x86_64, and benchmark model for arm64-v8a"):
        store.add("own", str(tool), libraries=[library])
    assert () == store.installed()


def test_another_hash_is_refused(tool: Path, cache: Path) -> None:
    with pytest.raises(ArtifactError, match=f"has the SHA-256 {SHA256}, not 0000"):
        store.add("mine", str(tool), sha256="0" * 64)
    assert not cache.exists()


def test_a_program_from_the_network_is_fetched_once_and_checked(address: str, cache: Path) -> None:
    added = store.add("net", address, sha256=SHA256.upper(), patience=Patience(1, 1, 0))
    assert (DATA, address) == (added.path.read_bytes(), added.source)
    assert ["net"] == [path.name for path in cache.iterdir()]


def test_another_program_from_the_network_is_refused(address: str) -> None:
    with pytest.raises(ArtifactError, match="is not the file that was published"):
        store.add("net", address, sha256="0" * 64, patience=Patience(1, 1, 0))
    assert () == store.installed()


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(UnavailableError, match="cannot be downloaded") as caught:
        store.add("net", "http://127.0.0.1:9/x", sha256=SHA256, patience=Patience(1, 1, 0))
    assert "add that file by its path" in caught.value.hint


@pytest.mark.parametrize("name", ["", "../up", "A", ".hidden", "a/b", "-x", "a" * 65])
def test_a_name_that_is_none_is_refused(tool: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name"):
        store.add(name, str(tool))
    with pytest.raises(UsageError, match="there is no runner"):
        store.remove(name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sha256": "123"}, "64 hexadecimal digits"),
        ({"kind": "litrt"}, "unknown kind"),
        ({"source": "https://example.com/x"}, "needs --sha256"),
    ],
)
def test_what_makes_no_sense_is_refused(tool: Path, arguments: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        store.add("mine", **{"source": str(tool), **arguments})


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_text("#!/bin/sh\n# Inference timings in us: \n")
    with pytest.raises(ArtifactError, match="no program for Android"):
        store.add("mine", str(path))
    with pytest.raises(ArtifactError, match="is not a file"):
        store.add("mine", str(tmp_path))


def test_a_program_that_was_changed_in_the_cache_is_refused(tool: Path) -> None:
    added = store.add("mine", str(tool))
    added.path.write_bytes(DATA + b"more")
    with pytest.raises(ArtifactError, match="was changed since it was added"):
        store.find("mine")


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"kind": "tflite"}', "[" * 100_000])
def test_a_record_that_is_damaged_is_no_runner(tool: Path, cache: Path, record: str) -> None:
    store.add("mine", str(tool))
    (cache / "mine" / "runner.json").write_text(record)
    assert () == store.installed()
    with pytest.raises(UsageError, match="there is no runner 'mine'"):
        store.find("mine")
    store.remove("mine")


def test_a_record_cannot_name_files_elsewhere(tool: Path, cache: Path) -> None:
    store.add("mine", str(tool))
    record = cache / "mine" / "runner.json"
    record.write_text(record.read_text().replace('"libraries": []', '"libraries": ["../../x"]'))
    assert () == store.find("mine").libraries


def test_a_runner_that_is_not_there_is_compared_with_those_that_are(tool: Path) -> None:
    with pytest.raises(UsageError) as caught:
        store.find("tflite-arm46")
    assert "shufflectl runner add" in caught.value.hint
    store.add("tflite-arm64", str(tool))
    with pytest.raises(UsageError) as caught:
        store.find("tflite-arm46")
    assert "did you mean 'tflite-arm64'?" == caught.value.hint


def test_a_program_is_found_by_its_path_with_the_libraries_beside_it(tmp_path: Path) -> None:
    (tmp_path / "libLiteRt.so").write_bytes(program("library"))
    (tmp_path / "libother.so").write_bytes(program("library"))
    path = tmp_path / "shufflectl-runner"
    path.write_bytes(program("shufflectl.runner/1"))
    found = store.find(str(path))
    assert ("shufflectl", ["libLiteRt.so"]) == (found.kind, [item.name for item in found.libraries])


def test_a_runner_is_removed(tool: Path) -> None:
    store.add("mine", str(tool))
    store.remove("mine")
    assert () == store.installed()
