"""Detects background checks that have stopped: a check that runs changes its sign of life.

Time is counted in steps of the watcher, not in seconds. If the machine sleeps, all checks and the watcher stop
together, and no check must look dead after that.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class _Sign:
    sign: object
    looks: int
    looks_max: int


class Signs:
    """The last sign of each check. `late` names the checks whose sign has not changed for too many steps."""

    def __init__(self) -> None:
        self._signs: dict[str, _Sign] = {}

    def see(self, name: str, sign: object, looks_max: int) -> None:
        """Record one step. `sign` is anything that changes when the check has run; `looks_max` steps may pass."""
        known = self._signs.get(name)
        if known is None or known.sign != sign:
            self._signs[name] = _Sign(sign, 0, looks_max)
        else:
            known.looks, known.looks_max = known.looks + 1, looks_max

    def forget(self, name: str) -> None:
        """Stop watching a check that is not meant to run."""
        self._signs.pop(name, None)

    @property
    def late(self) -> list[str]:
        """The checks that have not run for too long."""
        return [name for name, one in self._signs.items() if one.looks > one.looks_max]
