"""Whether koo itself is well: disk space and descriptors, and whether its background checks still run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from koo.alerts.money_rules import STORE
from koo.alerts.signs import Signs
from koo.beats import Beats
from koo.host import HostWatch
from koo.monitoring.own import descriptors_view, disks_view
from koo.monitoring.own_shapes import KooHealth, StoreHealth
from koo.shortages import SHORTAGES

LOOKS_MAX = 60
"""A check may be a minute late, beside its interval, before it is reported as stopped."""
SHORT_S = 60.0
"""A shortage lasts longer than the one call that met it: other calls wait for their pauses meanwhile."""
PROBE, CHECKS = "the probe of the database", "the checks of services"


def folders_of(home: Path, store_file: Path | None) -> dict[str, Path]:
    """Where koo writes on this machine, by the names that alerts have for it."""
    return {"home": home} if store_file is None else {"home": home, STORE: store_file.parent}


class OwnWatch:
    """`step` is called each second. `folders`: where koo writes, by name; `rounds` counts rounds of service checks."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.host = HostWatch(folders)
        self.beats = Beats()
        self.rounds = 0
        self._signs = Signs()
        self._shortages = SHORTAGES.count
        self._short_until = float("-inf")

    def step(self, now: float, *, check_s: float, probe: object, probe_s: float | None) -> None:
        """Look once; `now` in monotonic seconds.

        `check_s`: how long a round of checks may take. `probe`: what the database's probe saw last, which is due after
        `probe_s` (None: no database is open).
        """
        self.beats.beat(now)
        if SHORTAGES.count != self._shortages:
            self._shortages, self._short_until = SHORTAGES.count, now + SHORT_S
        self.host.step(now)
        self._signs.see(CHECKS, self.rounds, LOOKS_MAX + int(check_s))
        if probe_s is None:
            self._signs.forget(PROBE)
        else:
            self._signs.see(PROBE, probe, LOOKS_MAX + int(probe_s))

    def view(self, store: StoreHealth, now: float) -> KooHealth:
        """What is known; without I/O, from any thread."""
        return {
            "state_store": store,
            "disks": disks_view(self.host),
            "descriptors": descriptors_view(self.host),
            "short_of": SHORTAGES.last if now < self._short_until else "",
            "late": self._late(),
            "blocked_s": self.beats.blocked_s(now),
        }

    def _late(self) -> list[str]:
        late = list(self._signs.late)
        if self.host.is_silent:
            late.append("the check of the disks, which do not answer")
        if self.beats.is_late:
            late.append("koo's work of each second, alerts and notifications too")
        return late
