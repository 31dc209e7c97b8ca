"""Logical arrays (NCHW, fp32, the captured graph's names) in and out of a file's own tensors.

A file is fed images as it says that it wants them, where their pixels are at hand: a preprocessing that is
folded into the file is part of what is compared, and so is what the file claims of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shufflectl.converters.quantize.scales import Scale
from shufflectl.converters.trace import NHWC, TensorView, captured_of, pixels_of
from shufflectl.deploy.parity.feeds import Feeds
from shufflectl.deploy.runtimes.base import Arrays, Session, TensorSpec
from shufflectl.errors import ArtifactError, DataError
from shufflectl.models.preprocess import PIXELS, Preprocess

__all__ = ["Ports", "nhwc_shape"]

_IMAGE_RANK = 4
_CODES = (np.dtype(np.int8), np.dtype(np.uint8))
_THEMSELVES = Scale(1.0, -128)
"""The grid of unsigned integers that stand for themselves."""


def nhwc_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return an NCHW shape as NHWC."""
    return tuple(shape[axis] for axis in NHWC)


class Ports:
    """The inputs and outputs of one session, as the captured graph has them.

    A file that carries a trace is addressed through it. Any other file is matched by position; whether an
    image input is NCHW or NHWC is read from the file's shape.

    Args:
        session: The loaded file.
        file: What messages call it.
        inputs: Names of the graph's inputs in the graph's order; the file's order where not given.
        outputs: Names of the graph's outputs, likewise.
    """

    def __init__(
        self,
        session: Session,
        file: str,
        inputs: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> None:
        self.session = session
        self.file = file
        self.inputs = self._match(session.inputs, inputs, "input")
        self.outputs = self._match(session.outputs, outputs, "output")
        for _, spec, _ in self.inputs:
            is_pixels = spec.dtype == np.uint8 and len(spec.shape) == _IMAGE_RANK
            if not np.issubdtype(spec.dtype, np.floating) and not is_pixels and not self._grid(spec):
                raise ArtifactError(
                    f"{file} takes {spec.dtype} at its input {spec.name!r}, not floating point or pixels",
                    hint="compare files that take images as floating point or as uint8",
                )

    @property
    def takes_bytes(self) -> bool:
        """Whether an image goes in as 8-bit pixels."""
        return any(spec.dtype == np.uint8 and not self._grid(spec) for _, spec, _ in self.inputs)

    @property
    def codes_as_pixels(self) -> Preprocess | None:
        """What pixels go through if they are the codes; None where no codes of uint8 go in."""
        grids = [self._grid(spec) for _, spec, _ in self.inputs if spec.dtype == np.uint8]
        grid = next((grid for grid in grids if grid is not None), None)
        if grid is None:
            return None
        shift = grid.scale * (grid.zero_point + 128)
        try:
            return replace(PIXELS, scale=grid.scale, mean=(shift,) * 3)
        except ValueError:  # no grid of an image
            return None

    @property
    def foreign(self) -> bool:
        """Whether the file carries no trace, so that its layouts are read from shapes."""
        return not self.session.trace

    @property
    def batch(self) -> int | None:
        """The number of images that the file takes at once; None where it takes any number."""
        _, spec, view = self.inputs[0]
        axis = 0 if view is None or view.axes is None else view.axes.index(0)
        return spec.shape[axis] if spec.shape else None

    def expects(self, spec: TensorSpec) -> Preprocess | None:
        """Return how an input wants its images; None where the file does not say.

        A file that says nothing and takes 8-bit integers takes pixels, unless they are codes of something.
        """
        info = self.session.info
        if info is not None:
            return info.expects
        return PIXELS if spec.dtype == np.uint8 and not self._grid(spec) else None

    def run(
        self, images: Feeds | Mapping[str, NDArray[Any]], taps: Sequence[str] = ()
    ) -> tuple[Arrays, Arrays]:
        """Execute the file once on logical arrays.

        Args:
            images: By logical name; NCHW. With `Feeds` the file gets its images as it wants them, without as
                they are.
            taps: Names of inner tensors in the file.

        Returns:
            The outputs by logical name (of rank 4 as NCHW where the file carries a trace), and the taps as
            the file gives them, by their names in the file.

        Raises:
            ArtifactError: The file's layout cannot be told from its shape, or its trace does not fit it.
            DataError: An input is missing or does not fit.
        """
        feeds = {}
        given = images.arrays if isinstance(images, Feeds) else images
        for name, spec, view in self.inputs:
            if name not in given:
                raise DataError(f"no input is given for {name!r} of {self.file}")
            logical = images.fed(name, self.expects(spec)) if isinstance(images, Feeds) else images[name]
            held = view or self._guess(spec, logical.shape)
            # An fp16 input may overflow, pixels may not be what is given: that shows in the outputs.
            grid = self._grid(spec)
            with np.errstate(over="ignore", invalid="ignore"):
                array = self.view_to_file(held, logical)
                feeds[spec.name] = (
                    array.astype(spec.dtype, copy=False) if grid is None else _codes(grid, array, spec.dtype)
                )
            if not _fits(spec.shape, feeds[spec.name].shape):
                shape = [*spec.shape[:1], *feeds[spec.name].shape[1:]]
                raise DataError(
                    f"{self.file} takes {spec.name!r} of shape {_text(spec.shape)}, and the images are "
                    f"{_text(shape)}",
                    hint="compare files of one input size; a file of another model may have taken its place",
                )
        results = self.session.run(feeds, taps)
        outputs = {}
        for name, spec, view in self.outputs:
            array = self._numbers(spec.name, results[spec.name])
            outputs[name] = array if view is None else self.collect(name, view, {view.name: array})
        return outputs, {tap: self._numbers(tap, results[tap]) for tap in taps}

    def _grid(self, spec: TensorSpec) -> Scale | None:
        """Return what the codes of an input stand for; None for floats, and for pixels as they are."""
        if spec.dtype not in _CODES:
            return None
        grid = self.session.integers.grids.get(spec.name)
        return None if grid is None or (spec.dtype == np.uint8 and grid == _THEMSELVES) else grid

    def _numbers(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """Return the numbers that codes stand for; anything else as it is."""
        grid = self.session.integers.grids.get(name)
        if grid is None or array.dtype not in _CODES:
            return array
        shift = 128 if array.dtype == np.uint8 else 0
        return grid.values((array.astype(np.int16) - shift).astype(np.int8))

    def view_to_file(self, view: TensorView, logical: NDArray[Any]) -> NDArray[Any]:
        """Return a logical array as the file holds it; a view that does not fit it is an `ArtifactError`."""
        try:
            return view.to_file(logical)
        except (ValueError, IndexError) as error:
            raise self._misfit(view.name, view, logical.shape) from error

    def collect(self, name: str, view: TensorView, arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Return the file's arrays as the graph has them; a view that does not fit is an `ArtifactError`."""
        try:
            return view.collect(arrays)
        except (KeyError, ValueError, IndexError) as error:
            raise self._misfit(name, view, arrays[view.name].shape) from error

    def _misfit(self, name: str, view: TensorView, shape: tuple[int, ...]) -> ArtifactError:
        return ArtifactError(
            f"the trace in {self.file} does not fit its tensor {name!r}: "
            f"axes {view.axes} for shape {list(shape)}",
            hint="the file was changed after its export: export it again",
        )

    def _match(
        self, specs: Sequence[TensorSpec], names: Sequence[str] | None, kind: str
    ) -> list[tuple[str, TensorSpec, TensorView | None]]:
        trace = self.session.trace
        if not trace:
            if names is not None and len(names) != len(specs):
                raise ArtifactError(
                    f"{self.file} has {len(specs)} {kind}s where the model has {len(names)}",
                    hint="compare files of the same model",
                )
            known = names if names is not None else [spec.name for spec in specs]
            return [(name, spec, None) for name, spec in zip(known, specs, strict=True)]
        by_file = {spec.name: spec for spec in specs}
        if names is None:
            logical: dict[str, str] = {}
            for name, view in trace.items():
                logical.setdefault(view.name, name)
            missing = [spec.name for spec in specs if spec.name not in logical]
            if missing:
                raise self._untraced(kind, missing[0])
            names = [captured_of(logical[spec.name]) for spec in specs]
        matched: list[tuple[str, TensorSpec, TensorView | None]] = []
        for name in names:
            # Where the preprocessing is in the file, its input stands for the pixels.
            views = [trace[key] for key in (name, pixels_of(name)) if key in trace]
            held = [view for view in views if view.name in by_file]
            if not held:
                raise self._untraced(kind, name)
            matched.append((name, by_file[held[0].name], held[0]))
        return matched

    def _untraced(self, kind: str, name: str) -> ArtifactError:
        return ArtifactError(
            f"the trace in {self.file} does not say where its {kind} {name!r} is",
            hint="the file was changed after its export: export it again",
        )

    def _guess(self, spec: TensorSpec, shape: tuple[int, ...]) -> TensorView:
        """Return the view of a foreign file's input, from its shape alone."""
        straight = _fits(spec.shape, shape)
        turned = len(shape) == 4 and _fits(spec.shape, nhwc_shape(shape))
        if straight and turned:
            raise ArtifactError(
                f"the shape {list(spec.shape)} of input {spec.name!r} of {self.file} fits both NCHW and NHWC",
                hint="use a file that shufflectl exported, or one whose shape tells its layout",
            )
        if not straight and not turned:
            raise DataError(
                f"input {spec.name!r} of {self.file} has shape {list(spec.shape)}, "
                f"which fits no layout of {list(shape)} (NCHW)",
                hint="check the model's input size",
            )
        return TensorView(spec.name, NHWC if turned else None)


def _codes(grid: Scale, array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    codes = grid.codes(array.astype(np.float32)).astype(np.int16)
    return (codes + (128 if dtype == np.uint8 else 0)).astype(dtype)


def _text(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def _fits(declared: Sequence[int | None], shape: Sequence[int]) -> bool:
    """Say whether a declared shape admits a shape in all axes but the batch."""
    return len(declared) == len(shape) and all(
        want is None or want == have for want, have in zip(declared[1:], shape[1:], strict=True)
    )
