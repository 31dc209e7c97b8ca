"""The result file of TensorFlow Lite's and LiteRT's ``benchmark_model``: a proto2 message, read by hand.

``tflite/tools/benchmark/proto/benchmark_result.proto``: BenchmarkResult has ``latency_metrics`` = 2 (floats
in ms: avg 1, min 2, max 3, stddev 4, median 5, p5 6, p95 7, init 8, first inference 9, average warm-up 10),
``memory_metrics`` = 3 (init footprint in kB 1, overall 2, peak in MB 3) and ``misc_metrics`` = 4 (model size
1, runs 2, warm-up runs 3). Unknown fields are skipped, as protobuf does, so that newer files can be read.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

__all__ = ["BenchmarkResult", "read_benchmark_result"]

_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_FIXED32: Final = 5
_LATENCY: Final = {
    1: "mean",
    2: "min",
    3: "max",
    4: "std",
    5: "median",
    6: "p5",
    7: "p95",
    8: "init",
    9: "first",
    10: "warmup",
}
_LIMIT: Final = 1 << 20


@dataclass(frozen=True)
class BenchmarkResult:
    """What the file says.

    Attributes:
        milliseconds: Figures by name: mean, min, max, std, median, p5, p95, init, first, warmup.
        peak_megabytes: Peak memory; None where it was not watched.
        overall_kilobytes: Growth of the footprint; None likewise.
        runs: Timed runs.
    """

    milliseconds: dict[str, float] = field(default_factory=dict)
    peak_megabytes: float | None = None
    overall_kilobytes: float | None = None
    runs: int | None = None


def read_benchmark_result(data: bytes) -> BenchmarkResult:
    """Read the file.

    Raises:
        ValueError: It is no such message.
    """
    if len(data) > _LIMIT:
        raise ValueError(f"{len(data)} bytes are no benchmark result")
    latency: dict[str, float] = {}
    peak = overall = None
    runs = None
    for number, value in _fields(data):
        if number not in (2, 3, 4) or not isinstance(value, bytes):
            continue
        for inner, figure in _fields(value):
            if number == 2 and inner in _LATENCY:
                latency[_LATENCY[inner]] = _number(figure)
            elif number == 3 and inner == 2:
                overall = _number(figure)
            elif number == 3 and inner == 3:
                peak = _number(figure)
            elif number == 4 and inner == 2 and isinstance(figure, int):
                runs = figure
    return BenchmarkResult(latency, peak, overall, runs)


def _number(value: float | bytes) -> float:
    if isinstance(value, bytes) or not math.isfinite(value):
        raise ValueError("a figure is no number")
    return float(value)


def _fields(data: bytes) -> Iterator[tuple[int, float | bytes]]:
    """Yield the number and the value of each field: an int, a float, or bytes.

    Raises:
        ValueError: The bytes are no message.
    """
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise ValueError("a field has the number 0")
        if kind == _VARINT:
            value, position = _varint(data, position)
            yield number, value
            continue
        if kind == _BYTES:
            size, position = _varint(data, position)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"a field has the wire type {kind}")
        if size > len(data) - position:
            raise ValueError("a field goes on behind the end")
        raw = data[position : position + size]
        position += size
        if kind == _BYTES:
            yield number, raw
        else:
            yield number, float(struct.unpack("<f" if kind == _FIXED32 else "<d", raw)[0])


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("a number goes on behind the end")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number has more than ten bytes")
