"""Mutants of the breaker, each with one rule removed: the checker or a story must find every one of them.

A mutant is the breaker with one piece of one method replaced in its syntax tree. So layout and comments do not matter,
and a local variable in `old` matches any name that the method uses for it. `found_by` names what must find the mutant:
an invariant of the checker (`checker.py` lists them) in one of its scopes, or a story of `rules.py`.
"""

from __future__ import annotations

import ast
import builtins
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

from koo.policies import breaker as real

SHARED = ("Phase", "Override", "Trigger", "Permit")
"""Classes that a mutant shares with the real module: a second `Phase` would have members that equal no others."""
FIXED = {"self", *vars(real), *vars(builtins)}
"""Names that a pattern takes literally; any other name in it is a local variable."""


@dataclass(frozen=True)
class Mutant:
    """`rule`: the rule that is broken, and how.

    `old` occurs exactly once in the method `method` and is replaced by `new`. It is an expression or a sequence of
    statements, in which a body of `...` matches any body. Without a method, `new` is run at the end of the module.
    """

    rule: str
    method: str
    old: str
    new: str
    found_by: str
    scope: str = "phases"

    def load(self) -> ModuleType:
        """The mutant as a separate module."""
        tree = ast.parse(Path(real.__file__).read_text())
        tree.body = [
            node for node in tree.body if not (isinstance(node, ast.ClassDef) and node.name in SHARED)
        ]
        # The table is imported from another module, which all mutants share: each must change only its own copy.
        tree.body += ast.parse("TRANSITIONS = dict(TRANSITIONS)").body
        if self.method:
            replace(self.method_in(tree), self.old, self.new)
        else:
            tree.body += ast.parse(self.new).body
        module = ModuleType("mutant")
        module.__dict__.update({name: getattr(real, name) for name in SHARED})
        code = compile(ast.fix_missing_locations(tree), f"mutant of {self.rule}", "exec")
        exec(code, module.__dict__)
        return module

    def method_in(self, tree: ast.Module) -> ast.FunctionDef:
        found = [
            node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == self.method
        ]
        assert len(found) == 1, f"{self.rule}: {len(found)} methods are called {self.method}"
        return found[0]


class Match:
    """The names and bodies of the method that a pattern has matched."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.bodies: list[list[ast.stmt]] = []

    def fits(self, pattern: object, node: object) -> bool:
        """True if `node` matches `pattern`. Records the matches of the names and bodies."""
        if isinstance(pattern, ast.Name) and pattern.id not in FIXED:
            return isinstance(node, ast.Name) and self.names.setdefault(pattern.id, node.id) == node.id
        if isinstance(pattern, list):
            if not isinstance(node, list):
                return False
            if is_any_body(pattern):
                self.bodies.append(node)
                return True
            return len(pattern) == len(node) and all(map(self.fits, pattern, node))
        if not isinstance(pattern, ast.AST):
            return pattern == node
        if type(pattern) is not type(node):
            return False
        return all(
            self.fits(getattr(pattern, field), getattr(node, field))
            for field in pattern._fields
            if not (field == "orelse" and isinstance(pattern, ast.If) and not pattern.orelse)
        )

    def fill(self, template: list[ast.stmt], orelse: list[ast.stmt]) -> list[ast.stmt]:
        """The template with the matched names and bodies; an `else` that is not in the pattern is kept."""
        filled = copy.deepcopy(template)
        for statement in filled:
            for node in ast.walk(statement):
                if isinstance(node, ast.Name):
                    node.id = self.names.get(node.id, node.id)
                if isinstance(node, ast.If) and is_any_body(node.body):
                    node.body, node.orelse = self.bodies.pop(0), orelse
        return filled


def is_any_body(body: list[object] | list[ast.stmt]) -> bool:
    first = body[0] if len(body) == 1 else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and first.value.value is ...


def replace(method: ast.FunctionDef, old: str, new: str) -> None:
    """Replace the only occurrence of `old` in `method` by `new`."""
    pattern, template = ast.parse(old).body, ast.parse(new).body
    first, instead = pattern[0], template[0]
    if isinstance(first, ast.Expr) and isinstance(instead, ast.Expr):
        changes = list(in_expressions(method, first.value, instead))
    else:
        changes = list(in_statements(method, pattern, template))
    assert len(changes) == 1, f"{len(changes)} times in {method.name}: {old!r}"
    changes[0]()


Change = Callable[[], None]


def in_expressions(method: ast.FunctionDef, pattern: ast.expr, template: ast.Expr) -> Iterator[Change]:
    """A change for each occurrence of the expression."""

    def put(holder: ast.AST, field: str, index: int | None, match: Match) -> None:
        filled = match.fill([template], [])[0]
        assert isinstance(filled, ast.Expr)
        if index is None:
            setattr(holder, field, filled.value)
        else:
            getattr(holder, field)[index] = filled.value

    for holder in ast.walk(method):
        for field, value in ast.iter_fields(holder):
            numbered = enumerate(value) if isinstance(value, list) else [(None, value)]
            for index, node in numbered:
                match = Match()
                if isinstance(node, ast.expr) and match.fits(pattern, node):
                    yield partial(put, holder, field, index, match)


def in_statements(
    method: ast.FunctionDef, pattern: list[ast.stmt], template: list[ast.stmt]
) -> Iterator[Change]:
    """A change for each occurrence of the sequence of statements."""

    def put(body: list[ast.stmt], index: int, match: Match) -> None:
        orelse = getattr(body[index + len(pattern) - 1], "orelse", [])
        body[index : index + len(pattern)] = match.fill(template, orelse)

    for holder in ast.walk(method):
        for field in ("body", "orelse"):
            body: list[ast.stmt] = found if isinstance(found := getattr(holder, field, None), list) else []
            for index in range(len(body) - len(pattern) + 1):
                match = Match()
                if match.fits(pattern, body[index : index + len(pattern)]):
                    yield partial(put, body, index, match)


LOOK = "if self.phase is CLOSED: ...\nreturn (self.phase is OPEN and now < self.opens_until()) or not self._has_lease()"
MUTANTS = [
    Mutant("R1 no fence", "settle", "permit.generation != self.generation", "permit.generation == OUTSIDE", "late"),
    Mutant("R1 no new generation", "_begin", "self.generation += 1", "pass", "late"),
    Mutant("R2 settles twice", "settle", "permit.settled", "False", "table"),
    Mutant("R2 an ended call stays among the running ones", "settle", "del self._older[permit.serial]", "pass",
           "order"),
    Mutant("R2 the newest call stays after its end", "settle", "self._newest = None", "pass", "books"),
    Mutant("R2 an older running call is lost", "admit", "self._older[newest.serial] = newest", "pass", "books"),
    Mutant("R4 a success does not reset the failures in a row", "settle", "self.consecutive = 0", "pass", "row", "row"),
    Mutant("R4 the streak never shrinks", "_heal_streak", "self.streak -= 1", "pass", "order"),
    Mutant("R4 the streak shrinks immediately", "_heal_streak", "self.options.streak_heals_after_s", "0", "order"),
    Mutant("R5 opens one failure too late", "_why_trip", "self.consecutive >= self.threshold",
           "self.consecutive > self.threshold", "order"),
    Mutant("R5 no failure rate", "_why_trip", "window.failures >= options.failure_rate * calls", "False",
           "order", "rates"),
    Mutant("R5 no slow rate", "_why_trip", "slow >= options.slow_rate * calls", "False", "order", "rates"),
    Mutant("R5 a rate counts with too few calls", "_why_trip", "options.calls_min", "1", "order", "rates"),
    Mutant("R5 a cancelled call is a failure", "settle", "verdict is FAILURE", "verdict in (FAILURE, NEUTRAL)",
           "neutral"),
    Mutant("R5 a throttled call is a failure", "settle", "verdict is FAILURE", "verdict is not NEUTRAL", "order"),
    Mutant("R5 a slow 429 counts as a slow call", "settle", "slow and verdict is NEUTRAL", "slow", "window"),
    Mutant("R5 a slow call cut by its deadline does not count", "settle", "slow and verdict is NEUTRAL", "False",
           "window"),
    Mutant("R5 serial: one reset is fifty steps", "_count_failure", "permit.serial > self._counted_serial", "True",
           "order", "row"),
    Mutant("R5 serial: each failure of another model is a step", "count_outage", "if in_row: ...", "if True: ...",
           "a_reset_that_hits_all_models_of_a_host_is_one_step_for_each"),
    Mutant("R5 serial: its own calls hit by the same reset add a step", "count_outage",
           "self._counted_serial = self._serial", "pass",
           "order", "row"),
    Mutant("R6 hung calls do not count", "_why_trip", "len(self._hung(now))", "0", "order", "rates"),
    Mutant("R6 kept calls count as hung", "_hung", "permit.kept", "False", "order", "rates"),
    Mutant("R6 kept calls hide the others", "_hung", "continue", "break", "order", "rates"),
    Mutant("R6 calls of an old generation count as hung", "_hung", "permit.generation == self.generation", "True",
           "order", "rates"),
    Mutant("R7 the streak does not lengthen", "_trip", "2.0 ** min(self.streak, 30)", "1.0", "open time"),
    Mutant("R7 the open time has no cap", "_trip", "options.open_s_max", "1e9", "open time"),
    Mutant("R7 a streak overflows", "_trip", "min(self.streak, 30)", "self.streak",
           "a_streak_of_thousands_does_not_overflow"),
    Mutant("R7 jitter shortens", "_trip", "1.0 + OPEN_JITTER * draw()", "1.0 - OPEN_JITTER * draw()",
           "jitter_only_lengthens"),
    Mutant("R7 ignores the server's hint", "_trip", "max(self._guess_s, min(hint_s, HINT_S_MAX))", "self._guess_s",
           "open time", "hints"),
    Mutant("R7 the server's hint shortens the open time", "_trip", "max(self._guess_s, min(hint_s, HINT_S_MAX))",
           "hint_s or self._guess_s",
           "a_servers_hint_is_capped_at_a_month_and_not_by_our_own_caps"),
    Mutant("R8 tests recovery a moment too late", "tick", "now >= self.opens_until()", "now > self.opens_until()",
           "order"),
    Mutant("R8 `refuses` is a second too early", "refuses", "now < self.opens_until()",
           "now + 1 < self.opens_until()", "reported"),
    Mutant("R8 `refuses` changes the phase", "refuses", LOOK, f"self.tick(now, lambda: 0.0)\n{LOOK}", "look"),
    Mutant("R8 recovery is never tested", "tick", "now >= self.opens_until()", "False", "recovery"),
    Mutant("R9 any number of probes at the same time", "_has_lease", "taken < self.probes_max", "True", "order",
           "probes"),
    Mutant("R9 more probes than successes needed", "_has_lease", "self.ok + taken < self.options.success_threshold",
           "True",
           "order", "probes"),
    Mutant("R9 a probe has no lease", "admit", "self.leases.append(permit)", "pass", "recovery"),
    Mutant("R9 a lease has no end", "tick", "permit.is_over(now)", "permit.is_over(-1.0)", "recovery"),
    Mutant("R9 a success after the end of its lease counts", "settle", "permit.is_over(now)", "False", "order"),
    Mutant("R9 content does not renew a lease", "renew", "self._lend(permit, now)", "pass",
           "each_piece_of_content_renews_a_streams_lease"),
    Mutant("R9 METRICS_ONLY stops probes", "_lend", "self.override is NONE", "True",
           "metrics_only_stops_no_probe_but_judges_it_by_its_lease"),
    Mutant("R10 one success closes", "_settle_probe", "self.options.success_threshold", "1", "order"),
    Mutant("R10 successful probes are not counted", "_settle_probe", "self.ok += 1", "pass", "recovery"),
    Mutant("R10 closing keeps the old window", "_be_closed", "self.window.clear(now)", "pass", "window"),
    Mutant("R10 closing keeps the old failures in a row", "_be_closed", "self.consecutive = 0",
           "self.consecutive = getattr(self, 'consecutive', 0)", "row"),
    Mutant("R11 a failed probe does not lengthen the open time", "_fail_probe", "self.streak += 1", "pass", "order"),
    Mutant("R11 a failed probe closes", "", "", "TRANSITIONS[HALF_OPEN, Trigger.PROBE_FAILED] = CLOSED", "order"),
    Mutant("R12 a cancelled probe keeps its slot", "_settle_probe",
           "self._take_back(permit)\nif verdict is SUCCESS: ...",
           "if verdict is not NEUTRAL: self._take_back(permit)\nif verdict is SUCCESS: ...", "books"),
    Mutant("R12 a cancelled probe closes", "_settle_probe", "verdict is SUCCESS", "verdict is not FAILURE",
           "neutral", "hints"),
    Mutant("R12 a cancelled probe opens", "_settle_probe", "verdict is FAILURE", "verdict in (FAILURE, NEUTRAL)",
           "neutral"),
    Mutant("R12 inconclusive probes never open it", "_count_inconclusive",
           "self.inconclusive >= self.options.inconclusive_max", "False", "order"),
    Mutant("R12 inconclusive probes lengthen the open time", "_count_inconclusive", "self.inconclusive += 1",
           "self.inconclusive += 1\nself.streak += 1", "order"),
    Mutant("R15 the reader's time counts as silence", "rest", "permit.lease_ends_at = permit.shadow_ends_at = NEVER",
           "pass",
           "an_absent_reader_does_not_fail_the_probe"),
    Mutant("R15 a reader that returns still counts as absent", "renew", "self._resting.pop(permit, None)", "pass",
           "an_absent_reader_does_not_fail_the_probe"),
    Mutant("R15 an absent reader keeps the slot forever", "tick", "self._give_up_resting(now, draw)", "pass",
           "a_reader_that_stays_away_gives_the_slot_back"),
    Mutant("R15 a stream that has lost its slot counts", "_give_up_resting", "permit.generation = OUTSIDE", "pass",
           "a_reader_that_stays_away_gives_the_slot_back"),
    Mutant("R13 a reset does not lift the lease", "_close", "self._lift_leases()", "pass",
           "an_operators_act_stops_no_probe"),
    Mutant("R13 an override does not lift the lease", "set_override", "self._lift_leases()", "pass",
           "an_operators_act_stops_no_probe"),
    Mutant("R13 an act voids no permit", "set_override", "self._begin(self._idle_since)", "pass", "operator"),
    Mutant("R13 a reset keeps the streak", "reset", "NONE, 0", "NONE, self.streak", "order"),
    Mutant("R13 a reset keeps the override", "reset", "NONE, 0", "self.override, 0", "operator"),
    Mutant("R13 METRICS_ONLY takes a call that it would refuse as a probe", "_gate",
           "OUTSIDE if self.override is METRICS_ONLY else None",
           "self.generation if self.override is METRICS_ONLY else None", "recovery"),
    Mutant("R13 an override never expires", "tick", "now >= self.act_ends_at", "False",
           "an_override_ends_at_its_time_and_without_one_a_refusal_names_no_time"),
    Mutant("R13 a refusal by an override names a wrong time", "refusal", "max(self.act_ends_at - now, 0.0) + UNIT_S",
           "self.options.recovery_s",
           "an_override_ends_at_its_time_and_without_one_a_refusal_names_no_time"),
    Mutant("R13 METRICS_ONLY does not count what it would refuse", "_gate",
           "self.passed += self.override is METRICS_ONLY", "pass",
           "metrics_only_counts_and_reports_and_never_refuses"),
    Mutant("R13 METRICS_ONLY refuses", "_gate", "OUTSIDE if self.override is METRICS_ONLY else None", "None", "look"),
    Mutant("R13 DISABLED counts results", "_gate", "if self.override is DISABLED: return OUTSIDE",
           "if self.override is DISABLED: return self.generation", "outside"),
    Mutant("R13 DISABLED counts outages", "count_outage",
           "self.override is NONE or self.override is METRICS_ONLY", "True", "order"),
    Mutant("R13 FORCED_OPEN admits calls", "_gate", "if self.override is FORCED_OPEN: return None", "pass", "look"),
    Mutant("idle: closes while a probe runs", "close_idle", "self.leases", "False", "order"),
    Mutant("idle: closes immediately", "", "", "IDLE_RECOVERIES = 0", "order"),
    Mutant("idle: never closes", "", "", "IDLE_RECOVERIES = 1e9", "order"),
    Mutant("early: ends immediately", "end_early", "now - self.opened_at < self.early_s", "False", "order"),
    Mutant("early: ends while recovery is being tested", "end_early", "self.phase is not OPEN",
           "self.phase is CLOSED", "table"),
    Mutant("early: allowed for a service too", "__init__", "self.early_s = self.act_ends_at = NEVER",
           "self.early_s, self.act_ends_at = 0.0, NEVER",
           "successful_checks_end_an_opening_early_only_if_allowed"),
    Mutant("early: a refusal gives the whole time as the wait", "refusal",
           "min(self.opens_until(), self.early_at)", "self.opens_until()",
           "successful_checks_end_an_opening_early_only_if_allowed"),
    Mutant("fleet: priming does not lower the threshold", "prime", "1 if why else self.options.failure_threshold",
           "self.options.failure_threshold", "order", "fleet"),
    Mutant("fleet: priming never ends", "prime", "1 if why else self.options.failure_threshold", "1", "order", "fleet"),
    Mutant("fleet: `refuses` ignores the missing unit", "refuses",
           "(self.phase is OPEN and now < self.opens_until()) or not self._has_lease()",
           "now < self.opens_until() if self.phase is OPEN else not self._has_lease()", "look", "fleet"),
    Mutant("fleet: an old failure counts as a new one", "_why_trip",
           "self.consecutive >= self.threshold and window.failures", "self.consecutive >= self.threshold",
           "order", "fleet"),
    Mutant("fleet: other processes open it", "prime", "self.happened.append(CircuitPrimed(self.name, why))",
           "self.phase = OPEN", "primed", "fleet"),
    Mutant("fleet: probes without a unit of the fleet", "_has_lease", "taken < self.probes_max",
           "taken < self.options.probe_concurrency", "order", "fleet"),
    Mutant("fleet: another process's success has an effect in any phase", "hear_of_success", "self.phase is not OPEN",
           "True", "order",
           "fleet"),
    Mutant("fleet: another process's success shortens the server's wait", "hear_of_success",
           "self.open_for_s > self._guess_s", "False", "order", "hints"),
    Mutant("fleet: a reset leaves it primed", "reset", 'self.prime("")', "pass",
           "other_processes_prime_a_breaker_and_a_reset_undoes_it"),
    Mutant("fleet: priming sends no event", "prime", "self.happened.append(CircuitPrimed(self.name, why))", "pass",
           "other_processes_prime_a_breaker_and_a_reset_undoes_it"),
    Mutant("fleet: a refusal without a unit names no wait", "refusal", "0.0 if self.probes_max else UNIT_S", "0.0",
           "without_a_unit_a_caller_is_told_to_return_after_the_next_beat"),
    Mutant("a transition is missing", "", "", "del TRANSITIONS[HALF_OPEN, Trigger.PROBES_SAID_NOTHING]", "table"),
    Mutant("a transition bypasses the table", "_enter", "TRANSITIONS[self.phase, trigger]",
           "OPEN if self.phase is CLOSED and trigger is Trigger.TRIPPED"
           " else TRANSITIONS[self.phase, trigger]", "table"),
    Mutant("R17 an opening sends no event", "_trip",
           "self.happened.append(CircuitOpened(self.name, reason, self.open_for_s, met, trip, shadow))", "pass",
           "events_are_collected_in_order_for_the_caller_to_publish"),
    Mutant("R17 a test of recovery sends no event", "_test_recovery",
           "self.happened.append(CircuitHalfOpened(self.name, trigger.value))", "pass",
           "events_are_collected_in_order_for_the_caller_to_publish"),
]  # fmt: skip
