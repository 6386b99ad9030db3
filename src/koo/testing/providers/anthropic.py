"""A fake of Anthropic's Messages API."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

from koo.testing.providers.script import Answer, Failure
from koo.testing.providers.server import ErrorType, FakeProvider, Tokens
from koo.testing.providers.wire import ReceivedRequest, Reply, event, json_reply

FIELDS = {
    "cache_control", "container", "context_management", "inference_geo", "max_tokens", "mcp_servers", "messages",
    "metadata", "model", "output_config", "service_tier", "speed", "stop_sequences", "stream", "system", "temperature",
    "thinking", "thread", "tool_choice", "tools", "top_k", "top_p",
}  # fmt: skip
VERSIONS = ("2023-06-01", "2026-10-21")
WITHOUT_SAMPLING = re.compile(r"claude-(opus-4-[78]|(opus|sonnet|haiku)-[5-9]|fable|mythos)")


class FakeAnthropic(FakeProvider):
    """`POST /v1/messages`, plain and streamed, and `GET /v1/models`. `base_url` is the root URL, as the SDK expects."""

    error_types: ClassVar[Mapping[int, ErrorType]] = {
        400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
        404: "not_found_error", 409: "conflict_error", 413: "request_too_large", 429: "rate_limit_error",
        500: "api_error", 504: "timeout_error", 529: "overloaded_error",
    }  # fmt: skip

    def refuse(self, request: ReceivedRequest) -> Reply | None:
        path = request.path.partition("?")[0]
        if path not in ("/v1/messages", "/v1/models"):
            return self._refusal(404, "not_found_error", "Not Found")
        key = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix(
            "Bearer "
        )
        if self.key is not None and key != self.key:
            message = "invalid x-api-key" if key else "x-api-key header is required"
            return self._refusal(401, "authentication_error", message)
        version = request.headers.get("anthropic-version")
        if version not in VERSIONS:
            return self._refusal(400, "invalid_request_error", "anthropic-version: header is required")
        return self._refuse_body(request.body, version) if request.method == "POST" else None

    def _refuse_body(self, body: Any, version: str) -> Reply | None:
        if not isinstance(body, dict):
            return self._refusal(400, "invalid_request_error", "The request body is not valid JSON")
        wrong = _wrong_field(body) or _wrong_sampling(body, version)
        if wrong is not None:
            return self._refusal(400, "invalid_request_error", wrong)
        model = body["model"]
        known = model in self.models if self.models is not None else model.startswith("claude-")
        return None if known else self._refusal(404, "not_found_error", f"model: {model}")

    def _refusal(self, status: int, kind: str, message: str) -> Reply:
        failure = Failure(status=status, type=kind, message=message)
        return json_reply(status, self.error_body(failure), self._head({}))

    def list_models(self) -> Reply:
        names = self.models or ("claude-sonnet-5-5",)
        data = [
            {
                "type": "model", "id": name, "display_name": name, "created_at": "2026-01-01T00:00:00Z",
                "lifecycle": "active",
            }
            for name in names
        ]  # fmt: skip
        page = {"data": data, "has_more": False, "first_id": names[0], "last_id": names[-1]}
        return json_reply(200, page, self._head({}))

    def prompt_of(self, request: ReceivedRequest) -> str:
        return _text(request.body.get("system")) + "".join(
            _text(m.get("content")) for m in request.body["messages"]
        )

    def max_tokens_of(self, request: ReceivedRequest) -> int:
        return int(request.body["max_tokens"])

    def headers(self, number: str) -> dict[str, str]:
        limits = {
            "requests": (4000, 3999),
            "input-tokens": (400_000, 399_000),
            "output-tokens": (80_000, 79_000),
        }
        headers = {"request-id": f"req_{number}"}
        # One second ahead, as with a bucket that refills continuously: koo waits for this time after a 429 without a
        # `Retry-After`.
        resets_at = datetime.fromtimestamp(self.wall() + 1, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for name, (limit, remaining) in limits.items():
            headers[f"anthropic-ratelimit-{name}-limit"] = str(limit)
            headers[f"anthropic-ratelimit-{name}-remaining"] = str(remaining)
            headers[f"anthropic-ratelimit-{name}-reset"] = resets_at
        return headers

    def plain(self, request: ReceivedRequest, step: Answer, tokens: Tokens, number: int) -> dict[str, Any]:
        message = self._message(request, number)
        message["content"] = [{"type": "text", "text": step.text}]
        message["stop_reason"] = self._stop_reason(request, step, tokens)
        if step.usage:
            message["usage"] = _usage(tokens)
        return message

    def around(
        self, request: ReceivedRequest, step: Answer, pieces: list[str], tokens: Tokens, number: int
    ) -> tuple[list[bytes], list[bytes]]:
        message = self._message(request, number)
        delta: dict[str, Any] = {
            "type": "message_delta",
            "delta": {"stop_reason": self._stop_reason(request, step, tokens), "stop_sequence": None},
        }
        if step.usage:
            message["usage"] = {**_usage(tokens), "output_tokens": 1}
            delta["usage"] = {"output_tokens": tokens.output}
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        before = [
            event({"type": "message_start", "message": message}, "message_start"),
            event(block, "content_block_start"),
            self.ping(),
        ]
        after = [
            event({"type": "content_block_stop", "index": 0}, "content_block_stop"),
            event(delta, "message_delta"),
            event({"type": "message_stop"}, "message_stop"),
        ]
        return before, after

    def piece(self, request: ReceivedRequest, text: str) -> bytes:
        return _delta({"type": "text_delta", "text": text})

    def thought(self, request: ReceivedRequest, text: str) -> bytes:
        return _delta({"type": "thinking_delta", "thinking": text})

    def ping(self) -> bytes:
        return event({"type": "ping"}, "ping")

    def error_body(self, failure: Failure) -> dict[str, Any]:
        inner: dict[str, Any] = {"type": failure.type, "message": failure.message, **failure.extra}
        if failure.code is not None:
            inner["details"] = {"error_code": failure.code}
        return {"type": "error", "error": inner, "request_id": "req_in_body"}

    def error_event(self, failure: Failure) -> bytes:
        return event(self.error_body(failure), "error")

    def _message(self, request: ReceivedRequest, number: int) -> dict[str, Any]:
        return {
            "id": f"msg_{number}", "type": "message", "role": "assistant", "model": request.body["model"],
            "content": [], "stop_reason": None, "stop_sequence": None,
        }  # fmt: skip

    def _stop_reason(self, request: ReceivedRequest, step: Answer, tokens: Tokens) -> str:
        if step.stop_reason is not None:
            return step.stop_reason
        return "max_tokens" if tokens.output >= self.max_tokens_of(request) else "end_turn"


def _wrong_field(body: dict[str, Any]) -> str | None:
    for name in ("model", "max_tokens", "messages"):
        if name not in body:
            return f"{name}: Field required"
    extra = sorted(set(body) - FIELDS)
    if extra:
        return f"{extra[0]}: Extra inputs are not permitted"
    if not isinstance(body["model"], str):
        return "model: Input should be a valid string"
    if not isinstance(body["max_tokens"], int) or body["max_tokens"] < 1:
        return "max_tokens: must be greater than or equal to 1"
    messages = body["messages"]
    if not isinstance(messages, list) or not messages:
        return "messages: at least one message is required"
    if any(not isinstance(m, dict) or _is_empty(m.get("content")) for m in messages):
        return "messages.0: user messages must have non-empty content"
    return None


def _wrong_sampling(body: dict[str, Any], version: str) -> str | None:
    """The newest API version has no sampling parameters, and newer models accept none in any version."""
    for name in ("temperature", "top_k", "top_p"):
        if name in body and version == VERSIONS[-1]:
            return f"{name}: Extra inputs are not permitted"
        if name in body and WITHOUT_SAMPLING.match(body["model"]):
            return f"`{name}` is deprecated for this model."
    return None if 0 <= body.get("temperature", 1) <= 1 else "temperature: range: 0..1"


def _is_empty(content: Any) -> bool:
    """Whether a message says nothing. Calls of tools, their results, pictures and documents have no text."""
    blocks = content if isinstance(content, list) else []
    return not _text(content) and all(
        not isinstance(one, dict) or one.get("type") == "text" for one in blocks
    )


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(block.get("text", "") for block in content if isinstance(block, dict))
    return content if isinstance(content, str) else ""


def _usage(tokens: Tokens) -> dict[str, Any]:
    usage: dict[str, Any] = {
        "input_tokens": tokens.input,
        "cache_creation_input_tokens": tokens.cache_write,
        "cache_read_input_tokens": tokens.cache_read,
        "output_tokens": tokens.output,
        "service_tier": "standard",
    }
    if tokens.reasoning:
        usage["output_tokens_details"] = {"thinking_tokens": tokens.reasoning}
    return usage


def _delta(delta: dict[str, Any]) -> bytes:
    return event({"type": "content_block_delta", "index": 0, "delta": delta}, "content_block_delta")
