"""The request bodies of routes that act. An invalid name or value is refused with 422."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, model_validator

from koo.alert_acts import HOLDS_S_MAX
from koo.configuration.variables import BUILT_IN

NAMES_MAX = 50
QUERIES_MAX = 5_000
"""With more queries, the garbage collector's pass over the memory of their results alone blocks the loop for over 100
ms.
"""
QUERY: dict[str, Any] = {
    "service": "claude",
    "prompt": "What is the capital of France?",
    "system": "Answer in one word.",
    "max_tokens": 50,
    "timeout_s": 20.0,
    "fallback": ["local"],
}
"""The query shown in the API description; its recorded response is shown with it."""


def _whole(value: Any) -> Any:
    """JSON has only one number type: 50.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _few(given: Any) -> Any:
    """Refuse too many names early: pydantic would check half a million names, and create an error for each, before
    counting.
    """
    if isinstance(given, dict) and len(given) > NAMES_MAX:
        raise ValueError(f"has more than {NAMES_MAX} names")
    return given


class Body(BaseModel):
    """The body of a request."""

    @model_validator(mode="before")
    @classmethod
    def _has_few_names(cls, given: Any) -> Any:
        return _few(given)


class QueryBody(Body):
    """One query to one service."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, json_schema_extra={"example": QUERY}
    )

    service: str = Field(max_length=64, description=f"{', '.join(BUILT_IN)}, or a service that you declared")
    prompt: str = Field(
        description="at most 8 Mi characters, not only white space", json_schema_extra={"pattern": r"\S"}
    )
    model: str | None = Field(default=None, min_length=1, max_length=200)
    system: str | None = None
    max_tokens: Annotated[int | None, BeforeValidator(_whole)] = Field(
        default=None, ge=1, le=10_000_000, description="limit on the length of the response"
    )
    temperature: float | None = Field(default=None, ge=0, le=2)
    timeout_s: float | None = Field(default=None, gt=0, le=86_400, description="deadline of the whole query")
    fallback: list[str] = Field(
        default_factory=list,
        max_length=20,
        description="services to try in order if this one refuses or fails",
    )
    on_limit: Literal["refuse", "wait"] | None = Field(
        default=None,
        description="wait: queue for limits within the deadline; refuse: never wait; null: wait only for "
        "a pause that the provider requested",
    )
    max_cost_usd: float | None = Field(
        default=None,
        ge=0,
        description="limit on the worst-case cost of one attempt; a more expensive one is refused",
    )
    clamp: bool = Field(
        default=False,
        description="lower `max_tokens` to what `max_cost_usd` and the budgets allow; the response reports it",
    )
    tag: str | None = Field(default=None, max_length=200, description="your own label, stored in the ledger")
    metadata: Annotated[dict[str, str], BeforeValidator(_few)] = Field(
        default_factory=dict, max_length=50, description="your own labels; never sent to a provider"
    )


class BatchBody(Body):
    """Several queries in one request."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"example": {"queries": [QUERY]}}
    )

    # Stop at the first invalid query: pydantic would create an error for each field of a hundred thousand.
    queries: Annotated[list[QueryBody], FailFast()] = Field(min_length=1, max_length=QUERIES_MAX)


SPEND_NAMES = ("days", "from", "to", "month", "by")
"""The query parameters of `/ai/spend`."""


class WriteOffBody(Body):
    """Whose unsettled money to free: that of one process, or of all that no longer report."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"example": {"all": True, "by": "ada", "reason": "host gone"}},
    )

    process: str | None = Field(
        default=None, min_length=1, max_length=300, description="as listed by `/ai/spend`"
    )
    all: bool = Field(default=False, description="every process that no longer reports, instead of one")
    by: str = Field(min_length=1, max_length=100, description="who does this; recorded")
    reason: str = Field(default="", max_length=500, description="why; recorded")

    @model_validator(mode="after")
    def _names_one_or_all(self) -> WriteOffBody:
        if (self.process is None) is not self.all:
            raise ValueError("choose either a process or all")
        return self


class ActBody(Body):
    """Who does this and why; recorded in the log. Both are optional, and so is the body."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"example": {"by": "ada", "reason": "host replaced"}},
    )

    by: str | None = Field(default=None, max_length=100, description="who does this")
    reason: str | None = Field(default=None, max_length=500, description="why")

    @property
    def signature(self) -> str:
        """The text for the log. Both parts may be written by anyone, so they are quoted; a line break cannot start a
        new line."""
        said = f"by {self.by!r}" if self.by else "by a caller that gave no name"
        return f"{said}, reason: {self.reason!r}" if self.reason else said

    @property
    def who(self) -> dict[str, str]:
        """Both, as the platform's acts take them."""
        return {"by": self.by or "", "reason": self.reason or ""}


class ChannelBody(ActBody):
    """Which channel to try, who does this and why. All are optional; by default every channel is tried."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"example": {"channel": "webhook", "by": "ada"}},
    )

    channel: Literal["webhook", "slack", "email"] | None = Field(
        default=None, description="null: all channels"
    )


class WaitBody(ActBody):
    """How long to wait for open scopes, who does this and why. All are optional."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra={"example": {"within_s": 5.0, "by": "ada", "reason": "failover to db2"}},
    )

    within_s: float = Field(default=10.0, ge=0, le=600, description="seconds")


HISTORY_NAMES = ("since", "until", "limit", "cursor")
"""The query parameters of `/monitoring/alerts/history`."""


class AcknowledgeBody(Body):
    """Who works on an alert, until when (by default until it ends), and a note for others."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra={"example": {"by": "ada", "for_s": 7200.0, "note": "restarting the pooler"}},
    )

    by: str = Field(min_length=1, max_length=100, description="who is working on it")
    for_s: float | None = Field(default=None, gt=0, le=HOLDS_S_MAX, description="seconds from now")
    until: Annotated[datetime | None, Field(strict=False)] = Field(
        default=None, description="a time with a time zone, instead of `for_s`"
    )
    note: str = Field(default="", max_length=500)


class SilenceBody(Body):
    """What to silence and until when, who wants it and why."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra={
            "example": {"component": "database", "for_s": 3600.0, "by": "ada", "reason": "failover drill"}
        },
    )

    kind: str = Field(
        default="*", min_length=1, max_length=300, description="may be a pattern, such as `budget_*`"
    )
    component: str = Field(
        default="*", min_length=1, max_length=300, description="may be a pattern, such as `ai:*`"
    )
    for_s: float | None = Field(default=None, gt=0, le=HOLDS_S_MAX, description="seconds from now")
    ends_at: Annotated[datetime | None, Field(strict=False)] = Field(
        default=None, description="a time with a time zone, instead of `for_s`"
    )
    by: str = Field(min_length=1, max_length=100, description="who wants it; recorded")
    reason: str = Field(min_length=1, max_length=500, description="why; recorded")


class ReasonBody(Body):
    """Who does this and why. Both are recorded with the incident and shown to callers whose calls are refused."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"example": {"by": "ada", "reason": "the provider has fixed it"}},
    )

    by: str = Field(min_length=1, max_length=100, description="who does this")
    reason: str = Field(min_length=1, max_length=500, description="why")


class TripBody(ReasonBody):
    """Who forces a breaker open, why, and for how long (by default until it is reset)."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra={"example": {"by": "ada", "reason": "its responses are garbage", "for_s": 600.0}},
    )

    for_s: float | None = Field(default=None, gt=0, le=HOLDS_S_MAX, description="seconds from now")


class ShadowBody(TripBody):
    """Who puts a breaker into shadow mode, or takes it out with `off`, and why."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra={"example": {"by": "ada", "reason": "trying a new threshold"}},
    )

    off: bool = Field(default=False, description="true: its decisions are enforced again")
