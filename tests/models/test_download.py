"""Published weights, from a server of our own that behaves badly."""

import hashlib
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from shufflectl import models
from shufflectl.errors import CheckpointError, OutputError, UnavailableError
from shufflectl.models import download, zoo
from shufflectl.models.download import CACHE_VARIABLE, Patience, cache_folder, cached, fetch
from shufflectl.models.zoo import Pretrained
from support.nets import randomise

CONTENT = bytes(range(256)) * 1024  # 256 KiB
QUICK = Patience(timeout_s=0.4, attempts=2, pause_s=0.01)


@dataclass
class Behaviour:
    """How the server answers, in order; the last one stays."""

    kinds: list[str]
    content: bytes = CONTENT
    asked: list[str | None] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        behaviour: Behaviour = self.server.behaviour  # type: ignore[attr-defined]
        if self.path.startswith("/moved/"):
            self._head(302, {"Location": self.path.removeprefix("/moved"), "Content-Length": "0"})
            return
        asked = self.headers.get("Range")
        behaviour.asked.append(asked)
        kind = behaviour.kinds.pop(0) if len(behaviour.kinds) > 1 else behaviour.kinds[0]
        content = behaviour.content
        begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and kind != "ignores ranges" else 0  # type: ignore[index]
        if kind in ("404", "503", "416"):
            self._head(int(kind), {"Content-Length": "0"})
        elif kind == "other file":
            self._send(content[::-1], len(content))
        elif kind == "too long":
            self._head(200, {"Connection": "close"})
            for _ in range(4):
                self.wfile.write(content)
        elif kind == "claims too much":
            self._send(content, 10**12)
        elif kind == "truncated":
            self._send(content[begin : begin + 100_000], len(content) - begin, begin if asked else None)
            self.connection.shutdown(socket.SHUT_RDWR)
        elif kind == "without length, truncated":
            self._head(200, {"Connection": "close"})
            self.wfile.write(content[:1000])
        elif kind == "stalled":
            self._send(content[begin : begin + 1000], len(content) - begin, begin if asked else None)
            time.sleep(3 * QUICK.timeout_s)
        else:
            self._send(content[begin:], len(content) - begin, begin or None)

    def _send(self, content: bytes, length: int, begin: int | None = None) -> None:
        if begin is None:
            self._head(200, {"Content-Length": str(length)})
        else:
            last = begin + length
            self._head(
                206, {"Content-Length": str(length), "Content-Range": f"bytes {begin}-{last - 1}/{last}"}
            )
        self.wfile.write(content)
        self.wfile.flush()

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_arguments: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_arguments: Any) -> None:
        """Clients that go away are part of the tests."""


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Handler) as made:
        made.behaviour = Behaviour(["well"])  # type: ignore[attr-defined]
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def published(server: _Server, path: str = "/weights-1234.pth", content: bytes = CONTENT) -> Pretrained:
    return Pretrained(
        word="imagenet",
        url=f"http://127.0.0.1:{server.server_address[1]}{path}",
        sha256=hashlib.sha256(content).hexdigest()[:10],
        size=len(content),
        top1_accuracy=1.0,
        source="nowhere",
        version="V1",
    )


def behave(server: _Server, *kinds: str) -> Behaviour:
    made = Behaviour(list(kinds))
    server.behaviour = made  # type: ignore[attr-defined]
    return made


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_a_file_is_fetched_once_with_progress_in_bytes(server: _Server, tmp_path: Path) -> None:
    behaviour = behave(server, "well")
    seen: list[tuple[str, int, int]] = []
    item = published(server)
    assert cached(item, tmp_path) is None
    path = fetch(item, lambda *told: seen.append(told), folder=tmp_path, patience=QUICK)
    assert CONTENT == path.read_bytes()
    assert {"weights-1234.pth"} == files(tmp_path)
    assert sorted(seen, key=lambda told: told[1]) == seen
    assert ("downloading weights-1234.pth, 0.3 of 0.3 MB", len(CONTENT), len(CONTENT)) == seen[-1]
    assert path == fetch(item, folder=tmp_path, patience=QUICK) == cached(item, tmp_path)
    assert [None] == behaviour.asked


def test_a_redirect_is_followed(server: _Server, tmp_path: Path) -> None:
    path = fetch(published(server, "/moved/moved/weights-1234.pth"), folder=tmp_path, patience=QUICK)
    assert CONTENT == path.read_bytes()


def test_a_redirect_to_itself_ends(server: _Server, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="302"):
        fetch(published(server, "/moved" * 30 + "/w.pth"), folder=tmp_path, patience=QUICK)


@pytest.mark.parametrize("address", ["http://example.invalid/w.pth", "file:///etc/passwd", "ftp://a/w.pth"])
def test_a_redirect_leads_from_https_to_https_alone(address: str) -> None:
    request = urllib.request.Request("https://example.invalid/w.pth")
    with pytest.raises(urllib.error.HTTPError, match="unsafe"):
        download._SafeRedirects().redirect_request(request, None, 302, "", Message(), address)  # type: ignore[arg-type]


def test_a_truncated_download_goes_on_where_it_ended(server: _Server, tmp_path: Path) -> None:
    behaviour = behave(server, "truncated")
    assert CONTENT == fetch(published(server), folder=tmp_path, patience=QUICK).read_bytes()
    assert [None, "bytes=100000-", "bytes=200000-"] == behaviour.asked


def test_a_stalled_download_goes_on_where_it_stalled(server: _Server, tmp_path: Path) -> None:
    behaviour = behave(server, "stalled", "well")
    assert CONTENT == fetch(published(server), folder=tmp_path, patience=QUICK).read_bytes()
    assert [None, "bytes=1000-"] == behaviour.asked


def test_a_server_that_goes_silent_is_given_up_and_what_came_is_kept(server: _Server, tmp_path: Path) -> None:
    behave(server, "truncated", "503")
    with pytest.raises(UnavailableError, match=r"503 .*100000 bytes are kept") as caught:
        fetch(published(server), folder=tmp_path, patience=QUICK)
    assert str(tmp_path / "weights-1234.pth") in caught.value.hint
    assert {"weights-1234.pth.part"} == files(tmp_path)
    behaviour = behave(server, "well")
    assert CONTENT == fetch(published(server), folder=tmp_path, patience=QUICK).read_bytes()
    assert ["bytes=100000-"] == behaviour.asked


@pytest.mark.parametrize("kind", ["ignores ranges", "416"])
def test_a_server_that_cannot_go_on_begins_anew(server: _Server, tmp_path: Path, kind: str) -> None:
    (tmp_path / "weights-1234.pth.part").write_bytes(CONTENT[:500])
    behave(server, kind, "well")
    assert CONTENT == fetch(published(server), folder=tmp_path, patience=QUICK).read_bytes()


def test_a_beginning_of_another_file_is_thrown_away(server: _Server, tmp_path: Path) -> None:
    (tmp_path / "weights-1234.pth.part").write_bytes(b"\0\1" * 300)
    behaviour = behave(server, "well")
    assert CONTENT == fetch(published(server), folder=tmp_path, patience=QUICK).read_bytes()
    assert ["bytes=600-", None] == behaviour.asked


def test_a_download_that_was_whole_before_it_was_moved_is_not_fetched_again(
    server: _Server, tmp_path: Path
) -> None:
    (tmp_path / "weights-1234.pth.part").write_bytes(CONTENT)
    behaviour = behave(server, "404")
    assert CONTENT == fetch(published(server), folder=tmp_path, patience=QUICK).read_bytes()
    assert [] == behaviour.asked


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("other file", r"its SHA-256 is [0-9a-f]{12}, not [0-9a-f]{10}"),
        ("too long", "it goes on after"),
        ("claims too much", "it has 1000000000000 bytes"),
    ],
)
def test_another_file_is_refused_and_thrown_away(
    server: _Server, tmp_path: Path, kind: str, why: str
) -> None:
    behave(server, kind)
    with pytest.raises(CheckpointError, match=f"not the file that was published: {why}") as caught:
        fetch(published(server), folder=tmp_path, patience=QUICK)
    assert "proxy" in caught.value.hint
    assert set() == files(tmp_path)


def test_what_lacks_its_end_is_not_taken_for_another_file(server: _Server, tmp_path: Path) -> None:
    behave(server, "without length, truncated", "404")
    with pytest.raises(UnavailableError, match="404"):
        fetch(published(server), folder=tmp_path, patience=QUICK)
    assert {"weights-1234.pth.part"} == files(tmp_path)


def test_a_missing_file_is_not_asked_for_again(server: _Server, tmp_path: Path) -> None:
    behaviour = behave(server, "404")
    with pytest.raises(UnavailableError, match="the server answers 404") as caught:
        fetch(published(server), folder=tmp_path, patience=QUICK)
    assert str(tmp_path / "weights-1234.pth") in caught.value.hint
    assert 1 == len(behaviour.asked)


def test_without_a_network_the_error_names_file_and_place(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        item = Pretrained(
            "imagenet", f"http://127.0.0.1:{taken.getsockname()[1]}/w-12.pth", "12", 9, 1, "", ""
        )
        with pytest.raises(UnavailableError, match=r"w-12\.pth cannot be downloaded: .*offline") as caught:
            fetch(item, folder=tmp_path, patience=QUICK)
    assert f"put it at {tmp_path / 'w-12.pth'}, or pass --weights" in caught.value.hint


@pytest.mark.parametrize(
    ("raised", "why"),
    [
        (urllib.error.URLError(socket.gaierror(-2, "Name or service not known")), "cannot be resolved"),
        (urllib.error.URLError(TimeoutError()), "no answer within 0.4 seconds"),
        (ssl.SSLError("record overflow"), "the connection broke"),
        (ConnectionResetError(104, "reset"), "the connection broke"),
    ],
    ids=["name", "silence", "tls", "reset"],
)
def test_what_breaks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, why: str
) -> None:
    def fail(*_arguments: Any, **_rest: Any) -> Any:
        raise raised

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", fail)
    item = Pretrained("imagenet", "https://example.invalid/w-12.pth", "12", 9, 1.0, "", "")
    with pytest.raises(UnavailableError, match=why):
        fetch(item, folder=tmp_path, patience=QUICK)


def test_a_damaged_file_in_the_cache_is_fetched_again(server: _Server, tmp_path: Path) -> None:
    (tmp_path / "weights-1234.pth").write_bytes(CONTENT[:-1])
    assert CONTENT == fetch(published(server), folder=tmp_path, patience=QUICK).read_bytes()


def test_a_cache_that_cannot_be_written_is_said(server: _Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be stored") as caught:
        fetch(published(server), folder=tmp_path / "file" / "weights", patience=QUICK)
    assert CACHE_VARIABLE in caught.value.hint


def test_two_downloads_at_once_do_not_spoil_each_other(server: _Server, tmp_path: Path) -> None:
    behaviour = behave(server, "well")
    found: list[Path] = []
    item = published(server)
    threads = [
        threading.Thread(target=lambda: found.append(fetch(item, folder=tmp_path, patience=QUICK)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [CONTENT] * 4 == [path.read_bytes() for path in found]
    assert [None] == behaviour.asked


def test_the_cache_is_the_users_or_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    assert ("weights", "shufflectl") == (cache_folder().name, cache_folder().parent.name)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert tmp_path / "weights" == cache_folder()


def test_published_weights_are_loaded_with_what_is_known_about_them(
    server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = zoo.variant("shufflenet_v2_x0_5")
    module = randomise(row.build(1000))
    state = {k: v for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=False)  # as torchvision's are
    content = (tmp_path / "w.pth").read_bytes()
    behave(server, "well").content = content
    item = published(server, content=content)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(zoo, "variant", lambda _name: replace(row, pretrained=(item,)))
    loaded = models.load(row.name, weights="imagenet")
    assert ("imagenet", 1000, "torchvision", "V1") == (
        loaded.weights,
        loaded.num_classes,
        loaded.author,
        loaded.version,
    )
    assert hashlib.sha256(content).hexdigest() == loaded.weights_sha256
    assert "1 % top-1 on ImageNet-1K" in loaded.description
    assert (tmp_path / "weights" / "weights-1234.pth").exists()
    with pytest.raises(CheckpointError, match="for 1000 classes"):
        models.load(row.name, weights="imagenet", num_classes=10)


def test_the_records_are_those_of_torchvision() -> None:
    from support.wild import torchvision_v2

    torchvision_v2("shufflenet_v2_x0_5")  # declares its operators, or skips
    from torchvision import models as theirs

    recorded = {row.name: row.pretrained[0] for row in zoo.variants() if row.pretrained}
    classes = {
        "shufflenet_v2_x0_5": theirs.ShuffleNet_V2_X0_5_Weights,
        "shufflenet_v2_x1_0": theirs.ShuffleNet_V2_X1_0_Weights,
        "shufflenet_v2_x1_5": theirs.ShuffleNet_V2_X1_5_Weights,
        "shufflenet_v2_x2_0": theirs.ShuffleNet_V2_X2_0_Weights,
        "mobilenet_v2_x1_0": theirs.MobileNet_V2_Weights,
    }
    assert set(classes) == set(recorded)
    for name, published_by in classes.items():
        item, default = recorded[name], published_by.DEFAULT
        assert (default.url, default.name) == (item.url, item.version)
        assert default.meta["_metrics"]["ImageNet-1K"]["acc@1"] == item.top1_accuracy
        assert default.meta["_file_size"] == pytest.approx(item.size / 2**20, abs=5e-4)
        assert re.search(r"-([0-9a-f]{8,})\.", default.url)[1] == item.sha256  # type: ignore[index]
        assert default.meta["num_params"] == zoo.variant(name).parameters
