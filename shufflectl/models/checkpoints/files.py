"""Reading a weights file without trusting it.

Two kinds of files are read. ``.safetensors`` holds tensors and text. ``.pt``, ``.pth``, ``.ckpt`` and the
others hold a pickle, which is a program: it is read with ``weights_only=True``, whose interpreter knows
tensors and containers and calls nothing else, and what the program would call is listed before it is run, so
that the refusal can say so. A file is also refused where it would unpack to more than it holds.
"""

import hashlib
import io
import pickle
import pickletools
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Final, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shufflectl.errors import CheckpointError

__all__ = ["SUFFIXES", "WeightsFile", "is_checkpoint", "printable", "read", "sha256"]

SUFFIXES: Final = (".safetensors", ".pt", ".pth", ".ckpt", ".pth.tar", ".pkl", ".bin")

_MAX_BYTES = (
    4 << 30
)  # the largest network here has 0.54 GB of weights; training states hold three times as much
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_MAX_PICKLE_BYTES = 64 << 20  # a state dict's pickle holds names and shapes: some 200 bytes a tensor
# Entries under which training loops keep a state dict; the first that is there counts. Averaged weights come
# first: they are what a training with them was validated with (timm's load_state_dict prefers them likewise).
# mmengine swaps: there "state_dict" holds the averaged ones, and "ema_state_dict" is not in this list.
_NESTS = (
    "state_dict_ema",
    "model_ema",
    "ema",
    "ema_model",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
)

# What a state dict's pickle may refer to: the union of what torch.save has written since version 0.4.
_SAFE_GLOBALS = frozenset(
    {
        "collections OrderedDict",
        "torch Size",
        "torch._tensor _rebuild_from_type_v2",
        "torch._utils _rebuild_parameter",
        "torch._utils _rebuild_tensor",
        "torch._utils _rebuild_tensor_v2",
        "torch.nn.parameter Parameter",
        "torch.serialization _get_layout",
        "torch.storage UntypedStorage",
    }
)

# What training loops keep beside the weights: options, logs, schedules. They are read as `_Luggage`, which
# keeps nothing, or as plain dictionaries, so none of these classes is imported and none of their code runs.
_MAPPINGS = (
    "lightning.fabric.utilities.data AttributeDict",
    "lightning.pytorch.utilities.parsing AttributeDict",
    "lightning_fabric.utilities.data AttributeDict",
    "pytorch_lightning.utilities.parsing AttributeDict",
)
_OBJECTS = (
    "_codecs encode",
    "argparse Namespace",
    "mmengine.logging.history_buffer HistoryBuffer",
    "numpy dtype",
    "numpy ndarray",
    "numpy._core.multiarray _reconstruct",
    "numpy._core.multiarray scalar",
    "numpy.core.multiarray _reconstruct",
    "numpy.core.multiarray scalar",
    "pathlib Path",
    "pathlib PosixPath",
    "pathlib WindowsPath",
    "pathlib._local PosixPath",
    "pathlib._local WindowsPath",
)


class _Luggage:
    """Stands for an object that is not needed: takes whatever it is made of, and keeps none of it."""

    def __new__(cls, *_arguments: object) -> Self:
        return super().__new__(cls)

    def __setstate__(self, _state: object) -> None:
        pass


@dataclass(frozen=True)
class WeightsFile:
    """What a weights file holds.

    Attributes:
        path: Where it is.
        tensors: By name, as stored; wrapping dictionaries are taken off.
        metadata: Text by key; empty for pickles.
        sha256: Of the whole file, in hexadecimal.
        entry: The keys of the dictionaries around the state dict.
        others: Other entries of these dictionaries that hold a state dict too.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    sha256: str = ""
    entry: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def is_checkpoint(path: Path) -> bool:
    """Whether a file's name ends as those of checkpoints do."""
    return path.name.lower().endswith(SUFFIXES)


def read(path: Path) -> WeightsFile:
    """Read a weights file. No code from it runs.

    Raises:
        CheckpointError: The file is missing, of an unknown kind, empty, too large, truncated or corrupt,
            would run code, or holds no state dict.
    """
    if not is_checkpoint(path):
        raise CheckpointError(
            f"{path.name or path} is not a checkpoint: weights files end in {', '.join(SUFFIXES)}",
            hint="save the model's state_dict with torch.save or safetensors.torch.save_file",
        )
    try:
        if not path.exists():
            raise CheckpointError(f"there is no weights file {str(path)!r}", hint=_neighbours(path))
        if not path.is_file():
            raise CheckpointError(f"{str(path)!r} is not a file", hint="pass the weights file itself")
        size = path.stat().st_size
        if size == 0:
            raise CheckpointError(
                f"{path.name} is empty", hint="the download or copy failed: get the file again"
            )
        if size > _MAX_BYTES:
            raise CheckpointError(
                f"{path.name} holds {size / 2**30:.1f} GiB, and no network here has a checkpoint over "
                f"{_MAX_BYTES >> 30} GiB",
                hint="save the state_dict alone, without the optimizer",
            )
        digest = sha256(path)
        read_kind = _safetensors if path.suffix.lower() == ".safetensors" else _pickled
        return replace(read_kind(path, size), sha256=digest)
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror or error}") from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal; the file is never in memory as a whole."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _neighbours(path: Path) -> str:
    """Return a hint that names the weights files beside a missing one."""
    if not path.parent.is_dir():
        return f"the folder {str(path.parent)!r} does not exist"
    found = sorted(p.name for p in path.parent.iterdir() if is_checkpoint(p))
    if not found:
        return f"the folder {str(path.parent)!r} holds no weights file"
    return f"weights files in that folder: {', '.join(found[:8])}" + (", ..." if len(found) > 8 else "")


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name} is truncated or corrupt: {why}",
        hint="get the file again and compare its SHA-256 with the source's",
    )


def _safetensors(path: Path, size: int) -> WeightsFile:
    """Read a safetensors file: 8 bytes with the header's length, the header as JSON, the tensors' bytes."""
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, _MAX_HEADER_BYTES):
            kind = _other_kind(start)
            if kind:
                raise CheckpointError(
                    f"{path.name} is {kind}, not a safetensors file", hint="give it the suffix .pth"
                )
            raise _damaged(path, f"its header would be longer than the file's {size} bytes")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            # The mapped file may be replaced while the model is in use: the tensors are copied out of it.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(path, _first_line(error)) from error
    return WeightsFile(path, tensors, metadata)


def _other_kind(start: bytes) -> str:
    if start.startswith(b"PK\x03\x04"):
        return "a zip archive as torch.save writes it"
    # A header of such a length begins with the same byte; behind it a pickle has its protocol, at most 5.
    return "a pickle" if start.startswith(b"\x80") and start[1:2] <= b"\x05" else ""


def _pickled(path: Path, size: int) -> WeightsFile:
    """Read what ``torch.save`` wrote: a zip archive, or before torch 1.6 a sequence of pickles."""
    with path.open("rb") as stream:
        start = stream.read(9)
        if start[7:] == b"\x00{":  # a header's length, below 2**56, and its opening brace
            raise CheckpointError(
                f"{path.name} is a safetensors file, not one that torch.save wrote",
                hint="give it the suffix .safetensors",
            )
        if start.startswith(b"PK\x03\x04"):
            _inspect_archive(path, size)
        elif start.startswith(b"\x80"):
            stream.seek(0)
            _inspect_pickles(path, stream, 4)  # magic number, protocol version, system, contents
        else:
            raise _damaged(path, "it is not a file that torch.save wrote")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_stand_ins()):
            # Said of old files' storages and of pickle protocols; the user can do nothing about either.
            warnings.simplefilter("ignore")
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(path, _unsupported(error)) from error
    except Exception as error:  # torch's reader fails on bad bytes with whatever its parts raise
        raise _damaged(path, _first_line(error)) from error
    return _state_dict(path, contents, size)


def _stand_ins() -> list[Any]:
    """Return what takes the place of classes that are not needed, as torch's interpreter wants it."""
    pairs: list[tuple[Any, str]] = [(OrderedDict, name) for name in _MAPPINGS]
    pairs += [(_Luggage, name) for name in _OBJECTS]
    return [(stand_in, name.replace(" ", ".")) for stand_in, name in pairs]


def _inspect_archive(path: Path, size: int) -> None:
    """Refuse an archive that is damaged, unpacks to more than the file, or whose pickle would run code."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if sum(e.file_size for e in entries) > size or any(e.compress_type for e in entries):
                raise CheckpointError(
                    f"{path.name} is a compressed archive, which torch.save never writes",
                    hint="load it where it was made and save the state_dict again with torch.save",
                )
            pickles = [e for e in entries if e.filename.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                kind = (
                    "a TorchScript program"
                    if any("/code/" in e.filename for e in entries)
                    else "another archive"
                )
                raise CheckpointError(
                    f"{path.name} is {kind}, not a state dict saved with torch.save",
                    hint="save model.state_dict() and pass that file",
                )
            if any("/code/" in e.filename for e in entries):
                raise CheckpointError(
                    f"{path.name} is a TorchScript program, not a state dict",
                    hint="save model.state_dict() and pass that file",
                )
            with archive.open(pickles[0]) as stream:
                _inspect_pickles(path, stream, 1)
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        EOFError,
        ValueError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise _damaged(path, _first_line(error)) from error


def _inspect_pickles(path: Path, stream: IO[bytes], count: int) -> None:
    """Refuse pickles that refer to anything but tensors and containers; nothing is executed."""
    program = io.BytesIO(stream.read(_MAX_PICKLE_BYTES))
    for _ in range(count):
        strings: list[str] = []
        try:
            for opcode, argument, _position in pickletools.genops(program):
                if opcode.name in ("GLOBAL", "INST"):
                    _check_global(path, str(argument))
                elif opcode.name == "STACK_GLOBAL":
                    _check_global(path, " ".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
        except (ValueError, EOFError, IndexError, OverflowError, UnicodeDecodeError, struct.error) as error:
            raise _damaged(path, _first_line(error)) from error


def _check_global(path: Path, name: str) -> None:
    module, _, attribute = name.partition(" ")
    storage = module in ("torch", "torch.cuda") and attribute.endswith("Storage")
    dtype = module == "torch" and isinstance(getattr(torch, attribute, None), torch.dtype)
    if not (storage or dtype or name in _SAFE_GLOBALS or name in _MAPPINGS or name in _OBJECTS):
        raise _refused(path, printable(f"{module}.{attribute}"))


def _refused(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name} is refused: besides tensors its pickle refers to {what}, and loading it could run code",
        hint="where you trust the file, load it there and save only the weights: "
        "torch.save(model.state_dict(), 'weights.pth')",
    )


def _unsupported(error: Exception) -> str:
    """Return what torch's interpreter refused, out of its long message."""
    text = str(error)
    for marker in ("Unsupported global: GLOBAL ", "Unsupported class "):
        _, found, rest = text.partition(marker)
        if found:
            return printable(rest.split()[0])
    return f"something that is not a tensor ({_first_line(error)})"


def _state_dict(path: Path, contents: object, size: int) -> WeightsFile:
    """Return the tensors out of what a pickle held."""
    seen: set[int] = set()
    entry: list[str] = []
    beside: list[str] = []
    while isinstance(contents, dict) and id(contents) not in seen:
        seen.add(id(contents))
        nests = [key for key in _NESTS if isinstance(contents.get(key), dict)]
        if not nests:
            break
        entry.append(nests[0])
        beside += nests[1:]
        contents = contents[nests[0]]
    if not isinstance(contents, dict):
        raise CheckpointError(
            f"{path.name} holds a {type(contents).__name__}, not a state dict",
            hint="save model.state_dict() with torch.save and pass that file",
        )
    tensors = {
        key: value for key, value in contents.items() if isinstance(key, str) and isinstance(value, Tensor)
    }
    others = [printable(repr(key), 60) for key in contents if key not in tensors]
    if others:
        raise CheckpointError(
            f"{path.name} is not a state dict: {', '.join(others[:3])}{', ...' if len(others) > 3 else ''} "
            "are not named tensors",
            hint=f"save model.state_dict(), alone or under one of the keys {', '.join(_NESTS)}",
        )
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise CheckpointError(
                f"tensor {printable(name)!r} of {path.name} is sparse, quantised or without values",
                hint="save the float model's state_dict",
            )
        if tensor.numel() * tensor.element_size() > size:  # a few stored bytes, repeated by strides of 0
            raise CheckpointError(
                f"tensor {printable(name)!r} of {path.name} claims to be larger than the file",
                hint="save the state dict of the model itself, its tensors contiguous",
            )
    return WeightsFile(path, tensors, entry=tuple(entry), others=tuple(beside))


def printable(text: str, limit: int = 200) -> str:
    """Return text from a file as it may be shown: one line, not too long, no control codes."""
    shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[:limit])
    return shown if len(text) <= limit else f"{shown}..."


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return printable(text.splitlines()[0]) if text else type(error).__name__
