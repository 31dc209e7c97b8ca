"""The size and the SHA-256 of an artifact, which is a file or a folder."""

import hashlib
import os
import stat
from pathlib import Path

from shufflectl.errors import ArtifactError

__all__ = ["digest", "size"]


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for _, file in _members(path))


def digest(path: Path) -> str:
    r"""Return the SHA-256 of an artifact, in hexadecimal.

    That of a file is of its bytes. That of a folder is of what ``sha256sum`` prints for its files in the
    order of their names' bytes, so anyone can compute it::

        cd NAME.mlpackage
        find . -type f -printf '%P\0' | LC_ALL=C sort -z | xargs -0r sha256sum | sha256sum

    Raises:
        ArtifactError: The artifact does not exist, cannot be read, or holds a link or a special file.
    """
    try:
        if not path.is_dir():
            return _file_digest(path)
        total = hashlib.sha256()
        for name, file in _members(path):
            total.update(f"{_file_digest(file)}  {name}\n".encode())
        return total.hexdigest()
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read: {error.strerror or error}",
            hint="check that it exists and may be read",
        ) from error


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _members(folder: Path) -> list[tuple[str, Path]]:
    """Return the files below a folder by their relative POSIX names, in the order of the names' bytes."""
    found = []
    for root, folders, files in os.walk(folder, onerror=_raise):
        for name in [*folders, *files]:
            path = Path(root, name)
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                kind = "a link" if stat.S_ISLNK(mode) else "a special file"
                raise ArtifactError(f"{folder} holds {kind}: {name!r}", hint="an artifact holds plain files")
            if stat.S_ISREG(mode):
                relative = path.relative_to(folder).as_posix()
                if "\n" in relative or "\r" in relative or "\\" in relative:
                    raise ArtifactError(f"{folder} holds a file with an unusable name: {relative!r}")
                found.append((relative, path))
    return sorted(found, key=lambda member: os.fsencode(member[0]))


def _raise(error: OSError) -> None:
    raise error
