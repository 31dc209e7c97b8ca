"""What a weights file is: library, network, classes and preprocessing, each with the tensors that tell it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from shufflectl.errors import CheckpointError
from shufflectl.models.checkpoints import layouts
from shufflectl.models.checkpoints.architecture import architecture, skeleton
from shufflectl.models.checkpoints.files import WeightsFile, printable
from shufflectl.models.checkpoints.fit import Comparison, classifier, compare, only_network, some
from shufflectl.models.checkpoints.header import described, record
from shufflectl.models.checkpoints.layout import Layout
from shufflectl.models.preprocess import Preprocess
from shufflectl.models.zoo import FAMILIES, Variant, variants

__all__ = ["Finding", "Identification", "Match", "identify"]

SCHEMA: Final = "shufflectl.identify/1"

_CANDIDATES = 3
_MAX_SEGMENTS = 4  # of a prefix, where the layout is not recognised


@dataclass(frozen=True)
class Finding:
    """One thing that was found out.

    Attributes:
        what: What was asked.
        value: The answer.
        why: Where it was read.
    """

    what: str
    value: str
    why: str


@dataclass(frozen=True)
class Match:
    """What a file is.

    Attributes:
        layout: Its layout.
        prefix: What stands before the names.
        variant: Its network, with the layout's conventions.
        num_classes: Width of the logits.
        input_size: Height and width in pixels that the weights are for.
        preprocess: What happens to an image first.
        findings: All of this with reasons.
    """

    layout: Layout
    prefix: str
    variant: Variant
    num_classes: int
    input_size: int
    preprocess: Preprocess
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Identification:
    """What was found out about a file.

    Attributes:
        file: The file.
        match: What it is; None where it is nothing known.
        candidates: Otherwise the nearest, with the tensors that do not fit; the nearest first.
    """

    file: WeightsFile
    match: Match | None
    candidates: tuple[Comparison, ...] = ()

    def require(self) -> Match:
        """Return what the file is.

        Raises:
            CheckpointError: It is nothing known; the message names the nearest and what speaks against it.
        """
        if self.match is not None:
            return self.match
        if not self.file.tensors:
            raise CheckpointError(f"{self.file.path.name} holds no tensors")
        known = ", ".join(dict.fromkeys(layout.name for layout in layouts.LAYOUTS))
        if not self.candidates:
            raise CheckpointError(
                f"{self.file.path.name} is none of the networks known: it holds "
                f"{some(list(self.file.tensors))}",
                hint=f"layouts: {known}; see docs/checkpoints.md",
            )
        best = self.candidates[0]
        against = "; ".join(f"{what}: {which}" for what, which in best.summary)
        raise CheckpointError(
            f"{self.file.path.name} is none of the networks known; nearest: {best.variant.name} of "
            f"{best.layout.name}, but {against}",
            hint="where these parts were changed, restore them; see docs/identify.md",
        )

    def to_json(self) -> dict[str, Any]:
        """Return the findings as the document of ``schemas/identify-1.schema.json``."""
        found = self.match
        return {
            "schema": SCHEMA,
            "file": self.file.path.name,
            "sha256": self.file.sha256,
            "identified": found is not None,
            "match": None
            if found is None
            else {
                "layout": found.layout.name,
                "source": found.layout.source,
                "family": found.variant.family,
                "model": found.variant.name,
                "registered": any(found.variant.name == row.name for row in variants()),
                "arguments": _plain(found.variant.arguments),
                "parameters": found.variant.parameters,
                "num_classes": found.num_classes,
                "input_size": found.input_size,
                "preprocess": found.preprocess.to_json(),
                "prefix": found.prefix,
                "entry": self.file.entry,
                "findings": [{"what": f.what, "value": f.value, "why": f.why} for f in found.findings],
            },
            "candidates": [
                {
                    "layout": c.layout.name,
                    "model": c.variant.name,
                    "missing": [printable(name) for name in c.missing],
                    "extra": [printable(name) for name in c.extra],
                    "misshaped": [
                        {"name": printable(name), "found": list(found), "expected": list(wanted)}
                        for name, found, wanted in c.misshaped
                    ],
                }
                for c in self.candidates
            ],
        }


def identify(file: WeightsFile) -> Identification:
    """Find out what a file is.

    Raises:
        CheckpointError: It holds several networks, or its header contradicts its tensors.
    """
    mark = only_network(file)
    if mark is None:
        return Identification(file, None, _nearest_names(file))
    layout, prefix = mark
    read = architecture(layout, prefix, file.tensors)
    rows = [row for row in variants() if row.family == layout.family]
    compared = sorted(
        (compare(layout, prefix, row, file.tensors) for row in ([read] if read else rows)),
        key=lambda c: c.problems,
    )
    if not compared[0].fits:
        return Identification(file, None, tuple(compared[:_CANDIDATES]))
    variant = layout.applied(compared[0].variant)
    head = prefix + layout.spell(classifier(skeleton(variant, 1)))
    weight = file.tensors[head]
    classes = weight.shape[0] if weight.ndim == 2 else 0
    said = described(file, record(file), classes)
    size, preprocess = said.get("input_size", variant.input_size), said.get("preprocess")
    findings = (
        *_wrapping(file, prefix),
        Finding("layout", f"{layout.name}, {FAMILIES[layout.family]}", _names(layout, prefix)),
        Finding("defined in", layout.source, "the layout's"),
        *_network(layout, prefix, variant, file.tensors),
        Finding("classes", str(classes), f"{head!r} is {_shape(weight)}"),
        Finding(
            "preprocessing",
            (preprocess or layout.preprocess).text,
            "the file's header"
            if preprocess
            else f"the default of {layout.name}"
            + (f": {layout.preprocess_source}" if layout.preprocess_source else ""),
        ),
        Finding("input", f"{size}x{size}", "the file's header" if "input_size" in said else "the papers'"),
    )
    return Identification(
        file,
        Match(layout, prefix, variant, classes, size, preprocess or layout.preprocess, findings),
    )


def _nearest_names(file: WeightsFile) -> tuple[Comparison, ...]:
    """Return the networks that most names are of, where no layout recognises the file."""
    scored: list[tuple[int, Comparison]] = []
    for layout in layouts.LAYOUTS:
        row = next(row for row in variants() if row.family == layout.family)
        theirs = {layout.spell(name) for name in skeleton(row, 1).state_dict()}
        prefixes: dict[str, int] = {}
        for name in file.tensors:
            parts = name.split(".")
            for cut in range(min(_MAX_SEGMENTS, len(parts) - 1)):
                if ".".join(parts[cut:]) in theirs:
                    prefix = "".join(f"{part}." for part in parts[:cut])
                    prefixes[prefix] = prefixes.get(prefix, 0) + 1
        if not prefixes:
            continue
        prefix, score = max(prefixes.items(), key=lambda item: item[1])
        rows = [row for row in variants() if row.family == layout.family]
        scored.append(
            (score, min((compare(layout, prefix, r, file.tensors) for r in rows), key=lambda c: c.problems))
        )
    scored.sort(key=lambda item: -item[0])
    return tuple(comparison for _, comparison in scored[:_CANDIDATES])


def _wrapping(file: WeightsFile, prefix: str) -> list[Finding]:
    found: list[Finding] = []
    if file.entry:
        beside = f"; beside it: {', '.join(file.others)}" if file.others else ""
        found.append(Finding("read from", f"entry {'.'.join(file.entry)}", f"the file's nesting{beside}"))
    if prefix:
        found.append(Finding("prefix", printable(prefix, 60), "of every name of the network"))
        outside = [name for name in file.tensors if not name.startswith(prefix)]
        if outside:
            found.append(Finding("left aside", f"{len(outside)} tensors", some(outside)))
    return found


def _network(layout: Layout, prefix: str, variant: Variant, tensors: Mapping[str, Tensor]) -> list[Finding]:
    """Return what the shapes tell about the network."""

    def seen(name: str) -> str:
        spelled = prefix + layout.spell(name)
        return f"{printable(spelled)!r} is {_shape(tensors[spelled])}"

    found: list[Finding] = []
    if layout.family == "shufflenet_v1":
        inner = tensors[prefix + layout.spell("stage2.0.compress.0.weight")].shape[0]
        why = f"{seen('stage2.0.expand.0.weight')}: {inner} channels in"
        found.append(Finding("groups", str(variant.arguments["groups"]), why))
    widths = {"shufflenet_v1": "stage2.0.expand.0.weight", "shufflenet_v2": "stage2.0.branch2.5.weight"}
    tell = widths.get(layout.family)
    registered = any(variant.name == row.name for row in variants())
    found.append(
        Finding(
            "model",
            variant.name,
            (seen(tell) if tell else "every name and shape")
            + ("" if registered else "; these channels are of no network of the papers"),
        )
    )
    for key, value in layout.conventions.items():
        found.append(Finding(key, value, f"the code of {layout.name}, in place of the paper's"))
    return found


def _names(layout: Layout, prefix: str) -> str:
    return "it holds " + " and ".join(repr(printable(prefix + name)) for name in layout.signature)


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
