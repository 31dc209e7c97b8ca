import pytest

from shufflectl.converters.graph import Graph
from support.nets import tiny_graph


@pytest.fixture(scope="session")
def tiny() -> Graph:
    """A ShuffleNetV2 of two stages and four units, captured; read-only."""
    return tiny_graph()
