"""Lowerings that put something else in the place of each site, and change nothing around it.

Such a lowering is one function from a site to the tensors that stand for its outputs. The names of the
outputs stay, and with them all that parity knows: channels are where they were.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.analyze import analyze
from shufflectl.converters.rewrite.edit import Editor, channel_axis_size
from shufflectl.converters.rewrite.lowering import (
    RefusedError,
    Report,
    SiteReport,
    bytes_moved,
    kept,
    operators,
    report,
)
from shufflectl.converters.rewrite.provenance import Output, Site, label

__all__ = ["Build", "Form", "divide", "join", "permutation_matrix", "require_form", "rewrite_sites"]

Build = Callable[[Editor, Site], list[ir.Value]]
"""Returns what stands for each of a site's outputs, or raises `RefusedError`."""


Form = tuple[str, str, Build]
"""A form's name, why it is chosen, and how it is built."""


def join(editor: Editor, site: Site) -> ir.Value:
    """Return the site's inputs as one tensor."""
    return editor.concat([editor.value(name) for name, _ in site.inputs], f"{site.name}.concat")


def divide(editor: Editor, site: Site, whole: ir.Value) -> list[ir.Value]:
    """Return the outputs of a site that has a form, as runs of its shuffled channels.

    Runs that follow one another and hold every channel once come from one Split, others from Slices.
    """
    total = channel_axis_size(whole)
    starts = [_start(o) for o in site.outputs]
    sizes = [len(o.map) for o in site.outputs]
    order = sorted(range(len(starts)), key=lambda i: (starts[i], sizes[i]))
    partial = [i for i in order if sizes[i] < total]
    ends = [starts[i] + sizes[i] for i in partial]
    tiles = partial and [starts[i] for i in partial] == [0, *ends[:-1]] and ends[-1] == total
    found: dict[int, ir.Value] = {}
    if tiles and len(partial) > 1:
        parts = editor.split(whole, [sizes[i] for i in partial], f"{site.name}.split")
        found = dict(zip(partial, parts, strict=True))
    return [
        found.get(i) or editor.slice(whole, starts[i], starts[i] + sizes[i], f"{output.name}.slice")
        for i, output in enumerate(site.outputs)
    ]


def _start(output: Output) -> int:
    if output.start is None:
        raise RefusedError("the channels do not follow from one channel shuffle")
    return output.start


def require_form(site: Site) -> int:
    """Return the groups of a site's channel shuffle.

    Raises:
        RefusedError: It moves channels in another way.
    """
    if site.form is None:
        raise RefusedError("the channels do not follow from one channel shuffle")
    return site.form.groups


def _check(editor: Editor, site: Site) -> None:
    if any(o.reshaped for o in site.outputs):
        raise RefusedError("it also changes the spatial shape")
    for name, _ in site.inputs:
        if len(Graph.shape(editor.value(name))) < 3:
            raise RefusedError(f"{name!r} has no spatial axes")


def _makers(values: Sequence[ir.Value], new: set[str]) -> list[ir.Node]:
    """Return the new nodes that make tensors; a form that was refused may have left others behind."""
    found: list[ir.Node] = []
    left = [v.producer() for v in values]
    while left:
        node = left.pop()
        if node is not None and label(node) in new and node not in found:
            found.append(node)
            left += [v.producer() for v in node.inputs if v is not None]
    return found


def _attempt(
    editor: Editor, site: Site, forms: Sequence[Form]
) -> tuple[Form | None, list[ir.Value], list[str]]:
    """Return the first form that a site takes, what stands for its outputs, and what was refused."""
    refused: list[str] = []
    for form in forms:
        try:
            _check(editor, site)
            editor.after([editor.value(name) for name, _ in site.inputs])
            return form, form[2](editor, site), refused
        except RefusedError as error:
            refused.append(f"{form[0]}: {error}")
    return None, [], refused


def rewrite_sites(
    graph: Graph, lowering: str, why: str, build: Build, otherwise: Sequence[Form] = ()
) -> tuple[Graph, Report]:
    """Return a graph with every site that moves channels built anew.

    Sites that only join and divide are as cheap as they can be one by one, and stay.

    Args:
        graph: The graph; it is not changed.
        lowering: The name of the lowering and of its form.
        why: Why the form is chosen.
        build: How it is built.
        otherwise: The forms for sites that it refuses, in order.
    """
    provenance = analyze(graph)
    editor = Editor(graph)
    sites: list[SiteReport] = []
    for site in provenance.sites:
        if not site.shuffles:
            sites.append(kept(graph, site, "no channel changes its place among its neighbours"))
            continue
        existing = {label(n) for n in editor.graph.nodes}
        form, made, refused = _attempt(editor, site, ((lowering, why, build), *otherwise))
        if form is None:
            sites.append(kept(graph, site, f"{lowering} does not apply", *refused))
            continue
        new = _makers(made, {label(n) for n in editor.graph.nodes} - existing)
        before = [n for n in graph.nodes if label(n) in site.nodes]
        for output, value in zip(site.outputs, made, strict=True):
            editor.replace(editor.value(output.name), value)
        sites.append(
            SiteReport(
                site.name,
                site.description,
                form[0],
                form[1],
                tuple(refused),
                operators(before),
                operators(new),
                bytes_moved(before),
                bytes_moved(new),
            )
        )
    result = editor.finish()
    notes = tuple(
        f"{shared!r} was shared by several nodes; each has its own copy now" for shared in editor.shared
    )
    return result, report(lowering, graph, result, tuple(sites), provenance=provenance, notes=notes)


def permutation_matrix(channels: Sequence[int], total: int, dtype: np.dtype[np.generic]) -> np.ndarray:
    """Return the matrix ``[len(channels), total]`` that picks the listed channels."""
    matrix = np.zeros((len(channels), total), dtype)
    matrix[np.arange(len(channels)), np.asarray(channels)] = 1
    return matrix
