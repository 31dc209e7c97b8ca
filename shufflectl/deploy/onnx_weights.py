"""ONNX files that may be anything: their content, and the tensors that they store, in other files too."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

import onnx
from google.protobuf.message import DecodeError

from shufflectl.deploy.files import EXPORT_AGAIN, read_file
from shufflectl.errors import ArtifactError

__all__ = ["external_files", "graphs", "load_weights", "parse", "stored_tensors"]

_WHAT: Final = "an ONNX file"
_LIMIT: Final = 2**31 - 1
"""As many bytes of weights beside a file are loaded as the file itself may have."""


def parse(path: Path) -> tuple[onnx.ModelProto, int]:
    """Return what an ONNX file holds, weights beside it unread, and its size in bytes.

    Raises:
        ArtifactError: It is missing, damaged, or no ONNX file.
    """
    data = read_file(path, _WHAT)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, RecursionError) as error:
        raise ArtifactError(f"{path} is not {_WHAT}, or it is truncated", hint=EXPORT_AGAIN) from error
    if not model.ir_version or not model.opset_import or not model.graph.output:
        raise ArtifactError(
            f"{path} is not {_WHAT}, or it is truncated: it holds no graph", hint=EXPORT_AGAIN
        )
    if not all(isinstance(text, str) for text in _texts(model)):
        raise ArtifactError(
            f"{path} is a damaged ONNX file: some of its names are not text", hint=EXPORT_AGAIN
        )
    return model, len(data)


def _texts(model: onnx.ModelProto) -> Iterator[str | bytes]:
    """Yield the strings that are read from a model; protobuf gives what is not UTF-8 as bytes."""
    yield from (model.producer_name, model.producer_version)
    for entry in model.metadata_props:
        yield from (entry.key, entry.value)
    graph = model.graph
    for info in (*graph.input, *graph.output, *graph.value_info):
        yield info.name
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
    for tensor in stored_tensors(model):
        yield tensor.name
        for entry in tensor.external_data:
            yield from (entry.key, entry.value)


def load_weights(model: onnx.ModelProto, path: Path) -> list[Path]:
    """Load the weights that lie beside an ONNX file into its content; return the files that hold them.

    Raises:
        ArtifactError: See `external_files`; or they, or their files, are larger than 2 GiB.
    """
    files = external_files(model, path)
    tensors = [t for t in stored_tensors(model) if t.data_location == onnx.TensorProto.EXTERNAL]
    total = 0
    for tensor in tensors:
        fields = {entry.key: entry.value for entry in tensor.external_data}
        length = int(fields.get("length") or (path.parent / fields["location"]).stat().st_size)
        total += length  # two tensors may name the same bytes
    if max(total, sum(file.stat().st_size for file in files)) > _LIMIT:
        raise ArtifactError(
            f"{path} keeps more than 2 GiB of weights beside it", hint="pass a model for phones"
        )
    for tensor in tensors:
        onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    return files


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those in its nodes' attributes."""
    pending = [graph]
    while pending:
        current = pending.pop()
        yield current
        for node in current.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    pending.append(attribute.g)
                pending.extend(attribute.graphs)


def stored_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor that a model stores: initialisers and attributes, of its functions too."""
    bodies = [onnx.GraphProto(node=function.node) for function in model.functions]
    for current in (inner for body in (model.graph, *bodies) for inner in graphs(body)):
        yield from current.initializer
        for sparse in current.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in current.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                if attribute.HasField("sparse_tensor"):
                    yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
                yield from attribute.tensors


def external_files(model: onnx.ModelProto, path: Path) -> list[Path]:
    """Return the files beside an ONNX file that hold its weights, in the order of their first use.

    Args:
        model: The file's content.
        path: The file.

    Raises:
        ArtifactError: One is missing, too short, not a plain file, or not below the ONNX file's folder.
    """
    found: dict[Path, None] = {}
    for tensor in stored_tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            found[_external_file(tensor, path)] = None
    return list(found)


def _external_file(tensor: onnx.TensorProto, path: Path) -> Path:
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")
    folder = path.parent.resolve()
    # protobuf gives text that is not UTF-8 as bytes; a backslash separates folders on Windows.
    plain = isinstance(location, str) and "\0" not in location and ":" not in location
    pure = PurePosixPath(location.replace("\\", "/") if plain else "..")
    target = folder if ".." in pure.parts or pure.is_absolute() else (folder / pure).resolve()
    if folder not in target.parents:
        raise ArtifactError(
            f"{path} wants the tensor {tensor.name!r} from {location!r}, which is outside of its folder",
            hint="do not trust this file; save the model again with its weights beside it",
        )
    if not target.is_file():
        raise ArtifactError(
            f"{path} keeps its weights in {location!r}, which is missing",
            hint=f"copy {location!r} into {path.parent}",
        )
    try:
        offset, length = int(fields.get("offset") or 0), int(fields.get("length") or 0)
    except ValueError as error:
        raise ArtifactError(
            f"{path} is damaged: the position of tensor {tensor.name!r} is not a number", hint=EXPORT_AGAIN
        ) from error
    if offset < 0 or length < 0 or offset + length > target.stat().st_size:
        raise ArtifactError(
            f"{path} keeps the tensor {tensor.name!r} beyond the end of {location!r}, which is truncated",
            hint=f"copy {location!r} again from where it came",
        )
    return target
