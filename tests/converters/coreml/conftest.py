"""One small network, captured once and emitted once a precision."""

from pathlib import Path

import pytest

from shufflectl.converters.capture import capture
from shufflectl.converters.graph import Graph
from support.coreml import package
from support.nets import example, tiny_v2


@pytest.fixture(scope="session")
def tiny() -> Graph:
    return capture(tiny_v2(), (example(),), name="tiny")


@pytest.fixture(scope="session")
def tiny_fp16(tiny: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package(tiny, tmp_path_factory.mktemp("fp16"), precision="fp16")
