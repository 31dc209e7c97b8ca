"""What the user asks of parity and of an export, parsed from words and refused with a reason."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self, cast

from shufflectl.converters.rewrite.choose import AUTO, Choice, choose, parse_align
from shufflectl.converters.targets import (
    DEPLOYMENT_TARGETS,
    IO,
    IO_TYPES,
    PRECISIONS,
    TARGETS,
    EmitOptions,
    Layout,
    Precision,
)
from shufflectl.deploy import runtimes
from shufflectl.deploy.calibration_options import CalibrationOptions
from shufflectl.deploy.parity.limits import Limits, default_limits
from shufflectl.deploy.tuning import Tuning
from shufflectl.errors import UsageError, nearest
from shufflectl.models.factory import Factory, is_factory, refuse_path
from shufflectl.models.preprocess_option import PreprocessOption

__all__ = ["INPUT_TYPES", "ExportRequest", "InputType", "ParityOptions", "parse_factory", "words"]

InputType = Literal["float", "uint8"]
INPUT_TYPES: Final[tuple[InputType, ...]] = ("float", "uint8")

_MAX_BATCH = 4096
_MAX_SIZE = 2048
_MAX_THREADS = 256


@dataclass(frozen=True)
class ParityOptions:
    """What parity runs on and what it allows.

    Attributes:
        images: How many of the bundled real images; None for all.
        random_images: How many images of noise.
        seed: The seed of the noise.
        runtimes: Runtimes that the user asked for, of any format.
        runtime_python: The interpreter in which tflite-runtime is installed.
        threads: Threads of each runtime.
        max_rel: A limit in place of the precision's, see `Limits`.
        sqnr: Likewise, in dB.
        top1: Likewise, 0 to 1.
        per_layer: Whether every inner tensor of a failing file is reported.
    """

    images: int | None = 32
    random_images: int = 8
    seed: int = 0
    runtimes: tuple[str, ...] = ()
    runtime_python: Path | None = None
    threads: int = 1
    max_rel: float | None = None
    sqnr: float | None = None
    top1: float | None = None
    per_layer: bool = False

    @classmethod
    def parse(cls, *, images: str, runtimes: Iterable[str], **rest: Any) -> Self:
        """Read what the command line has as text.

        Raises:
            UsageError: A word is not one of the choices, or a number is out of range.
        """
        options = cls(images=_count(images), runtimes=_runtimes(runtimes), **rest)
        if options.seed < 0:
            raise UsageError(f"{options.seed} is not a seed", hint="give a number from 0 upwards")
        if not 0 < options.threads <= _MAX_THREADS:  # runtimes start as many as they are told to
            raise UsageError(
                f"{options.threads} is not a number of threads",
                hint=f"give a number from 1 to {_MAX_THREADS}",
            )
        for precision in PRECISIONS:
            options.limits(precision)
        return options

    def limits(self, precision: str) -> Limits:
        """Return the limits for a file of that precision."""
        return default_limits(precision).override(max_rel=self.max_rel, sqnr=self.sqnr, top1=self.top1)

    def to_json(self) -> dict[str, Any]:
        """Return what the figures depend on as JSON values."""
        return {
            "images": "all" if self.images is None else self.images,
            "random_images": self.random_images,
            "seed": self.seed,
            "threads": self.threads,
        }


@dataclass(frozen=True)
class ExportRequest:
    """One export.

    Attributes:
        model: A name of the registry, the path of an ONNX file, or a function of the user's
            (``package.module:factory``); None for what the weights file is of.
        factory: What the user says of that function and its network; None where ``model`` is none.
        weights: As `models.load` takes it.
        targets: Names of `TARGETS`.
        precisions: Of every target.
        out: The output folder.
        output_stride: Of a model of the registry, see `models.dense`; None for its own.
        features: Likewise: the feature maps that it gives; empty for the logits.
        num_classes: None for what the weights hold.
        input_size: None for what the weights were made for.
        batch: A fixed size, or ``dynamic``.
        layout: None for each target's default.
        shuffle: The form of channel shuffles, a name of `LOWERINGS`, or ``auto`` for each target's best.
        align: What channel counts are padded to a multiple of; None for what is best with the form.
        preprocess: What images go through, where it is not what the weights say.
        fold_preprocess: Whether files do that themselves, and take RGB pixels from 0 to 255.
        input_type: Of images.
        tunings: What `shufflectl tune` found, each for its target and precision.
        half_io: See `EmitOptions`.
        io: See `EmitOptions`.
        calibration: On what networks in integers are calibrated; None where nothing was said.
        target_sqnr: Of int8 against floating point, in dB; the fewest layers that reach it stay in floating
            point. None for all in codes.
        keep_float: Layers that compute in floating point in int8 files: names of tensors or of modules.
        minimum_deployment_target: See `EmitOptions`; None for the oldest that a precision runs on.
        keep_failing: Whether files that fail parity are published.
        verbose: Whether converters may print.
        parity: What parity runs on.
    """

    model: str | None = None
    factory: Factory | None = None
    weights: str | None = None
    targets: tuple[str, ...] = tuple(TARGETS)
    precisions: tuple[Precision, ...] = ("fp32",)
    out: Path = Path("dist")
    output_stride: int | None = None
    features: tuple[str, ...] = ()
    num_classes: int | None = None
    input_size: int | None = None
    batch: int | Literal["dynamic"] = 1
    layout: Layout | None = None
    shuffle: str = AUTO
    align: int | None = None
    preprocess: PreprocessOption = field(default_factory=PreprocessOption)
    fold_preprocess: bool = False
    input_type: InputType = "float"
    tunings: tuple[Tuning, ...] = ()
    half_io: bool = False
    io: IO = "float"
    calibration: CalibrationOptions | None = None
    keep_float: tuple[str, ...] = ()
    target_sqnr: float | None = None
    minimum_deployment_target: str | None = None
    keep_failing: bool = False
    verbose: bool = False
    parity: ParityOptions = ParityOptions()

    @classmethod
    def parse(
        cls,
        *,
        targets: Sequence[str],
        precisions: Sequence[str],
        batch: str,
        layout: str | None,
        align: str = AUTO,
        arguments: Sequence[str] = (),
        inputs: Sequence[str] = (),
        outputs: Sequence[str] = (),
        features: Sequence[str] = (),
        preprocess: str = "auto",
        input_type: str = "float",
        io: str = "float",
        keep_float: Sequence[str] = (),
        **rest: Any,
    ) -> Self:
        """Read what the command line has as text.

        Raises:
            UsageError: A word is not one of the choices, or a number is out of range.
            InputError: A file with a preprocessing cannot be used.
        """
        prepared = PreprocessOption.parse(preprocess)
        if layout is not None and prepared.layout not in (None, layout):
            raise UsageError(
                f"--layout {layout} and --preprocess with layout {prepared.layout} contradict each other",
                hint="leave one of them out",
            )
        layout = layout or prepared.layout
        if input_type not in INPUT_TYPES:
            raise UsageError(f"unknown input type {input_type!r}", hint=nearest(input_type, INPUT_TYPES))
        if io not in IO_TYPES:
            raise UsageError(f"unknown type {io!r} of --io", hint=nearest(io, IO_TYPES))
        if layout is not None and layout not in ("nhwc", "nchw"):
            raise UsageError(f"unknown layout {layout!r}", hint=nearest(layout, ("nhwc", "nchw")))
        size = rest.get("input_size")
        if size is not None and size > _MAX_SIZE:
            raise UsageError(f"an input of {size} pixels is too large", hint=f"give at most {_MAX_SIZE}")
        factory = parse_factory(rest.get("model"), arguments, inputs, outputs)
        if factory is not None and rest.get("num_classes") is not None:
            raise UsageError(
                "--num-classes is for models of the registry",
                hint="a function of one's own takes arguments: --arg key=value",
            )
        if factory is not None and factory.inputs and size is not None:
            raise UsageError("--input-size and --input say the same thing", hint="leave one out")
        request = cls(
            factory=factory,
            features=tuple(word for text in features for word in text.split(",")),
            targets=words(targets, tuple(TARGETS), "target", everything="all"),
            precisions=cast("tuple[Precision, ...]", words(precisions, PRECISIONS, "precision")),
            batch=_batch(batch),
            layout=cast("Layout | None", layout),
            align=parse_align(align),
            preprocess=prepared,
            input_type=input_type,
            io=io,
            keep_float=tuple(word for text in keep_float for word in text.split(",")),
            **rest,
        )
        for target in request.targets:
            for precision in request.precisions:
                request.choice(target, precision)
        request._check_coreml()
        request._check_integers()
        request._check_tunings()
        if request.half_io and ("fp16" not in request.precisions or request.targets == ("tflite",)):
            raise UsageError(
                "--half-io would change nothing: it is about fp16 files of the targets onnx and coreml",
                hint="add --precision fp16, or leave it out",
            )
        return request

    def _check_coreml(self) -> None:
        """Refuse now what the Core ML emitter would refuse after the model is captured."""
        if self.input_type == "uint8" and "coreml" in self.targets and self.batch != 1:
            raise UsageError(
                f"Core ML takes one picture at a time, not a batch of {self.batch}",
                hint="leave out --batch (apps hand over several pictures as an MLBatchProvider), or name the "
                "other targets",
            )
        oldest = self.minimum_deployment_target
        if oldest is None:
            return
        if "int8" in self.precisions and "coreml" in self.targets and oldest in ("iOS15", "iOS16"):
            raise UsageError(
                "codes of eight bits need Core ML of iOS 17",
                hint="use --minimum-deployment-target iOS17 or later, or leave it out",
            )
        if oldest not in DEPLOYMENT_TARGETS:
            known = {name.lower(): name for name in DEPLOYMENT_TARGETS}
            hint = f"did you mean {known[oldest.lower()]!r}?" if oldest.lower() in known else ""
            raise UsageError(
                f"unknown Core ML deployment target {oldest!r}",
                hint=hint or "choose from: " + ", ".join(DEPLOYMENT_TARGETS),
            )
        if self.half_io and "coreml" in self.targets and oldest == "iOS15":
            raise UsageError(
                "fp16 inputs and outputs need Core ML of iOS 16",
                hint="use --minimum-deployment-target iOS16 or later, or leave out --half-io",
            )

    def _check_integers(self) -> None:
        """Refuse int8 without images, and what is said of int8 where there is none."""
        if "int8" in self.precisions and self.calibration is None:
            raise UsageError(
                "int8 needs images on which the ranges of activations are looked at",
                hint="add --calibration with a folder of images, an .npz file, or the word digits",
            )
        given = {
            "--calibration": self.calibration is not None,
            "--io": self.io != "float",
            "--keep-float": bool(self.keep_float),
            "--auto-mixed": self.target_sqnr is not None,
        }
        for option, said in given.items():
            if said and "int8" not in self.precisions:
                raise UsageError(
                    f"{option} would change nothing: it is about int8 files",
                    hint="add --precision int8, or leave it out",
                )
        if self.io != "float" and "tflite" not in self.targets:
            raise UsageError(
                "--io would change nothing: it is about int8 files of the target tflite",
                hint="add --target tflite, or leave it out",
            )
        if self.io != "float" and self.input_type != "float":
            raise UsageError(
                "--io and --input-type both say what images are held as",
                hint="--input-type uint8 takes pixels as they are; --io says what codes come and go",
            )

    def _check_tunings(self) -> None:
        """Refuse tunings of what is not exported, and those that other options contradict."""
        for place, tuning in enumerate(self.tunings):
            what = f"{tuning.target} in {tuning.precision}"
            if tuning.target not in self.targets or tuning.precision not in self.precisions:
                raise UsageError(
                    f"{tuning.name} was measured for {what}, which is not exported",
                    hint=f"add --target {tuning.target} --precision {tuning.precision}, or leave it out",
                )
            if any(
                o.target == tuning.target and o.precision == tuning.precision for o in self.tunings[:place]
            ):
                raise UsageError(f"there are two tunings for {what}", hint="choose one")
            if self.layout not in (None, tuning.choice.layout):
                raise UsageError(
                    f"{tuning.name} chose the layout {tuning.choice.layout}, not {self.layout}",
                    hint="leave out --layout, or tune with it",
                )
        if self.tunings and (self.shuffle != AUTO or self.align is not None):
            raise UsageError(
                "a tuning chooses the form of channel shuffles, and so does --shuffle or --align",
                hint="leave one of them out",
            )

    def tuning(self, target: str, precision: str) -> Tuning | None:
        """Return the tuning for a file, where there is one."""
        found = (t for t in self.tunings if (t.target, t.precision) == (target, precision))
        return next(found, None)

    def emit_options(self, precision: Precision, target: str = "") -> EmitOptions:
        """Return the options for one precision, and for a target where a tuning may choose its layout."""
        tuning = self.tuning(target, precision)
        layout = self.layout if tuning is None else tuning.choice.layout
        return EmitOptions(precision, layout, self.half_io, self.deployment_target(precision), self.io)

    def deployment_target(self, precision: str) -> str:
        """Return the oldest system that a Core ML package of that precision must run on."""
        return self.minimum_deployment_target or ("iOS17" if precision == "int8" else "iOS16")

    def choice(self, target: str, precision: Precision) -> Choice:
        """Return the form of channel shuffles that a file gets.

        Raises:
            UsageError: There is no form of that name, or it does not pad channels.
        """
        tuning = self.tuning(target, precision)
        if tuning is not None:
            return tuning.as_choice
        return choose(target, precision, shuffle=self.shuffle, align=self.align)

    def options_of(self, target: str, precision: str) -> dict[str, Any]:
        """Return the options that shaped a file, as JSON values for the manifest."""
        options: dict[str, Any] = {"layout": self.layout or TARGETS[target].default_layout}
        if target in ("onnx", "coreml"):
            options["half_io"] = self.half_io
        if target == "coreml":
            options["minimum_deployment_target"] = self.deployment_target(precision)
        if target == "tflite" and precision == "int8":
            options["io"] = self.io
        return options


def parse_factory(
    model: str | None, arguments: Sequence[str], inputs: Sequence[str], outputs: Sequence[str] = ()
) -> Factory | None:
    """Return the user's own function where the model is named as one: ``package.module:factory``.

    Raises:
        UsageError: Options of a function are given without one, or have another form than they should.
    """
    if model is not None:
        refuse_path(model)
        if is_factory(model):
            return Factory.parse(model, arguments=arguments, inputs=inputs, outputs=outputs)
    for option, given in (("--arg", arguments), ("--input", inputs), ("--output", outputs)):
        if given:
            raise UsageError(
                f"{option} is for a network of one's own",
                hint="name the function that builds it: package.module:factory",
            )
    return None


def words(
    given: Sequence[str], choices: tuple[str, ...], what: str, *, everything: str | None = None
) -> tuple[str, ...]:
    """Return the chosen words in the order of ``choices``, from a repeatable, comma-separated option.

    Raises:
        UsageError: None is given, or one is not among the choices.
    """
    given_words = [word.strip() for text in given for word in text.split(",") if word.strip()]
    if not given_words:
        raise UsageError(f"no {what} is named", hint="choose from: " + ", ".join(choices))
    for word in given_words:
        if word != everything and word not in choices:
            known = choices if everything is None else (*choices, everything)
            raise UsageError(f"unknown {what} {word!r}", hint=nearest(word, known))
    return tuple(choice for choice in choices if choice in given_words or everything in given_words)


def _count(text: str) -> int | None:
    if text == "all":
        return None
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise UsageError(f"{text!r} is not a number of images", hint="give a number from 1 upwards, or all")


def _batch(text: str) -> int | Literal["dynamic"]:
    if text == "dynamic":
        return "dynamic"
    if text.isascii() and text.isdigit() and 0 < int(text) <= _MAX_BATCH:
        return int(text)
    raise UsageError(
        f"{text!r} is not a batch size", hint=f"give a number from 1 to {_MAX_BATCH}, or dynamic"
    )


def _runtimes(names: Iterable[str]) -> tuple[str, ...]:
    chosen = tuple(names)
    for name in chosen:
        if name not in runtimes.NAMES:
            raise UsageError(f"unknown runtime {name!r}", hint=nearest(name, runtimes.NAMES))
    return chosen
