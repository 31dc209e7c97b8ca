"""A network that a user's own function builds, as a model to export, or to hold exports against."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from shufflectl.converters.capture import capture
from shufflectl.converters.graph import Graph
from shufflectl.converters.metadata import FactoryRecord, ModelInfo
from shufflectl.deploy.images import Inputs, gather_shapes
from shufflectl.deploy.onnx_model import UNPREPARED, check_types
from shufflectl.deploy.options import ParityOptions
from shufflectl.deploy.verify import Notify, Reference
from shufflectl.errors import FactoryError, UsageError
from shufflectl.models.factory import Factory, build, running
from shufflectl.models.preprocess import Preprocess

if TYPE_CHECKING:
    import torch

__all__ = ["FactoryModel", "call_of", "open_factory"]

_DEFAULT_SIZE: Final = 224
_ABSOLUTE: Final = re.compile(r"/|~|[A-Za-z]:[\\/]|\\\\")


@dataclass(frozen=True)
class FactoryModel:
    """A network that was built, with weights.

    Attributes:
        factory: The function, and what it was called with.
        module: In evaluation mode, fp32, on the CPU; it gives a tuple of tensors.
        shapes: Of the inputs by name, in the order in which the network takes them.
        outputs: The names of the outputs, in the order in which it gives them.
        width: The number of classes, or of channels, of the first output.
        batch: A fixed size, or ``dynamic``.
        info: What files that are made from it say about themselves.
        notes: What the user should know, a sentence each.
    """

    factory: Factory
    module: "torch.nn.Module"
    shapes: Mapping[str, tuple[int, ...]]
    outputs: tuple[str, ...]
    width: int
    batch: int | str
    info: ModelInfo
    notes: tuple[str, ...]

    @cached_property
    def graph(self) -> Graph:
        """The captured graph.

        Raises:
            GraphError: The network cannot be captured.
        """
        import torch

        graph = capture(
            self.module,
            tuple(torch.zeros(shape) for shape in self.shapes.values()),
            name=self.info.name,
            input_names=tuple(self.shapes),
            output_names=self.outputs,
            dynamic_batch=self.batch == "dynamic",
        )
        check_types(graph)
        return graph

    @property
    def interface(self) -> dict[str, list[str]]:
        """The names of inputs and outputs, where there are several."""
        names = {"inputs": list(self.shapes), "outputs": list(self.outputs)}
        return {key: value for key, value in names.items() if len(value) > 1}

    def reference(self, name: str) -> Reference:
        """Return the network as what is right; reports call it ``name``."""
        return Reference(
            name,
            self.module,
            lambda: self.graph,
            inputs=tuple(self.shapes),
            outputs=self.outputs,
            batch=self.batch if isinstance(self.batch, int) else None,
        )

    def inputs(self, options: ParityOptions) -> Inputs:
        """Return what parity runs on."""
        return gather_shapes(self.shapes, self.info.preprocess, self.info.labels, options)


def call_of(record: FactoryRecord) -> str:
    """Return the options that name a function on the command line, as a file's record has them."""
    words = ["--model", record.name]
    for key, value in record.arguments:
        words += ["--arg", f"{key}={value}"]
    text = shlex.join(words)
    return "".join(c if c.isprintable() else "?" for c in text[:400])


def open_factory(
    factory: Factory,
    *,
    weights: str | None = None,
    size: int | None = None,
    batch: int | str = 1,
    notify: Notify = lambda _what, _done, _total: None,
) -> FactoryModel:
    """Build a user's network, load weights into it, and run it once to learn its outputs.

    Args:
        factory: The function. Its code runs.
        weights: A checkpoint's path, ``random:SEED``, or None for what the function gives.
        size: Height and width of its one image, where no shape is given.
        batch: A fixed size, or ``dynamic``.
        notify: Told about progress.

    Raises:
        UsageError: There is no such function, it does not take the arguments, or shapes do not fit together.
        FactoryError: The user's code raises an exception, or gives something that cannot be exported.
        CheckpointError: The checkpoint cannot be used or does not fit.
    """
    import torch

    from shufflectl.models.custom import load_into
    from shufflectl.models.structure import flattened, name_outputs

    notify(f"building {factory.name}", 0, 0)
    module = _plain(build(factory), factory.name)
    notify("loading weights", 0, 0)
    loaded = load_into(module, weights, factory.name)
    shapes, traced = _shapes(factory, module, size or loaded.input_size, batch)
    images = tuple(torch.zeros(shape) for shape in shapes.values())
    said = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    with (
        running(f"{factory.name} was built, and its forward raised on {said}:", "shapes: --input"),
        torch.no_grad(),
    ):
        given = module(*images)
    outputs, results = name_outputs(given, factory.outputs, tuple(shapes), factory.name)
    if not isinstance(given, torch.Tensor):
        module = flattened(module)
    width = next((s for s in results if len(s) == 2), results[0])
    record = FactoryRecord(
        factory.name,
        tuple((key, _shown(value)) for key, value in factory.arguments.items()),
        tuple(shapes),
        outputs,
    )
    notes = list(loaded.notes)
    if loaded.preprocess is None:
        notes.append(f"{factory.name} {UNPREPARED}")
    info = ModelInfo(
        name=factory.name.rpartition(":")[2],
        weights=loaded.weights,
        weights_sha256=loaded.sha256,
        preprocess=loaded.preprocess or Preprocess(),
        preprocess_from="weights" if loaded.preprocess else "assumed",
        labels=loaded.labels,
        description=loaded.description or f"Built by {factory.name}.",
        author=loaded.author,
        version=loaded.version,
        license=loaded.license,
        factory=record,
    )
    return FactoryModel(
        factory,
        module,
        shapes,
        outputs,
        max(1, width[1] if len(width) > 1 else 1),
        traced,
        info,
        tuple(notes),
    )


def _shown(value: str) -> str:
    """Return an argument as records hold it: no folder of this machine."""
    return PurePath(value.replace("\\", "/")).name if _ABSOLUTE.match(value) else value


def _plain(module: "torch.nn.Module", name: str) -> "torch.nn.Module":
    """Return what is exported of a network: not compiled, on the CPU, in fp32, in evaluation mode.

    Raises:
        FactoryError: It is a TorchScript program.
    """
    import torch

    module = getattr(module, "_orig_mod", module)  # what torch.compile wraps
    if isinstance(module, torch.jit.ScriptModule):
        raise FactoryError(
            f"{name} gives a TorchScript program, which cannot be captured",
            hint="return the network that it was made from",
        )
    with running(f"{name} gives a network that cannot be moved to the processor in fp32:"):
        if not any(tensor.is_meta for tensor in module.state_dict().values()):
            module = module.to("cpu")
        return module.float().eval()


def _shapes(
    factory: Factory, module: "torch.nn.Module", size: int | None, batch: int | str
) -> tuple[dict[str, tuple[int, ...]], int | str]:
    """Return the shapes to trace with, in the order of forward's parameters, and the batch.

    Raises:
        UsageError: They do not fit the network, or one another.
    """
    from shufflectl.models.structure import bind, parameters

    # A dynamic batch is traced with two images: torch.export takes a dimension of size one for a constant.
    count = 2 if batch == "dynamic" else int(batch)
    if not factory.inputs:
        required, known, _ = parameters(module)
        if len(required) > 1 or not (known or parameters(module)[2]):
            bind([], module, factory.name)
            raise UsageError(f"{factory.name} takes no input", hint="export the network itself")
        side = size or _DEFAULT_SIZE
        return {"image": (count, 3, side, side)}, batch
    first = {name: shape[0] for name, shape in factory.inputs.items()}
    if len(set(first.values())) > 1:
        raise UsageError(
            "the inputs differ in their first dimension, which is the batch: "
            + ", ".join(f"{name} {number}" for name, number in first.items()),
            hint="give the same to all",
        )
    (own,) = set(first.values())
    if batch not in ("dynamic", 1, own):
        raise UsageError(f"--batch is {batch}, and the shapes of --input have {own}", hint="leave one out")
    traced = batch if batch == "dynamic" else own
    order = bind(list(factory.inputs), module, factory.name)
    return {
        name: (count if traced == "dynamic" else own, *factory.inputs[name][1:]) for name in order
    }, traced
