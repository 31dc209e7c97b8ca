"""Runs TFLite files in an interpreter of its own; started by `tflite_runtime.TfliteRuntime`.

This program imports nothing but the standard library, numpy and tflite_runtime, because it runs in an
environment where shufflectl is not installed; it keeps to what Python 3.8 executes.

The protocol, over standard input and output: a message is a frame of JSON and one frame for each array that
the JSON lists under "arrays" (name, type and shape); a frame is its length in eight bytes, big-endian, and
its bytes. Requests are "load" (the file's bytes as the one array) and "run"; the answer has "ok".
"""

from __future__ import annotations

import json
import os
import struct
from typing import IO, Any

import numpy as np


def read_exactly(stream: IO[bytes], count: int) -> bytes | None:
    """Read so many bytes; None where the stream ends before."""
    chunks = []
    while count:
        chunk = stream.read(count)
        if not chunk:
            return None
        chunks.append(chunk)
        count -= len(chunk)
    return b"".join(chunks)


def frame(stream: IO[bytes], head: bytes | None) -> bytes:
    """Read the frame of the length that ``head`` says."""
    data = None if head is None else read_exactly(stream, struct.unpack(">Q", head)[0])
    if data is None:
        raise EOFError("a message ends in the middle")
    return data


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the next message's JSON and arrays; None where there is none."""
    head = read_exactly(stream, 8)
    if head is None:
        return None
    message = json.loads(frame(stream, head))
    arrays = {}
    for entry in message.get("arrays", ()):
        data = frame(stream, read_exactly(stream, 8))
        arrays[entry["name"]] = np.frombuffer(data, np.dtype(entry["dtype"])).reshape(entry["shape"])
    return message, arrays


def send(stream: IO[bytes], message: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Write a message."""
    held = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    message["arrays"] = [
        {"name": name, "dtype": arrays[name].dtype.str, "shape": list(arrays[name].shape)} for name in held
    ]
    text = json.dumps(message).encode()
    stream.write(struct.pack(">Q", len(text)) + text)
    for array in held.values():
        stream.write(struct.pack(">Q", array.nbytes))
        stream.write(array.tobytes())
    stream.flush()


def describe(detail: dict[str, Any]) -> dict[str, Any]:
    """Return what a file declares about an input or output."""
    signature = detail.get("shape_signature", detail["shape"])
    shape = signature if len(signature) else detail["shape"]
    return {
        "name": detail["name"],
        "shape": [None if size < 0 else int(size) for size in shape],
        "dtype": np.dtype(detail["dtype"]).str,
    }


class Model:
    """One loaded file: an interpreter as phones run it, and one that keeps inner tensors."""

    def __init__(self, data: bytes, threads: int) -> None:
        from tflite_runtime import interpreter as api

        self.api, self.data, self.threads = api, data, threads
        self.fast = self.make(taps=False)
        self.keeping: Any = None

    def make(self, *, taps: bool) -> Any:
        """Return an interpreter with its tensors allocated."""
        kind = self.api.OpResolverType
        interpreter = self.api.Interpreter(
            model_content=self.data,
            num_threads=self.threads,
            experimental_preserve_all_tensors=taps,
            experimental_op_resolver_type=kind.BUILTIN_WITHOUT_DEFAULT_DELEGATES if taps else kind.BUILTIN,
        )
        interpreter.allocate_tensors()
        return interpreter

    def run(self, inputs: dict[str, Any], taps: list[str]) -> dict[str, Any]:
        """Return outputs and taps by name."""
        if taps and self.keeping is None:
            self.keeping = self.make(taps=True)
        interpreter = self.keeping if taps else self.fast
        details = interpreter.get_input_details()
        if any(tuple(d["shape"]) != inputs[d["name"]].shape for d in details):
            for detail in details:
                interpreter.resize_tensor_input(detail["index"], inputs[detail["name"]].shape, strict=True)
            interpreter.allocate_tensors()
        for detail in details:
            interpreter.set_tensor(detail["index"], inputs[detail["name"]])
        interpreter.invoke()
        wanted = {d["name"]: d["index"] for d in interpreter.get_output_details()}
        if taps:
            inner: dict[str, int] = {}
            for detail in interpreter.get_tensor_details():
                inner.setdefault(detail["name"], detail["index"])
            for name in taps:
                if name not in inner:
                    raise KeyError(name)
                wanted[name] = inner[name]
        return {name: np.array(interpreter.get_tensor(index)) for name, index in wanted.items()}


def main() -> None:
    """Answer requests until standard input ends."""
    incoming = os.fdopen(os.dup(0), "rb")
    outgoing = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not end up among the answers
    model: Any = None
    while True:
        request = receive(incoming)
        if request is None:
            return
        message, arrays = request
        answer: dict[str, Any] = {}
        result: dict[str, Any] = {}
        try:
            if message["request"] == "load":
                model = Model(arrays["file"].tobytes(), message["threads"])
                answer = {
                    "inputs": [describe(d) for d in model.fast.get_input_details()],
                    "outputs": [describe(d) for d in model.fast.get_output_details()],
                }
            else:
                result = model.run(arrays, message["taps"])
        except KeyError as e:
            send(outgoing, {"ok": False, "kind": "no tensor", "error": str(e.args[0])}, {})
        except Exception as e:  # noqa: BLE001 - whatever fails here is the answer
            lines = str(e).strip().splitlines()
            text = lines[0] if lines else type(e).__name__
            send(outgoing, {"ok": False, "kind": type(e).__name__, "error": text}, {})
        else:
            answer["ok"] = True
            send(outgoing, answer, result)


if __name__ == "__main__":
    main()
