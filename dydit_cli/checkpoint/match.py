"""Names and shapes that a model wants against those that a file has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

SHOWN = 5


@dataclass(frozen=True)
class Mismatch:
    """Empty (and false) where everything fits. `wrong` maps a name to (wanted, found), as text."""

    missing: list[str]
    unexpected: list[str]
    wrong: dict[str, tuple[str, str]]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.wrong)

    def summary(self) -> str:
        """One line; at most five names of each sort."""
        parts = []
        if self.missing:
            parts.append(f"missing {_some(self.missing)}")
        if self.unexpected:
            parts.append(f"unknown {_some(self.unexpected)}")
        if self.wrong:
            parts.append(_some([f"{name} is {found} where {wanted} is wanted" for name, (wanted, found) in self.wrong.items()]))
        return "; ".join(parts)


def compare(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Mismatch:
    """Compares names and shapes."""
    wrong: dict[str, tuple[str, str]] = {}
    for name in wanted.keys() & found.keys():
        if wanted[name].shape != found[name].shape:
            wrong[name] = (str(list(wanted[name].shape)), str(list(found[name].shape)))
    return Mismatch(
        missing=sorted(wanted.keys() - found.keys()),
        unexpected=sorted(found.keys() - wanted.keys()),
        wrong=dict(sorted(wrong.items())),
    )


def _some(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
