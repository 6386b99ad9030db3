"""A fake of Google's Gemini API (`generateContent`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import unquote

import msgspec

from koo.testing.providers.script import Answer, Failure, Raw
from koo.testing.providers.server import ErrorType, FakeProvider, Tokens
from koo.testing.providers.wire import ReceivedRequest, Reply, event, json_reply

MODELS = re.compile(r"/v1(?:beta)?/models(?:/([^:]+):(\w+))?")
PLAIN, STREAMED = "generateContent", "streamGenerateContent"
MAX_TOKENS_DEFAULT = 8192
FIELDS = {
    "cachedContent", "contents", "generationConfig", "labels", "model", "safetySettings", "serviceTier", "store",
    "systemInstruction", "toolConfig", "tools",
}  # fmt: skip
CONFIG_FIELDS = {
    "candidateCount", "enableEnhancedCivicAnswers", "frequencyPenalty", "imageConfig", "logprobs",
    "maxOutputTokens", "mediaResolution", "presencePenalty", "responseFormat", "responseJsonSchema",
    "responseLogprobs", "responseMimeType", "responseModalities", "responseSchema", "seed", "speechConfig",
    "stopSequences", "temperature", "thinkingConfig", "topK", "topP",
}  # fmt: skip
DETAIL = "type.googleapis.com/google.rpc."


class FakeGemini(FakeProvider):
    """`POST /v1/models/<model>:generateContent` and `:streamGenerateContent?alt=sse`, and `GET /v1/models`.

    `base_url` is the root URL, as the SDK expects. A key in the URL is refused, because every server on the way would
    log it.
    """

    error_types: ClassVar[Mapping[int, ErrorType]] = {
        400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
        409: "ABORTED", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
    }  # fmt: skip

    def refuse(self, request: ReceivedRequest) -> Reply | None:
        path, _, query = request.path.partition("?")
        if "key=" in query:
            return self._refusal(400, "INVALID_ARGUMENT", "This fake accepts no key in the URL.")
        if self.key is not None and request.headers.get("x-goog-api-key") != self.key:
            return self._refuse_key("x-goog-api-key" not in request.headers)
        found = MODELS.fullmatch(path)
        method = found[2] if found else None
        if found is None or method not in ((None,) if request.method == "GET" else (PLAIN, STREAMED)):
            return self._refusal(404, "NOT_FOUND", "Requested entity was not found.")
        if method == STREAMED and "alt=sse" not in query:
            return self._refusal(400, "INVALID_ARGUMENT", "This fake streams only with alt=sse.")
        return self._refuse_body(request) if request.method == "POST" else None

    def wants_stream(self, request: ReceivedRequest) -> bool:
        return f":{STREAMED}" in request.path

    def _refuse_key(self, missing: bool) -> Reply:
        if missing:
            message = "Method doesn't allow unregistered callers (callers without established identity)."
            return self._refusal(403, "PERMISSION_DENIED", message)
        message = "API key not valid. Please pass a valid API key."
        return self._refusal(400, "INVALID_ARGUMENT", message, "API_KEY_INVALID")

    def _refuse_body(self, request: ReceivedRequest) -> Reply | None:
        body = request.body
        if not isinstance(body, dict):
            return self._refusal(400, "INVALID_ARGUMENT", "Invalid JSON payload received. Unexpected token.")
        wrong = _wrong_field(body)
        if wrong is not None:
            return self._refusal(400, "INVALID_ARGUMENT", wrong)
        model = self.model_of(request)
        if model in self.models if self.models is not None else model.startswith("gemini-"):
            return None
        message = (
            f"models/{model} is not found for API version v1beta, or is not supported for generateContent."
        )
        return self._refusal(404, "NOT_FOUND", message)

    def _refusal(self, status: int, kind: str, message: str, reason: str | None = None) -> Reply:
        failure = Failure(status=status, type=kind, code=reason, message=message)
        return json_reply(status, self.error_body(failure), self._head({}))

    def list_models(self) -> Reply:
        names = self.models or ("gemini-3.8-flash",)
        models = [
            {
                "name": f"models/{name}", "version": "001", "displayName": name, "inputTokenLimit": 1_048_576,
                "outputTokenLimit": 65_536, "supportedGenerationMethods": [PLAIN, "countTokens"],
            }
            for name in names
        ]  # fmt: skip
        return json_reply(200, {"models": models}, self._head({}))

    def model_of(self, request: ReceivedRequest) -> str:
        found = MODELS.fullmatch(request.path.partition("?")[0])
        assert found is not None
        return unquote(found[1])

    def prompt_of(self, request: ReceivedRequest) -> str:
        body = request.body
        return _text(body.get("systemInstruction")) + "".join(_text(one) for one in body["contents"])

    def max_tokens_of(self, request: ReceivedRequest) -> int:
        config = request.body.get("generationConfig") or {}
        return config.get("maxOutputTokens") or MAX_TOKENS_DEFAULT

    def headers(self, number: str) -> dict[str, str]:
        return {"x-gemini-service-tier": "standard"}

    # ── answers ───────────────────────────────────────────────────────────────────────────────────────────────

    def plain(self, request: ReceivedRequest, step: Answer, tokens: Tokens, number: int) -> dict[str, Any]:
        candidate: dict[str, Any] = {"finishReason": self._finish(request, step, tokens), "index": 0}
        if step.text:
            candidate["content"] = _content({"text": step.text})
        answer: dict[str, Any] = {"candidates": [candidate], **self._tail(request, number)}
        if step.usage:
            answer["usageMetadata"] = _usage(tokens)
        return answer

    def around(
        self, request: ReceivedRequest, step: Answer, pieces: list[str], tokens: Tokens, number: int
    ) -> tuple[list[bytes], list[bytes]]:
        tail = self._tail(request, number)
        first: dict[str, Any] = {"candidates": [{"content": _content({"text": ""}), "index": 0}], **tail}
        last: dict[str, Any] = {
            "candidates": [
                {
                    "content": _content({"text": ""}),
                    "finishReason": self._finish(request, step, tokens),
                    "index": 0,
                }
            ],
            **tail,
        }
        if step.usage:
            first["usageMetadata"] = {"promptTokenCount": tokens.read, "totalTokenCount": tokens.read}
            last["usageMetadata"] = _usage(tokens)
        return [event(first)], [event(last)]

    def piece(self, request: ReceivedRequest, text: str) -> bytes:
        return self._piece(request, {"text": text})

    def thought(self, request: ReceivedRequest, text: str) -> bytes:
        return self._piece(request, {"text": text, "thought": True})

    def _piece(self, request: ReceivedRequest, part: dict[str, Any]) -> bytes:
        return event({"candidates": [{"content": _content(part), "index": 0}], **self._tail(request, 1)})

    def ping(self) -> bytes:
        return b": keep-alive\n\n"

    def error_body(self, failure: Failure) -> dict[str, Any]:
        inner: dict[str, Any] = {"code": failure.status, "message": failure.message, "status": failure.type}
        details = list(failure.extra.get("details", ()))
        if failure.code is not None:
            details.insert(
                0,
                {
                    "@type": DETAIL + "ErrorInfo", "reason": failure.code, "domain": "googleapis.com",
                    "metadata": {"service": "generativelanguage.googleapis.com"},
                },
            )  # fmt: skip
        if details:
            inner["details"] = details
        return {"error": inner}

    def error_event(self, failure: Failure) -> bytes:
        return event(self.error_body(failure))

    def _finish(self, request: ReceivedRequest, step: Answer, tokens: Tokens) -> str:
        return step.stop_reason or ("MAX_TOKENS" if tokens.output >= self.max_tokens_of(request) else "STOP")

    def _tail(self, request: ReceivedRequest, number: int) -> dict[str, Any]:
        return {"modelVersion": self.model_of(request), "responseId": f"response-{number}"}


def quota(*quota_ids: str, retry_delay: str | None = None) -> dict[str, Any]:
    """`extra` for an error 429: the exhausted quotas, and Google's delay before a retry ("39s")."""
    details: list[dict[str, Any]] = [
        {
            "@type": DETAIL + "QuotaFailure",
            "violations": [
                {
                    "quotaMetric": "generativelanguage.googleapis.com/generate_content_free_tier_requests",
                    "quotaId": name,
                    "quotaDimensions": {"location": "global", "model": "gemini-3.8-flash"},
                    "quotaValue": "20",
                }
                for name in quota_ids
            ],
        }
    ]
    if retry_delay is not None:
        details.append({"@type": DETAIL + "RetryInfo", "retryDelay": retry_delay})
    return {"details": details}


def blocked(reason: str, *, prompt_tokens: int = 7, streamed: bool = False) -> Raw:
    """The response to a prompt that Google blocks: a success without any candidate."""
    body = {
        "promptFeedback": {"blockReason": reason},
        "usageMetadata": {"promptTokenCount": prompt_tokens, "totalTokenCount": prompt_tokens},
        "modelVersion": "gemini-3.8-flash",
    }
    if streamed:
        return Raw(body=event(body), content_type="text/event-stream")
    return Raw(body=msgspec.json.encode(body))


def _wrong_field(body: dict[str, Any]) -> str | None:
    config = body.get("generationConfig") or {}
    for name in sorted(set(body) - FIELDS) + sorted(set(config) - CONFIG_FIELDS):
        return f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.'
    contents = body.get("contents")
    if not isinstance(contents, list) or not contents:
        return "* GenerateContentRequest.contents: contents is not specified"
    if any(not _text(one) for one in contents):
        return "* GenerateContentRequest.contents[0].parts: contents.parts must not be empty."
    if config.get("maxOutputTokens", 1) < 1:
        return "* GenerateContentRequest.generation_config.max_output_tokens: max_output_tokens must be positive."
    if not 0 <= config.get("temperature", 1) <= 2:
        return "* GenerateContentRequest.generation_config.temperature: temperature must be in the range [0.0, 2.0]."
    return None


def _text(content: Any) -> str:
    parts = content.get("parts") if isinstance(content, dict) else None
    return "".join(part.get("text", "") for part in parts if isinstance(part, dict)) if parts else ""


def _content(part: dict[str, Any]) -> dict[str, Any]:
    return {"parts": [part], "role": "model"}


def _usage(tokens: Tokens) -> dict[str, Any]:
    """Tokens of thoughts are not included in the candidates' tokens; tokens from the cache are part of the prompt's."""
    usage: dict[str, Any] = {
        "promptTokenCount": tokens.read,
        "candidatesTokenCount": tokens.output - tokens.reasoning,
        "totalTokenCount": tokens.read + tokens.output,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": tokens.read}],
    }
    if tokens.cache_read:
        usage["cachedContentTokenCount"] = tokens.cache_read
    if tokens.reasoning:
        usage["thoughtsTokenCount"] = tokens.reasoning
    return usage
