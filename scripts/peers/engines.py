"""The runtimes of the latency comparison, and what files are called in it."""

from dataclasses import dataclass

from peers.environments import OWN

OFFICIAL, AGAIN, NHWC = "official", "official again", "official, NHWC"
AUTO, FLOOR = "auto", "floor"
CODES = "auto, codes in and out"
MODELS = (
    *(f"shufflenet_v2_x{width}" for width in ("0_5", "1_0", "1_5", "2_0")),
    *(f"shufflenet_v1_g{groups}_x1_0" for groups in (1, 2, 3, 4, 8)),
)


@dataclass(frozen=True)
class Engine:
    """A runtime of the comparison.

    Attributes:
        title: Its name in tables.
        environment: Where it is installed.
        packages: What its version is that of.
        extension: Of its official file.
        ours: The target of ours that it runs; empty for another's runtime.
    """

    title: str
    environment: str
    packages: tuple[str, ...]
    extension: str
    ours: str = ""


ENGINES = {
    "onnxruntime": Engine("ONNX Runtime", OWN, ("onnxruntime",), ".onnx", "onnx"),
    "litert": Engine("LiteRT", OWN, ("ai-edge-litert",), ".tflite", "tflite"),
    "ncnn": Engine("ncnn", "runtimes", ("ncnn",), ".param"),
    "mnn": Engine("MNN", "runtimes", ("MNN",), ".mnn"),
    "openvino": Engine("OpenVINO", "runtimes", ("openvino",), ".onnx"),
    "executorch": Engine("ExecuTorch", "executorch", ("executorch",), ".pte"),
}
OURS = ("onnxruntime", "litert")
