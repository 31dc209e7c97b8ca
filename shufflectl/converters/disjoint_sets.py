"""Disjoint sets, of which some become one (union-find with path halving)."""

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

__all__ = ["DisjointSets"]

_Member = TypeVar("_Member", bound=Hashable)


class DisjointSets(Generic[_Member]):
    """Sets of members; one that nothing was tied to is alone in its set."""

    def __init__(self) -> None:
        self._parent: dict[_Member, _Member] = {}

    def find(self, member: _Member) -> _Member:
        """Return the member that stands for a member's set."""
        self._parent.setdefault(member, member)
        while self._parent[member] != member:
            self._parent[member] = self._parent[self._parent[member]]
            member = self._parent[member]
        return member

    def tie(self, members: Iterable[_Member]) -> None:
        """Make the sets of members one; the first member's set lends it the member that stands for it."""
        first, *rest = [self.find(member) for member in members]
        for member in rest:
            self._parent[self.find(member)] = first
