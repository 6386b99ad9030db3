"""Breakers with one rule taken out: the checker or a story must find each of them.

A mutant is the breaker's own source with one piece replaced. `found_by` names who has to find it: an invariant of the
checker (`checker.py` lists them) in one of its scopes, or a story of `rules.py`.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from koo.policies import breaker as real

SHARED = ("Phase", "Override", "Cue", "Permit")
"""Classes that a mutant keeps: another `Phase` would be unequal to everybody else's."""


@dataclass(frozen=True)
class Mutant:
    """`rule`: which one it breaks, and how; `old` stands exactly once in the source."""

    rule: str
    old: str
    new: str
    found_by: str
    scope: str = "phases"

    def load(self) -> ModuleType:
        """The mutant as a module of its own."""
        source = Path(real.__file__).read_text()
        assert source.count(self.old) == 1, (
            f"{self.rule}: {source.count(self.old)} times in the source: {self.old!r}"
        )
        tree = ast.parse(source.replace(self.old, self.new))
        tree.body = [
            node for node in tree.body if not (isinstance(node, ast.ClassDef) and node.name in SHARED)
        ]
        module = ModuleType("mutant")
        module.__dict__.update({name: getattr(real, name) for name in SHARED})
        exec(compile(tree, f"mutant of {self.rule}", "exec"), module.__dict__)
        return module


MUTANTS = [
    Mutant("R1 no fence", "if permit.generation != self.generation:", "if permit.generation == OUTSIDE:", "late"),
    Mutant("R1 no new generation", "self.generation += 1", "self.generation += 0", "late"),
    Mutant("R2 settles twice", "if permit.settled:", "if permit is None:", "table"),
    Mutant("R2 remembers who has left", "del self._older[permit.serial]", "self._older.get(0)", "order"),
    Mutant("R2 remembers who came last", "            self._newest = None\n", "            pass\n", "books"),
    Mutant("R2 forgets who came before", "self._older[newest.serial] = newest", "pass", "books"),
    Mutant(
        "R4 a success leaves the row", "            self.consecutive = 0\n", "            pass\n", "row", "row"
    ),
    Mutant(
        "R4 the streak never heals", "            self.streak -= 1\n", "            pass\n", "order"
    ),
    Mutant("R4 heals at once", ">= self.options.streak_heals_after_s", ">= 0", "order"),
    Mutant(
        "R5 one failure too late", "self.consecutive >= options.failure_threshold",
        "self.consecutive > options.failure_threshold", "order",
    ),
    Mutant(
        "R5 no failure rate", "if window.failures >= options.failure_rate * calls:", "if False:", "order", "rates"
    ),
    Mutant("R5 no slow rate", "if slow >= options.slow_rate * calls:", "if False:", "order", "rates"),
    Mutant("R5 a rate of too few calls", "if calls < options.calls_min:", "if calls < 1:", "order", "rates"),
    Mutant(
        "R5 a cancelled call is a failure", "        elif verdict is FAILURE:\n            self._count_failure",
        "        elif verdict in (FAILURE, NEUTRAL):\n            self._count_failure", "neutral",
    ),
    Mutant(
        "R5 a throttled call is a failure", "        elif verdict is FAILURE:\n            self._count_failure",
        "        elif verdict is not NEUTRAL:\n            self._count_failure", "order",
    ),
    Mutant("R5 a slow 429 counts", "elif slow and verdict is NEUTRAL:", "elif slow:", "window"),
    Mutant("R5 a slow deadline does not", "elif slow and verdict is NEUTRAL:", "elif False:", "window"),
    Mutant("R5 serial: fifty steps at once", "if permit.serial > self._counted_serial:", "if True:", "order", "row"),
    Mutant(
        "R5 serial: an outage is a step for each model", "            if in_row:\n", "            if True:\n",
        "a_reset_that_hits_all_models_of_a_host_is_one_step_for_each",
    ),
    Mutant(
        "R5 serial: the own calls count again", "                self._counted_serial = self._serial\n",
        "                pass\n", "order", "row",
    ),
    Mutant("R6 hung calls are not seen", "hung = self._hung(now)", "hung = 0", "order", "rates"),
    Mutant("R6 kept calls are hung", "            if permit.kept:\n                continue\n", "", "order", "rates"),
    Mutant("R6 kept calls hide the others", "            if permit.kept:\n                continue\n",
           "            if permit.kept:\n                break\n", "order", "rates"),
    Mutant("R6 late calls are hung", "count += permit.generation == self.generation", "count += 1", "order", "rates"),
    Mutant("R7 the streak does not lengthen", "2.0 ** min(self.streak, 30)", "1.0", "open time"),
    Mutant("R7 no cap", ", options.open_s_max)", ", 1e9)", "open time"),
    Mutant("R7 a streak overflows", "min(self.streak, 30)", "self.streak",
           "a_streak_of_thousands_does_not_overflow"),
    Mutant("R7 jitter shortens", "(1.0 + 0.2 * draw())", "(1.0 - 0.2 * draw())", "jitter_only_lengthens"),
    Mutant("R7 deaf to the server", "max(guess_s, min(hint_s, HINT_S_MAX))", "guess_s", "open time", "hints"),
    Mutant("R7 the server shortens", "max(guess_s, min(hint_s, HINT_S_MAX))", "hint_s or guess_s",
           "a_servers_word_is_not_capped_by_our_caps_but_by_a_month"),
    Mutant("R8 a moment too late", "if now >= self.opens_until():", "if now > self.opens_until():", "order"),
    Mutant("R8 looks too early", "return now < self.opens_until() if", "return now + 1 < self.opens_until() if",
           "reported"),
    Mutant(
        "R8 looking moves it", "        if self.phase is CLOSED:\n            return False\n        return now",
        "        self.tick(now, lambda: 0.0)\n        if self.phase is CLOSED:\n"
        "            return False\n        return now",
        "look",
    ),
    Mutant("R8 never tested", "if now >= self.opens_until():", "if now < 0:", "recovery"),
    Mutant("R9 a crowd", "return taken < self.options.probe_concurrency and", "return", "order", "probes"),
    Mutant("R9 too many probes", " and self.ok + taken < self.options.success_threshold", "", "order", "probes"),
    Mutant("R9 a probe has no lease", "            self.leases.append(permit)\n", "", "recovery"),
    Mutant("R9 a lease has no end", "any(permit.is_over(now) for", "any(permit.is_over(-1.0) for", "recovery"),
    Mutant("R9 a late success counts", "elif permit.is_over(now):", "elif False:", "order"),
    Mutant("R9 content does not renew", "self.generation:\n            self._lend(permit, now)",
           "self.generation:\n            pass",
           "each_piece_of_content_renews_a_streams_lease"),
    Mutant(
        "R9 METRICS_ONLY cuts probes short", "        if self.override is NONE:\n            permit.lease",
        "        if True:\n            permit.lease",
        "metrics_only_cuts_no_probe_short_and_gives_it_up_all_the_same",
    ),
    Mutant("R10 one success closes", "if self.ok >= self.options.success_threshold:", "if self.ok >= 1:", "order"),
    Mutant("R10 never enough", "            self.ok += 1\n", "            pass\n", "recovery"),
    Mutant("R10 an old window", "        self.window.clear(now)\n", "", "window"),
    Mutant("R10 an old row", "        self.consecutive = 0\n        self._counted",
           "        self.consecutive = getattr(self, 'consecutive', 0)\n        self._counted", "row"),
    Mutant("R11 no escalation", "        self.streak += 1\n", "", "order"),
    Mutant("R11 a failed probe closes", "(HALF_OPEN, Cue.PROBE_FAILED): OPEN", "(HALF_OPEN, Cue.PROBE_FAILED): CLOSED",
           "order"),
    Mutant(
        "R12 a cancelled probe keeps its slot", "        self.leases.remove(permit)\n",
        "        if verdict is not NEUTRAL:\n            self.leases.remove(permit)\n", "books",
    ),
    Mutant(
        "R12 a cancelled probe closes", "        if verdict is SUCCESS:\n            self.ok",
        "        if verdict is not FAILURE:\n            self.ok", "neutral", "hints",
    ),
    Mutant(
        "R12 a cancelled probe opens", '        elif verdict is FAILURE:\n            self._fail_probe("a failed',
        '        elif verdict in (FAILURE, NEUTRAL):\n            self._fail_probe("a failed', "neutral",
    ),
    Mutant("R12 no end of saying nothing", "if self.inconclusive >= self.options.inconclusive_max:", "if False:",
           "order"),
    Mutant("R12 saying nothing escalates", "            self.inconclusive += 1\n",
                "            self.inconclusive += 1\n            self.streak += 1\n", "order"),
    Mutant("R13 an act voids nothing", "        self.override = override\n        self._begin(self._idle_since)\n",
           "        self.override = override\n", "operator"),
    Mutant("R13 a reset keeps the streak", "        self.override = NONE\n        self.streak = 0\n",
           "        self.override = NONE\n", "order"),
    Mutant("R13 a reset keeps the override", "        self.override = NONE\n        self.streak = 0\n",
           "        self.streak = 0\n", "operator"),
    Mutant("R13 METRICS_ONLY counts what it would refuse", "return OUTSIDE if self.override is METRICS_ONLY else None",
           "return self.generation if self.override is METRICS_ONLY else None", "recovery"),
    Mutant("R13 METRICS_ONLY refuses", "return OUTSIDE if self.override is METRICS_ONLY else None", "return None",
           "look"),
    Mutant("R13 DISABLED learns", "        if self.override is DISABLED:\n            return OUTSIDE",
           "        if self.override is DISABLED:\n            return self.generation", "outside"),
    Mutant("R13 DISABLED learns of outages", "(self.override is NONE or self.override is METRICS_ONLY)", "True",
           "order"),
    Mutant("R13 FORCED_OPEN lets through", "        if self.override is FORCED_OPEN:\n            return None\n", "",
           "look"),
    Mutant("idle: closes over a running probe", "or self.leases or not idle", "or not idle", "order"),
    Mutant("idle: closes at once", "IDLE_RECOVERIES = 3", "IDLE_RECOVERIES = 0", "order"),
    Mutant("idle: never", "IDLE_RECOVERIES = 3", "IDLE_RECOVERIES = 1e9", "order"),
    Mutant("a transition is missing", "    (HALF_OPEN, Cue.PROBES_SAID_NOTHING): OPEN,\n", "", "table"),
    Mutant("a transition past the table", "self.phase = TRANSITIONS[self.phase, cue]",
           "self.phase = OPEN if self.phase is CLOSED and cue is Cue.TRIPPED else TRANSITIONS[self.phase, cue]",
           "table"),
    Mutant("R17 an opening is not told",
           "        self.happened.append(CircuitOpened(self.name, reason, self.open_for_s))\n", "",
           "events_tell_what_happened_in_order_and_leave_publishing_to_the_caller"),
    Mutant("R17 a test is not told", "                self.happened.append(CircuitHalfOpened(self.name))\n", "",
           "events_tell_what_happened_in_order_and_leave_publishing_to_the_caller"),
]  # fmt: skip
