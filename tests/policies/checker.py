"""All interleavings in a small scope: any fault of a breaker already shows with three calls.

`explore` starts from the first state and tries every order of admissions, results (including late and repeated ones),
ticks, steps of time, hung calls, outages and an operator's acts. States that do not differ in anything relevant are
visited once. In each state it compares the breaker with the `Model`, and checks the invariants of any breaker:

    late        a result of an old generation changes nothing (R1)
    once        a permit settles once (R2)
    order       the phase follows from the rules (R4 to R12)
    row         failures in a row are counted by R4 and R5
    window      it keeps every recent call and drops every old one
    cap         no more probes are running than allowed (R9)
    neutral     a cancelled call neither opens nor closes it, except one inconclusive probe too many (R12)
    books       the running permits and the leases are exactly those that are out
    look        `refuses` changes nothing, and agrees with `admit` (R8)
    open time   it stays open for the time of R7
    operator    an operator's act voids the permits that are out (R13)
    outside     a call that passes only by an override changes nothing (R13)
    reported    the state that users see agrees with what is admitted
    primed      reports of other processes never change its phase, except a success, which ends an opening
    recovery    CLOSED can be reached, even if all calls that run now hang forever
    table       phases change only by TRANSITIONS
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from koo.options import NEVER, BreakerOptions
from koo.policies import breaker as real
from koo.policies.breaker import (
    CLOSED,
    DISABLED,
    FORCED_OPEN,
    HALF_OPEN,
    METRICS_ONLY,
    NONE,
    OPEN,
    Breaker,
    Phase,
    Trigger,
)
from koo.policies.permit import Permit
from koo.policies.reported import DatabaseState, Evidence, ServiceState, database_state, service_state
from koo.policies.verdict import FAILURE, NEUTRAL, SUCCESS, THROTTLED
from koo.policies.window import Window
from tests.policies.model import EARLY_S, Counts, Model

Action = tuple[Any, ...]
SLOW_S = 1.0
STEP_S = 1.0


def no_draw() -> float:
    return 0.0


class Violation(AssertionError):
    """A broken invariant, and the shortest path that breaks it."""

    def __init__(self, invariant: str, why: str, path: tuple[Action, ...]) -> None:
        super().__init__(f"{invariant}: {why}\n  " + "\n  ".join(" ".join(map(str, step)) for step in path))
        self.invariant = invariant


@dataclass(frozen=True)
class Scope:
    """The bounds of an exploration."""

    options: BreakerOptions
    calls_max: int = 3
    seen_max: int = 2
    streak_max: int = 1
    hint_s: float = 0.0
    operator: bool = True
    fleet: bool = False  # with other processes, which prime it and share its probe units


class Recorder(dict[tuple[Phase, Trigger], Phase]):
    """The table of transitions, which records those that were used."""

    def __init__(self, table: dict[tuple[Phase, Trigger], Phase]) -> None:
        super().__init__(table)
        self.used: set[tuple[Phase, Trigger]] = set()
        self.steps: list[tuple[Phase, Phase]] = []

    def __getitem__(self, key: tuple[Phase, Trigger]) -> Phase:
        to = super().__getitem__(key)
        self.used.add(key)
        self.steps.append((key[0], to))
        return to


class World:
    """A breaker and its model at one moment, with all permits that are out, including those of old generations."""

    __slots__ = ("breaker", "model", "now", "out", "path")

    def __init__(self, breaker: Breaker, model: Model, now: float) -> None:
        self.breaker, self.model, self.now = breaker, model, now
        self.out: dict[int, Permit] = {}  # by the model's number of the call
        self.path: tuple[Action, ...] = ()

    def clone(self) -> World:
        permits: dict[int, Permit] = {}
        for permit in (*self.out.values(), *self.breaker._running(), *self.breaker.leases):
            if id(permit) not in permits:
                permits[id(permit)] = _copy_slots(permit)
        old = self.breaker
        new = _copy_slots(old)
        new.window = _copy_slots(old.window)
        new.window._past = list(old.window._past)
        new._older = {serial: permits[id(permit)] for serial, permit in old._older.items()}
        new._newest = permits[id(old._newest)] if old._newest is not None else None
        new.leases = [permits[id(permit)] for permit in old.leases]
        new.happened = []
        world = World(new, self.model.clone(), self.now)
        world.out = {number: permits[id(permit)] for number, permit in self.out.items()}
        world.path = self.path
        return world

    def counts(self) -> Counts:
        window: Window = self.breaker.window
        return Counts(window.calls, window.failures, window.slow)

    def key(self) -> tuple[Any, ...]:
        """The relevant part of a state: two states with the same key have the same future."""
        breaker, now = self.breaker, self.now
        options = breaker.options
        closed = breaker.phase is CLOSED
        rest: tuple[Any, ...]
        if closed:
            window = breaker.window
            until_roll = max(window.rolls_at - now, -options.window_s)
            healthy_s = min(now - breaker.closed_at, options.streak_heals_after_s) if breaker.streak else 0.0
            rest = (
                breaker.consecutive, healthy_s, until_roll, window.calls, window.failures, window.slow,
                tuple(window._past), window._begun,
            )  # fmt: skip
        elif breaker.phase is OPEN:
            asked = breaker.open_for_s > breaker._guess_s
            rest = (max(breaker.opens_until() - now, 0.0), min(now - breaker.opened_at, EARLY_S), asked)
        else:
            idle_s = min(now - breaker._idle_since, 3 * options.recovery_s)
            rest = (breaker.ok, breaker.inconclusive, idle_s)
        permits = sorted(self.permit_key(permit, closed) for permit in self.out.values())
        fleet = breaker.primed, breaker.threshold, breaker.probes_max
        return breaker.phase, breaker.override, breaker.streak, tuple(permits), fleet, rest

    def permit_key(self, permit: Permit, closed: bool) -> tuple[Any, ...]:
        breaker, now = self.breaker, self.now
        if permit.generation != breaker.generation:
            return (0,)
        if not closed:
            ends_at = min(permit.lease_ends_at, getattr(permit, "shadow_ends_at", NEVER))
            return (1, max(ends_at - now, 0.0), permit.lease_ends_at < NEVER)
        in_row = permit.serial > breaker._counted_serial
        return (2, in_row, -1.0 if permit.kept else min(now - permit.given_at, SLOW_S))


def _copy_slots(thing: Any) -> Any:
    new = object.__new__(type(thing))
    for name in thing.__slots__:
        value = getattr(thing, name, UNSET)
        if value is not UNSET:
            setattr(new, name, value)
    return new


UNSET: Any = object()


class Explorer:
    """One exploration of one breaker (the real one, or a mutant's module) over one scope."""

    def __init__(self, scope: Scope, module: Any = real) -> None:
        self.scope, self.module = scope, module
        self.table = Recorder(module.TRANSITIONS)
        self.states = self.steps = 0
        self.phases: set[Phase] = set()

    def explore(self) -> None:
        """Visit every state of the scope; raises `Violation` at the first that breaks an invariant."""
        kept, self.module.TRANSITIONS = self.module.TRANSITIONS, self.table
        try:
            self._explore()
        finally:
            self.module.TRANSITIONS = kept

    def _explore(self) -> None:
        options = self.scope.options
        first = World(self.module.Breaker("b", options, SLOW_S, 0.0), Model(options, SLOW_S, 0.0), 0.0)
        first.breaker.happened = []
        first.breaker.early_s = EARLY_S
        todo, known = deque([first]), {(first.key(), first.model.key())}
        while todo:
            world = todo.popleft()
            self.states += 1
            self.phases.add(world.breaker.phase)
            self.check_state(world)
            for action in self.actions(world):
                self.steps += 1
                after = self.step(world, action)
                key = (after.key(), after.model.key())
                if key not in known and after.breaker.streak <= self.scope.streak_max:
                    known.add(key)
                    todo.append(after)

    # ── possible steps ────────────────────────────────────────────────────────────────────────────────────────

    def actions(self, world: World) -> Iterator[Action]:
        yield ("wait",)
        yield ("tick",)
        may_see = world.breaker.phase is not CLOSED or world.breaker.window.calls < self.scope.seen_max
        if len(world.out) < self.scope.calls_max and may_see:
            yield ("admit",)
        for number, permit in world.out.items():
            for verdict, slow in RESULTS:
                yield ("settle", number, verdict, slow)
            if world.breaker.phase is HALF_OPEN:
                yield ("renew", number)
            if not permit.kept:
                yield ("keep", number)
        if may_see:
            yield ("outage", True)
            yield ("outage", False)
        yield ("check",)
        yield ("answer",)
        yield ("told",)
        if self.scope.fleet:
            yield ("prime", not world.breaker.primed)
            yield ("units", 1 - world.breaker.probes_max)
        if not self.scope.operator:
            return
        yield ("reset",)
        for override in (NONE, FORCED_OPEN, DISABLED, METRICS_ONLY):
            if override is not world.breaker.override:
                yield ("override", override)

    def step(self, before: World, action: Action) -> World:
        world = before.clone()
        world.path = (*before.path, action)
        world.model.now = world.now
        self.table.steps.clear()
        act: Callable[..., None] = getattr(self, f"do_{action[0]}")
        try:
            act(before, world, *action[1:])
        except Violation:
            raise
        except Exception as error:
            self.fail(
                world, "table" if isinstance(error, KeyError) else "order", f"{type(error).__name__}: {error}"
            )
        self.check_step(before, world)
        return world

    def do_wait(self, _: World, world: World) -> None:
        world.now = world.model.now = world.now + STEP_S

    def do_tick(self, _: World, world: World) -> None:
        world.breaker.tick(world.now, no_draw)
        world.model.tick(world.counts())

    def do_admit(self, before: World, world: World) -> None:
        breaker = world.breaker
        refused = breaker.refuses(world.now)
        ran_out = any(permit.is_over(world.now) for permit in breaker.leases)
        permit = breaker.admit(world.now, no_draw)
        number = world.model.admit(world.counts())
        self.must(
            world, "look", not (refused and permit is not None), "`refuses` is true, but a call is admitted"
        )
        self.must(
            world,
            "look",
            refused or permit is not None or ran_out,
            "`refuses` is false, but no call is admitted",
        )
        self.must(
            world,
            "order",
            (permit is None) == (number is None),
            f"the model admits it: {number is not None}",
        )
        if permit is not None and number is not None:
            world.out[number] = permit
            ours = permit.generation == breaker.generation
            theirs = world.model.calls[number].counts_in is not None
            self.must(world, "outside", ours == theirs, f"the call counts: {ours}, by the model {theirs}")

    def do_settle(self, before: World, world: World, number: int, verdict: Any, slow: bool) -> None:
        breaker, permit = world.breaker, world.out.pop(number)
        late = permit.generation != breaker.generation
        known = world.key()
        if late:
            world.out[number] = permit
            known = world.key()
            del world.out[number]
        try:
            counted = breaker.settle(permit, verdict, slow, world.now, no_draw, self.scope.hint_s)
        except (ValueError, AttributeError) as error:
            self.fail(world, "late" if late else "books", str(error))
        world.model.settle(number, verdict, slow, self.scope.hint_s, world.counts())
        if late:
            self.must(world, "late", not counted, "a result of an old generation counted")
            world.out[number] = permit
            unchanged = known == world.key()
            del world.out[number]
            self.must(world, "late", unchanged, "a result of an old generation changed something")
        if verdict is NEUTRAL and not slow:
            self.check_neutral(before, world)
        again = world.key()
        for other in (SUCCESS, FAILURE):
            counted = breaker.settle(permit, other, False, world.now, no_draw)
            self.must(world, "once", not counted and world.key() == again, "a permit settled twice")

    def check_neutral(self, before: World, world: World) -> None:
        breaker, options = world.breaker, self.scope.options
        changed = before.breaker.phase is not breaker.phase
        ran_out = any(permit.is_over(world.now) for permit in before.breaker.leases)
        too_many = before.breaker.inconclusive + 1 >= options.inconclusive_max
        self.must(world, "neutral", not changed or breaker.phase is OPEN, "a cancelled call closed it")
        self.must(world, "neutral", not changed or ran_out or too_many, "a cancelled call opened it")

    def do_renew(self, _: World, world: World, number: int) -> None:
        world.breaker.renew(world.out[number], world.now)
        world.model.renew(number)

    def do_keep(self, _: World, world: World, number: int) -> None:
        world.out[number].kept = world.model.calls[number].kept = True

    def do_outage(self, _: World, world: World, in_row: bool) -> None:
        world.breaker.count_outage(in_row, world.now, no_draw)
        world.model.outage(in_row, world.counts())

    def do_check(self, _: World, world: World) -> None:
        world.breaker.close_idle(world.now)
        world.model.check_succeeded()

    def do_answer(self, _: World, world: World) -> None:
        world.breaker.end_early(world.now)
        world.model.answered()

    def do_told(self, _: World, world: World) -> None:
        world.breaker.hear_of_success(world.now)
        world.model.told()

    def do_prime(self, before: World, world: World, is_primed: bool) -> None:
        world.breaker.prime("3 of 4 have it open" if is_primed else "")
        world.model.primed = is_primed
        self.must(world, "primed", before.breaker.phase is world.breaker.phase, "a report changed its phase")

    def do_units(self, before: World, world: World, units: int) -> None:
        world.breaker.probes_max = world.model.probes_max = units
        self.must(
            world, "primed", before.breaker.phase is world.breaker.phase, "a probe unit changed its phase"
        )

    def do_reset(self, before: World, world: World) -> None:
        world.breaker.reset(world.now)
        world.model.reset()
        self.check_operator(before, world)
        self.must(world, "operator", world.breaker.phase is CLOSED, "a reset does not close it")
        self.must(world, "operator", world.breaker.override is NONE, "a reset leaves an override")

    def do_override(self, before: World, world: World, override: Any) -> None:
        world.breaker.set_override(override)
        world.model.set_override(override)
        self.check_operator(before, world)

    def check_operator(self, before: World, world: World) -> None:
        breaker = world.breaker
        void = all(permit.generation != breaker.generation for permit in world.out.values())
        self.must(world, "operator", void and not breaker.leases, "an older permit still counts")

    # ── invariants ────────────────────────────────────────────────────────────────────────────────────────────

    def check_step(self, before: World, world: World) -> None:
        old, breaker, model = before.breaker, world.breaker, world.model
        phase = old.phase
        for was, to in self.table.steps:
            self.must(world, "table", was is phase, f"from {was}, but it was {phase}")
            phase = to
        self.must(
            world,
            "table",
            phase is breaker.phase,
            f"it went to {breaker.phase} without a transition in the table",
        )
        if self.table.steps:
            self.must(
                world, "late", breaker.generation > old.generation, "a new phase without a new generation"
            )
        self.must(
            world, "order", breaker.phase is model.phase, f"{breaker.phase}, by the model {model.phase}"
        )
        self.must(
            world, "order", breaker.streak == model.streak, f"streak {breaker.streak}, not {model.streak}"
        )
        if breaker.phase is OPEN:
            until = breaker.opens_until()
            self.must(
                world, "open time", until == model.opens_until, f"open until {until}, not {model.opens_until}"
            )
        elif breaker.phase is CLOSED:
            self.check_window(world)
            self.must(
                world, "row", breaker.consecutive == model.row, f"{breaker.consecutive}, not {model.row}"
            )
        else:
            mine, theirs = (breaker.ok, breaker.inconclusive), (model.ok, model.inconclusive)
            self.must(world, "order", mine == theirs, f"probes {mine}, by the model {theirs}")

    def check_state(self, world: World) -> None:
        self.check_books(world)
        self.check_look(world)
        self.check_reported(world)
        if world.breaker.phase is not CLOSED:
            self.check_recovery(world)

    def check_window(self, world: World) -> None:
        window = _copy_slots(world.breaker.window)
        window._past = list(window._past)
        window.roll(world.now)
        wrong = world.model.forgets(Counts(window.calls, window.failures, window.slow))
        self.must(world, "window", not wrong, wrong)

    def check_books(self, world: World) -> None:
        breaker, options = world.breaker, self.scope.options
        running = {id(permit) for permit in breaker._running()}
        self.must(
            world,
            "books",
            running == {id(permit) for permit in world.out.values()},
            "the running permits are wrong",
        )
        current = [permit for permit in world.out.values() if permit.generation == breaker.generation]
        probes = current if breaker.phase is HALF_OPEN else []
        self.must(world, "books", sorted(map(id, breaker.leases)) == sorted(map(id, probes)), "wrong leases")
        self.must(world, "cap", len(probes) <= options.probe_concurrency, f"{len(probes)} probes at once")
        if breaker.phase is HALF_OPEN:
            enough = breaker.ok + len(probes) <= options.success_threshold
            self.must(world, "cap", enough, "more probes than successes needed")

    def check_look(self, world: World) -> None:
        known = world.key()
        for ahead_s in (0.0, 100.0):
            world.breaker.refuses(world.now + ahead_s)
            world.breaker.refusal(world.now + ahead_s)
        self.must(world, "look", world.key() == known, "reading changed something")
        if world.breaker.refuses(world.now):
            reason, wait_s = world.breaker.refusal(world.now)
            self.must(
                world, "look", bool(reason) and wait_s >= 0, f"refused without a reason: {reason!r} {wait_s}"
            )

    def check_reported(self, world: World) -> None:
        breaker = world.breaker
        refuses = breaker.refuses(world.now)
        states: list[tuple[Any, type[DatabaseState] | type[ServiceState]]] = [
            (database_state(Evidence(breaker))[0], DatabaseState),
            (service_state(Evidence(breaker))[0], ServiceState),
        ]
        for state, names in states:
            is_open = state is names.CIRCUIT_OPEN
            fine = state in (names.HEALTHY, names.UNHEALTHY)
            self.must(world, "reported", not (fine and refuses), f"{state}, but calls are refused")
            over = breaker.phase is OPEN and world.now >= breaker.opens_until()
            self.must(world, "reported", not is_open or refuses or over, f"{state}, but calls are admitted")
            if breaker.override is NONE and breaker.phase is HALF_OPEN:
                self.must(world, "reported", state is names.DEGRADED, f"{state} while it is being tested")

    def check_recovery(self, world: World) -> None:
        """Check that the breaker closes if no running call ever returns and every new call succeeds immediately."""
        world = world.clone()
        breaker = world.breaker
        if breaker.override in (FORCED_OPEN, DISABLED):
            breaker.set_override(NONE)  # an override comes first
        breaker.probes_max = max(1, breaker.probes_max)  # other processes give a unit back at some time
        for _ in range(RECOVERY_STEPS_MAX):
            if breaker.phase is CLOSED:
                return
            permit = breaker.admit(world.now, no_draw)
            try:
                if permit is not None:
                    breaker.settle(permit, SUCCESS, False, world.now, no_draw)
            except (ValueError, AttributeError) as error:
                self.fail(world, "recovery", str(error))
            if permit is None or permit.generation < 0:
                world.now += STEP_S
                breaker.tick(world.now, no_draw)
        self.fail(world, "recovery", "it never closes again")

    def must(self, world: World, invariant: str, holds: bool, why: str) -> None:
        if not holds:
            self.fail(world, invariant, why)

    def fail(self, world: World, invariant: str, why: str) -> NoReturn:
        raise Violation(invariant, why, world.path)


RECOVERY_STEPS_MAX = 100
RESULTS = [
    (SUCCESS, False), (SUCCESS, True), (FAILURE, False), (NEUTRAL, False), (NEUTRAL, True), (THROTTLED, False),
    (THROTTLED, True),
]  # fmt: skip


def _scope(**options: Any) -> BreakerOptions:
    small: dict[str, Any] = {
        "failure_threshold": 1, "success_threshold": 2, "recovery_s": 2.0, "open_s_max": 4.0, "window_s": 2.0,
        "window_buckets": 2, "calls_min": 3, "inconclusive_max": 2, "streak_heals_after_s": 2.0,
    }  # fmt: skip
    return BreakerOptions(**{**small, **options})


_ONE_PROBE: dict[str, Any] = {"success_threshold": 1, "inconclusive_max": 1}
SCOPES: dict[str, Scope] = {
    "hints": Scope(_scope(success_threshold=1), calls_max=1, hint_s=7.0),
    "phases": Scope(_scope(), calls_max=2, seen_max=1),
    "row": Scope(_scope(failure_threshold=2, **_ONE_PROBE), calls_max=2, streak_max=0, operator=False),
    "rates": Scope(
        _scope(failure_threshold=4, calls_min=2, **_ONE_PROBE), calls_max=2, streak_max=0, operator=False
    ),
    "probes": Scope(
        _scope(probe_concurrency=2, success_threshold=3), seen_max=1, streak_max=0, operator=False
    ),
    "fleet": Scope(
        _scope(failure_threshold=2, **_ONE_PROBE),
        calls_max=2,
        seen_max=1,
        streak_max=0,
        operator=False,
        fleet=True,
    ),
}
"""Each scope is large in one respect and small in the others. Each is explored completely."""
