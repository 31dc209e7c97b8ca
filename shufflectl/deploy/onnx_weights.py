"""The tensors that an ONNX file stores, in itself and in files beside it."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import onnx

from shufflectl.deploy.files import EXPORT_AGAIN
from shufflectl.errors import ArtifactError

__all__ = ["external_files", "graphs", "stored_tensors"]


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
