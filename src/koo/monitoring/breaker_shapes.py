"""The basis of all shapes: descriptions of keys, the types of times and money, and the shapes of a breaker.

The rules of `shapes` apply here too.
"""

# There is no `from __future__ import annotations` here, because the API description reads the types at run time.

import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

if sys.version_info >= (3, 12):
    from typing import TypedDict as TypedDict  # noqa: PLC0414 - `koo.web.answers` imports it from here
else:  # Before 3.12 pydantic rejects `typing.TypedDict`, which loses track of the optional keys of its bases.
    from typing_extensions import TypedDict as TypedDict  # noqa: PLC0414


class Doc:
    """The description of a key. Pydantic, which generates the API description, finds it by the method's name."""

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
    """The error of the last call or check that failed."""

    kind: Annotated[str, Doc("the kind of error in one word, as in exceptions")]
    status: Annotated[int | None, Doc("the HTTP status; null if there was no HTTP response")]
    sentence: Annotated[str, Doc("one line, without keys or prompts")]
    at: Time


# ── breakers ──────────────────────────────────────────────────────────────────────────────────────────────────────


class WindowCounts(TypedDict):
    """The recent calls by which a breaker decides."""

    calls: int
    failures: int
    slow: int


class BreakerStatus(TypedDict):
    """A circuit breaker."""

    name: str
    state: Annotated[BreakerWord, Doc("how it treats calls now")]
    override: Annotated[OverrideWord, Doc("the operator's override")]
    operator: Annotated[str, Doc("who set the override, why, and until when; empty if none is set")]
    reason: Annotated[str, Doc("why it is not closed; empty if it is")]
    primed: Annotated[
        str,
        Doc(
            "why a single failure opens it: how many other processes have it open; empty if it is not primed"
        ),
    ]
    last_error: Annotated[LastError | None, Doc("kept after recovery; null if there was none yet")]
    consecutive_failures: int
    failure_threshold: Annotated[int, Doc("failures in a row that open it")]
    success_threshold: Annotated[int, Doc("successes in a row that close it again")]
    recovery_timeout: Annotated[float, Doc("seconds from opening to the first probe")]
    window: WindowCounts
    opened_at: Annotated[Time | None, Doc("when it last opened; null if never")]
    next_attempt: Annotated[Time | None, Doc("when it is tried again; null if it is not open")]
    times_opened: int
    stale_results: Annotated[
        int, Doc("results that arrived after the breaker had changed state, and were ignored")
    ]
    running: Annotated[int, Doc("admitted calls that have not ended")]
    incident: Annotated[
        str | None, Doc("the id of the incident of its last opening; null if it never opened")
    ]


class Outcomes(TypedDict):
    """The results of a guard's calls."""

    failure_count: int
    success_count: int
    last_failure: Annotated[Time | None, Doc("null if there was none yet")]
    last_success: Annotated[Time | None, Doc("null if there was none yet")]
