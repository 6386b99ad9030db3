"""Watches koo itself: disk space, file descriptors, and whether its background checks still run."""

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
"""A check may be a minute later than its interval before it is reported as stopped."""
SHORT_S = 60.0
"""A shortage is shown for a minute, because it affects more than the call that failed: others retry after it."""
PROBE, CHECKS = "the database probe", "the service checks"


def folders_of(home: Path, store_file: Path | None) -> dict[str, Path]:
    """The folders that koo writes to on this machine, by the names that alerts use."""
    return {"home": home} if store_file is None else {"home": home, STORE: store_file.parent}


class OwnWatch:
    """Call `step` once a second. `folders` are koo's folders by name. `rounds` counts rounds of service checks."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.host = HostWatch(folders)
        self.beats = Beats()
        self.rounds = 0
        self._signs = Signs()
        self._shortages = SHORTAGES.count
        self._short_until = float("-inf")

    def step(self, now: float, *, check_s: float, probe: object, probe_s: float | None) -> None:
        """Check everything once; `now` is in monotonic seconds.

        `check_s` is how long a round of service checks may take. `probe` is the result of the database's last probe,
        and a new one is due after `probe_s` (None if no database is open).
        """
        self.beats.beat(now)
        # The count is compared, because a shortage is noticed where a call fails, in any thread, and may be over again
        # before this step.
        if SHORTAGES.count != self._shortages:
            self._shortages, self._short_until = SHORTAGES.count, now + SHORT_S
        self.host.step(now)
        self._signs.see(CHECKS, self.rounds, LOOKS_MAX + int(check_s))
        if probe_s is None:
            self._signs.forget(PROBE)
        else:
            self._signs.see(PROBE, probe, LOOKS_MAX + int(probe_s))

    def view(self, store: StoreHealth, now: float) -> KooHealth:
        """koo's own health, without I/O, from any thread."""
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
            late.append("the disk check, because a disk does not respond")
        if self.beats.is_late:
            late.append("koo's once-a-second work, including alerts and notifications")
        return late
