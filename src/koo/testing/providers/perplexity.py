"""A fake of Perplexity's Agent API: OpenAI's Responses format, with its own searches, costs and errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any, ClassVar

from koo.testing.providers.openai import how_it_ended, text_of
from koo.testing.providers.script import Answer, Failure
from koo.testing.providers.server import MILLION, ErrorType, FakeProvider, Tokens
from koo.testing.providers.wire import ReceivedRequest, Reply, event, json_reply

RESPONSES, AGENT, MODELS = "/v1/responses", "/v1/agent", "/v1/models"
RETIRED = ("/chat/completions", "/v1/chat/completions", "/async/chat/completions")
MAX_TOKENS_DEFAULT = 4096
MAX_TOKENS_MIN = 16
FIELDS = {
    "background", "effort", "input", "instructions", "language_preference", "max_output_tokens", "max_steps", "model",
    "models", "preset", "previous_response_id", "profile", "prompt_cache_key", "reasoning", "response_format",
    "service_tier", "skills", "step_budget_reminder", "store", "stream", "temperature", "tool_choice", "tools", "top_p",
}  # fmt: skip
SEARCH_FIELDS = {
    "type", "filters", "max_results", "max_tokens", "max_tokens_per_page", "search_context_size", "search_type",
    "user_location",
}  # fmt: skip
TOOLS = {
    "web_search", "image_search", "fetch_url", "people_search", "finance_search", "sandbox", "function", "mcp",
    "connector",
}  # fmt: skip
RESULT = {
    "id": 1, "url": "https://example.org/paris", "title": "Paris", "snippet": "Paris is the capital of France.",
    "date": "2026-11-01", "last_updated": "2026-11-20", "source": "web",
}  # fmt: skip


class FakePerplexity(FakeProvider):
    """`POST /v1/responses` (and `/v1/agent`, its other name), plain and streamed, and `GET /v1/models`.

    If the request offers the web search, it searches `searches` times and reads `search_tokens` of the results. A
    search makes the model read the prompt twice. It bills all of this, and reports the cost in `usage.cost`.
    """

    error_types: ClassVar[Mapping[int, ErrorType]] = {
        400: "invalid_request", 401: "invalid_api_key", 402: "payment_required", 403: "forbidden", 404: "not_found",
        413: "payload_too_large", 429: "request_rate_limit_exceeded", 500: "internal_error", 502: "bad_gateway",
        503: "unavailable", 504: "gateway_timeout",
    }  # fmt: skip

    def __init__(
        self,
        *,
        input_price: Decimal = Decimal("0.25"),
        output_price: Decimal = Decimal("2.5"),
        search_usd: Decimal = Decimal("0.0025"),
        searches: int = 1,
        search_tokens: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(input_price=input_price, output_price=output_price, **options)
        self.search_usd = search_usd
        self.searches = searches
        self.search_tokens = search_tokens

    @property
    def base_url(self) -> str:
        return self.url + "/v1"

    def refuse(self, request: ReceivedRequest) -> Reply | None:
        path = request.path.partition("?")[0]
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return self._refusal(401, "invalid_api_key", "Invalid API key provided.")
        if path in RETIRED:
            return self._refusal(403, "chat_completions_not_available", "Sonar is now the Agent API.")
        if path != MODELS if request.method == "GET" else path not in (RESPONSES, AGENT):
            return self._refusal(404, "not_found", "Not found")
        return self._refuse_body(request.body) if request.method == "POST" else None

    def _refuse_body(self, body: Any) -> Reply | None:
        if not isinstance(body, dict):
            return self._refusal(400, "invalid_request", "invalid request body: unexpected end of JSON input")
        wrong = _wrong_field(body)
        if wrong is not None:
            name, message = wrong
            return self._refusal(400, "invalid_request", message, name)
        model = body["model"]
        if model in self.models if self.models is not None else "/" in model:
            return None
        return self._refusal(400, "invalid_model", f"Invalid model '{model}'.", "model")

    def _refusal(self, status: int, kind: str, message: str, param: str | None = None) -> Reply:
        failure = Failure(status=status, type=kind, message=message, param=param)
        return json_reply(status, self.error_body(failure), self._head({}))

    def list_models(self) -> Reply:
        names = self.models or ("perplexity/sonar",)
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": name.partition("/")[0]}
            for name in names
        ]
        return json_reply(200, {"object": "list", "data": data}, self._head({}))

    def prompt_of(self, request: ReceivedRequest) -> str:
        return text_of(request.body.get("instructions")) + text_of(request.body["input"])

    def read_of(self, request: ReceivedRequest) -> str:
        return self.prompt_of(request) * (2 if _searches(request) else 1)

    def max_tokens_of(self, request: ReceivedRequest) -> int:
        return max(MAX_TOKENS_MIN, request.body.get("max_output_tokens") or MAX_TOKENS_DEFAULT)

    def headers(self, number: str) -> dict[str, str]:
        return {"x-request-id": f"req-{number}"}

    # ── money ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _tokens(self, request: ReceivedRequest, step: Answer) -> Tokens:
        tokens = super()._tokens(request, step)
        if not _searches(request) or step.input_tokens is not None:
            return tokens
        return replace(tokens, input=tokens.input + self.searches * self.search_tokens)

    def fees_usd(self, request: ReceivedRequest) -> Decimal:
        return self.searches * self.search_usd if _searches(request) else Decimal(0)

    # ── answers ───────────────────────────────────────────────────────────────────────────────────────────────

    def plain(self, request: ReceivedRequest, step: Answer, tokens: Tokens, number: int) -> dict[str, Any]:
        response = _response_head(request, number) | how_it_ended(step, tokens, self.max_tokens_of(request))
        response["output"] = [*_found(request), _message(number, step.text)]
        if step.usage:
            response["usage"] = self._usage(request, step, tokens)
        return response

    def around(
        self, request: ReceivedRequest, step: Answer, pieces: list[str], tokens: Tokens, number: int
    ) -> tuple[list[bytes], list[bytes]]:
        begun, whole = _response_head(request, number), self.plain(request, step, tokens, number)
        place = {"item_id": f"msg_{number}", "output_index": 0, "content_index": 0}
        before = [_event("response.created", response=begun), _event("response.in_progress", response=begun)]
        if _searches(request):
            before += [
                _event("response.reasoning.started", thought="Let me look that up."),
                _event("response.reasoning.search_queries", queries=["capital of France"]),
                _event("response.reasoning.search_results", results=[RESULT]),
                _event("response.reasoning.stopped"),
            ]
        item = _message(number, "") | {"content": [], "status": "in_progress"}
        before.append(_event("response.output_item.added", output_index=0, item=item))
        after = [
            _event("response.output_text.done", text=step.text, **place),
            _event("response.output_item.done", output_index=0, item=whole["output"][-1]),
            _event(f"response.{whole['status']}", response=whole),
        ]
        return before, after

    def piece(self, request: ReceivedRequest, text: str) -> bytes:
        return _event(
            "response.output_text.delta", delta=text, item_id="msg_1", output_index=0, content_index=0
        )

    def thought(self, request: ReceivedRequest, text: str) -> bytes:
        return _event("response.reasoning.started", thought=text)

    def ping(self) -> bytes:
        return b"\n\n"

    def error_body(self, failure: Failure) -> dict[str, Any]:
        """The code in the body is the HTTP status; a run that failed is a 200 whose body has its own status."""
        inner: dict[str, Any] = {"message": failure.message, "type": failure.type, **failure.extra}
        if failure.status < 300:
            return {
                "id": "resp_failed", "object": "response", "created_at": 1_790_000_000, "model": "perplexity/sonar",
                "status": "failed", "output": [], "error": inner | {"code": failure.code},
            }  # fmt: skip
        if failure.param is not None:
            inner["param"] = failure.param
        return {"error": inner | {"code": failure.status}}

    def error_event(self, failure: Failure) -> bytes:
        error = {"message": failure.message, "type": failure.type, "code": failure.code}
        return _event("response.failed", error=error)

    def _usage(self, request: ReceivedRequest, step: Answer, tokens: Tokens) -> dict[str, Any]:
        fees = self.fees_usd(request)
        read, written = (
            tokens.read * self.input_price / MILLION,
            tokens.output * self.output_price / MILLION,
        )
        total = float(read + written + fees) if step.cost_usd is None else step.cost_usd
        usage: dict[str, Any] = {
            "input_tokens": tokens.read,
            "input_tokens_details": {
                "cached_tokens": tokens.cache_read,
                "cache_read_input_tokens": tokens.cache_read,
                "cache_creation_input_tokens": tokens.cache_write,
            },
            "output_tokens": tokens.output,
            "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
            "total_tokens": tokens.read + tokens.output,
            "cost": {
                "currency": "USD",
                "input_cost": float(read),
                "output_cost": float(written),
                "tool_calls_cost": float(fees),
                "total_cost": total,
            },
        }
        if _searches(request):
            usage["tool_calls_details"] = {
                "search_web": {"invocation": self.searches, "cost_usd": float(fees)}
            }
        return usage


def _wrong_field(body: dict[str, Any]) -> tuple[str, str] | None:
    """Parameter and message for the first wrong field. Unknown fields are refused, even inside a tool."""
    for name in sorted(set(body) - FIELDS):
        return name, f'invalid request body: json: unknown field "{name}"'
    for name in ("model", "input"):
        if not body.get(name):
            return name, f"validation failed: {name} is required"
    for tool in body.get("tools") or ():
        if tool.get("type") not in TOOLS:
            return "tools", f"unknown discriminator value: {tool.get('type')}"
        for name in sorted(set(tool) - SEARCH_FIELDS) if tool["type"] == "web_search" else ():
            return name, f'invalid request body: json: unknown field "{name}"'
    if body["model"].startswith("anthropic/") and "max_output_tokens" not in body:
        return (
            "max_output_tokens",
            "validation failed: max_output_tokens is required when using Anthropic models",
        )
    if not 1 <= body.get("max_steps", 1) <= 100:
        return "max_steps", "validation failed: max_steps must be between 1 and 100"
    return None


def _searches(request: ReceivedRequest) -> bool:
    return any(tool["type"] == "web_search" for tool in request.body.get("tools") or ())


def _found(request: ReceivedRequest) -> list[dict[str, Any]]:
    item = {"type": "search_results", "queries": ["capital of France"], "results": [RESULT]}
    return [item] if _searches(request) else []


def _response_head(request: ReceivedRequest, number: int) -> dict[str, Any]:
    return {
        "id": f"resp_{number}", "object": "response", "created_at": 1_790_000_000, "status": "in_progress",
        "background": False, "error": None, "incomplete_details": None, "model": request.body["model"], "output": [],
        "store": request.body.get("store", True), "temperature": 1.0, "tools": [], "usage": None,
    }  # fmt: skip


def _message(number: int, text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {
        "type": "message", "id": f"msg_{number}", "status": "completed", "role": "assistant", "content": [part],
    }  # fmt: skip


def _event(name: str, **data: Any) -> bytes:
    """An event with only a `data:` line: Perplexity sends no `event:` line."""
    return event({"type": name, "sequence_number": 0, **data})
