"""Whether background checks still run: each one's sign of life changes.

It is counted in the watchers' own looks, not in seconds: a machine that slept, or a clock that was set, must not make a
check look dead, and all of them stand still together.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class _Sign:
    sign: object
    looks: int
    looks_max: int


class Signs:
    """The last sign of each watcher. `late` names those that have shown the same one for too many looks."""

    def __init__(self) -> None:
        self._signs: dict[str, _Sign] = {}

    def see(self, name: str, sign: object, looks_max: int) -> None:
        """Look once. `sign`: anything that changes when the watcher has run; `looks_max`: looks that may pass."""
        known = self._signs.get(name)
        if known is None or known.sign != sign:
            self._signs[name] = _Sign(sign, 0, looks_max)
        else:
            known.looks, known.looks_max = known.looks + 1, looks_max

    def forget(self, name: str) -> None:
        """It is not running, and is not meant to."""
        self._signs.pop(name, None)

    @property
    def late(self) -> list[str]:
        """The watchers that have not run for too long."""
        return [name for name, one in self._signs.items() if one.looks > one.looks_max]
