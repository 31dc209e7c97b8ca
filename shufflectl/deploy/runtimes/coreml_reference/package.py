"""Opening a ``.mlpackage`` that may be damaged or hostile.

Nothing outside the package's folder is read, whatever its manifest or program say: paths are relative, have
no ``..`` and lead through no symbolic link.
"""

import json
from pathlib import Path, PurePosixPath
from typing import Any, Final

from google.protobuf.message import DecodeError

from shufflectl.deploy.runtimes.coreml_reference.protos import message_modules
from shufflectl.errors import ArtifactError

__all__ = ["inside", "read_model"]

_REMEDY: Final = "export the model again, and copy the whole .mlpackage folder"
_MAX_MANIFEST: Final = 1 << 20
_MAX_MODEL: Final = 1 << 29
"""Bytes of ``model.mlmodel``: weights are not in it, so even large programs stay far below."""


def inside(root: Path, relative: str, what: str) -> Path:
    """Return a path in a package.

    Args:
        root: A folder of the package.
        relative: What a file of the package says, with forward slashes.
        what: What it names, for the message.

    Raises:
        ArtifactError: The path is absolute, leaves ``root``, or leads through a symbolic link.
    """
    parts = PurePosixPath(relative).parts
    if (
        not parts
        or "\0" in relative
        or "\\" in relative
        or PurePosixPath(relative).is_absolute()
        or ".." in parts
    ):
        raise ArtifactError(
            f"the path of {what} leaves the package: {relative!r}", hint="do not use this package"
        )
    path = root
    for part in parts:
        path /= part
        if path.is_symlink():
            raise ArtifactError(
                f"the path of {what} leads through a symbolic link: {relative!r}",
                hint="do not use this package",
            )
    return path


def _bytes(path: Path, limit: int, what: str) -> bytes:
    """Return a file's bytes."""
    try:
        if path.is_symlink() or not path.is_file():
            raise ArtifactError(f"{what} is missing: {path}", hint=_REMEDY)
        size = path.stat().st_size
        if size > limit:
            raise ArtifactError(f"{what} is too large: {size} bytes, and at most {limit} are read")
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{what} cannot be read: {error.strerror or error}", hint=_REMEDY) from error


def read_model(package: Path) -> tuple[Any, Path]:
    """Return a package's ``Model`` message, an ML program, and the folder that holds its weights.

    Raises:
        ArtifactError: The package is missing, damaged, or does not hold an ML program.
        MissingDependencyError: coremltools is not installed.
    """
    if not package.exists():
        raise ArtifactError(f"{package} does not exist", hint="check the path")
    if not package.is_dir():
        raise ArtifactError(f"{package} is a file, and a .mlpackage is a folder", hint=_REMEDY)
    manifest = _bytes(package / "Manifest.json", _MAX_MANIFEST, "the manifest of the package")
    try:
        entries = json.loads(manifest)
        relative = entries["itemInfoEntries"][entries["rootModelIdentifier"]]["path"].removeprefix("./")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(
            f"{package / 'Manifest.json'} is not the manifest of a Core ML package", hint=_REMEDY
        ) from error
    data = package / "Data"
    if data.is_symlink():
        raise ArtifactError(
            f"{data} is a symbolic link, which may lead out of the package", hint="do not use this package"
        )
    path = inside(data, relative, "the model")
    model_module, _ = message_modules()
    try:
        spec = model_module.Model.FromString(_bytes(path, _MAX_MODEL, "the model of the package"))
    except DecodeError as error:
        raise ArtifactError(f"{path} is damaged: it is not a Core ML model", hint=_REMEDY) from error
    kind = spec.WhichOneof("Type")
    if kind != "mlProgram":
        raise ArtifactError(
            f"{package} holds a Core ML model of kind {kind or 'unknown'}, not an ML program",
            hint="convert it for iOS 15 or later",
        )
    return spec, path.parent
