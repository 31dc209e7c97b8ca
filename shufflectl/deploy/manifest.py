"""The record of an export: what each file is, what it was made from, and how near to torch it computes.

The manifest is versioned JSON (`SCHEMA`), described by a JSON Schema in this package, and validated against
it when it is read and when it is written. It holds no time and no absolute path: the same inputs give the
same bytes.

One folder may hold several models, and one manifest describes them all. A *model record* is what a set of
files has in common (model, weights, input, options, tool versions); its artifacts are keyed by file name,
which is unique in the manifest. An export replaces the rows of the files that it wrote and keeps all others,
in a record of their own where they were made from other weights, by other tools or with other options.
"""

import importlib.metadata
import json
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

import shufflectl
from shufflectl.converters.metadata import FileInput, ModelInfo
from shufflectl.deploy.digests import digest, size
from shufflectl.deploy.documents import Kind
from shufflectl.deploy.parity.nway import ParityReport
from shufflectl.deploy.publish import MANIFEST, is_artifact_name
from shufflectl.errors import ArtifactError

__all__ = ["MANIFEST", "SCHEMA", "ArtifactRecord", "Manifest", "ModelRecord", "merge_into", "tool_versions"]

SCHEMA: Final = "shufflectl.manifest/1"

_MAX_BYTES: Final = 16 << 20
"""More than a manifest of a thousand models needs; a larger file is none."""

_TOOLS: Final = (
    "ai-edge-litert",
    "coremltools",
    "flatbuffers",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxscript",
    "onnxsim",
    "torch",
)
"""Packages whose version can change an artifact or a figure."""

_EXPORT_AGAIN: Final = "delete it and export again, or choose another folder"
_KIND: Final = Kind(SCHEMA, "manifest", "shufflectl.deploy", _MAX_BYTES, _EXPORT_AGAIN, ArtifactError)
_ABSOLUTE: Final = re.compile(r"/|~|[A-Za-z]:[\\/]|\\\\")

JSON = dict[str, Any]


def tool_versions() -> dict[str, str]:
    """Return the versions of Python, of shufflectl and of the installed packages that shape an export."""
    versions = {"python": platform.python_version(), "shufflectl": shufflectl.__version__}
    for package in _TOOLS:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return dict(sorted(versions.items()))


@dataclass(frozen=True)
class ArtifactRecord:
    """One exported file or package.

    Attributes:
        file: Its name in the folder of the manifest.
        target: The name of its format.
        precision: ``fp32`` or ``fp16``.
        sha256: See `shufflectl.deploy.publish.digest`.
        bytes: Of the file, or of all files in the package.
        operators: How many it executes.
        largest_rank: Of its activation tensors.
        options: How it was written.
        runtime: Name and version of the runtime that ran it.
        parity: Comparisons with the reference: `shufflectl.deploy.parity.nway.Row.to_json`.
        accuracy: On labelled images: `shufflectl.deploy.parity.nway.Accuracy.to_json`.
        input: What the file takes from its caller: `converters.metadata.FileInput.to_json`; None if unknown.
    """

    file: str
    target: str
    precision: str
    sha256: str
    bytes: int
    operators: int
    largest_rank: int
    options: Mapping[str, Any] = field(default_factory=dict)
    runtime: str = ""
    parity: tuple[JSON, ...] = ()
    accuracy: tuple[JSON, ...] = ()
    input: JSON | None = None

    @classmethod
    def measure(
        cls,
        path: Path,
        *,
        target: str,
        precision: str,
        operators: int,
        largest_rank: int,
        file: str | None = None,
        options: Mapping[str, Any] | None = None,
        runtime: str = "",
        input: FileInput | None = None,  # noqa: A002 - the word of the manifest
    ) -> Self:
        """Return the record of an artifact that lies at ``path``, its size and digest read from there.

        Raises:
            ArtifactError: The artifact does not exist or cannot be read.
        """
        return cls(
            file=path.name if file is None else file,
            target=target,
            precision=precision,
            sha256=digest(path),
            bytes=size(path),
            operators=operators,
            largest_rank=largest_rank,
            options=dict(options or {}),
            runtime=runtime,
            input=None if input is None else input.to_json(),
        )

    def path_in(self, folder: Path) -> Path:
        """Return where the artifact lies in the manifest's folder.

        Raises:
            ArtifactError: It does not exist, or is a link out of the folder.
        """
        path = folder / self.file
        if not path.exists():
            raise ArtifactError(
                f"{path} is in {folder / MANIFEST} but does not exist", hint="export the model again"
            )
        if path.resolve().parent != folder.resolve():
            raise ArtifactError(
                f"{path} is a link to {path.resolve()}, outside of its folder",
                hint="check the file itself by its own name",
            )
        return path

    def to_json(self) -> JSON:
        """Return the record as JSON values."""
        data = {
            "file": self.file,
            "target": self.target,
            "precision": self.precision,
            "sha256": self.sha256,
            "bytes": self.bytes,
            "operators": self.operators,
            "largest_rank": self.largest_rank,
            "options": dict(sorted(self.options.items())),
            "runtime": self.runtime,
            "parity": list(self.parity),
            "accuracy": list(self.accuracy),
        }
        return data if self.input is None else {**data, "input": self.input}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote and the schema admits."""
        rows = {key: tuple(data[key]) for key in ("parity", "accuracy")}
        return cls(**{**data, **rows})


@dataclass(frozen=True)
class ModelRecord:
    """What a set of artifacts has in common, and the artifacts.

    Attributes:
        info: Model, weights, preprocessing, labels, as every file holds them too.
        num_classes: Width of the logits.
        input_name: The input's name in the captured graph.
        input_shape: NCHW; None for a batch of any size.
        reference: The name of what the artifacts were compared with.
        tools: Package versions, see `tool_versions`.
        options: What the export and its figures depend on.
        artifacts: By file name.
        pairwise: Comparisons of two artifacts: `shufflectl.deploy.parity.nway.Row.to_json`.
        accuracy: The reference's, on labelled images.
    """

    info: ModelInfo
    num_classes: int
    input_name: str
    input_shape: tuple[int | None, ...]
    reference: str
    tools: Mapping[str, str]
    options: Mapping[str, Any]
    artifacts: tuple[ArtifactRecord, ...] = ()
    pairwise: tuple[JSON, ...] = ()
    accuracy: tuple[JSON, ...] = ()

    @property
    def name(self) -> str:
        """The model's name."""
        return self.info.name

    def to_json(self) -> JSON:
        """Return the record as JSON values."""
        info = self.info.to_json()
        weights = {"spec": info.pop("weights"), "sha256": info.pop("weights_sha256")}
        preprocess, labels = info.pop("preprocess"), info.pop("labels")
        stated = {"preprocess": preprocess, "preprocess_from": info.pop("preprocess_from")}
        for key in ("input", "precision"):  # those are each artifact's own
            info.pop(key, None)
        return {
            **info,
            "num_classes": self.num_classes,
            "input": {"name": self.input_name, "shape": list(self.input_shape), **stated},
            "labels": labels,
            "weights": weights,
            "reference": {"name": self.reference, "accuracy": list(self.accuracy)},
            "tools": dict(sorted(self.tools.items())),
            "options": dict(sorted(self.options.items())),
            "artifacts": [artifact.to_json() for artifact in self.artifacts],
            "pairwise": list(self.pairwise),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote and the schema admits."""
        info = ModelInfo.from_json(
            {
                **data,
                "preprocess": data["input"]["preprocess"],
                "preprocess_from": data["input"].get("preprocess_from", ""),
                "input": None,
                "weights": data["weights"]["spec"],
                "weights_sha256": data["weights"]["sha256"],
            }
        )
        return cls(
            info=info,
            num_classes=data["num_classes"],
            input_name=data["input"]["name"],
            input_shape=tuple(data["input"]["shape"]),
            reference=data["reference"]["name"],
            tools=data["tools"],
            options=data["options"],
            artifacts=tuple(ArtifactRecord.from_json(row) for row in data["artifacts"]),
            pairwise=tuple(data["pairwise"]),
            accuracy=tuple(data["reference"]["accuracy"]),
        )

    def sorted(self) -> Self:
        """Return the record with its rows in their one order."""
        return replace(
            self,
            artifacts=tuple(sorted(self.artifacts, key=lambda row: row.file)),
            pairwise=tuple(sorted(self.pairwise, key=_pair)),
        )

    def without(self, files: Iterable[str]) -> Self:
        """Return the record without some files, and without the comparisons that they took part in."""
        gone = set(files)
        return replace(
            self,
            artifacts=tuple(row for row in self.artifacts if row.file not in gone),
            pairwise=tuple(
                row for row in self.pairwise if gone.isdisjoint((row["reference"], row["candidate"]))
            ),
        )

    @property
    def identity(self) -> str:
        """What the artifacts have in common, as text that is the same for the same."""
        shared = self.to_json()
        for key in ("artifacts", "pairwise", "reference"):
            del shared[key]
        return json.dumps(shared, sort_keys=True)


def _pair(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[key]) for key in ("reference", "candidate", "kind", "output"))


@dataclass(frozen=True)
class Manifest:
    """All that is known of the artifacts in one folder.

    Attributes:
        models: Ordered by name, then by what else tells them apart.
    """

    models: tuple[ModelRecord, ...]

    @classmethod
    def build(
        cls,
        info: ModelInfo,
        *,
        num_classes: int,
        input_name: str,
        input_shape: Sequence[int | None],
        artifacts: Iterable[ArtifactRecord],
        report: ParityReport,
        options: Mapping[str, Any],
        tools: Mapping[str, str] | None = None,
    ) -> Self:
        """Return the manifest of one export.

        Args:
            info: Model and weights.
            num_classes: Width of the logits.
            input_name: The input's name in the captured graph.
            input_shape: NCHW; None for a batch of any size.
            artifacts: What was written; their parity and accuracy are taken from the report.
            report: The comparison, in which each artifact is a member under its file name.
            options: What else the files and figures depend on; no absolute paths.
            tools: Package versions; the installed ones unless given.

        Raises:
            ArtifactError: The result does not satisfy the schema, as with a file name that leaves the folder.
            ValueError: An option is an absolute path, which would differ from machine to machine.
        """
        for text in _strings([info.weights, dict(options)]):
            if _ABSOLUTE.match(text):
                raise ValueError(f"a manifest holds no absolute path: {text!r}")
        rows = [
            replace(
                artifact,
                parity=tuple(row.to_json() for row in report.of(artifact.file)),
                accuracy=tuple(r.to_json() for r in report.accuracy if r.member == artifact.file),
            )
            for artifact in artifacts
        ]
        record = ModelRecord(
            info=info,
            num_classes=num_classes,
            input_name=input_name,
            input_shape=tuple(input_shape),
            reference=report.reference,
            tools=dict(tool_versions() if tools is None else tools),
            options=dict(options),
            artifacts=tuple(rows),
            pairwise=tuple(row.to_json() for row in report.pairwise),
            accuracy=tuple(r.to_json() for r in report.accuracy if r.member == report.reference),
        )
        # Read back, so that a manifest is the same object whether it was built or loaded.
        return cls.from_json(cls((record.sorted(),)).to_json())

    @property
    def artifacts(self) -> tuple[ArtifactRecord, ...]:
        """The artifacts of all models."""
        return tuple(row for record in self.models for row in record.artifacts)

    def merge(self, newer: "Manifest") -> "Manifest":
        """Return the manifest of a folder into which another export has written.

        Rows of files that the newer export wrote are replaced, all others kept. Records that have all but
        their files in common become one.
        """
        written = {row.file for row in newer.artifacts}
        records = {record.identity: record for record in newer.models}
        for old in self.models:
            kept = old.without(written)
            if not kept.artifacts:
                continue
            same = records.get(kept.identity)
            if same is None:
                records[kept.identity] = kept
                continue
            records[kept.identity] = replace(
                same,
                artifacts=(*same.artifacts, *kept.artifacts),
                pairwise=(*same.pairwise, *kept.pairwise),
            ).sorted()
        ordered = sorted(records.values(), key=lambda record: (record.name, record.identity))
        return Manifest(tuple(ordered))

    def to_json(self) -> JSON:
        """Return the manifest as JSON values."""
        return {"schema": SCHEMA, "models": [record.to_json() for record in self.models]}

    def to_bytes(self) -> bytes:
        """Return the manifest as a file's bytes: UTF-8, indented, one trailing newline.

        Raises:
            ArtifactError: It does not satisfy the schema.
        """
        document = self.to_json()
        _validate(document, "the manifest")
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
        return (text + "\n").encode()

    def write(self, path: Path) -> None:
        """Write the manifest to a file that is not in its place yet; `Staging.publish` moves it there.

        Raises:
            ArtifactError: It does not satisfy the schema.
        """
        path.write_bytes(self.to_bytes())

    @classmethod
    def from_json(cls, document: Any, name: str = "the manifest") -> Self:
        """Read what `to_json` wrote.

        Args:
            document: JSON values of any kind.
            name: What messages call the document.

        Raises:
            ArtifactError: It is of another version or does not satisfy the schema.
        """
        _validate(document, name)
        try:
            return cls(tuple(ModelRecord.from_json(record) for record in document["models"]))
        except ValueError as error:  # figures that the schema admits and no preprocessing has
            raise ArtifactError(f"{name} is not a valid manifest: {error}", hint=_EXPORT_AGAIN) from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a manifest from a file that nobody vouches for.

        Args:
            path: The file, or the folder that it is in.

        Raises:
            ArtifactError: It does not exist, is too large, is not JSON, is of another version, or does not
                satisfy the schema (file names that leave the folder included).
        """
        file = path / MANIFEST if path.is_dir() else path
        return cls.from_json(_KIND.parse(_read(file), str(file)), str(file))


def merge_into(folder: Path, manifest: Manifest) -> bytes:
    """Return the bytes of a folder's manifest after an export; for `Staging.publish`.

    Raises:
        ArtifactError: The manifest that is in the folder cannot be read.
    """
    if (folder / MANIFEST).exists():
        manifest = Manifest.load(folder / MANIFEST).merge(manifest)
    return manifest.to_bytes()


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{file} does not exist", hint="pass a folder that shufflectl export wrote"
        ) from error
    except OSError as error:
        raise ArtifactError(
            f"{file} cannot be read: {error.strerror or error}", hint="check that it is a file and readable"
        ) from error
    if len(data) > _MAX_BYTES:
        raise ArtifactError(
            f"{file} is larger than {_MAX_BYTES >> 20} MiB, so it is no manifest", hint=_EXPORT_AGAIN
        )
    return data


def _validate(document: Any, name: str) -> None:
    if isinstance(document, dict):
        version = document.get("schema")
        if isinstance(version, str) and version != SCHEMA and version.startswith("shufflectl.manifest/"):
            raise ArtifactError(
                f"{name} has version {version!r}, this shufflectl reads {SCHEMA!r}",
                hint="use the shufflectl that wrote it, or export again",
            )
    problem = _KIND.problem(document)
    if problem:
        raise ArtifactError(f"{name} is not a valid manifest: {problem}", hint=_EXPORT_AGAIN)
    files = [row["file"] for record in document["models"] for row in record["artifacts"]]
    for file in files:
        if not is_artifact_name(file):
            raise ArtifactError(
                f"{name} is not a valid manifest: {file!r} is not the name of a file in its folder",
                hint=_EXPORT_AGAIN,
            )
    if len(set(files)) != len(files):
        raise ArtifactError(
            f"{name} is not a valid manifest: two artifacts have one name", hint=_EXPORT_AGAIN
        )


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)
