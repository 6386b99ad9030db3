"""What is sent to the routes that act, checked: a name or a value that cannot be right is refused with a 422."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, model_validator

from koo.alert_acts import HOLDS_S_MAX
from koo.configuration.variables import BUILT_IN

NAMES_MAX = 50
QUERIES_MAX = 5_000
"""With more, looking through the memory of their outcomes for garbage alone takes the loop longer than 100 ms."""
QUERY: dict[str, Any] = {
    "service": "claude",
    "prompt": "What is the capital of France?",
    "system": "Answer in one word.",
    "max_tokens": 50,
    "timeout_s": 20.0,
    "fallback": ["local"],
}
"""The question that the description of the API shows, and whose recorded answer stands beside it."""


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 50.0 is a whole one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _few(given: Any) -> Any:
    """pydantic looks at each of half a million names, and makes an error of each, before it counts them."""
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
    """One question to one service."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, json_schema_extra={"example": QUERY}
    )

    service: str = Field(max_length=64, description=f"{', '.join(BUILT_IN)}, or one you declared")
    prompt: str = Field(
        description="at most 8 Mi characters, not only blanks", json_schema_extra={"pattern": r"\S"}
    )
    model: str | None = Field(default=None, min_length=1, max_length=200)
    system: str | None = None
    max_tokens: Annotated[int | None, BeforeValidator(_whole)] = Field(
        default=None, ge=1, le=10_000_000, description="longest answer"
    )
    temperature: float | None = Field(default=None, ge=0, le=2)
    timeout_s: float | None = Field(default=None, gt=0, le=86_400, description="deadline of the whole query")
    fallback: list[str] = Field(
        default_factory=list,
        max_length=20,
        description="services asked in order when this one refuses or fails",
    )
    on_limit: Literal["refuse", "wait"] | None = Field(
        default=None,
        description="wait: queue for limits within the deadline; refuse: wait for nothing; without it: wait only for "
        "a pause that the provider asked for",
    )
    max_cost_usd: float | None = Field(
        default=None, ge=0, description="the most that one attempt may cost at worst; a dearer one is refused"
    )
    clamp: bool = Field(
        default=False,
        description="lower `max_tokens` to what `max_cost_usd` and the budgets leave room for; the answer says so",
    )
    tag: str | None = Field(default=None, max_length=200, description="your own word, for the ledger")
    metadata: Annotated[dict[str, str], BeforeValidator(_few)] = Field(
        default_factory=dict, max_length=50, description="your own words; never sent"
    )


class BatchBody(Body):
    """Several questions at once."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"example": {"queries": [QUERY]}}
    )

    # At the first wrong query it ends: pydantic would make an error of each field of a hundred thousand.
    queries: Annotated[list[QueryBody], FailFast()] = Field(min_length=1, max_length=QUERIES_MAX)


SPEND_NAMES = ("days", "from", "to", "month", "by")
"""What is asked of `/ai/spend` in its address."""


class WriteOffBody(Body):
    """Whose unsettled money is freed: of one process, or of all that no longer report."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"example": {"all": True, "by": "ada", "reason": "host gone"}},
    )

    process: str | None = Field(
        default=None, min_length=1, max_length=300, description="as `/ai/spend` lists it"
    )
    all: bool = Field(default=False, description="every process that no longer reports, instead of one")
    by: str = Field(min_length=1, max_length=100, description="who does this; recorded with it")
    reason: str = Field(default="", max_length=500, description="why; recorded with it")

    @model_validator(mode="after")
    def _names_one_or_all(self) -> WriteOffBody:
        if (self.process is None) is not self.all:
            raise ValueError("choose either a process, or all")
        return self


class ActBody(Body):
    """Who does it and why; for the log. May be left out, and so may the whole body."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"example": {"by": "ada", "reason": "host replaced"}},
    )

    by: str | None = Field(default=None, max_length=100, description="who does this")
    reason: str | None = Field(default=None, max_length=500, description="why")

    @property
    def signature(self) -> str:
        """For the log: strangers write both, so they are quoted, and a line break in them stays inside its line."""
        return f"by {self.by!r}, reason: {self.reason!r}"


class ChannelBody(ActBody):
    """Which channel to try, who does it and why. All of it may be left out: then every channel is tried."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"example": {"channel": "webhook", "by": "ada"}},
    )

    channel: Literal["webhook", "slack", "email"] | None = Field(
        default=None, description="null: all of them"
    )


class WaitBody(ActBody):
    """How long to wait for the scopes that are open, who does it and why. All of it may be left out."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra={"example": {"within_s": 5.0, "by": "ada", "reason": "failover to db2"}},
    )

    within_s: float = Field(default=10.0, ge=0, le=600, description="seconds")


HISTORY_NAMES = ("since", "until", "limit", "cursor")
"""What is asked of `/monitoring/alerts/history` in its address."""


class AcknowledgeBody(Body):
    """Who is at work on an alert, until when (without either: to its end), and a note for the others."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra={"example": {"by": "ada", "for_s": 7200.0, "note": "restarting the pooler"}},
    )

    by: str = Field(min_length=1, max_length=100, description="who is working on it")
    for_s: float | None = Field(default=None, gt=0, le=HOLDS_S_MAX, description="seconds from now")
    until: Annotated[datetime | None, Field(strict=False)] = Field(
        default=None, description="a time with a zone, instead of `for_s`"
    )
    note: str = Field(default="", max_length=500)


class SilenceBody(Body):
    """What to be silent about and until when, who wants it and why."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra={
            "example": {"component": "database", "for_s": 3600.0, "by": "ada", "reason": "failover drill"}
        },
    )

    kind: str = Field(default="*", min_length=1, max_length=300, description="may be a pattern: `budget_*`")
    component: str = Field(default="*", min_length=1, max_length=300, description="may be a pattern: `ai:*`")
    for_s: float | None = Field(default=None, gt=0, le=HOLDS_S_MAX, description="seconds from now")
    ends_at: Annotated[datetime | None, Field(strict=False)] = Field(
        default=None, description="a time with a zone, instead of `for_s`"
    )
    by: str = Field(min_length=1, max_length=100, description="who wants it; recorded with it")
    reason: str = Field(min_length=1, max_length=500, description="why; recorded with it")


class ReasonBody(Body):
    """Who does it, and why: both are kept with the incident, and shown to those whose calls are refused."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"example": {"by": "ada", "reason": "the provider has mended it"}},
    )

    by: str = Field(min_length=1, max_length=100, description="who does this")
    reason: str = Field(min_length=1, max_length=500, description="why")


class TripBody(ReasonBody):
    """Who forces a breaker open, why, and for how long (without it: until it is reset)."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra={"example": {"by": "ada", "reason": "it answers nonsense", "for_s": 600.0}},
    )

    for_s: float | None = Field(default=None, gt=0, le=HOLDS_S_MAX, description="seconds from now")


class ShadowBody(TripBody):
    """Who puts a breaker into shadow, or with `off` takes it out, and why."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra={"example": {"by": "ada", "reason": "a new threshold is tried"}},
    )

    off: bool = Field(default=False, description="true: its decisions hold again")
