from hypothesis import given
from hypothesis import strategies as st

from shufflectl.converters.disjoint_sets import DisjointSets

members = st.integers(0, 9)


def test_a_member_that_nothing_was_tied_to_stands_for_itself() -> None:
    assert "a" == DisjointSets[str]().find("a")


def test_the_first_lends_its_set_the_member_that_stands_for_it() -> None:
    sets = DisjointSets[str]()
    sets.tie("ab")
    sets.tie("cb")
    sets.tie("bd")
    assert ["c"] * 4 == [sets.find(name) for name in "abcd"]


def test_a_member_may_be_tied_to_itself() -> None:
    sets = DisjointSets[str]()
    sets.tie("aba")
    assert ["a", "a"] == [sets.find(name) for name in "ab"]


@given(st.lists(st.lists(members, min_size=1, max_size=4), max_size=8))
def test_sets_are_those_of_the_closure_of_all_ties(ties: list[list[int]]) -> None:
    sets = DisjointSets[int]()
    expected = {frozenset({member}) for member in range(10)}
    for tied in ties:
        sets.tie(tied)
        joined = {found for found in expected if found & set(tied)}
        expected = (expected - joined) | {frozenset().union(*joined)}
    groups: dict[int, set[int]] = {}
    for member in range(10):
        groups.setdefault(sets.find(member), set()).add(member)
    assert expected == {frozenset(group) for group in groups.values()}
    assert all(stands in group for stands, group in groups.items())
