"""The images that a network is calibrated on, and how its graph is run over them.

Pictures are read one at a time, as many as are asked for, and held as pixels of the network's size. Batches
of a few go through ONNX Runtime, and none of their tensors is kept.
"""

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from shufflectl.converters.graph import Graph
from shufflectl.converters.quantize.calibrate import observe, settle
from shufflectl.converters.quantize.calibration import Calibration
from shufflectl.converters.quantize.ties import is_activation_tensor
from shufflectl.converters.trace import NHWC, captured_of, pixels_of
from shufflectl.deploy.calibration_options import MIN_IMAGES, CalibrationOptions
from shufflectl.deploy.labelled import DIGITS, Damaged, Fit, Pictures, PixelArray, find_pictures
from shufflectl.deploy.parity.feeds import Feeds
from shufflectl.deploy.verify import Notify
from shufflectl.errors import DataError, GraphError, UsageError
from shufflectl.models.data import digits_calibration
from shufflectl.models.preprocess import Preprocess

__all__ = ["Calibrator", "read_calibration", "session_of"]

_SHOWN: Final = 32
"""Images that are given back."""

_BATCH: Final = 4
_MAX_BYTES: Final = 4 << 30
"""Of one array in an .npz file."""
_MAX_CALIBRATION: Final = 64 << 20
_COLOURS: Final = 3


class _Source(Protocol):
    """Images, or what a network takes, by their places."""

    @property
    def text(self) -> str:
        """Where they are from, in words that name no place of this machine."""

    def __len__(self) -> int:
        """How many there are."""

    def feeds(self, places: Sequence[int]) -> Feeds:
        """Return those of these places, as the network takes them."""


def read_calibration(path: Path) -> Calibration:
    """Return a calibration that was made before.

    Raises:
        DataError: The file cannot be read, or is no calibration.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_CALIBRATION + 1)
        if len(data) > _MAX_CALIBRATION:
            raise DataError(f"{path} is too large to be a calibration")
        return Calibration.from_json(json.loads(data))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is no calibration: it is not JSON", hint="see docs/quantisation.md"
        ) from error


class Calibrator:
    """Calibrates one graph, in two steps; between them layers can be measured, to keep some in floats.

    Args:
        graph: What is written to files, before any rewrite.
        options: On what, and how.
        preprocess: What the network's images go through.
        expects: What is left of that for callers of the graph to do; None where no input is an image.
        notify: Told about progress.

    Attributes:
        observed: The ranges.
        images: Some of the images; None where the calibration was made before.

    Raises:
        DataError: There are too few images, they are all the same, or do not fit the network; or the
            calibration that was made before is of another graph.
    """

    def __init__(
        self,
        graph: Graph,
        options: CalibrationOptions,
        preprocess: Preprocess,
        expects: Preprocess | None,
        notify: Notify,
    ) -> None:
        self._graph = graph
        self._runner: _Runner | None = None
        self.images: Feeds | None = None
        if options.made_before is not None:
            self.observed = read_calibration(options.made_before)
            self.observed.require(graph)
            return
        source = _find(graph, options, preprocess, notify)
        places = _chosen(len(source), options)
        self._runner = _Runner(graph, source, places, expects, notify)
        self._runner.refuse_constant()
        self.images = source.feeds(places[:_SHOWN])
        self.observed = observe(
            graph, self._runner.run, options.recipe, source=source.text, images=len(places), seed=options.seed
        )

    def settled(self, floats: frozenset[str]) -> Calibration:
        """Return the calibration for a network of which some layers compute in floating point.

        Raises:
            UsageError: It was made before, for others.
        """
        if self._runner is not None:
            return settle(self._graph, self.observed, self._runner.run, floats)
        if floats and floats != self.observed.floats:
            raise UsageError(
                "the calibration that was made before is for a network with other layers in floats",
                hint="give --calibration images, or leave out --keep-float",
            )
        return self.observed


def _chosen(count: int, options: CalibrationOptions) -> list[int]:
    if count < MIN_IMAGES:
        raise DataError(
            f"{options.source} holds {count} usable images, too few to calibrate on",
            hint=f"give at least {MIN_IMAGES}, better 100 and more, of the kind that the network will see",
        )
    if count <= options.images:
        return list(range(count))
    rng = np.random.default_rng(options.seed)
    return sorted(int(place) for place in rng.choice(count, options.images, replace=False))


def _find(graph: Graph, options: CalibrationOptions, preprocess: Preprocess, notify: Notify) -> _Source:
    path = Path(options.source)
    if options.source != DIGITS and path.suffix.lower() == ".npz":
        return _from_npz(graph, path, options, preprocess, notify)
    inputs = list(graph.inputs)
    shape = Graph.shape(inputs[0])
    area = _area(shape)
    if len(inputs) != 1 or area is None:
        names = ", ".join(str(value.name) for value in inputs)
        raise DataError(
            f"images alone do not feed the inputs {names}: the network takes more than one image of three "
            "colours",
            hint="give an .npz file with an array for each input, under its name",
        )
    height, width = area
    if height != width:
        raise DataError(
            f"the network takes images of {height} x {width}, and pictures are made square",
            hint="give an .npz file with arrays as the network takes them",
        )
    name = captured_of(graph.record(str(inputs[0].name)).origin)
    digits = options.source == DIGITS
    pictures: Pictures = PixelArray(digits_calibration(height)) if digits else find_pictures(options.source)
    pixels = _decoded(pictures, height, preprocess, options, notify)
    return _Pictures(path.name, name, pixels, preprocess, channels_last=shape[1] != _COLOURS)


def _area(shape: Sequence[int | str]) -> tuple[int, int] | None:
    """Return height and width of an image input; None where it is something else."""
    if len(shape) != 4 or _COLOURS not in (shape[1], shape[3]):
        return None
    height, width = (shape[2], shape[3]) if shape[1] == _COLOURS else (shape[1], shape[2])
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


class _Pictures:
    """Pictures of the network's size."""

    def __init__(
        self, text: str, name: str, pixels: NDArray[np.uint8], preprocess: Preprocess, *, channels_last: bool
    ) -> None:
        self.text = text
        self._name = name
        self._pixels = pixels
        self._preprocess = preprocess
        self._last = channels_last

    def __len__(self) -> int:
        return len(self._pixels)

    def feeds(self, places: Sequence[int]) -> Feeds:
        pixels = self._pixels[list(places)]
        made = self._preprocess.apply(pixels)
        arrays = np.ascontiguousarray(made.transpose(NHWC)) if self._last else made
        return Feeds({self._name: arrays}, {self._name: pixels}, self._preprocess)


def _decoded(
    pictures: Pictures, size: int, preprocess: Preprocess, options: CalibrationOptions, notify: Notify
) -> NDArray[np.uint8]:
    """Return as many pictures as are asked for, chosen by the seed; files that do not decode are left out."""
    order = np.random.default_rng(options.seed).permutation(len(pictures))
    if len(pictures) <= options.images:
        order = np.arange(len(pictures))
    fit: Fit = "squash" if preprocess.resize == "squash" else "auto"
    pictures = pictures.seen(preprocess.crop)
    found: list[NDArray[np.uint8]] = []
    for place in order:
        notify("reading images", len(found), min(options.images, len(order)))
        image = pictures.read(int(place), size, fit)
        if not isinstance(image, Damaged):
            found.append(image)
        if len(found) == options.images:
            break
    return np.stack(found) if found else np.zeros((0, size, size, _COLOURS), np.uint8)


class _Tensors:
    """What the network takes, from an .npz file."""

    def __init__(self, text: str, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        self.text = text
        self._arrays = arrays

    def __len__(self) -> int:
        return min(len(array) for array in self._arrays.values())

    def feeds(self, places: Sequence[int]) -> Feeds:
        return Feeds({name: array[list(places)] for name, array in self._arrays.items()})


def _from_npz(
    graph: Graph, path: Path, options: CalibrationOptions, preprocess: Preprocess, notify: Notify
) -> _Source:
    """Return pictures (uint8, ``[N, H, W, 3]``) or what the network takes (floats, by its inputs' names)."""
    names = [captured_of(graph.record(str(value.name)).origin) for value in graph.inputs]
    arrays = _read_npz(path)
    first = arrays.get(names[0], arrays.get("images"))
    if first is None and len(arrays) == 1 and len(names) == 1:
        first = next(iter(arrays.values()))
    if first is None:
        raise DataError(
            f"{path} holds {', '.join(arrays) or 'no array'}, and no array is named images or {names[0]}",
            hint="name the pictures images (uint8, [N, H, W, 3]), or each array like an input",
        )
    shape = Graph.shape(graph.inputs[0])
    area = _area(shape)
    if first.dtype == np.uint8 and len(names) == 1 and area is not None:
        if first.ndim != 4 or first.shape[3] != _COLOURS or 0 in first.shape:
            raise DataError(
                f"the pictures in {path} have shape {list(first.shape)}", hint="give RGB: [N, H, W, 3], uint8"
            )
        if area[0] != area[1]:
            raise DataError(
                f"the network takes images of {area[0]} x {area[1]}, and pictures are made square",
                hint="give an array of floats as the network takes it",
            )
        pixels = _decoded(PixelArray(first), area[0], preprocess, options, notify)
        return _Pictures(path.name, names[0], pixels, preprocess, channels_last=shape[1] != _COLOURS)
    if any(str(value.name) != name for value, name in zip(graph.inputs, names, strict=True)) or any(
        graph.record(str(value.name)).origin == pixels_of(str(value.name)) for value in graph.inputs
    ):
        raise DataError(
            f"the files prepare their images themselves, and {path} holds prepared ones",
            hint="give pictures: uint8, [N, H, W, 3]",
        )
    found = {name: (first if name == names[0] else arrays.get(name)) for name in names}
    checked: dict[str, NDArray[np.float32]] = {}
    for value, (name, array) in zip(graph.inputs, found.items(), strict=True):
        wanted = Graph.shape(value)[1:]
        if array is None:
            raise DataError(
                f"{path} has no array for the input {name!r}", hint=f"it holds {', '.join(arrays)}"
            )
        if array.dtype.kind != "f" or array.ndim != len(wanted) + 1 or list(array.shape[1:]) != list(wanted):
            raise DataError(
                f"the array for {name!r} in {path} is {array.dtype} {list(array.shape)}, and the network "
                f"takes float32 [N, {', '.join(map(str, wanted))}]",
                hint="give pictures (uint8, [N, H, W, 3]), or arrays of floats as the network takes them",
            )
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused as infinite
            checked[name] = array.astype(np.float32, copy=False)
        if not np.isfinite(checked[name]).all():
            raise DataError(
                f"the array for {name!r} in {path} holds NaN or infinity", hint="check the images"
            )
    return _Tensors(path.name, checked)


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file, none of which may run code or be larger than memory.

    Raises:
        DataError: The file cannot be read, or holds something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        large = next((name for name, size in sizes.items() if size > _MAX_BYTES), None)
        if large is not None or sum(sizes.values()) > 2 * _MAX_BYTES:
            raise DataError(
                f"{path} holds more than {_MAX_BYTES >> 30} GiB in an array",
                hint="give fewer images, or a folder of pictures, which are read one at a time",
            )
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except MemoryError as error:
        raise DataError(
            f"{path} holds an array that does not fit into memory",
            hint="give fewer images, or a folder of pictures, which are read one at a time",
        ) from error
    except (OSError, ValueError, zipfile.BadZipFile, KeyError, EOFError, NotImplementedError) as error:
        reason = (
            error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[:1]
        )
        text = reason if isinstance(reason, str) else "".join(reason)
        raise DataError(f"{path} cannot be read as an .npz file: {text or type(error).__name__}") from error


class _Runner:
    """Runs graphs over the images of one calibration, again and again."""

    def __init__(
        self,
        graph: Graph,
        source: _Source,
        places: Sequence[int],
        expects: Preprocess | None,
        notify: Notify,
    ) -> None:
        self._inputs = [
            (str(value.name), captured_of(graph.record(str(value.name)).origin), value.dtype)
            for value in graph.inputs
        ]
        batch = Graph.shape(graph.inputs[0])[0]
        self._batch = batch if isinstance(batch, int) else _BATCH
        self._source = source
        self._places = places
        self._expects = expects
        self._notify = notify
        self._passes = 0

    def refuse_constant(self) -> None:
        """Refuse images that are all the same.

        Raises:
            DataError: They are.
        """
        first: Mapping[str, NDArray[Any]] | None = None
        for feeds in self._batches():
            first = first or {name: array[:1] for name, array in feeds.items()}
            if any((array != first[name]).any() for name, array in feeds.items()):
                return
        raise DataError(
            f"all {len(self._places)} images of {self._source.text} are the same",
            hint="give images of the kind that the network will see",
        )

    def _batches(self) -> Iterator[dict[str, NDArray[Any]]]:
        for start in range(0, len(self._places), self._batch):
            places = list(self._places[start : start + self._batch])
            places += places[-1:] * (self._batch - len(places))  # a batch that is fixed is filled up
            feeds = self._source.feeds(places)
            yield {
                name: feeds.fed(origin, self._expects).astype(dtype.numpy(), copy=False)
                for name, origin, dtype in self._inputs
                if dtype is not None
            }

    def run(self, graph: Graph, wanted: Sequence[str] | None) -> Iterator[Mapping[str, NDArray[Any]]]:
        """Run a graph over all images; see `quantize.calibrate.Run`."""
        self._passes += 1
        names = wanted
        if names is None:
            names = [str(v.name) for node in graph.nodes for v in node.outputs if is_activation_tensor(v)]
        session = session_of(graph, names)
        done, total = 0, len(self._places)
        for feeds in self._batches():
            made = dict(zip(names, session.run(list(names), feeds), strict=True))
            done = min(done + self._batch, total)
            self._notify(f"calibrating, pass {self._passes}", done, total)
            yield made if wanted is not None else {**_floats(feeds), **made}


def _floats(feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: array for name, array in feeds.items() if array.dtype.kind == "f"}


def session_of(graph: Graph, outputs: Sequence[str]) -> onnxruntime.InferenceSession:
    """Return an optimised session that gives these tensors of a graph.

    Raises:
        GraphError: ONNX Runtime refuses the graph.
    """
    proto = graph.to_proto()
    types = {v.name: v.dtype for node in graph.nodes for v in node.outputs}
    del proto.graph.output[:]
    proto.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, int(types.get(name) or onnx.TensorProto.FLOAT), None)
        for name in outputs
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime raises classes of its own, all directly below Exception
        raise GraphError(f"ONNX Runtime refuses the graph that is calibrated: {error}") from error
