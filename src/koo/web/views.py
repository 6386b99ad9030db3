"""AI responses as JSON."""

from __future__ import annotations

from koo.ai.model_price import add_up
from koo.ai.types import Answer, Query
from koo.errors import ExternalServiceError
from koo.monitoring.guards import money, now_iso
from koo.web.answers import BatchAnswer, BatchFailure, BatchSuccess, QueryAnswer
from koo.web.bodies import QueryBody
from koo.web.problems import known_s, status_of
from koo.web.reading import in_slices


def query_of(body: QueryBody) -> Query:
    """Convert a request body to a query for the gateway."""
    return Query(**{**body.model_dump(), "fallback": tuple(body.fallback)})


def answer_view(answer: Answer) -> QueryAnswer:
    """Convert a response to its promised shape."""
    usage = answer.usage
    return {
        "response": answer.text,
        "service": answer.service,
        "model": answer.model,
        "usage": {
            "input_tokens": usage.input_tokens,
            "cache_read_tokens": usage.cache_read_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
            "output_tokens": usage.output_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
            "total_tokens": usage.total_tokens,
            "estimated": usage.estimated,
        },
        "cost": money(answer.cost_usd),
        "cost_source": answer.cost_source,
        "attempts": answer.attempts,
        "latency_s": round(answer.latency_s, 6),
        "stop_reason": answer.stop_reason,
        "max_tokens": answer.max_tokens,
        "clamped": answer.clamped,
        "timestamp": now_iso(),
    }


def error_view(service: str, error: ExternalServiceError) -> BatchFailure:
    """Describe why one of several queries failed."""
    return {
        "success": False,
        "service": service,
        "error": str(error),
        "kind": error.kind.value,
        "status": status_of(error),
        "retry_after_s": known_s(error.retry_after_s),
        "attempts": error.attempts,
    }


def _result(query: Query, outcome: Answer | ExternalServiceError) -> BatchSuccess | BatchFailure:
    if isinstance(outcome, Answer):
        return {"success": True, **answer_view(outcome)}
    return error_view(query.service, outcome)


async def batch_view(queries: list[Query], outcomes: list[Answer | ExternalServiceError]) -> BatchAnswer:
    """Return one result for each query, and the totals."""
    answers = [one for one in outcomes if isinstance(one, Answer)]
    return {
        "results": await in_slices(lambda pair: _result(*pair), list(zip(queries, outcomes, strict=True))),
        "total_queries": len(queries),
        "successful_queries": len(answers),
        "failed_queries": len(queries) - len(answers),
        "total_cost": money(add_up(answer.cost_usd for answer in answers)),
        "timestamp": now_iso(),
    }
