"""Questions to AI services, and their state, on the platform of this process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NotRequired, TypedDict

from koo.ai.stream import AnswerStream
from koo.ai.types import Answer, Query
from koo.default.platform import platform
from koo.errors import ExternalServiceError, InvalidRequest, name_of
from koo.hidden import HIDDEN
from koo.monitoring.shapes import ServiceCheck, ServiceHealth, ServicesHealth
from koo.passage import OnLimit

# ── asking ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def query_ai(
    service: str,
    prompt: str,
    *,
    model: str | None = None,
    system: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    timeout_s: float | None = None,
    fallback: Iterable[str] = (),
    on_limit: OnLimit | None = None,
    max_cost_usd: Decimal | float | None = None,
    clamp: bool = False,
    tag: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Answer:
    """Ask a service; `str(answer)` is its text.

    `timeout_s` is the deadline of everything; `fallback` names services asked in order when this one refuses or fails;
    `on_limit`: "wait" queues for limits within the deadline, "refuse" waits for nothing. `max_cost_usd`: an attempt
    that may cost more is refused; `clamp` lowers `max_tokens` to what that and the budgets leave room for, and
    `answer.clamped` says so. `tag` and `metadata` are your own words and are never sent. Raises `ExternalServiceError`,
    and TypeError for an option that there is not.
    """
    query = _query(
        service,
        prompt,
        model=model,
        system=system,
        max_tokens=max_tokens,
        temperature=temperature,
        timeout_s=timeout_s,
        fallback=fallback,
        on_limit=on_limit,
        max_cost_usd=max_cost_usd,
        clamp=clamp,
        tag=tag,
        metadata=metadata,
    )
    prompt = system = (
        HIDDEN  # This frame is in the traceback of each failure, and reporters record its variables.
    )
    return await platform.query(query)


def stream_ai(
    service: str,
    prompt: str,
    *,
    model: str | None = None,
    system: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    timeout_s: float | None = None,
    fallback: Iterable[str] = (),
    on_limit: OnLimit | None = None,
    max_cost_usd: Decimal | float | None = None,
    clamp: bool = False,
    tag: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> AnswerStream:
    """As `query_ai`, piece by piece: `async for chunk in stream_ai(...)`; afterwards `stream.answer` is the whole.

    To leave early, call `aclose()`, or use it as `async with`: the provider stops, and what was used is booked.
    """
    query = _query(
        service,
        prompt,
        model=model,
        system=system,
        max_tokens=max_tokens,
        temperature=temperature,
        timeout_s=timeout_s,
        fallback=fallback,
        on_limit=on_limit,
        max_cost_usd=max_cost_usd,
        clamp=clamp,
        tag=tag,
        metadata=metadata,
    )
    prompt = system = (
        HIDDEN  # This frame is in the traceback of each failure, and reporters record its variables.
    )
    return platform.stream(query)


class Outcome(TypedDict):
    """What became of one of several questions: `response` if `success`, else `error`."""

    success: bool
    service: str
    response: NotRequired[Answer]
    error: NotRequired[ExternalServiceError]


async def query_multiple_ai(queries: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """Ask a list of any length: [{"service": ..., "prompt": ..., and the options of `query_ai`}, ...].

    Each is asked as a place comes free at its service. A dict for each, in the same order: `success`, `service`, and
    `response` (an `Answer`) or `error` (the `ExternalServiceError`). No error of one keeps the others from being asked.
    """
    read = [_read(query) for query in queries]
    answers = iter(await platform.query_many([one for one in read if isinstance(one, Query)]))
    outcomes = [next(answers) if isinstance(one, Query) else one for one in read]
    return [_result(query, outcome) for query, outcome in zip(queries, outcomes, strict=True)]


def _query(service: str, prompt: str, **options: Any) -> Query:
    """A question; one service may stand for a list of fallbacks. Raises TypeError for an option that there is not."""
    fallback = options.pop("fallback", None) or ()
    metadata = options.pop("metadata", None) or {}
    names = (fallback,) if isinstance(fallback, str) else _list(fallback)
    return Query(service=service, prompt=prompt, fallback=names, metadata=metadata, **options)


def _list(names: Any) -> Any:
    """What can be gone through, as a tuple; whatever else it is, the gateway tells."""
    return tuple(names) if isinstance(names, Iterable) and not isinstance(names, bytes) else names


def _read(query: Mapping[str, Any]) -> Query | InvalidRequest:
    """A question of `query_multiple_ai`, or why it is none."""
    try:
        return _query(**query)
    except TypeError as error:
        service = query.get("service", "") if isinstance(query, Mapping) else ""
        # Python's own sentence names the parameter, never its value.
        return InvalidRequest(name_of(service), str(error).replace("koo.ai.types.", ""))


def _result(query: Mapping[str, Any], outcome: Answer | ExternalServiceError) -> Outcome:
    if isinstance(outcome, Answer):
        return {"success": True, "service": outcome.service, "response": outcome}
    return {"success": False, "service": outcome.service, "error": outcome}


# ── looking and resetting ─────────────────────────────────────────────────────────────────────────────────────────


def get_ai_service_health(service: str) -> ServiceHealth:
    """State, counts, limits and money of one service, without I/O. Raises `UnknownService`, which lists the known."""
    return platform.service_health(service)


def get_all_ai_services_health() -> ServicesHealth:
    """`overall_health`, `healthy_services`, `total_services` (configured), `services`, `timestamp`; without I/O."""
    return platform.services_health()


async def perform_ai_health_check(service: str | None = None) -> dict[str, ServiceCheck]:
    """Ask services whether they are there and take the key: {name: `healthy`, `state`, `error`, ...}. Never billed.

    None asks all that are configured. Raises `UnknownService`.
    """
    return await platform.check_services(service)


def reset_ai_service_errors(service: str) -> bool:
    """Let a service start afresh; False for an unknown one. Money, limits used and counts stay as they are."""
    return platform.reset_service(service)


def reset_all_ai_services_errors() -> dict[str, bool]:
    """As `reset_ai_service_errors`, for each service: {name: True}."""
    return platform.reset_services()


class HybridAIManager:
    """The same calls as methods of one object."""

    query_ai = staticmethod(query_ai)
    stream_ai = staticmethod(stream_ai)
    query_multiple_ai = staticmethod(query_multiple_ai)
    get_ai_service_health = staticmethod(get_ai_service_health)
    get_all_ai_services_health = staticmethod(get_all_ai_services_health)
    perform_ai_health_check = staticmethod(perform_ai_health_check)
    reset_ai_service_errors = staticmethod(reset_ai_service_errors)
    reset_all_ai_services_errors = staticmethod(reset_all_ai_services_errors)


hybrid_ai_manager = HybridAIManager()
