"""Which cores a measurement runs on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shufflectl.deploy.devices.cores import fastest, mask, parse_mask
from shufflectl.deploy.devices.state import Core


def cores(*megahertz: int) -> list[Core]:
    return [Core(index, max_khz=value * 1000) for index, value in enumerate(megahertz)]


@pytest.mark.parametrize(
    ("megahertz", "threads", "expected"),
    [
        ((1800, 1800, 1800, 1800, 2400, 2400, 2400, 2850), 1, (7,)),
        ((1800, 1800, 1800, 1800, 2400, 2400, 2400, 2850), 2, (4, 5, 6, 7)),
        ((1800, 1800, 1800, 1800, 2400, 2400, 2400, 2850), 4, (4, 5, 6, 7)),
        ((2850, 2400, 1800, 1800), 1, (0,)),
        ((1800, 1800, 1800, 1800, 2400, 2400, 2400, 2850), 8, ()),
        ((2000, 2000, 2000, 2000), 1, ()),
        ((), 1, ()),
    ],
)
def test_the_fastest_clusters_with_room_for_the_threads_are_taken(
    megahertz: tuple[int, ...], threads: int, expected: tuple[int, ...]
) -> None:
    assert expected == fastest(cores(*megahertz), threads)


def test_cores_without_a_known_clock_are_not_taken() -> None:
    assert (1,) == fastest([Core(0, max_khz=1_000_000), Core(1, max_khz=2_000_000), Core(2)], 1)


def test_the_mask_is_toyboxs() -> None:
    assert ("f0", "80", "3") == (mask((4, 5, 6, 7)), mask((7,)), mask((0, 1)))


@given(st.sets(st.integers(0, 200), min_size=1))
def test_a_mask_is_read_as_it_was_written(chosen: set[int]) -> None:
    assert chosen == parse_mask(mask(chosen))


def test_a_mask_of_the_kernel_has_commas() -> None:
    assert frozenset({0, 32}) == parse_mask("00000001,00000001\n")
