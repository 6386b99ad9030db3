"""Perplexity: its Agent API (`POST /responses`, OpenAI's Responses format), with one web search before each answer.

Sonar's chat completions ended in September 2026 (see docs/decisions). An Agent request searches only if it is given the
tool, and may leave it unused; Sonar always searched, and callers of Perplexity expect that, so the search is forced.
`max_steps: 1` is one pass that searches and one that answers: the model reads the prompt twice, and the search results
are read, and paid for, like a prompt. Both are in the bound, with room for some more searches, because a pass may send
several at once.

Every answer reports its cost, searches included, and is believed. In a stream, data alone carries the events: there are
no `event:` lines and no `[DONE]`.
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
from koo.ai.providers.other_words import CONTEXT_WORDS
from koo.ai.providers.responses import Body, ResponsesAdapter, encode_body
from koo.errors import Kind

BASE_URL = "https://api.perplexity.ai/v1"

PASSES = 2
"""One that searches, one that answers."""
SEARCH_TOKENS = 4096
"""What one search may bring into the prompt, as we ask for it."""
SEARCH_TOKENS_BOUND = SEARCH_TOKENS * 3 // 2
"""What it may be counted as: titles and addresses stand beside the text, and tokenizers differ."""
PASS_TOKENS = 2048
"""The instructions and the tool's description that Perplexity puts before a pass, and the call itself."""

INVALID = "invalid_request"

FAULTS = FaultTable(
    "perplexity",
    (
        Row(
            Kind.BILLING,
            ("insufficient_quota", "insufficient_credits", "payment_required"),
            sentence="its account has no credits left: see the provider's billing page",
        ),
        Row(Kind.AUTH, "invalid_api_key"),
        # A refused key and an empty account are one status there, and often no more than a page of the web server.
        Row(
            Kind.AUTH,
            status=401,
            sentence="it refuses the API key, or the account has no credits left: see both at the provider",
        ),
        Row(Kind.NOT_FOUND, "chat_completions_not_available"),
        FORBIDDEN_ON_THE_WAY,
        Row(Kind.PERMISSION, "forbidden"),
        Row(Kind.NOT_FOUND, ("invalid_model", "not_found")),
        Row(Kind.TOO_LARGE, "payload_too_large"),
        Row(Kind.THROTTLED, "request_rate_limit_exceeded"),
        Row(Kind.TIMEOUT, "gateway_timeout"),
        # Words refine a refused request, and nothing else.
        Row(Kind.CONTEXT_LENGTH, INVALID, (200, 400, 413, 422), says=CONTEXT_WORDS),
        Row(Kind.INVALID_REQUEST, INVALID, (200, 400, 422)),
        # Other vendors' models answer through it, and their codes come through too.
        *OPENAI_FAULTS.rows,
    ),
)  # fmt: skip


class _Search(msgspec.Struct):
    """The web search, with all its limits sent. Unknown fields are refused there, so none is sent in vain."""

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
    """A service that speaks Perplexity's Agent API.

    `base_url` is the address with its `/v1`; one without any path gets it.
    """

    vendor = Vendor(FAULTS, read_error, BASE_URL)

    @staticmethod
    def address(base_url: str) -> str:
        return base_url if urlsplit(base_url).path else base_url + "/v1"

    def bound_input_tokens(self, request: Request) -> int:
        """UTF-8 bytes of prompt and system in each pass, and what searches may bring."""
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
