"""Files and folders appear in an output folder whole, or not at all.

Artifacts are written in a hidden *staging* folder inside the output folder (so on the same file system)
and moved in when all of them are done, the manifest last: a new name by a rename, a name that is taken by an
atomic *exchange*, which works for files and for folders (an ``.mlpackage`` is one) alike. A process that is
killed at any moment leaves each artifact either as it was or as it is meant to be, and a staging folder that
the next run removes. A move that fails takes back those before it.

- A staging folder belongs to a live process as long as that process holds a lock on it (``flock``, which the
  kernel drops when the process dies, however it dies). Where the file system has no such locks, the process
  number in the folder's name decides.
- Two runs that publish into one folder take turns, by a lock on the folder itself; no lock file is left.
- Exchange: ``renameat2(RENAME_EXCHANGE)`` on Linux, ``renamex_np(RENAME_SWAP)`` on macOS. Where the kernel or
  the file system has neither, a file is replaced by a rename, and a folder by two: the old one goes to
  the staging folder, the new one takes its place. A process that dies between the two leaves the old folder
  in its staging folder, from where the next run puts it back.
"""

import contextlib
import ctypes
import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from shufflectl.errors import OutputError, ShufflectlError

if sys.platform != "win32":
    import fcntl

__all__ = ["MANIFEST", "Staging", "check_writable", "is_artifact_name", "write_file"]

MANIFEST: Final = "manifest.json"
"""The name of the manifest in an output folder."""

_PREFIX: Final = ".shufflectl-"
_SWEPT: Final = re.compile(r"\.shufflectl-(\d+)-[A-Za-z0-9_]+")
_OLD: Final = ".old"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,254}")
_NO_LOCKS: Final = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL}
_NO_EXCHANGE: Final = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
_CAUSES: Final = {
    errno.ENOSPC: ("the disk is full", "free some space, or choose another folder with --out"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or choose another folder with --out"),
    errno.EFBIG: ("a file grew over the limit on file sizes", "raise the limit (ulimit -f)"),
    errno.EROFS: ("the file system is read-only", "choose another folder with --out"),
    errno.EACCES: ("permission is denied", "change its permissions, or choose another folder with --out"),
    errno.EPERM: ("permission is denied", "change its permissions, or choose another folder with --out"),
    errno.ENOTDIR: ("a file is where a folder is needed", "choose another folder with --out"),
    errno.EEXIST: ("a file is where a folder is needed", "choose another folder with --out"),
    errno.ENAMETOOLONG: ("its name is too long", "choose a shorter name with --out"),
}
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
_ALMOST_NOTHING: Final = 1 << 16


def is_artifact_name(name: str) -> bool:
    """Say whether a name can only mean a visible file right inside its folder, on any system."""
    return _NAME.fullmatch(name) is not None


def check_writable(path: Path) -> None:
    """See before long work that its result can be written.

    Raises:
        OutputError: It cannot.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder", hint="name a file in it")
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"the folder {folder} does not exist", hint=f"create it: mkdir -p {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            f"the folder {folder} cannot be written: permission is denied",
            hint="change its permissions, or choose another folder",
        )


def write_file(path: Path, data: bytes, option: str = "--out") -> None:
    """Write one file that is no artifact (a report, a result): whole, or not at all.

    Args:
        path: The file, of any name. What is there is replaced, a link's target where it is a link; what is no
            plain file, as ``/dev/stdout``, is written to as it is.
        data: Its content.
        option: Where the user named it, for messages.

    Raises:
        OutputError: The folder does not exist or cannot be written, the disk is full, or a folder has that
            name.
    """
    path = Path(os.path.realpath(path))
    try:
        if path.is_dir():
            raise OutputError(f"{path} is a folder", hint=f"give {option} the name of a file")
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        with tempfile.NamedTemporaryFile(prefix=_PREFIX, dir=path.parent, delete=False) as stream:
            written = Path(stream.name)
            try:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
                written.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
                written.replace(path)
            except BaseException:
                written.unlink(missing_ok=True)
                raise
    except FileNotFoundError as error:
        raise OutputError(
            f"{path} cannot be written: there is no folder {path.parent}", hint="make it, or name another"
        ) from error
    except OSError as error:
        cause, hint = _CAUSES.get(error.errno or 0, (error.strerror or str(error), ""))
        hint = hint.replace("--out", option)
        raise OutputError(f"{path} cannot be written: {cause}", hint=hint) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class Staging:
    """A place to write artifacts in, and the way they get into the output folder.

    ::

        with Staging(out) as staging:
            emit(graph, info, options, staging.path("net-fp32.onnx"))
            staging.publish()

    Leaving without `publish` removes everything, the output folder too where this made it.

    Args:
        out_dir: The output folder; it is made when it does not exist.

    Raises:
        OutputError: The output folder cannot be made or written, or the disk is full.
    """

    def __init__(self, out_dir: Path) -> None:
        self.out_dir = Path(out_dir)
        self._names: dict[str, None] = {}
        self._made: list[Path] = []
        self._folder: Path | None = None
        self._lock: int | None = None

    def __enter__(self) -> Self:
        with self._reporting():
            try:
                try:
                    self._open()
                except FileNotFoundError:
                    self._open()  # a run beside this one made the folder, failed, and took it away again
            except BaseException:
                self._discard()
                raise
        return self

    def _open(self) -> None:
        self._make_folders()
        with _locked(self.out_dir):
            _sweep(self.out_dir)
            self._folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=self.out_dir))
            self._lock = _try_lock(self._folder)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        full = error is not None and self._out_of_space()
        staged = self._folder
        self._discard()
        if isinstance(error, ShufflectlError) or error is None or staged is None:
            return
        if isinstance(error, OSError) and (error.errno in _FULL or _is_inside(error, staged)):
            raise self._error(error) from error
        if full and isinstance(error, Exception):
            # Libraries written in other languages report a full disk in words of their own.
            raise self._error(OSError(errno.ENOSPC, str(error))) from error

    def path(self, name: str) -> Path:
        """Return where to write an artifact of that name. Nothing is there yet.

        Raises:
            OutputError: The name is not that of a visible file right inside the output folder.
        """
        if not is_artifact_name(name):
            raise OutputError(
                f"{name!r} cannot be the name of an artifact",
                hint="use letters, digits, '.', '_', '+' and '-', and begin with a letter or digit",
            )
        self._names[name] = None
        return self._staged / name

    def publish(self, manifest: Callable[[Path], bytes] | None = None) -> None:
        """Move all artifacts into the output folder.

        Args:
            manifest: Called with the output folder, while no other run can publish into it, before anything
                is moved; what it returns becomes the manifest, which is moved in last.

        Raises:
            OutputError: The output folder cannot be written, the disk is full, or something of another kind
                is in an artifact's place. Nothing has changed then.
        """
        with self._reporting(), _locked(self.out_dir):
            names = list(self._names)
            if manifest is not None:
                (self._staged / MANIFEST).write_bytes(manifest(self.out_dir))
                names = [name for name in names if name != MANIFEST] + [MANIFEST]
            for name in names:
                self._check(name)
            for name in names:
                _sync(self._staged / name)
            undo: list[Callable[[], object]] = []
            try:
                for name in names:
                    undo.append(_move(self._staged / name, self.out_dir / name, self._staged / (name + _OLD)))
                    _sync_folder(self.out_dir)
            except OSError:
                for step in reversed(undo):
                    with contextlib.suppress(OSError):
                        step()
                raise
            self._names.clear()
            self._made.clear()

    @property
    def _staged(self) -> Path:
        if self._folder is None:
            raise RuntimeError("a staging folder exists inside its with block only")
        return self._folder

    def _check(self, name: str) -> None:
        new, old = self._staged / name, self.out_dir / name
        if not new.exists():
            raise ShufflectlError(f"{name} was not written", hint="this is a defect of shufflectl: report it")
        if old.exists() and old.is_dir() != new.is_dir():
            kinds = ("a folder", "a file") if old.is_dir() else ("a file", "a folder")
            raise OutputError(
                f"{old} is {kinds[0]}, and the artifact of that name is {kinds[1]}",
                hint="move it away, or choose another folder with --out",
            )

    def _make_folders(self) -> None:
        if self.out_dir.exists() and not self.out_dir.is_dir():
            raise OutputError(f"{self.out_dir} is a file, not a folder", hint="choose a folder with --out")
        missing = []
        for folder in [self.out_dir, *self.out_dir.parents]:
            if folder.exists():
                break
            missing.append(folder)
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):  # made by a run beside this one
                folder.mkdir()
                self._made.append(folder)

    def _discard(self) -> None:
        """Remove the staging folder, and the output folder if this made it and it is empty."""
        if self._folder is not None:
            _remove(self._folder)
            self._folder = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):  # another run may have put something there
                folder.rmdir()
        self._made.clear()

    def _out_of_space(self) -> bool:
        with contextlib.suppress(OSError):
            return shutil.disk_usage(self.out_dir).free < _ALMOST_NOTHING
        return False

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: OSError) -> OutputError:
        cause, hint = _CAUSES.get(
            error.errno or 0, (error.strerror or str(error), "choose another folder with --out")
        )
        return OutputError(f"cannot write into {self.out_dir}: {cause}", hint=hint)


def _is_inside(error: OSError, folder: Path) -> bool:
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str)]
    return any(Path(name).is_relative_to(folder) for name in names)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock on a folder; wait for it. Where the file system has no locks, hold none."""
    if sys.platform == "win32":
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(handle)


def _try_lock(folder: Path) -> int | None:
    """Return a handle that locks a folder; None where the file system has no locks.

    Raises:
        BlockingIOError: Another process holds the lock.
    """
    if sys.platform == "win32":
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if error.errno in _NO_LOCKS:
            return None
        raise
    return handle


def _sweep(out_dir: Path) -> None:
    """Remove the staging folders of processes that are gone, and put back what they were replacing."""
    for folder in sorted(out_dir.glob(_PREFIX + "*")):
        owner = _SWEPT.fullmatch(folder.name)
        if owner is None or folder.is_symlink() or not folder.is_dir():
            continue
        try:
            handle = _try_lock(folder)
        except OSError:
            continue  # its process lives, or it is another user's
        if handle is None and _lives(int(owner[1])):
            continue
        try:
            for old in sorted(folder.glob("*" + _OLD)):
                place = out_dir / old.name.removesuffix(_OLD)
                if is_artifact_name(place.name) and not place.exists():
                    old.rename(place)
            _remove(folder)
        finally:
            if handle is not None:
                os.close(handle)


def _lives(process: int) -> bool:
    if process == os.getpid():
        return False  # this process has no other staging folder here, or a lock would have said so
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Write an artifact through to the disk, so that no rename gets there before the bytes do."""
    if path.is_dir():
        for child in sorted(path.iterdir()):
            _sync(child)
        _sync_folder(path)
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":  # a folder cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot
            os.fsync(handle)
    finally:
        os.close(handle)


def _move(new: Path, place: Path, old: Path) -> Callable[[], object]:
    """Put a staged artifact in its place; return what takes that back."""
    if not os.path.lexists(place):
        new.rename(place)
        return lambda: place.rename(new)
    if _exchange(new, place):
        return lambda: _exchange(new, place)
    if not new.is_dir():
        new.replace(place)
        return lambda: None  # the file that was there is gone
    place.rename(old)
    try:
        new.rename(place)
    except OSError:
        old.rename(place)
        raise
    return lambda: (place.rename(new), old.rename(place))


def _exchange(first: Path, second: Path) -> bool:
    """Let two paths trade places atomically; return whether the system can."""
    if sys.platform == "win32":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    a, b = os.fsencode(first), os.fsencode(second)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE: linux/fcntl.h, linux/fs.h
        status = libc.renameat2(here, a, here, b, ctypes.c_uint(exchange))
    elif sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        swap = 2  # RENAME_SWAP: sys/stdio.h
        status = libc.renamex_np(a, b, ctypes.c_uint(swap))
    else:
        return False
    if status == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(second))
