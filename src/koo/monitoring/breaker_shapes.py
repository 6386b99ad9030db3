"""What all shapes are made of: sentences of keys, how times and money are written, and what is seen of a breaker.

The rules of `shapes` hold here too.
"""

# Without `from __future__ import annotations`: the types are read at run time, where the API is described.

import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

if sys.version_info >= (3, 12):
    from typing import TypedDict as TypedDict  # noqa: PLC0414 - `koo.web.answers` takes it from here
else:  # Before 3.12 pydantic refuses those of `typing`: they forget which key of which base may be missing.
    from typing_extensions import TypedDict as TypedDict  # noqa: PLC0414


class Doc:
    """The sentence of a key. Pydantic, which describes the API, finds it by the method's name."""

    __slots__ = ("sentence",)

    def __init__(self, sentence: str) -> None:
        self.sentence = sentence

    def __get_pydantic_json_schema__(
        self, schema: object, describe: Callable[[object], dict[str, Any]]
    ) -> dict[str, Any]:
        return {**describe(schema), "description": self.sentence}


Time = str
Usd = str

BreakerWord = Literal["closed", "open", "half_open", "forced_open", "disabled"]
OverrideWord = Literal["none", "forced_open", "disabled", "metrics_only"]


class LastError(TypedDict):
    """What the last call or check that failed met."""

    kind: Annotated[str, Doc("what happened, in one word, as in errors")]
    status: Annotated[int | None, Doc("of the HTTP answer; null: no answer with one came")]
    sentence: Annotated[str, Doc("one line, without keys and prompts")]
    at: Time


# ── breakers ──────────────────────────────────────────────────────────────────────────────────────────────────────


class WindowCounts(TypedDict):
    """The recent calls that a breaker judges by."""

    calls: int
    failures: int
    slow: int


class BreakerStatus(TypedDict):
    """A circuit breaker."""

    name: str
    state: Annotated[BreakerWord, Doc("what it does with calls now")]
    override: Annotated[OverrideWord, Doc("what an operator set")]
    operator: Annotated[str, Doc("who set the override, why, and until when; empty: none is set")]
    reason: Annotated[str, Doc("why it is not closed; empty if it is")]
    primed: Annotated[
        str,
        Doc("why one failure opens it here: how many other processes have it open; empty: it is not primed"),
    ]
    last_error: Annotated[LastError | None, Doc("kept after it recovers; null: none yet")]
    consecutive_failures: int
    failure_threshold: Annotated[int, Doc("failures in a row that open it")]
    success_threshold: Annotated[int, Doc("successes in a row that close it again")]
    recovery_timeout: Annotated[float, Doc("seconds from opening to the first probe")]
    window: WindowCounts
    opened_at: Annotated[Time | None, Doc("when it last opened; null: never")]
    next_attempt: Annotated[Time | None, Doc("when an open one is tried again; null: it is not open")]
    times_opened: int
    stale_results: Annotated[
        int, Doc("answers that arrived after the breaker had moved on, and were ignored")
    ]
    running: Annotated[int, Doc("calls that it admitted and that have not ended")]
    incident: Annotated[str | None, Doc("the id of its last opening's incident; null: it never opened")]


class Outcomes(TypedDict):
    """What became of the calls behind a guard."""

    failure_count: int
    success_count: int
    last_failure: Annotated[Time | None, Doc("null: none yet")]
    last_success: Annotated[Time | None, Doc("null: none yet")]
