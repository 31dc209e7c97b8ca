"""What the files of an export take from their callers, and the graph that takes it."""

from dataclasses import dataclass, replace

from shufflectl.converters.graph import Graph
from shufflectl.converters.metadata import FileInput, Inside, ModelInfo
from shufflectl.converters.pixels import Fold, fold_preprocess, image_inputs, take_bytes
from shufflectl.converters.targets import TARGETS
from shufflectl.deploy.options import ExportRequest
from shufflectl.errors import UsageError
from shufflectl.models.preprocess import PIXELS, Layout, Preprocess

__all__ = ["Given", "give_pixels", "prepared"]

_HALVED = ("onnx", "coreml")


@dataclass(frozen=True)
class Given:
    """A graph with its inputs as callers give them.

    Attributes:
        graph: What is rewritten and emitted.
        request: The export.
        expects: What is left for callers to do; None where no input is an image.
        channels_last: Whether the graph itself has its images as ``[N, H, W, 3]``.
        folds: What became of each image's preprocessing.
    """

    graph: Graph
    request: ExportRequest
    expects: Preprocess | None
    channels_last: bool = False
    folds: tuple[Fold, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done, a sentence for each image."""
        return tuple(dict.fromkeys(fold.why for fold in self.folds))

    @property
    def inside(self) -> Inside:
        """What the files do themselves, for the image of which they do least in their weights."""
        order: tuple[Inside, ...] = ("operators", "shift", "weights", "nothing")
        return min((fold.how for fold in self.folds), key=order.index, default="nothing")

    def input(self, target: str, precision: str) -> FileInput | None:
        """Return what a file takes."""
        if self.expects is None:
            return None
        request = self.request
        layout: Layout = request.layout or TARGETS[target].default_layout
        if self.channels_last:
            layout = "nhwc"
        kind = "float32"
        if request.input_type == "uint8":
            kind = "image" if target == "coreml" else "uint8"
        elif request.half_io and precision == "fp16" and target in _HALVED:
            kind = "float16"
        if kind == "image":
            layout = "nchw"
        return FileInput(replace(self.expects, layout=layout), kind, self.inside)


def prepared(request: ExportRequest, info: ModelInfo) -> ModelInfo:
    """Return a model's description with the preprocessing that the user asks for.

    Raises:
        UsageError: What is asked for makes no specification.
    """
    if not request.preprocess.given:
        return info
    own = replace(request.preprocess.of(info.preprocess), layout="nchw")
    return replace(info, preprocess=own, preprocess_from="option")


def give_pixels(request: ExportRequest, graph: Graph, preprocess: Preprocess) -> Given:
    """Return the graph whose images come as the user asks for.

    Args:
        request: Whether the preprocessing goes into the graph, and the type of its images.
        graph: The captured graph.
        preprocess: What the network's images go through.

    Raises:
        GraphError: It is asked for pixels, and there is no image.
        UsageError: It is asked for 8-bit images, and the network does not take pixels as they are.
    """
    images = image_inputs(graph)
    last = any(axis != 1 for _, axis in images)
    folds: tuple[Fold, ...] = ()
    expects = preprocess
    if request.fold_preprocess:
        graph, folds = fold_preprocess(graph, preprocess)
        expects = replace(PIXELS, resize=preprocess.resize, crop=preprocess.crop)
    if request.input_type == "uint8":
        if not expects.takes_pixels:
            raise UsageError(
                f"the network takes no 8-bit pixels: {preprocess.text}",
                hint="add --fold-preprocess, which lets the files prepare the pixels themselves",
            )
        graph = take_bytes(graph)
    return Given(graph, request, expects if images else None, last, folds)
