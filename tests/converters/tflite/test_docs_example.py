"""The example of docs/add-an-operator.md works as it stands."""

import re
from functools import partial
from pathlib import Path

from ai_edge_litert.schema_py_generated import BuiltinOperator as Op

from shufflectl.converters.tflite.operators import products
from shufflectl.converters.tflite.operators.elementwise import unary
from shufflectl.converters.tflite.operators.table import OPERATORS
from support.tflite import compare, graph_of
from support.tflite import operators as written

PAGE = Path(__file__).parents[3] / "docs" / "add-an-operator.md"


def test_example_of_a_row_and_of_a_function(monkeypatch):
    row, function = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert '"Sin": partial(unary, Op.SIN, None),\n' == row
    monkeypatch.setitem(OPERATORS, "Sin", partial(unary, Op.SIN, None))
    names = dict(vars(products))
    exec(function, names)  # noqa: S102 - our own page
    monkeypatch.setitem(OPERATORS, "DepthToSpace", names["depth_to_space"])
    result = compare(graph_of("s = Sin(x) y = DepthToSpace<blocksize=2>(s)"))
    assert ["SIN", "DEPTH_TO_SPACE"] == written(result.data)
    assert result.worst < 1e-6
