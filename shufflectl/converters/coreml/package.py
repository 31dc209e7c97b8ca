"""A ``.mlpackage`` on disk, the same bytes for the same model.

A package is a folder: ``Manifest.json`` names its items by identifiers, and the items lie under ``Data/``.
coremltools draws the identifiers at random and serialises protobuf maps in the order of a hash; here the
identifiers derive from the items' contents and maps are sorted. No date is kept.
"""

import hashlib
import json
import shutil
import uuid
from pathlib import Path
from typing import Final

__all__ = ["AUTHOR", "write_package"]

AUTHOR: Final = "com.apple.CoreML"
"""The author that Core ML looks for, and the folder of the items."""

_NAMESPACE: Final = uuid.UUID("6c61a5d5-4a3c-5d55-9bd8-2f6f7b1a9e10")
_MODEL = "model.mlmodel"
_WEIGHTS = "weights"


def write_package(path: Path, model: bytes, weights: Path | None) -> None:
    """Write a package.

    Args:
        path: The package's folder, which does not exist yet.
        model: The serialised ``Model`` message.
        weights: A ``weight.bin`` to copy; None for a program without large constants.
    """
    data = path / "Data" / AUTHOR
    data.mkdir(parents=True)
    (data / _MODEL).write_bytes(model)
    items = [(_MODEL, "CoreML Model Specification", hashlib.sha256(model).hexdigest())]
    if weights is not None:
        (data / _WEIGHTS).mkdir()
        copy = data / _WEIGHTS / "weight.bin"
        shutil.copyfile(weights, copy)
        with copy.open("rb") as file:
            items.append((_WEIGHTS, "CoreML Model Weights", hashlib.file_digest(file, "sha256").hexdigest()))
    entries = {
        str(uuid.uuid5(_NAMESPACE, f"{name}:{digest}")): {
            "author": AUTHOR,
            "description": description,
            "name": name,
            "path": f"{AUTHOR}/{name}",
        }
        for name, description, digest in items
    }
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": entries,
        "rootModelIdentifier": next(iter(entries)),
    }
    text = json.dumps(manifest, indent=4, sort_keys=True) + "\n"
    (path / "Manifest.json").write_text(text, encoding="utf-8")
