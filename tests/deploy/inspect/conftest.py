"""One small network, exported to every format once."""

from pathlib import Path

import pytest
import torch

from shufflectl.converters.capture import capture
from shufflectl.converters.graph import Graph
from shufflectl.converters.metadata import ModelInfo
from shufflectl.converters.targets import TARGETS, EmitOptions
from support.nets import ShuffleNetV2

INFO = ModelInfo("tiny", weights="random:0", labels=("a", "b"))


@pytest.fixture(scope="session")
def module() -> torch.nn.Module:
    torch.manual_seed(0)
    return ShuffleNetV2((2, 2), (8, 16, 32, 48), 10).eval()


@pytest.fixture(scope="session")
def graph(module: torch.nn.Module) -> Graph:
    return capture(module, (torch.zeros(1, 3, 32, 32),), name="tiny")


@pytest.fixture(scope="session")
def dynamic_graph(module: torch.nn.Module) -> Graph:
    return capture(module, (torch.zeros(2, 3, 32, 32),), name="tiny", dynamic_batch=True)


@pytest.fixture(scope="session")
def artifacts(
    graph: Graph, dynamic_graph: Graph, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Files by ``target-kind``: fp32, fp16 and dynamic (fp32)."""
    folder = tmp_path_factory.mktemp("inspect")
    made = {}
    for name, target in TARGETS.items():
        for kind in ("fp32", "fp16", "dynamic"):
            path = folder / f"tiny-{kind}{target.extension}"
            source = dynamic_graph if kind == "dynamic" else graph
            target.emit(source, INFO, EmitOptions("fp16" if kind == "fp16" else "fp32"), path)
            made[f"{name}-{kind}"] = path
    return made
