"""Queries of AI services, and the services' state, on the platform of this process."""

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

# ── querying ──────────────────────────────────────────────────────────────────────────────────────────────────────


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
    """Query a service; `str(answer)` is the answer's text.

    `timeout_s` is the deadline of the whole call; `fallback` names services to call in order if this one refuses or
    fails; `on_limit`: "wait" queues for limits within the deadline, "refuse" waits for nothing. `max_cost_usd`: an
    attempt that may cost more is refused; `clamp` lowers `max_tokens` to what this and the budgets allow, which
    `answer.clamped` shows. `tag` and `metadata` are for your own records and are never sent. Raises
    `ExternalServiceError`, and TypeError for an unknown option.
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
    # This frame is in the traceback of every failure, and error reporters record its variables.
    prompt = system = HIDDEN
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
    """Like `query_ai`, but streamed: `async for chunk in stream_ai(...)`. Then `stream.answer` is the whole answer.

    To stop early, call `aclose()` or use `async with`: the provider stops, and what was used is booked.
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
    # This frame is in the traceback of every failure, and error reporters record its variables.
    prompt = system = HIDDEN
    return platform.stream(query)


class Outcome(TypedDict):
    """The outcome of one of several queries: `response` if `success`, else `error`."""

    success: bool
    service: str
    response: NotRequired[Answer]
    error: NotRequired[ExternalServiceError]


async def query_multiple_ai(queries: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """Send a list of queries of any length: [{"service": ..., "prompt": ..., and the options of `query_ai`}, ...].

    Each is sent when its service has a free slot. Returns a dict for each, in the same order: `success`, `service`, and
    `response` (an `Answer`) or `error` (the `ExternalServiceError`). An error of one does not affect the others.
    """
    read = [_read(query) for query in queries]
    answers = iter(await platform.query_many([one for one in read if isinstance(one, Query)]))
    outcomes = [next(answers) if isinstance(one, Query) else one for one in read]
    return [_result(query, outcome) for query, outcome in zip(queries, outcomes, strict=True)]


def _query(service: str, prompt: str, **options: Any) -> Query:
    """A query. `fallback` may be a single name instead of a list. Raises TypeError for an unknown option."""
    fallback = options.pop("fallback", None) or ()
    metadata = options.pop("metadata", None) or {}
    names = (fallback,) if isinstance(fallback, str) else _list(fallback)
    return Query(service=service, prompt=prompt, fallback=names, metadata=metadata, **options)


def _list(names: Any) -> Any:
    """An iterable as a tuple; anything else unchanged, so that the gateway reports it."""
    return tuple(names) if isinstance(names, Iterable) and not isinstance(names, bytes) else names


def _read(query: Mapping[str, Any]) -> Query | InvalidRequest:
    """A query of `query_multiple_ai`, or the reason why it is invalid."""
    try:
        return _query(**query)
    except TypeError as error:
        service = query.get("service", "") if isinstance(query, Mapping) else ""
        # Python's own message names the parameter, never its value.
        return InvalidRequest(name_of(service), str(error).replace("koo.ai.types.", ""))


def _result(query: Mapping[str, Any], outcome: Answer | ExternalServiceError) -> Outcome:
    if isinstance(outcome, Answer):
        return {"success": True, "service": outcome.service, "response": outcome}
    return {"success": False, "service": outcome.service, "error": outcome}


# ── status and resets ─────────────────────────────────────────────────────────────────────────────────────────────


def get_ai_service_health(service: str) -> ServiceHealth:
    """State, counts, limits and money of a service, without I/O. Raises `UnknownService`, which lists the known
    ones."""
    return platform.service_health(service)


def get_all_ai_services_health() -> ServicesHealth:
    """`overall_health`, `healthy_services`, `total_services` (configured), `services`, `timestamp`; without I/O."""
    return platform.services_health()


async def perform_ai_health_check(service: str | None = None) -> dict[str, ServiceCheck]:
    """Check that services respond and accept the key: {name: `healthy`, `state`, `error`, ...}. Never billed.

    None checks all configured services. Raises `UnknownService`.
    """
    return await platform.check_services(service)


def reset_ai_service_errors(service: str) -> bool:
    """Reset a service's breakers, cooldowns and key blocks; False for an unknown service. Money, used limits and counts
    stay."""
    return platform.reset_service(service)


def reset_all_ai_services_errors() -> dict[str, bool]:
    """Like `reset_ai_service_errors`, for each service: {name: True}."""
    return platform.reset_services()


class HybridAIManager:
    """The functions above as methods of one object."""

    query_ai = staticmethod(query_ai)
    stream_ai = staticmethod(stream_ai)
    query_multiple_ai = staticmethod(query_multiple_ai)
    get_ai_service_health = staticmethod(get_ai_service_health)
    get_all_ai_services_health = staticmethod(get_all_ai_services_health)
    perform_ai_health_check = staticmethod(perform_ai_health_check)
    reset_ai_service_errors = staticmethod(reset_ai_service_errors)
    reset_all_ai_services_errors = staticmethod(reset_all_ai_services_errors)


hybrid_ai_manager = HybridAIManager()
