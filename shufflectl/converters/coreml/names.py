"""Names that survive coremltools unchanged.

MIL identifiers match ``[A-Za-z_][A-Za-z0-9_]*``. coremltools sanitises others itself, and numbers the ones
that then collide, so a name would no longer say which tensor it stands for. Names that are legal, unique and
unlike what its passes invent from the start are left alone.
"""

import re
from typing import Final

__all__ = ["Namer"]

_RESERVED: Final = re.compile(
    r"any|bool|program|func|tensor|list|dict|tuple|true|false|string|bf16|fp16|fp32|fp64"
    r"|u?int(8|16|32|64)|state"
)
"""Words that ``NameSanitizer`` of coremltools 9 refuses."""

_INVENTED: Final = re.compile(r"_(cast|to)_[a-z]+[0-9]+(_[0-9]+)?$")
"""Suffixes that the cast passes append: ``x_cast_fp16``, ``x_to_fp16``."""


class Namer:
    """Gives each tensor of a graph one legal name, and helper tensors names that no tensor has."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._taken: set[str] = set()

    def tensor(self, name: str) -> str:
        """Return the name of a graph's tensor, always the same one."""
        if name not in self._names:
            self._names[name] = self._unique(name)
        return self._names[name]

    def rename(self, name: str, legal: str) -> None:
        """Give a tensor of the graph another name, which `helper` made."""
        self._names[name] = legal

    def helper(self, name: str, role: str) -> str:
        """Return a new name for a tensor that serves the graph's tensor ``name``."""
        return self._unique(f"{name}__{role}")

    def _unique(self, name: str) -> str:
        legal = re.sub(r"[^A-Za-z0-9_]", "_", name)
        if not legal[:1].isalpha():
            legal = f"t_{legal}"
        if _RESERVED.fullmatch(legal) or _INVENTED.search(legal):
            legal = f"{legal}_t"
        candidate, number = legal, 0
        while candidate in self._taken:
            number += 1
            candidate = f"{legal}_n{number}"
        self._taken.add(candidate)
        return candidate
