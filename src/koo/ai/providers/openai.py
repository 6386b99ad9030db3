"""OpenAI's Responses API (`POST /responses`): its responses, its stream, and the meaning of its errors.

OpenAI recommends this API for new applications, its reasoning models give better answers there, and
`max_output_tokens` limits reasoning and text together, which a budget needs. Requests set `store: false`, because
OpenAI otherwise keeps every response for 30 days. Servers that imitate OpenAI mostly support only chat completions;
they use `openai_compatible`.

Usage: `input_tokens` includes tokens read from and written to the cache; reasoning is part of `output_tokens`.
"""

from __future__ import annotations

from koo.ai.providers.adapter import Vendor
from koo.ai.providers.faults import FORBIDDEN_ON_THE_WAY, FaultTable, Row
from koo.ai.providers.openai_errors import read_error
from koo.ai.providers.responses import ResponsesAdapter
from koo.ai.providers.transport import Wire
from koo.errors import ExternalServiceError, Kind

BASE_URL = "https://api.openai.com/v1"

INVALID = "invalid_request_error"

FAULTS = FaultTable(
    "openai",
    (
        # Exact codes come first. A type may be shared: `insufficient_quota` stands for five different spending limits.
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
        Row(Kind.QUOTA, "insufficient_quota", sentence="the account's quota or credit is used up"),
        Row(Kind.THROTTLED, "slow_down", sentence="the request rate grew faster than it allows"),
        Row(Kind.THROTTLED, "flex_unavailable", sentence="its flex tier has no capacity right now"),
        Row(Kind.THROTTLED, ("rate_limit_exceeded", "rate_limit_error")),
        Row(Kind.OVERLOADED, ("server_is_overloaded", "server_overloaded", "service_unavailable_error")),
        Row(Kind.AUTH, ("invalid_api_key", "authentication_error", "account_deactivated")),
        Row(Kind.PERMISSION, "unsupported_country_region_territory", sentence="it is not available in this country"),
        Row(Kind.NOT_FOUND, "model_not_found"),
        Row(Kind.TIMEOUT, "request_timeout"),
        # The type alone decides only for these statuses: a 401 and a 404 have the same type.
        Row(Kind.INVALID_REQUEST, INVALID, (200, 400)),
        FORBIDDEN_ON_THE_WAY,
    ),
)  # fmt: skip


class OpenAIProvider(ResponsesAdapter):
    """A service with OpenAI's Responses API. `base_url` is the URL including `/v1`."""

    vendor = Vendor(FAULTS, read_error, BASE_URL)
    output_tokens_min = 16

    async def check(self) -> None:
        """Request the list of models, which is never billed. Raises `ExternalServiceError`."""
        await check_models(self._wire)


async def check_models(wire: Wire, path: str = "/models") -> None:
    """GET `path`, and accept a refusal for lack of permission.

    Restricted keys are common: a key that may not list models can still be valid for queries.
    """
    try:
        await wire.check(path)
    except ExternalServiceError as error:
        if error.kind is not Kind.PERMISSION:
            raise
