"""Programs that measure on phones, kept in the user's cache under names of the user's.

Nobody's program is bundled: they are large, made for one instruction set, and move. What is kept is what the
user gave, by its SHA-256, which every result carries. A runner is a folder in the cache with the program, the
libraries that it loads, and ``runner.json``; it appears whole or not at all.
"""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from shufflectl.benchmarks.android.runners import KINDS, kind_of, runner
from shufflectl.deploy.devices import program_abi
from shufflectl.deploy.digests import digest
from shufflectl.deploy.publish import Staging, is_artifact_name
from shufflectl.errors import ArtifactError, InputError, OutputError, UsageError, nearest
from shufflectl.models.download import Notify, Patience, cache_folder, fetch

__all__ = ["Program", "add", "find", "folder", "installed", "remove"]

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_RECORD: Final = "runner.json"
_SCHEMA: Final = "shufflectl.runner-record/1"
_LARGEST_RECORD: Final = 64 << 10


@dataclass(frozen=True)
class Program:
    """A program that measures.

    Attributes:
        name: What the user calls it; the file's name where it is not in the cache.
        kind: What it is, one of `KINDS`.
        path: The program.
        libraries: What it loads, sent along with it.
        sha256: The program's.
        abi: The instruction set that it is made for.
        source: Where it came from.
    """

    name: str
    kind: str
    path: Path
    libraries: tuple[Path, ...]
    sha256: str
    abi: str
    source: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the program as JSON values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "path": str(self.path),
            "abi": self.abi,
            "sha256": self.sha256,
            "libraries": [{"file": path.name, "sha256": digest(path)} for path in self.libraries],
            "source": self.source,
        }


@dataclass(frozen=True)
class _Address:
    """A program on a server."""

    url: str
    sha256: str
    size: int = 0
    wrong: type[InputError] = ArtifactError
    otherwise: str = "add that file by its path"

    @property
    def file(self) -> str:
        return f"{self.sha256}.download"


def folder() -> Path:
    """Return the folder of the cache that holds runners."""
    return cache_folder("runners")


def installed() -> tuple[Program, ...]:
    """Return the runners in the cache, by name. What is not whole is not one."""
    try:
        names = sorted(path.name for path in folder().iterdir() if _NAME.fullmatch(path.name))
    except OSError:
        return ()
    return tuple(item for item in map(_load, names) if item is not None)


def add(
    name: str,
    source: str,
    *,
    sha256: str = "",
    kind: str = "",
    libraries: Sequence[Path] = (),
    notify: Notify = lambda _what, _done, _total: None,
    patience: Patience | None = None,
) -> Program:
    """Put a runner into the cache; one of that name is replaced.

    Args:
        name: What it is to be called.
        source: A path, or an address (``https://...``).
        sha256: What its SHA-256 must be; an address needs one.
        kind: What it is; by default what its words say.
        libraries: Libraries that it loads, for example LiteRT's for our own runner.
        notify: Told about progress of a download, in bytes.
        patience: How long a download is waited for.

    Raises:
        UsageError: The name, the kind or the hash cannot be one, or an address comes without a hash.
        ArtifactError: The file is missing, of another hash, no program for Android, or of no known kind.
        UnavailableError: The server cannot be reached or does not have it.
        OutputError: The cache cannot be written.
    """
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{name!r} cannot be the name of a runner",
            hint="small letters, digits, dots, dashes and underscores, for example litert-arm64",
        )
    sha256 = sha256.lower()
    if sha256 and _SHA256.fullmatch(sha256) is None:
        raise UsageError("a SHA-256 has 64 hexadecimal digits", hint="sha256sum FILE prints it")
    if kind:
        runner(kind)
    downloaded: Path | None = None
    if re.match(r"https?://", source):
        if not sha256:
            raise UsageError(
                "a program from the network needs --sha256",
                hint="download it yourself, look at it, and pass what sha256sum prints",
            )
        downloaded = fetch(_Address(source, sha256), notify, folder=folder(), patience=patience)
        path = downloaded
    else:
        path = Path(source)
    try:
        program = _describe(path, name=name, kind=kind, libraries=libraries, source=source, sha256=sha256)
        return _keep(program)
    finally:
        if downloaded is not None:
            downloaded.unlink(missing_ok=True)
            downloaded.with_name(f".{downloaded.name}.lock").unlink(missing_ok=True)


def remove(name: str) -> None:
    """Remove a runner from the cache.

    Raises:
        UsageError: There is none of that name.
        OutputError: It cannot be removed.
    """
    if _NAME.fullmatch(name) is None or not (folder() / name).is_dir():
        raise _unknown(name)
    try:
        shutil.rmtree(folder() / name)
    except OSError as error:
        raise OutputError(f"{folder() / name} cannot be removed: {error.strerror}") from error


def find(wanted: str, *, kind: str = "") -> Program:
    """Return the runner that ``--runner`` means: a name in the cache, or the path of a program.

    Libraries beside a program that is named by path are sent along when its kind needs them
    (``libLiteRt.so`` for our own runner, ``libonnxruntime*.so`` for ONNX Runtime's).

    Raises:
        UsageError: It is neither.
        ArtifactError: The file is no program for Android, or of no known kind, or the cached one was changed.
    """
    if _NAME.fullmatch(wanted) is not None and not Path(wanted).exists():
        found = _load(wanted)
        if found is None:
            raise _unknown(wanted)
        if digest(found.path) != found.sha256:
            raise ArtifactError(
                f"the runner {wanted} in {folder()} was changed since it was added",
                hint=f"shufflectl runner remove {wanted}, and add it again",
            )
        return replace(found, kind=kind) if kind else found
    path = Path(wanted)
    if not path.is_file():
        raise UsageError(
            f"there is no runner {wanted!r}: neither a file, nor a name in the cache",
            hint=_known_names() or "add one with shufflectl runner add (docs/runner.md)",
        )
    known = kind or kind_of(path)
    pattern = {"shufflectl": "libLiteRt.so", "onnxruntime": "libonnxruntime*.so*"}.get(known)
    beside = sorted(path.absolute().parent.glob(pattern)) if pattern else []
    return _describe(path, name=path.name, kind=known, libraries=beside, source=str(path), sha256="")


def _describe(
    path: Path, *, name: str, kind: str, libraries: Sequence[Path], source: str, sha256: str
) -> Program:
    if not path.is_file():
        raise ArtifactError(f"{path} is not a file", hint="pass the path of a program, or an address")
    actual = digest(path)
    if sha256 and actual != sha256:
        raise ArtifactError(
            f"{source} has the SHA-256 {actual}, not {sha256}",
            hint="it is another file, or it was changed: do not run it before you know why",
        )
    abi = program_abi(path)
    for library in libraries:
        if not is_artifact_name(library.name):
            raise UsageError(f"{library.name!r} cannot be the name of a library on a device")
        if program_abi(library) != abi:
            raise ArtifactError(
                f"{library.name} is for {program_abi(library)}, and {path.name} for {abi}",
                hint="get both for the same instruction set",
            )
    runner(kind or (kind := kind_of(path)))
    return Program(name, kind, path, tuple(libraries), actual, abi, source)


def _keep(program: Program) -> Program:
    """Copy a program into the cache."""
    record = {
        "schema": _SCHEMA,
        "kind": program.kind,
        "sha256": program.sha256,
        "abi": program.abi,
        "source": program.source,
        "libraries": [path.name for path in program.libraries],
    }
    with Staging(folder()) as staging:
        place = staging.path(program.name)
        place.mkdir()
        try:
            shutil.copyfile(program.path, place / "program")
            (place / "program").chmod(0o755)  # our own runs here too
            for library in program.libraries:
                shutil.copyfile(library, place / library.name)
            (place / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{program.name} cannot be stored in {folder()}: {error.strerror}") from error
        staging.publish()
    kept = _load(program.name)
    if kept is None:
        raise OutputError(f"{program.name} was not stored in {folder()}")
    return kept


def _load(name: str) -> Program | None:
    """Return a runner of the cache; None where it is not there or not whole."""
    place = folder() / name
    try:
        with (place / _RECORD).open("rb") as stream:
            record = json.loads(stream.read(_LARGEST_RECORD))
        kind, sha256, abi, source = (record[key] for key in ("kind", "sha256", "abi", "source"))
        names = [str(item) for item in record["libraries"]]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    libraries = tuple(place / item for item in names if is_artifact_name(item))
    whole = (place / "program").is_file() and all(path.is_file() for path in libraries)
    if kind not in KINDS or not whole or not _SHA256.fullmatch(str(sha256)):
        return None
    return Program(name, kind, place / "program", libraries, str(sha256), str(abi), str(source))


def _known_names() -> str:
    names = [item.name for item in installed()]
    return f"in the cache are: {', '.join(names)}" if names else ""


def _unknown(name: str) -> UsageError:
    names = [item.name for item in installed()]
    hint = nearest(name, names) if names else "the cache holds none: shufflectl runner add (docs/runner.md)"
    return UsageError(f"there is no runner {name!r} in the cache", hint=hint)
