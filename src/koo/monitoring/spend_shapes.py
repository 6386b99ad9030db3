"""What is seen of what was spent: the shapes of reports and write-offs, as `shapes` has those of everything else."""

# Without `from __future__ import annotations`: the types are read at run time, where the API is described.

from typing import Annotated, Literal, NotRequired

from koo.monitoring.shapes import Budget, Doc, Time, TypedDict, Usd


class SpendRow(TypedDict):
    """What was booked in one group. Of day, service, model and tag it has those that were asked for."""

    day: NotRequired[Annotated[Time, Doc("a UTC day: 2026-11-28")]]
    service: NotRequired[str]
    model: NotRequired[str]
    tag: NotRequired[Annotated[str | None, Doc("null: calls without a tag")]]
    calls: int
    amount: Usd
    estimated: Annotated[Usd, Doc("the part of which the provider did not say what it used: an upper bound")]
    estimated_calls: int
    input_tokens: Annotated[int, Doc("read in any way: fresh, from the cache, into the cache")]
    output_tokens: int


class BookedCall(TypedDict):
    """One attempt that cost something, as the ledger has it. Prompts and answers are not in the ledger."""

    id: str
    at: Annotated[Time, Doc("when it ended")]
    outcome: Annotated[
        str,
        Doc("answered; unfinished: it failed, broke off or was left, and had to be paid; empty: not known"),
    ]
    attempt: Annotated[
        int | None, Doc("which attempt of its query at this service it was, from 1; null: not known")
    ]
    latency: Annotated[float | None, Doc("seconds of this attempt; null: not known")]
    request_id: Annotated[str, Doc("of the request to this server in which it was made; empty: in none")]
    service: str
    model: str
    tag: Annotated[str | None, Doc("the caller's; null: none")]
    cost: Usd
    cost_source: Annotated[str, Doc("reported by the provider, price table, configured price, or estimate")]
    estimated: Annotated[bool, Doc("the provider did not say what it used: the cost is an upper bound")]
    held: Annotated[Usd, Doc("the worst case that was held for it")]
    input_tokens: Annotated[int, Doc("fresh ones")]
    cache_read_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: Annotated[int, Doc("of the output's")]
    metadata: Annotated[dict[str, str], Doc("the caller's own words")]
    process: Annotated[str, Doc("which process booked it")]


class BookedCalls(TypedDict):
    """The last calls that cost something, the newest first, of all processes on the state store."""

    requests: list[BookedCall]
    amount: Annotated[Usd, Doc("of this page")]
    next_cursor: Annotated[str | None, Doc("`cursor` of the next page; null: there is none")]
    timestamp: Time


class PeriodAmount(TypedDict):
    """An amount of one budget in one period."""

    budget: Annotated[str, Doc("ai:SERVICE, budget:NAME or budget:NAME/TAG")]
    period: Annotated[str, Doc("a UTC day or month: 2026-11-28, 2026-11")]
    amount: Usd


class UnsettledProcess(TypedDict):
    """What a process that no longer reports was granted and had not spent by its last report."""

    process: str
    last_seen: Annotated[Time | None, Doc("null: never, it is from an older version")]
    amounts: list[PeriodAmount]


class WrittenOff(TypedDict):
    """What an operator wrote off: each of these budgets may be overspent by its amount."""

    process: str
    at: Time
    by: Annotated[str, Doc("who did it, in their own words")]
    reason: str
    amounts: list[PeriodAmount]


class Spend(TypedDict):
    """What was spent, as booked by all processes on the state store."""

    first_day: Annotated[Time, Doc("a UTC day, included")]
    last_day: Annotated[Time, Doc("a UTC day, included")]
    by: list[str]
    rows: Annotated[list[SpendRow], Doc("by day the oldest first, then what cost most")]
    calls: int
    amount: Usd
    estimated: Annotated[Usd, Doc("the part of which the provider did not say what it used: an upper bound")]
    currency: Literal["USD"]
    budgets: Annotated[list[Budget], Doc("those that an operator set, in their current periods")]
    unsettled: Annotated[list[UnsettledProcess], Doc("of the current day and month")]
    written_off: Annotated[list[WrittenOff], Doc("in these days, by operators")]
    timestamp: Time


class WriteOffs(TypedDict):
    """What was written off just now."""

    message: str
    written_off: list[WrittenOff]
    timestamp: Time
