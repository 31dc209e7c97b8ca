import contextlib
import errno
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shufflectl.deploy import publish
from shufflectl.deploy.publish import MANIFEST, Staging, is_artifact_name, write_file
from shufflectl.errors import OutputError, ShufflectlError

FILE, FOLDER = "net-fp32.onnx", "net-fp32.mlpackage"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


def write(staging: Staging, version: bytes, *, length: int = 4000) -> None:
    staging.path(FILE).write_bytes(version * length)
    folder = staging.path(FOLDER)
    (folder / WEIGHTS).parent.mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(version * length)
    (folder / "Manifest.json").write_bytes(version * 10)


def versions(out: Path) -> dict[str, set[bytes]]:
    """Return which version each artifact holds, byte for byte."""
    found = {}
    if (out / FILE).exists():
        found[FILE] = {bytes([b]) for b in (out / FILE).read_bytes()}
    if (out / FOLDER).exists():
        parts = (out / FOLDER / WEIGHTS).read_bytes() + (out / FOLDER / "Manifest.json").read_bytes()
        found[FOLDER] = {bytes([b]) for b in parts}
    if (out / MANIFEST).exists():
        found[MANIFEST] = {(out / MANIFEST).read_bytes()}
    return found


def hidden(out: Path) -> list[str]:
    return sorted(p.name for p in out.iterdir() if p.name.startswith("."))


def export(out: Path, version: bytes) -> None:
    with Staging(out) as staging:
        write(staging, version)
        staging.publish(lambda _: version)


def test_artifacts_and_manifest_appear_together(tmp_path: Path) -> None:
    out = tmp_path / "a" / "dist"
    export(out, b"1")
    assert {FILE: {b"1"}, FOLDER: {b"1"}, MANIFEST: {b"1"}} == versions(out)
    assert [] == hidden(out)


def test_a_second_run_replaces_files_and_folders(tmp_path: Path) -> None:
    export(tmp_path, b"1")
    (tmp_path / FOLDER / "stale").write_bytes(b"x")
    export(tmp_path, b"2")
    assert {FILE: {b"2"}, FOLDER: {b"2"}, MANIFEST: {b"2"}} == versions(tmp_path)
    assert not (tmp_path / FOLDER / "stale").exists()
    assert [] == hidden(tmp_path)


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".shufflectl-notes").mkdir()
    export(tmp_path, b"1")
    assert "mine" == (tmp_path / "notes.txt").read_text()
    assert [".shufflectl-notes"] == hidden(tmp_path)


def test_leaving_without_publishing_leaves_nothing(tmp_path: Path) -> None:
    with Staging(tmp_path / "a" / "dist") as staging:
        write(staging, b"1")
    assert [] == list(tmp_path.iterdir())


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    export(tmp_path, b"1")
    with pytest.raises(KeyError), Staging(tmp_path) as staging:  # noqa: PT012 - the block is what is tested
        write(staging, b"2")
        raise KeyError
    assert {FILE: {b"1"}, FOLDER: {b"1"}, MANIFEST: {b"1"}} == versions(tmp_path)
    assert [] == hidden(tmp_path)


def test_an_artifact_that_was_not_written_is_a_defect(tmp_path: Path) -> None:
    with pytest.raises(ShufflectlError, match="was not written"), Staging(tmp_path) as staging:  # noqa: PT012
        staging.path(FILE)
        staging.publish()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "/x", "a/b", "a\\b", ".hidden", "a\n", "a:b", "-x", "x" * 256, "é"]
)
def test_names_that_could_escape_are_refused(name: str, tmp_path: Path) -> None:
    assert not is_artifact_name(name)
    with pytest.raises(OutputError, match="cannot be the name"), Staging(tmp_path) as staging:
        staging.path(name)


def test_the_manifest_callback_sees_the_folder_before_anything_moves(tmp_path: Path) -> None:
    export(tmp_path, b"1")
    seen: list[dict[str, set[bytes]]] = []

    def manifest(out: Path) -> bytes:
        seen.append(versions(out))
        return b"2"

    with Staging(tmp_path) as staging:
        write(staging, b"2")
        staging.publish(manifest)
    assert [{FILE: {b"1"}, FOLDER: {b"1"}, MANIFEST: {b"1"}}] == seen


class TestBadFolders:
    def test_a_file_in_place_of_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "dist").write_text("x")
        with pytest.raises(OutputError, match="is a file, not a folder"), Staging(tmp_path / "dist"):
            pass

    def test_a_file_in_place_of_a_parent(self, tmp_path: Path) -> None:
        (tmp_path / "dist").write_text("x")
        with (
            pytest.raises(OutputError, match="a file is where a folder is needed"),
            Staging(tmp_path / "dist" / "x"),
        ):
            pass

    @pytest.mark.parametrize("folder_first", [True, False])
    def test_another_kind_in_an_artifacts_place(self, folder_first: bool, tmp_path: Path) -> None:
        if folder_first:
            (tmp_path / FILE).mkdir()
        else:
            (tmp_path / FOLDER).write_text("x")
        before = sorted(tmp_path.iterdir())
        with pytest.raises(OutputError, match="and the artifact of that name is"):
            export(tmp_path, b"1")
        assert before == sorted(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("code", "cause"),
        [
            (errno.ENOSPC, "the disk is full"),
            (errno.EROFS, "read-only"),
            (errno.EACCES, "permission is denied"),
            (errno.EIO, "Input/output error"),
        ],
    )
    def test_a_folder_that_cannot_be_made(
        self, code: int, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr("tempfile.mkdtemp", fail)
        with pytest.raises(OutputError, match=cause) as caught, Staging(tmp_path / "a" / "dist"):
            pass
        assert "" != caught.value.hint
        assert [] == list(tmp_path.iterdir())

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
    def test_a_folder_without_permission(self, tmp_path: Path) -> None:
        out = tmp_path / "dist"
        out.mkdir(mode=0o755)
        for folder in (tmp_path, *tmp_path.parents):
            if folder != folder.parent and folder.stat().st_uid == 0 and folder.is_relative_to("/tmp"):  # noqa: S108
                folder.chmod(folder.stat().st_mode | 0o055)
        done = run_child(
            "os.setuid(65534)\n"
            "try:\n"
            "    with Staging(Path(sys.argv[1])): pass\n"
            "except OutputError as error: print(error.message)\n",
            out,
        )
        assert f"cannot write into {out}: permission is denied" == done.stdout.strip()

    @pytest.mark.parametrize("phase", ["write", "manifest", "first move", "last move"])
    def test_a_disk_that_fills_up_changes_nothing(
        self, phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        export(tmp_path, b"1")
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        move, calls = publish._move, []

        def moving(*paths: Path) -> object:
            calls.append(paths)
            if len(calls) == {"first move": 1, "last move": 3}.get(phase):
                raise full
            return move(*paths)

        def manifest(_: Path) -> bytes:
            if phase == "manifest":
                raise full
            return b"2"

        monkeypatch.setattr(publish, "_move", moving)
        with pytest.raises(OutputError, match="disk is full"), Staging(tmp_path) as staging:  # noqa: PT012
            write(staging, b"2")
            if phase == "write":
                raise full
            staging.publish(manifest)
        assert {FILE: {b"1"}, FOLDER: {b"1"}, MANIFEST: {b"1"}} == versions(tmp_path)
        assert [] == hidden(tmp_path)

    def test_a_file_size_limit(self, tmp_path: Path) -> None:
        export(tmp_path, b"1")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        try:
            with pytest.raises(OutputError, match="limit on file sizes"):
                export(tmp_path, b"2")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert {FILE: {b"1"}, FOLDER: {b"1"}, MANIFEST: {b"1"}} == versions(tmp_path)
        assert [] == hidden(tmp_path)

    def test_a_full_file_system(self, tiny: Path) -> None:
        export(tiny, b"1")
        with pytest.raises(OutputError, match="the disk is full"), Staging(tiny) as staging:
            write(staging, b"2", length=1 << 20)
        assert {FILE: {b"1"}, FOLDER: {b"1"}, MANIFEST: {b"1"}} == versions(tiny)
        assert [] == hidden(tiny)

    def test_a_full_file_system_that_a_library_reports_in_its_own_words(self, tiny: Path) -> None:
        with pytest.raises(OutputError, match="disk is full"), Staging(tiny) as staging:  # noqa: PT012
            with contextlib.suppress(OSError):
                staging.path(FILE).write_bytes(b"x" * (1 << 20))
            raise RuntimeError("could not serialize")
        assert [] == list(tiny.iterdir())

    def test_other_errors_pass_through(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError), Staging(tmp_path):
            Path("/nonexistent/weights.pt").read_bytes()
        with pytest.raises(OutputError), Staging(tmp_path) as staging:
            (staging.path(FILE) / "x").write_bytes(b"")


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "tiny"
    place.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], check=False).returncode
    ):
        pytest.skip("a tmpfs cannot be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def child_source(body: str) -> str:
    return (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from shufflectl.deploy import publish\n"
        "from shufflectl.deploy.publish import Staging\n"
        "from shufflectl.errors import OutputError\n"
        "FILE, FOLDER = 'net-fp32.onnx', 'net-fp32.mlpackage'\n"
        "def write(staging, version, length=4000):\n"
        "    staging.path(FILE).write_bytes(version * length)\n"
        "    folder = staging.path(FOLDER)\n"
        f"    weights = folder / {WEIGHTS!r}\n"
        "    weights.parent.mkdir(parents=True)\n"
        "    weights.write_bytes(version * length)\n"
        "    (folder / 'Manifest.json').write_bytes(version * 10)\n" + body
    )


def run_child(body: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", child_source(body), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# Prepares a folder for every n and dies in it at the n-th system call that changes anything, in a fork.
DYING = """
count = 0
def dying(function):
    def wrapped(*args, **kwargs):
        global count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapped
def export(out, version):
    with Staging(out) as staging:
        write(staging, version)
        staging.publish(lambda _: version)
step = 0
while True:
    step += 1
    out = Path(sys.argv[1], str(step))
    export(out, b'1')
    child = os.fork()
    if child == 0:
        for name in ('rename', 'replace', 'fsync', 'mkdir', 'rmdir', 'unlink', 'open'):
            setattr(os, name, dying(getattr(os, name)))
        publish._exchange = dying(publish._exchange) if sys.argv[2] == 'exchange' else lambda *_: False
        export(out, b'2')
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(step)
"""


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: hundreds of fsync calls on a disk take a minute."""
    shared = Path("/dev/shm")  # noqa: S108 - the folder in it is our own
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)


@pytest.mark.integration
@pytest.mark.parametrize("way", ["exchange", "renames"])
def test_killed_at_any_step_each_artifact_is_old_or_new(way: str, memory: Path) -> None:
    done = run_child(DYING, memory, way)
    steps = int(done.stdout)
    assert steps > 15
    seen = set()
    for step in range(1, steps + 1):
        out = memory / str(step)
        if way == "exchange":
            assert {FILE, FOLDER, MANIFEST} == set(versions(out))
        assert all(found in ({b"1"}, {b"2"}) for found in versions(out).values())
        with Staging(out):  # the next run tidies up, and puts back what the two renames left
            found = versions(out)
            assert {FILE, FOLDER, MANIFEST} == set(found)
            assert all(found in ({b"1"}, {b"2"}) for found in found.values())
            assert 1 == len(hidden(out))
        assert [] == hidden(out)
        seen.add(tuple(version for (version,) in found.values()))
    # In the order of publication: never a manifest that is newer than an artifact.
    assert {(b"1", b"1", b"1"), (b"2", b"1", b"1"), (b"2", b"2", b"1"), (b"2", b"2", b"2")} == seen


LOOPING = """
print('go', flush=True)
for turn in range(10000):
    version = b'%d' % (turn % 10)
    with Staging(Path(sys.argv[1])) as staging:
        write(staging, version)
        staging.publish(lambda _: version)
"""


@pytest.mark.integration
def test_killed_at_random_moments_each_artifact_is_whole(tmp_path: Path) -> None:
    export(tmp_path, b"0")
    for turn in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", child_source(LOOPING), str(tmp_path)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.003 * turn)
            process.kill()
        found = versions(tmp_path)
        assert {FILE, FOLDER, MANIFEST} == set(found)
        assert {1} == {len(version) for version in found.values()}
    with Staging(tmp_path):
        pass
    assert [] == hidden(tmp_path)


@pytest.mark.integration
def test_a_live_process_keeps_its_staging_folder(tmp_path: Path) -> None:
    with Staging(tmp_path) as mine:
        write(mine, b"1")
        done = run_child(
            "with Staging(Path(sys.argv[1])) as staging:\n"
            "    write(staging, b'2')\n"
            "    staging.publish(lambda _: b'2')\n",
            tmp_path,
        )
        assert (0, "") == (done.returncode, done.stderr)
        mine.publish(lambda _: b"1")
    assert {FILE: {b"1"}, FOLDER: {b"1"}, MANIFEST: {b"1"}} == versions(tmp_path)


def test_runs_side_by_side_do_not_mix(tmp_path: Path) -> None:
    def run(version: bytes) -> None:
        for _ in range(10):
            export(tmp_path, version)

    threads = [threading.Thread(target=run, args=(version,)) for version in (b"1", b"2", b"3")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = versions(tmp_path)
    assert 1 == len(set.union(*found.values())), found
    assert [] == hidden(tmp_path)


def test_without_locks_the_process_number_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", refuse)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone, lives = tmp_path / f".shufflectl-{dead.pid}-aaaa", tmp_path / f".shufflectl-{os.getppid()}-aaaa"
    gone.mkdir()
    lives.mkdir()
    export(tmp_path, b"1")
    assert [lives.name] == hidden(tmp_path)


def test_a_link_that_looks_like_a_staging_folder_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("x")
    out = tmp_path / "dist"
    out.mkdir()
    (out / ".shufflectl-1-aaaa").symlink_to(outside)
    export(out, b"1")
    assert (outside / "keep").exists()


class TestWriteFile:
    """A report or a result, of any name."""

    def test_it_has_the_content_and_the_usual_permissions(self, tmp_path: Path) -> None:
        path = tmp_path / "a name with 'quotes'.html"
        write_file(path, b"1")
        (tmp_path / "plain").write_bytes(b"")
        assert b"1" == path.read_bytes()
        assert (tmp_path / "plain").stat().st_mode == path.stat().st_mode

    def test_it_replaces_what_is_there_and_leaves_nothing_else(self, tmp_path: Path) -> None:
        path = tmp_path / "x.json"
        path.write_bytes(b"old")
        path.chmod(0o600)
        write_file(path, b"new")
        assert b"new" == path.read_bytes()
        assert 0o600 == path.stat().st_mode & 0o777
        assert [path] == list(tmp_path.iterdir())

    def test_a_link_stays_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "x")
        write_file(tmp_path / "link", b"1")
        assert (tmp_path / "link").is_symlink()
        assert b"1" == (tmp_path / "x").read_bytes()

    def test_a_failure_leaves_the_old_content_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "x.json"
        path.write_bytes(b"old")

        def full(_handle: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(publish.os, "fsync", full)
        with pytest.raises(OutputError, match="the disk is full") as caught:
            write_file(path, b"new", "--html")
        assert "--html" in caught.value.hint
        assert b"old" == path.read_bytes()
        assert [path] == list(tmp_path.iterdir())

    def test_a_missing_folder_and_a_folder_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="there is no folder"):
            write_file(tmp_path / "no" / "x", b"1")
        with pytest.raises(OutputError, match="is a folder"):
            write_file(tmp_path, b"1")
