"""Fakes of OpenAI (Responses and chat completions) and of compatible servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from koo.testing.providers.script import Answer, Failure
from koo.testing.providers.server import ErrorType, FakeProvider, Tokens
from koo.testing.providers.wire import ReceivedRequest, Reply, event, json_reply

Dialect = Literal["openai", "vllm", "vllm_old", "llama.cpp", "ollama", "openrouter"]

RESPONSES, CHAT, MODELS = "/v1/responses", "/v1/chat/completions", "/v1/models"
MAX_TOKENS_DEFAULT = 4096
RESPONSES_FIELDS = {
    "background", "include", "input", "instructions", "max_output_tokens", "metadata", "model", "parallel_tool_calls",
    "previous_response_id", "prompt_cache_key", "reasoning", "safety_identifier", "service_tier", "store", "stream",
    "stream_options", "temperature", "text", "tool_choice", "tools", "top_p", "truncation", "user",
}  # fmt: skip
CHAT_FIELDS = {
    "frequency_penalty", "logit_bias", "logprobs", "max_completion_tokens", "max_tokens", "messages", "metadata",
    "model", "n", "presence_penalty", "reasoning_effort", "response_format", "seed", "service_tier", "stop", "store",
    "stream", "stream_options", "temperature", "tool_choice", "tools", "top_p", "user",
}  # fmt: skip
REASONING_MODELS = ("o1", "o3", "o4", "gpt-5", "gpt-6")


class FakeOpenAI(FakeProvider):
    """`POST /v1/responses` and `/v1/chat/completions`, plain and streamed, and `GET /v1/models`."""

    paths: tuple[str, ...] = (RESPONSES, CHAT, MODELS)
    error_types: ClassVar[Mapping[int, ErrorType]] = {
        400: "invalid_request_error", 401: ("invalid_request_error", "invalid_api_key"),
        404: ("invalid_request_error", "model_not_found"), 429: ("requests", "rate_limit_exceeded"),
        500: "server_error", 503: "service_unavailable_error",
    }  # fmt: skip

    @property
    def base_url(self) -> str:
        return self.url + "/v1"

    def refuse(self, request: ReceivedRequest) -> Reply | None:
        path = request.path.partition("?")[0]
        if path not in self.paths:
            return self._refusal(404, "invalid_request_error", f"Invalid URL ({request.method} {path})")
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            message = "Incorrect API key provided: sk-...abcd."
            return self._refusal(401, "invalid_request_error", message, "invalid_api_key")
        return self._refuse_body(request) if request.method == "POST" else None

    def _refuse_body(self, request: ReceivedRequest) -> Reply | None:
        body = request.body
        if not isinstance(body, dict):
            return self._refusal(
                400, "invalid_request_error", "We could not parse the JSON body of your request."
            )
        wrong = self._wrong_field(request)
        if wrong is not None:
            name, code, message = wrong
            return self._refusal(400, "invalid_request_error", message, code, name)
        model = body["model"]
        if self._knows(model):
            return None
        message = f"The model `{model}` does not exist or you do not have access to it."
        return self._refusal(404, "invalid_request_error", message, "model_not_found", "model")

    def _wrong_field(self, request: ReceivedRequest) -> tuple[str, str, str] | None:
        """Parameter, code and message for the first wrong field."""
        body, chat = request.body, _is_chat(request)
        for name in ("model", "messages" if chat else "input"):
            if not body.get(name):
                return name, "missing_required_parameter", f"Missing required parameter: '{name}'."
        for name in sorted(set(body) - (CHAT_FIELDS if chat else RESPONSES_FIELDS)):
            return name, "unknown_parameter", f"Unknown parameter: '{name}'."
        if chat and "max_tokens" in body and body["model"].startswith(REASONING_MODELS):
            return "max_tokens", "unsupported_parameter", "Unsupported parameter: 'max_tokens'."
        low = 1 if chat else 16
        for name in ("max_output_tokens", "max_completion_tokens"):
            if body.get(name) is not None and body[name] < low:
                message = f"Invalid '{name}': integer below minimum value. Expected a value >= {low}."
                return name, "integer_below_min_value", message
        return None

    def _knows(self, model: str) -> bool:
        return (
            model in self.models if self.models is not None else model.startswith(("gpt-", *REASONING_MODELS))
        )

    def _refusal(
        self, status: int, kind: str, message: str, code: str | None = None, param: str | None = None
    ) -> Reply:
        failure = Failure(status=status, type=kind, code=code, message=message, param=param)
        return json_reply(status, self.error_body(failure), self._head({}))

    def list_models(self) -> Reply:
        names = self.models or ("gpt-6.1-terra",)
        data = [
            {"id": name, "object": "model", "created": 1_780_000_000, "owned_by": "system"} for name in names
        ]
        return json_reply(200, {"object": "list", "data": data}, self._head({}))

    def prompt_of(self, request: ReceivedRequest) -> str:
        body = request.body
        if _is_chat(request):
            return "".join(text_of(message.get("content")) for message in body["messages"])
        return text_of(body.get("instructions")) + text_of(body["input"])

    def max_tokens_of(self, request: ReceivedRequest) -> int:
        body = request.body
        return (
            body.get("max_output_tokens")
            or body.get("max_completion_tokens")
            or body.get("max_tokens")
            or MAX_TOKENS_DEFAULT
        )

    def headers(self, number: str) -> dict[str, str]:
        return {
            "x-request-id": f"req_{number}",
            "x-ratelimit-limit-requests": "5000",
            "x-ratelimit-remaining-requests": "4999",
            "x-ratelimit-reset-requests": "12ms",
            "x-ratelimit-limit-tokens": "400000",
            "x-ratelimit-remaining-tokens": "399000",
            "x-ratelimit-reset-tokens": "6m0s",
        }

    # ── responses ─────────────────────────────────────────────────────────────────────────────────────────────

    def plain(self, request: ReceivedRequest, step: Answer, tokens: Tokens, number: int) -> dict[str, Any]:
        if _is_chat(request):
            return self._completion(request, step, tokens, number)
        return self._response(request, step, tokens, number)

    def _completion(
        self, request: ReceivedRequest, step: Answer, tokens: Tokens, number: int
    ) -> dict[str, Any]:
        message = {"role": "assistant", "content": step.text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": self._finish(request, step, tokens),
        }
        answer = {**_chat_head(request, number, "chat.completion"), "choices": [choice]}
        if step.usage:
            answer["usage"] = self._chat_usage(step, tokens)
        return answer

    def _response(
        self, request: ReceivedRequest, step: Answer, tokens: Tokens, number: int
    ) -> dict[str, Any]:
        response = _response_head(request, number) | how_it_ended(step, tokens, self.max_tokens_of(request))
        response["output"] = [_output_message(number, step.text)]
        if step.usage:
            response["usage"] = _response_usage(tokens)
        return response

    def around(
        self, request: ReceivedRequest, step: Answer, pieces: list[str], tokens: Tokens, number: int
    ) -> tuple[list[bytes], list[bytes]]:
        if _is_chat(request):
            return self._around_chat(request, step, tokens, number)
        return self._around_response(request, step, tokens, number)

    def _around_chat(
        self, request: ReceivedRequest, step: Answer, tokens: Tokens, number: int
    ) -> tuple[list[bytes], list[bytes]]:
        before = [_chunk(request, {"role": "assistant", "content": ""})]
        after = [_chunk(request, {}, self._finish(request, step, tokens))]
        options = request.body.get("stream_options") or {}
        if step.usage and options.get("include_usage"):
            head = _chat_head(request, number, "chat.completion.chunk")
            after.append(event({**head, "choices": [], "usage": self._chat_usage(step, tokens)}))
        return before, [*after, b"data: [DONE]\n\n"]

    def _around_response(
        self, request: ReceivedRequest, step: Answer, tokens: Tokens, number: int
    ) -> tuple[list[bytes], list[bytes]]:
        item: dict[str, Any] = _output_message(number, "") | {"content": [], "status": "in_progress"}
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
        whole = self._response(request, step, tokens, number)
        done = part | {"text": step.text}
        begun = _response_head(request, number)
        before = [
            _event("response.created", response=begun),
            _event("response.in_progress", response=begun),
            _event("response.output_item.added", output_index=0, item=item),
            _event("response.content_part.added", part=part, **place),
        ]
        after = [
            _event("response.output_text.done", text=step.text, logprobs=[], **place),
            _event("response.content_part.done", part=done, **place),
            _event("response.output_item.done", output_index=0, item=whole["output"][0]),
            _event(f"response.{whole['status']}", response=whole),
        ]
        return before, after

    def piece(self, request: ReceivedRequest, text: str) -> bytes:
        if _is_chat(request):
            return _chunk(request, {"content": text})
        place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        return _event("response.output_text.delta", delta=text, logprobs=[], **place)

    def thought(self, request: ReceivedRequest, text: str) -> bytes:
        if _is_chat(request):
            return _chunk(request, {"reasoning_content": text})
        place = {"item_id": "rs_1", "output_index": 0, "summary_index": 0}
        return _event("response.reasoning_summary_text.delta", delta=text, **place)

    def ping(self) -> bytes:
        return b": keep-alive\n\n"

    def error_body(self, failure: Failure) -> dict[str, Any]:
        inner = {
            "message": failure.message,
            "type": failure.type,
            "param": failure.param,
            "code": failure.code,
        }
        return {"error": {**inner, **failure.extra}}

    def error_event(self, failure: Failure) -> bytes:
        return event(self.error_body(failure))

    def _finish(self, request: ReceivedRequest, step: Answer, tokens: Tokens) -> str:
        return step.stop_reason or ("length" if tokens.output >= self.max_tokens_of(request) else "stop")

    def _chat_usage(self, step: Answer, tokens: Tokens) -> dict[str, Any]:
        usage: dict[str, Any] = {
            "prompt_tokens": tokens.read,
            "completion_tokens": tokens.output,
            "total_tokens": tokens.read + tokens.output,
            "prompt_tokens_details": {
                "cached_tokens": tokens.cache_read,
                "cache_write_tokens": tokens.cache_write,
            },
            "completion_tokens_details": {"reasoning_tokens": tokens.reasoning},
        }
        if step.cost_usd is not None:
            usage["cost"] = step.cost_usd
        return usage


class FakeCompatible(FakeOpenAI):
    """A server compatible with chat completions, with the errors of a `dialect`. It requires a key only if given
    one."""

    paths = (CHAT, MODELS)

    def __init__(self, dialect: Dialect = "vllm", *, key: str | None = None, **options: Any) -> None:
        super().__init__(key=key, **options)
        self.dialect = dialect

    def _wrong_field(self, request: ReceivedRequest) -> tuple[str, str, str] | None:
        for name in ("model", "messages"):
            if not request.body.get(name):
                return name, "missing_required_parameter", f"{name} is required"
        return None

    def _knows(self, model: str) -> bool:
        return self.models is None or model in self.models

    def headers(self, number: str) -> dict[str, str]:
        return {}

    def ping(self) -> bytes:
        return b": OPENROUTER PROCESSING\n\n" if self.dialect == "openrouter" else b": ping\n\n"

    def error_body(self, failure: Failure) -> dict[str, Any]:
        message, kind, code = failure.message, failure.type, failure.code
        match self.dialect:
            case "vllm":
                kind = kind or "BadRequestError"
                return {
                    "error": {
                        "message": message,
                        "type": kind,
                        "param": failure.param,
                        "code": failure.status,
                    }
                }
            case "vllm_old":
                kind = kind or "BadRequestError"
                return {
                    "object": "error",
                    "message": message,
                    "type": kind,
                    "param": None,
                    "code": failure.status,
                }
            case "llama.cpp":
                return {"error": {"code": failure.status, "message": message, "type": kind, **failure.extra}}
            case "ollama":
                return {"error": message, **failure.extra}
            case "openrouter":
                return {"error": {"code": code or failure.status, "message": message, **failure.extra}}
            case _:
                return super().error_body(failure)


def how_it_ended(step: Answer, tokens: Tokens, tokens_max: int) -> dict[str, Any]:
    """The fields that say how a response ended, in the Responses format (also Perplexity's)."""
    cut_short = step.stop_reason in ("max_output_tokens", "content_filter")
    if step.stop_reason is None:
        cut_short = tokens.output >= tokens_max
    return {
        "status": "incomplete" if cut_short else "completed",
        "incomplete_details": {"reason": step.stop_reason or "max_output_tokens"} if cut_short else None,
    }


def _is_chat(request: ReceivedRequest) -> bool:
    return request.path.startswith(CHAT)


def text_of(content: Any) -> str:
    """All text of a field that is a string or a list of parts."""
    if isinstance(content, list):
        return "".join(
            text_of(part.get("text") or part.get("content")) for part in content if isinstance(part, dict)
        )
    return content if isinstance(content, str) else ""


def _chat_head(request: ReceivedRequest, number: int, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{number}", "object": kind, "created": 1_790_000_000, "model": request.body["model"],
        "service_tier": "default", "system_fingerprint": None,
    }  # fmt: skip


def _chunk(request: ReceivedRequest, delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return event({**_chat_head(request, 1, "chat.completion.chunk"), "choices": [choice]})


def _response_head(request: ReceivedRequest, number: int) -> dict[str, Any]:
    body = request.body
    return {
        "id": f"resp_{number}", "object": "response", "created_at": 1_790_000_000, "status": "in_progress",
        "background": False, "error": None, "incomplete_details": None, "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"), "model": body["model"], "output": [],
        "parallel_tool_calls": True, "previous_response_id": None, "reasoning": {"effort": None, "summary": None},
        "store": body.get("store", True), "temperature": 1.0, "text": {"format": {"type": "text"}},
        "tool_choice": "auto", "tools": [], "top_p": 1.0, "truncation": "disabled", "usage": None, "user": None,
        "metadata": {},
    }  # fmt: skip


def _output_message(number: int, text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {
        "type": "message",
        "id": f"msg_{number}",
        "status": "completed",
        "role": "assistant",
        "content": [part],
    }


def _response_usage(tokens: Tokens) -> dict[str, Any]:
    return {
        "input_tokens": tokens.read,
        "input_tokens_details": {
            "cached_tokens": tokens.cache_read,
            "cache_write_tokens": tokens.cache_write,
        },
        "output_tokens": tokens.output,
        "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
        "total_tokens": tokens.read + tokens.output,
    }


def _event(name: str, **data: Any) -> bytes:
    return event({"type": name, "sequence_number": 0, **data}, name)
