"""OpenAI: the Responses API (`POST /responses`), its answers, its stream, and what its errors mean.

OpenAI recommends Responses for everything new, its reasoning models answer better there, and `max_output_tokens`
bounds reasoning and text together, which is what a budget needs. `store: false`, because by default OpenAI keeps every
answer for 30 days. Servers that imitate OpenAI mostly know chat completions only: they are `openai_compatible`.

Usage: `input_tokens` includes what came from and went to the cache; reasoning is a part of `output_tokens`.
"""

from __future__ import annotations

from koo.ai.providers.adapter import Vendor
from koo.ai.providers.faults import FORBIDDEN_ON_THE_WAY, FaultTable, Row
from koo.ai.providers.openai_errors import read_error
from koo.ai.providers.other_words import CONTEXT_WORDS
from koo.ai.providers.responses import ResponsesAdapter
from koo.ai.providers.transport import Wire
from koo.errors import ExternalServiceError, Kind

BASE_URL = "https://api.openai.com/v1"

INVALID = "invalid_request_error"

FAULTS = FaultTable(
    "openai",
    (
        # An exact code first. A type alone may be shared: `insufficient_quota` covers five different ends of money.
        Row(Kind.CONTEXT_LENGTH, "context_length_exceeded"),
        Row(
            Kind.CONTENT_POLICY,
            (
                "content_filter", "content_policy_violation", "cyber_policy", "bio_policy", "invalid_prompt",
                "misalignment_policy_violation",
            ),
        ),
        Row(Kind.BILLING, ("credit_balance_exhausted", "billing_not_active", "billing_hard_limit_reached")),
        Row(
            Kind.QUOTA,
            ("organization_spend_limit_exceeded", "project_spend_limit_exceeded", "organization_usage_limit_exceeded"),
        ),
        Row(Kind.QUOTA, "insufficient_quota", sentence="its quota for this account is used up, or its credit is"),
        Row(Kind.THROTTLED, "slow_down", sentence="our rate grows faster than it allows"),
        Row(Kind.THROTTLED, "flex_unavailable", sentence="its flex tier has no room now"),
        Row(Kind.THROTTLED, ("rate_limit_exceeded", "rate_limit_error")),
        Row(Kind.OVERLOADED, ("server_is_overloaded", "server_overloaded", "service_unavailable_error")),
        Row(Kind.AUTH, ("invalid_api_key", "authentication_error", "account_deactivated")),
        Row(Kind.PERMISSION, "unsupported_country_region_territory", sentence="it does not serve this country"),
        Row(Kind.NOT_FOUND, "model_not_found"),
        Row(Kind.TIMEOUT, "request_timeout"),
        # Words refine a refused request, and nothing else.
        Row(Kind.CONTEXT_LENGTH, INVALID, (200, 400), says=CONTEXT_WORDS),
        # The type alone decides only where no status says more: a 401 and a 404 have it too.
        Row(Kind.INVALID_REQUEST, INVALID, (200, 400)),
        FORBIDDEN_ON_THE_WAY,
    ),
)  # fmt: skip


class OpenAIProvider(ResponsesAdapter):
    """A service that speaks OpenAI's Responses API. `base_url` is the address with its `/v1`."""

    vendor = Vendor(FAULTS, read_error, BASE_URL)
    output_tokens_min = 16

    async def check(self) -> None:
        """Ask for the list of models, which is never billed. Raises `ExternalServiceError`."""
        await check_models(self._wire)


async def check_models(wire: Wire, path: str = "/models") -> None:
    """GET it. A key that may ask but not list is a working key: restricted keys are common."""
    try:
        await wire.request("GET", path)
    except ExternalServiceError as error:
        if error.kind is not Kind.PERMISSION:
            raise
