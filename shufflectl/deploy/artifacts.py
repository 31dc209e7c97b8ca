"""The files that users name: what lies in a folder or was passed by itself, by the model that it is of.

What converts models and compares files is not imported here: a command that only measures them does without.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shufflectl.converters.metadata import ModelInfo
from shufflectl.converters.targets import TARGETS
from shufflectl.deploy.inspect import Summary, summarize
from shufflectl.deploy.manifest import MANIFEST, Manifest
from shufflectl.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    from shufflectl.converters.rewrite.choose import Candidate

__all__ = ["Artifact", "Group", "find_groups"]

Notify = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Artifact:
    """One exported file.

    Attributes:
        path: Where it is now.
        file: Its name in the output folder.
        target: The name of its format.
        precision: A name of `converters.targets.PRECISIONS`.
        form: The form of its channel shuffles, where it is known.
    """

    path: Path
    file: str
    target: str
    precision: str
    form: "Candidate | None" = None


@dataclass
class Group:
    """The files of one model.

    Attributes:
        info: What the files or their manifest say about the model; None for files of another tool.
        artifacts: The files.
        sha256: By file, what the manifest says.
    """

    info: ModelInfo | None
    artifacts: list[Artifact] = field(default_factory=list)
    sha256: dict[str, str] = field(default_factory=dict)


def find_groups(paths: Sequence[Path], notify: Notify) -> list[Group]:
    """Return the files under the paths, by model.

    Args:
        paths: Export folders, or single artifacts.
        notify: Told about progress.

    Raises:
        ArtifactError: A file is missing, damaged or of another kind.
        UsageError: No path is given.
    """
    groups: list[Group] = []
    loose: list[Path] = []
    for path in paths:
        if path.is_dir() and path.suffix != TARGETS["coreml"].extension:
            if (path / MANIFEST).exists():
                groups += _from_manifest(path)
            else:
                found = sorted(p for p in path.iterdir() if _target_of(p) is not None)
                if not found:
                    raise ArtifactError(
                        f"{path} holds neither {MANIFEST} nor any exported file",
                        hint="pass the folder that shufflectl export wrote, or the files themselves",
                    )
                loose += found
        else:
            loose.append(path)
    if loose:
        groups += _from_files(loose, notify)
    if not groups:
        raise UsageError("no file is given", hint="pass the folder that shufflectl export wrote")
    return groups


def _from_manifest(folder: Path) -> list[Group]:
    manifest = Manifest.load(folder / MANIFEST)
    groups: dict[tuple[str, str, tuple[int | None, ...], tuple[str, ...]], Group] = {}
    for model in manifest.models:
        key = (model.info.stem, model.info.weights_sha256, model.input_shape, model.info.features)
        group = groups.setdefault(key, Group(model.info))
        for row in model.artifacts:
            group.artifacts.append(Artifact(row.path_in(folder), row.file, row.target, row.precision))
            group.sha256[row.file] = row.sha256
    return list(groups.values())


def _from_files(paths: Sequence[Path], notify: Notify) -> list[Group]:
    by_name: dict[tuple[str, str, tuple[int | None, ...], tuple[str, ...]] | None, Group] = {}
    for path in paths:
        target = _target_of(path)
        if target is None:
            raise _no_artifact(path)
        notify(f"reading {path.name}", 0, 0)
        summary = summarize(path)
        info = summary.metadata
        # Files for other sizes of image are other models, as they are in a manifest.
        key = None if info is None else (info.stem, info.weights_sha256, _image(summary), info.features)
        group = by_name.setdefault(key, Group(info))
        file = path.name
        if any(a.file == file for a in group.artifacts):
            file = str(path)
        group.artifacts.append(Artifact(path, file, target, _precision(summary)))
    foreign = by_name.pop(None, None)
    if foreign is not None and len(by_name) == 1:
        next(iter(by_name.values())).artifacts.extend(foreign.artifacts)
    elif foreign is not None:
        by_name[None] = foreign
    return list(by_name.values())


def _image(summary: Summary) -> tuple[int | None, ...]:
    """Return channels, height and width of the input in an order of their own, whatever the layout."""
    shape = summary.inputs[0].shape if summary.inputs else None
    return tuple(sorted((shape or ())[1:], key=lambda size: -1 if size is None else size))


def _no_artifact(path: Path) -> ArtifactError:
    if not path.exists():
        return ArtifactError(f"{path} does not exist", hint="check the path")
    if path.name == MANIFEST:
        return ArtifactError(
            f"{path} is a manifest, not a file of a model", hint=f"pass its folder: {path.parent}"
        )
    kinds = ", ".join(row.extension for row in TARGETS.values())
    return ArtifactError(f"{path} is not an exported file", hint=f"pass {kinds} files, or their folder")


def _target_of(path: Path) -> str | None:
    return next((row.name for row in TARGETS.values() if row.extension == path.suffix), None)


def _precision(summary: Summary) -> str:
    """Return what the file says, or ``fp16`` for a foreign one that computes half precision anywhere."""
    if summary.metadata is not None and summary.metadata.precision:
        return summary.metadata.precision
    return "fp16" if any(o.dtype == "float16" for o in summary.operators) else "fp32"
