"""The attributes and weights of a layer's nodes, read and changed."""

from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from shufflectl.deploy.parity.case import Case

__all__ = ["attributes_of", "weight_of", "with_attributes"]


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the values of a node's attributes, by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def with_attributes(node: onnx.NodeProto, **attributes: Any) -> onnx.NodeProto:
    """Return a copy of a node that has some attributes changed."""
    changed = onnx.NodeProto()
    changed.CopyFrom(node)
    kept = [attribute for attribute in node.attribute if attribute.name not in attributes]
    del changed.attribute[:]
    changed.attribute.extend(kept)
    changed.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    return changed


def weight_of(case: Case, node: onnx.NodeProto, position: int) -> NDArray[Any] | None:
    """Return a node's input where it is constant; None where it is not, or there is none."""
    name = node.input[position] if len(node.input) > position else ""
    tensor = case.graph.initializers.get(name)
    return None if tensor is None else numpy_helper.to_array(tensor)
