"""A graph's channel provenance: its data movement is followed, then cut into regions and sites."""

from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.follow import follow
from shufflectl.converters.rewrite.movement import is_movement
from shufflectl.converters.rewrite.provenance import ChannelMap, LeftAlone, Provenance
from shufflectl.converters.rewrite.sites import SiteFinder, find_regions

__all__ = ["analyze"]


def analyze(graph: Graph) -> Provenance:
    """Return where every channel comes from.

    Args:
        graph: Any graph with known shapes, of any exporter; it is not changed.

    Returns:
        Sites and channel maps, and the data movement that is left alone with the reasons.
    """
    nodes = [node for node in graph.nodes if is_movement(node)]
    execution = follow(graph)
    finder = SiteFinder(graph, nodes, execution)
    sites = finder.find()
    maps: dict[str, ChannelMap] = {}
    for name, made in execution.made.items():  # in graph order: a map's bases come before it
        if made.map is not None:
            maps[name] = made.map.over(maps)
    failed = [LeftAlone((name,), reason) for name, reason in execution.failed.items()]
    return Provenance(find_regions(graph, nodes), tuple(sites), maps, (*failed, *finder.left))
