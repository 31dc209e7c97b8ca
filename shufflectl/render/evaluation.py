"""How often files are right, as a table or as JSON."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shufflectl.console import Output
from shufflectl.render.words import FAIL, PASS, escape, plain

if TYPE_CHECKING:
    from shufflectl.deploy.evaluation.scores import Evaluation, FileScore, ModelScores
    from shufflectl.deploy.labelled import Damaged

__all__ = ["evaluated"]

_SHOWN = 10


def evaluated(output: Output, result: "Evaluation") -> None:
    """Show how often files are right."""
    if output.json:
        output.document(result.to_json())
        return
    for model in result.models:
        _scores(output, model, result)
    _unusable(output, "not decoded", result.damaged)
    _unusable(output, "not looked into", result.refused)


def _scores(output: Output, model: "ModelScores", result: "Evaluation") -> None:
    columns = ["file", "top-1", "top-5", f"agrees with {escape(model.reference_name)}", "images/s"]
    if result.min_top1 is not None:
        columns.insert(1, "verdict")
    rows = []
    if model.reference is not None:
        score = model.reference
        rows.append(
            [
                escape(model.reference_name),
                _share(score.share),
                _share(score.share5),
                "",
                f"{score.images_per_second:.4g}",
            ]
        )
        if result.min_top1 is not None:
            rows[0].insert(1, "")
    for file in model.files:
        score = file.score
        cells = [escape(file.artifact.file), _share(score.share), _share(score.share5)]
        cells += [_share(file.agreement_share), f"{score.images_per_second:.4g}"]
        if result.min_top1 is not None:
            cells.insert(1, FAIL if file in result.failing else PASS)
        rows.append(cells)
    output.table(
        f"{escape(model.model)} on {result.images} images of {result.classes} classes "
        f"({escape(plain(result.data))})",
        columns,
        rows,
        right=[column for column in columns[1:] if column != "verdict"],
    )
    ran = dict.fromkeys(f"{file.artifact.target}: {file.runtime}" for file in model.files)
    output.text(f"[dim]run with {escape(', '.join(ran))}[/]")
    if model.classes_by == "order":
        output.note(
            "[yellow]note:[/] no output has a folder's name: folders and outputs were matched in sorted order"
        )
    for file in model.files:
        _feeding(output, file)


def _feeding(output: Output, file: "FileScore") -> None:
    """Say what explains a poor result, and what else a reader must know of it."""
    name = escape(file.artifact.file)
    if file.preprocess_from == "assumed":
        from shufflectl.models.preprocess import IMAGENET

        assumed = file.preprocess
        what = "ImageNet's mean and standard deviation are" if assumed == IMAGENET else f"{assumed.text} is"
        output.note(f"[yellow]note:[/] {name} does not say how it is fed: {escape(what)} assumed")
    if file.score.nonfinite:
        output.text(f"[yellow]{name}:[/] outputs of {file.score.nonfinite} images are not finite")
    if file.explanation is not None:
        output.text(f"[bold yellow]{name}:[/] {escape(plain(file.explanation.sentence))}")
    elif file.explained:
        output.text(f"[dim]{name}: no other preprocessing explains what is wrong[/]")


def _unusable(output: Output, what: str, files: "Sequence[Damaged]") -> None:
    """Name the first of the files that were left out."""
    if not files:
        return
    output.text(f"[yellow]{len(files)} {what}:[/]")
    for entry in files[:_SHOWN]:
        output.text(f"  {escape(plain(entry.file))}: {escape(plain(entry.why))}")
    if len(files) > _SHOWN:
        output.text(f"  and {len(files) - _SHOWN} more; --json names all")


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
