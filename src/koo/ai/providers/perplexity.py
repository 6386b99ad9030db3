"""Perplexity's Agent API (`POST /responses`, OpenAI's Responses format), with one web search before each answer.

Perplexity shut down Sonar's chat completions in September 2026 (see docs/decisions). An Agent request searches only if
it includes the search tool, and even then the model may not use it. Sonar always searched, and callers of Perplexity
expect that, so the search is forced. `max_steps: 1` means one pass that searches and one that answers. The model reads
the prompt twice, and the search results are read and billed like a prompt. The bound on input tokens includes both,
with room for a few more searches, because one pass may run several at the same time.

Every response reports its cost, searches included, and that cost is used. In a stream, events consist only of `data:`
lines: there are no `event:` lines and no `[DONE]`.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec

from koo.ai.pricing import SEARCHES_MAX
from koo.ai.providers.adapter import Vendor
from koo.ai.providers.base import Request
from koo.ai.providers.faults import FORBIDDEN_ON_THE_WAY, FaultTable, Row
from koo.ai.providers.openai import FAULTS as OPENAI_FAULTS
from koo.ai.providers.openai_errors import read_error
from koo.ai.providers.responses import Body, ResponsesAdapter, encode_body
from koo.errors import Kind

BASE_URL = "https://api.perplexity.ai/v1"

PASSES = 2
"""One pass searches, one answers."""
SEARCH_TOKENS = 4096
"""The most tokens that one search may add to the prompt; sent as a limit with each request."""
SEARCH_TOKENS_BOUND = SEARCH_TOKENS * 3 // 2
"""The most tokens that one search may be billed as: titles and URLs come on top of the text, and tokenizers differ."""
PASS_TOKENS = 2048
"""Perplexity's own instructions in front of each pass, the tool's description, and the call itself."""

INVALID = "invalid_request"

FAULTS = FaultTable(
    "perplexity",
    (
        Row(
            Kind.BILLING,
            ("insufficient_quota", "insufficient_credits", "payment_required"),
            sentence="the account has no credits left: see the provider's billing page",
        ),
        Row(Kind.AUTH, "invalid_api_key"),
        # Perplexity sends the same status for a refused key and an empty account, often with only an HTML page.
        Row(
            Kind.AUTH,
            status=401,
            sentence="it rejects the API key, or the account has no credits left: check both at the provider",
        ),
        Row(Kind.NOT_FOUND, "chat_completions_not_available"),
        FORBIDDEN_ON_THE_WAY,
        Row(Kind.PERMISSION, "forbidden"),
        Row(Kind.NOT_FOUND, ("invalid_model", "not_found")),
        Row(Kind.TOO_LARGE, "payload_too_large"),
        Row(Kind.THROTTLED, "request_rate_limit_exceeded"),
        Row(Kind.TIMEOUT, "gateway_timeout"),
        Row(Kind.INVALID_REQUEST, INVALID, (200, 400, 422)),
        # Perplexity also offers other vendors' models, and forwards their codes.
        *OPENAI_FAULTS.rows,
    ),
)  # fmt: skip


class _Search(msgspec.Struct):
    """The web search with all its limits. Perplexity rejects unknown fields, so it never ignores a limit silently."""

    type: str = "web_search"
    max_tokens: int = SEARCH_TOKENS
    max_tokens_per_page: int = SEARCH_TOKENS // 4


class _Choice(msgspec.Struct):
    type: str = "web_search"


SEARCH, SEARCH_FIRST = _Search(), _Choice()


class _Body(Body, kw_only=True):
    max_steps: int
    tools: list[_Search]
    tool_choice: _Choice


class PerplexityProvider(ResponsesAdapter):
    """A service with Perplexity's Agent API.

    `base_url` is the URL including `/v1`, which is added if there is no path.
    """

    vendor = Vendor(FAULTS, read_error, BASE_URL)

    @staticmethod
    def address(base_url: str) -> str:
        return base_url if urlsplit(base_url).path else base_url + "/v1"

    def bound_input_tokens(self, request: Request) -> int:
        """UTF-8 bytes of prompt and system in each pass, plus the most that searches can add."""
        return (
            PASSES * (super().bound_input_tokens(request) + PASS_TOKENS) + SEARCHES_MAX * SEARCH_TOKENS_BOUND
        )

    def encode(self, request: Request, *, stream: bool) -> bytes:
        request = self._forms.fit(request)
        body = _Body(
            model=request.model,
            input=request.prompt,
            max_output_tokens=request.max_tokens,
            store=False,
            max_steps=1,
            tools=[SEARCH],
            tool_choice=SEARCH_FIRST,
            instructions=request.system,
            temperature=request.temperature,
            stream=stream,
        )
        return encode_body(body)
