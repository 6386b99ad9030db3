"""Whatever happens to two processes and their store, people are notified exactly once of every lasting condition.

Hypothesis plays two processes on one store: conditions come and go, processes are closed, killed and restarted, clocks
are set, operators silence and acknowledge. Time is virtual, and durations never go back. Next to the real keepers the
test records what each process has found, and since when. Each notice is checked against this record when it is written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from koo.alerts.engine import Moment
from koo.alerts.findings import Finding
from koo.alerts.keeping import AlertKeeper
from koo.alerts.kinds import AlertKind, Ending
from koo.episodes import Acknowledgement, Episode, Episodes, Silence, Silences, new_id
from koo.notices import Notice, Notices
from koo.storage.episodes import LEASE_S, SqlEpisodes
from koo.storage.memory import MemoryTransactions, make_tables
from koo.storage.notices import SqlNotices
from koo.storage.silences import SqlSilences
from koo.storage.worker import Backend

KINDS = {
    "cause": AlertKind("critical", "Cause", ending=Ending("better", "it is better"), evidence="answer"),
    "slow": AlertKind("critical", "Slow", pending_s=30.0, recovering_s=60.0, evidence="answer"),
    "follows": AlertKind("warning", "Follows", inhibited_by=("cause",), evidence="answer"),
}
KEYS = ["cause:x", "slow:x", "follows:x/y", "slow:z"]
REMIND_S = 900.0
WALL_S = 1_790_000_000.0
SLOTS = (0, 1)
SOME = st.sampled_from([(0,), (1,), SLOTS])
TIMES = st.sampled_from([1.0, 5.0, 20.0, 29.0, 31.0, 61.0, 300.0])


class TwoClocks:
    """The monotonic clock only advances; the wall clock may be set."""

    def __init__(self) -> None:
        self.passed_s = 0.0
        self.set_s = 0.0

    def monotonic(self) -> float:
        return 1000.0 + self.passed_s

    def wall(self) -> float:
        return WALL_S + self.passed_s + self.set_s

    async def sleep(self, delay_s: float) -> None:
        raise AssertionError("alerts do not sleep")


@dataclass
class MemoryStore:
    """The parts of a store that alerts need."""

    transactions: MemoryTransactions
    episodes: Episodes
    silences: Silences
    notices: Notices

    @classmethod
    def on(cls, tables: Backend, clock: TwoClocks) -> MemoryStore:
        transactions = MemoryTransactions(tables, new_id(), clock)
        return cls(
            transactions, SqlEpisodes(transactions), SqlSilences(transactions), SqlNotices(transactions)
        )

    @property
    def trouble(self) -> str | None:
        return self.transactions.trouble


@dataclass
class Process:
    """A process's keeper, and the record of what it found."""

    keeper: AlertKeeper
    store: MemoryStore
    has_looked: bool
    found: dict[str, bool] = field(default_factory=dict)
    found_at: dict[str, float] = field(default_factory=lambda: defaultdict(lambda: -1e9))

    looked_at: tuple[float, float] | None = None

    def looks(self, kind: str, component: str) -> bool:
        return self.has_looked


def done(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


class TwoProcesses(RuleBasedStateMachine):
    """The state machine; see the module's docstring."""

    @initialize(keys=st.sets(st.sampled_from(KEYS), min_size=1), both=st.booleans())
    def begin(self, keys: set[str], both: bool) -> None:
        self.clock = TwoClocks()
        self.tables = make_tables()
        self.watcher = MemoryStore.on(self.tables, self.clock)
        self.processes: list[Process | None] = [None, None]
        self.alone: list[Notice] = []
        self.written: list[tuple[str, str, str]] = []
        self.open: dict[
            str, str
        ] = {}  # fingerprint → id of an episode that was announced and whose end was not
        self.lone: set[str] = set()  # fingerprints that processes announced without the store
        self.since: dict[str, Moment] = {}  # since when any process has found it without interruption
        for slot in SLOTS:
            self.start(slot)
        for process in self.alive(*(SLOTS if both else (0,))):
            process.found = dict.fromkeys(keys, True)
        self.look()

    # ── steps ─────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self, slot: int) -> None:
        store = MemoryStore.on(self.tables, self.clock)
        keeper = AlertKeeper(
            store, self.clock, lambda component: True, alone=self.say_alone, remind_every_s=REMIND_S
        )
        keeper.alerts.kinds = KINDS
        done(keeper.begin())
        self.processes[slot] = Process(keeper, store, has_looked=False)

    def say_alone(self, notices: Any) -> None:
        self.alone += notices
        self.lone |= {notice.fingerprint for notice in notices}

    @rule(after_s=TIMES, twice=st.booleans())
    def time_passes(self, after_s: float, twice: bool = False) -> None:
        for _ in range(1 + twice):
            self.clock.passed_s += after_s
            self.look()

    @rule(slots=SOME, keys=st.sets(st.sampled_from(KEYS), min_size=1), begins=st.booleans(), after_s=TIMES)
    def holds(self, slots: tuple[int, ...], keys: set[str], begins: bool, after_s: float) -> None:
        for process in self.alive(*slots):
            process.found.update(dict.fromkeys(keys, begins))
        self.time_passes(after_s)

    @rule(slots=SOME, keys=st.sets(st.sampled_from(KEYS), min_size=1), after_s=TIMES)
    def is_gone(self, slots: tuple[int, ...], keys: set[str], after_s: float) -> None:
        for process in self.alive(*slots):
            process.found = {key: begins for key, begins in process.found.items() if key not in keys}
        self.time_passes(after_s)

    @rule(slot=st.sampled_from(SLOTS))
    def looks_where_it_must(self, slot: int) -> None:
        for process in self.alive(slot):
            process.has_looked = True

    @rule(
        slot=st.sampled_from(SLOTS), is_killed=st.booleans(), is_followed=st.booleans(), keeps=st.booleans()
    )
    def ends(self, slot: int, is_killed: bool, is_followed: bool, keeps: bool) -> None:
        """A process is killed or closed, and perhaps started again, during the same outage or not."""
        process = self.processes[slot]
        if process is not None and process.store.trouble is None:
            if not is_killed:
                done(process.keeper.finish())
            self.processes[slot] = None
        if self.processes[slot] is None and is_followed:
            self.start(slot)
            follower = self.processes[slot]
            if keeps and process is not None and follower is not None:
                follower.found = dict(process.found)
        self.time_passes(1.0)

    @rule(slot=st.sampled_from(SLOTS))
    def store_goes_or_comes(self, slot: int) -> None:
        for process in self.alive(slot):
            transactions = process.store.transactions
            transactions.trouble = None if transactions.trouble else "the state store is unreachable"
        self.time_passes(5.0)

    @rule(by_s=st.sampled_from([-7200.0, -61.0, 61.0]))
    def clock_is_set(self, by_s: float) -> None:
        self.clock.set_s += by_s

    @rule(kind=st.sampled_from(["*", "slow", "cause"]), for_s=st.sampled_from([60.0, 600.0]))
    def operator_silences(self, kind: str, for_s: float) -> None:
        now = self.clock.wall()
        silence = Silence(id=new_id(), kind=kind, made_at=now, ends_at=now + for_s, by="ada", reason="known")
        done(self.watcher.silences.add(silence))

    @rule(key=st.sampled_from(KEYS), is_over=st.booleans())
    def operator_acknowledges(self, key: str, is_over: bool) -> None:
        if key in self.lasting():
            said = None if is_over else Acknowledgement("ada", self.clock.wall())
            done(self.watcher.episodes.acknowledge(self.lasting()[key][0], said))
            for process in self.alive():
                process.looked_at = None

    # ── the rules ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def look(self) -> None:
        """Let each process look in turn, and check what it writes against the record at that moment."""
        for process in self.alive():
            now, lasting = Moment(self.clock.wall(), self.clock.monotonic()), self.lasting()
            for key, begins in process.found.items():
                if begins or key in lasting:
                    self.since.setdefault(key, now)
                process.found_at[key] = now.monotonic
            findings = [self.finding(key, begins) for key, begins in process.found.items()]
            done(process.keeper.look(findings, process.looks))
            process.looked_at = (self.clock.passed_s, self.clock.set_s)
            self.judge(process)
            known = self.known()
            self.since = {key: since for key, since in self.since.items() if key in known}

    def judge(self, process: Process) -> None:
        written = self.notices()
        for what, key, episode_id in written[len(self.written) :]:
            if what == "firing":
                self.may_fire(process, key, episode_id)
            elif what == "resolved":
                self.may_end(process, key, episode_id)
            else:
                assert self.is_loud(process, key), "a reminder of a quiet alert"
        self.written = written

    def may_fire(self, process: Process, key: str, episode_id: str) -> None:
        row, since = KINDS[key.partition(":")[0]], self.since[key]
        assert key in process.found, "a notice about a condition that is not found now"
        # A process that starts in the middle knows only by the wall clock how long the condition has held.
        held_s = max(self.clock.monotonic() - since.monotonic, self.clock.wall() - since.wall)
        assert held_s >= row.pending_s, "a notice about a pending alert"
        assert self.is_loud(process, key), "a notice about a quiet alert"
        if key not in self.lone:
            assert key not in self.open, "a second notice about the same alert"
        self.open[key] = episode_id

    def may_end(self, process: Process, key: str, episode_id: str) -> None:
        now, row = self.clock.monotonic(), KINDS[key.partition(":")[0]]
        assert process.has_looked or process.found_at[key] > 0, "it ended without evidence"
        assert now - process.found_at[key] >= row.recovering_s, "it ended before its recovering time"
        if key not in self.lone:
            assert self.open.get(key) == episode_id, (
                "a notice about the end of an alert that was never announced"
            )
        self.open.pop(key, None)

    def is_loud(self, process: Process, key: str) -> bool:
        """True if neither an operator nor the alert's cause suppresses its notices."""
        kind, _, component = key.partition(":")
        now = self.clock.wall()
        if any(s.covers(kind, component, now) for s in done(self.watcher.silences.lasting(now))):
            return False
        if self.lasting().get(key, ("", False))[1]:
            return False
        causes = {one.fingerprint for one in process.keeper.alerts.lasting}
        return kind != "follows" or "cause:x" not in causes

    @precondition(lambda self: hasattr(self, "watcher"))
    @invariant()
    def what_fires_loudly_was_said(self) -> None:
        """No alarm is missed: in a process that has its store, every firing alert that is not quiet has its notice."""
        for process in self.alive():
            if process.looked_at == (self.clock.passed_s, self.clock.set_s) and process.store.trouble is None:
                for seen in process.keeper.alerts.seen:
                    key = seen.episode.fingerprint
                    if seen.is_firing and key in process.found and self.is_loud(process, key):
                        settles = seen.inhibited_at is not None
                        assert settles or seen.episode.notified_at is not None, key

    def teardown(self) -> None:
        """When all conditions are over and every process has checked, each announced alert has ended and is in the
        history.
        """
        if not hasattr(self, "watcher"):
            return
        self.clock.set_s = max(self.clock.set_s, 0.0)
        for slot in SLOTS:
            if self.processes[slot] is None:
                self.start(slot)
        for process in self.alive():
            process.store.transactions.trouble = None
            process.has_looked = True
            process.found.clear()
        for after_s in (1.0, LEASE_S + 7300, 6.0, 61.0, 61.0, 6.0):
            self.time_passes(after_s)
        for episode in self.history():
            assert episode.fired_at is not None and episode.ended_at is not None
            assert episode.started_at <= episode.fired_at <= episode.ended_at, "it ended before it began"
        assert self.open.keys() <= self.lone
        ids = {one.id for one in self.history()}
        for what, key, episode_id in self.written:
            assert episode_id in ids, "an announced alert is missing from the history"
            if key not in self.lone:
                count = sum(one[2] == episode_id and one[0] == what for one in self.written)
                assert what == "reminder" or count == 1

    # ── helpers ───────────────────────────────────────────────────────────────────────────────────────────────

    def alive(self, *slots: int) -> list[Process]:
        return [process for slot in slots or SLOTS if (process := self.processes[slot]) is not None]

    def finding(self, key: str, begins: bool) -> Finding:
        kind, _, component = key.partition(":")
        return Finding(kind, component, f"{key} holds", begins=begins)

    def known(self) -> set[str]:
        """The fingerprints of all alerts that are open in the store, found by a process, or still kept by one."""
        seen = {one.fingerprint for process in self.alive() for one in process.keeper.alerts.lasting}
        return seen.union(self.lasting(), *(process.found for process in self.alive()))

    def history(self) -> list[Episode]:
        found: list[Episode] = done(self.watcher.episodes.history(0, self.clock.wall() + 1e6, limit=1000))
        return found

    def lasting(self) -> dict[str, tuple[str, bool]]:
        """The open episodes in the store: their ids, and whether they are acknowledged."""
        sql = "SELECT fingerprint, id, acknowledged FROM koo_episodes WHERE ended_ms IS NULL"
        return {fingerprint: (id_, bool(said)) for fingerprint, id_, said in self.ask(sql)}

    def ask(self, sql: str) -> list[Any]:
        rows: list[Any] = done(self.watcher.transactions.run(lambda tx: tx.rows(sql)))
        return rows

    def notices(self) -> list[tuple[str, str, str]]:
        """The written notices in order: what, fingerprint, and the episode's id."""
        rows = self.ask("SELECT what, fingerprint, key FROM koo_notices ORDER BY rowid")
        return [(what, fingerprint, key.partition(":")[0]) for what, fingerprint, key in rows]


TestTwoProcesses = TwoProcesses.TestCase
TestTwoProcesses.settings = settings(max_examples=60, stateful_step_count=20, derandomize=True)
