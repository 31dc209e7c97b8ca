import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shufflectl.converters.capture.sizes import Affine
from shufflectl.converters.rewrite.movement import CannotExecuteError

affine = st.builds(Affine, st.integers(-9, 9).filter(bool), st.integers(-9, 9))
sizes = st.one_of(affine, st.integers(-9, 9))


def at(size: object, batch: int) -> int:
    return size.scale * batch + size.offset if isinstance(size, Affine) else int(size)  # type: ignore[call-overload]


@settings(max_examples=150, deadline=None)
@given(affine, sizes, st.sampled_from(["+", "-", "reversed -", "*"]), st.integers(1, 50))
def test_sizes_are_computed_as_numbers_are(a: Affine, b: Affine | int, operator: str, batch: int) -> None:
    x, y = at(a, batch), at(b, batch)
    if operator == "*" and isinstance(b, Affine):
        with pytest.raises(CannotExecuteError):
            a * b
        return
    made = {"+": lambda: a + b, "-": lambda: a - b, "reversed -": lambda: b - a, "*": lambda: a * b}[
        operator
    ]()
    assert {"+": x + y, "-": x - y, "reversed -": y - x, "*": x * y}[operator] == at(made, batch)
    assert not isinstance(made, Affine) or made.scale
