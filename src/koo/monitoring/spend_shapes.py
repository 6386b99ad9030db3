"""The shapes of spending reports and write-offs; the rules of `shapes` apply here too."""

# There is no `from __future__ import annotations` here, because the API description reads the types at run time.

from typing import Annotated, Literal, NotRequired

from koo.monitoring.shapes import Budget, Doc, Time, TypedDict, Usd


class SpendRow(TypedDict):
    """The bookings of one group. Of day, service, model and tag, it has those that were requested."""

    day: NotRequired[Annotated[Time, Doc("a UTC day: 2026-11-28")]]
    service: NotRequired[str]
    model: NotRequired[str]
    tag: NotRequired[Annotated[str | None, Doc("null for calls without a tag")]]
    calls: int
    amount: Usd
    estimated: Annotated[Usd, Doc("the part for which the provider reported no usage; an upper bound")]
    estimated_calls: int
    input_tokens: Annotated[int, Doc("all input tokens: uncached, read from the cache, written to the cache")]
    output_tokens: int


class BookedCall(TypedDict):
    """One attempt that cost something, as recorded in the ledger, which contains no prompts and no answers."""

    id: str
    at: Annotated[Time, Doc("when it ended")]
    outcome: Annotated[
        str,
        Doc(
            "answered, or unfinished (it failed, broke off or was abandoned, and was billed); empty if unknown"
        ),
    ]
    attempt: Annotated[
        int | None, Doc("the number of the attempt in its query to this service, from 1; null if unknown")
    ]
    latency: Annotated[float | None, Doc("duration of the attempt in seconds; null if unknown")]
    request_id: Annotated[
        str, Doc("the id of the request to this server in which it was made; empty if there was none")
    ]
    service: str
    model: str
    tag: Annotated[str | None, Doc("the caller's tag; null if there is none")]
    cost: Usd
    cost_source: Annotated[str, Doc("reported by the provider, price table, configured price, or estimate")]
    estimated: Annotated[bool, Doc("the provider reported no usage, so the cost is an upper bound")]
    held: Annotated[Usd, Doc("the worst case held for it")]
    input_tokens: Annotated[int, Doc("uncached tokens")]
    cache_read_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: Annotated[int, Doc("the part of the output tokens used for reasoning")]
    metadata: Annotated[dict[str, str], Doc("the caller's metadata")]
    process: Annotated[str, Doc("the process that booked it")]


class BookedCalls(TypedDict):
    """The last calls that cost something, newest first, of all processes on the state store."""

    requests: list[BookedCall]
    amount: Annotated[Usd, Doc("the sum of this page's costs")]
    next_cursor: Annotated[str | None, Doc("`cursor` of the next page; null on the last page")]
    timestamp: Time


class PeriodAmount(TypedDict):
    """An amount of one budget in one period."""

    budget: Annotated[str, Doc("ai:SERVICE, budget:NAME or budget:NAME/TAG")]
    period: Annotated[str, Doc("a UTC day or month: 2026-11-28, 2026-11")]
    amount: Usd


class UnsettledProcess(TypedDict):
    """Money that a process was granted and had not spent by its last report; it no longer reports."""

    process: str
    last_seen: Annotated[Time | None, Doc("null if never, because an older version wrote it")]
    amounts: list[PeriodAmount]


class WrittenOff(TypedDict):
    """Money that an operator wrote off. Each of these budgets may be overspent by its amount."""

    process: str
    at: Time
    by: Annotated[str, Doc("who did it, as they gave it")]
    reason: str
    amounts: list[PeriodAmount]


class Spend(TypedDict):
    """The spending booked by all processes on the state store."""

    first_day: Annotated[Time, Doc("a UTC day, inclusive")]
    last_day: Annotated[Time, Doc("a UTC day, inclusive")]
    by: list[str]
    rows: Annotated[list[SpendRow], Doc("by day, oldest first, then by cost, highest first")]
    calls: int
    amount: Usd
    estimated: Annotated[Usd, Doc("the part for which the provider reported no usage; an upper bound")]
    currency: Literal["USD"]
    budgets: Annotated[list[Budget], Doc("budgets set by an operator, in their current periods")]
    unsettled: Annotated[list[UnsettledProcess], Doc("unsettled money of the current day and month")]
    written_off: Annotated[list[WrittenOff], Doc("written off by operators in these days")]
    timestamp: Time


class WriteOffs(TypedDict):
    """The result of a write-off."""

    message: str
    written_off: list[WrittenOff]
    timestamp: Time
