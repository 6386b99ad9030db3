"""Odd answers of AI services as data: who sends them, the bytes, and what koo does with them.

One row is one sample of a kind. `tests/ai/test_oddities.py` sends each row to koo over a socket and checks what the row
says; `tests/ai/test_sdks_beside_koo.py` sends it to the vendor's own SDK. docs/compatibility.md is generated from the
same rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from koo.errors import Kind

Format = Literal["anthropic", "openai_compatible", "openai", "gemini", "perplexity", "local"]
"""The API format, by the name of koo's adapter."""

EVENTS = "text/event-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Oddity:
    """One odd answer, and what koo does with it.

    `name` is a short phrase, unique among all rows. `sender` is who has been seen to send it. `what_koo_does` is one
    phrase. `body` is what follows the headers, in response to a streamed request if `streamed`. `stays_open`: nothing
    follows the body, and the connection is not closed. koo's caller gets `text`. With a `kind` it gets an error of that
    kind, after the `text` of a stream that had begun.
    """

    name: str
    sender: str
    format: Format
    what_koo_does: str
    body: bytes
    streamed: bool = False
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    stays_open: bool = False
    text: str = "Paris."
    kind: Kind | None = None
    requests: int = 1
    """The requests that reach the server until koo's caller has an answer or an error, with two retries allowed."""


def document(body: Mapping[str, Any], **changes: Any) -> bytes:
    """A whole answer; `changes` replace its top-level fields."""
    return json.dumps({**body, **changes}).encode()


def events(*frames: str | bytes | Mapping[str, Any]) -> bytes:
    """The bytes of a stream. Text and bytes are sent unchanged; a mapping is the data of an event, named by its `type`
    if it has one.
    """
    return b"".join(map(_frame, frames))


def _frame(frame: str | bytes | Mapping[str, Any]) -> bytes:
    if isinstance(frame, Mapping):
        name = f"event: {frame['type']}\n" if isinstance(frame.get("type"), str) else ""
        return f"{name}data: {json.dumps(frame)}\n\n".encode()
    return frame.encode() if isinstance(frame, str) else frame


# ── good answers, which the rows change ───────────────────────────────────────────────────────────────────────────────

CHAT_USAGE = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
DONE = "data: [DONE]\n\n"


def chat(text: Any = "Paris.", finish: Any = "stop", **changes: Any) -> dict[str, Any]:
    """A chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return {
        "id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": CHAT_USAGE,
        **changes,
    }  # fmt: skip


def chunk(text: Any = None, finish: Any = None, **changes: Any) -> dict[str, Any]:
    """A chunk of a streamed chat completion."""
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {
        "id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **changes
    }  # fmt: skip


USED = chunk(None, choices=[], usage=CHAT_USAGE)
"""The last chunk: no choices, only usage."""


def whole(name: str, sender: str, what_koo_does: str, body: Any, **more: Any) -> Oddity:
    """A row for an answer in one piece."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Oddity(name=name, sender=sender, what_koo_does=what_koo_does, body=data, **more)


def streamed(name: str, sender: str, what_koo_does: str, *frames: Any, **more: Any) -> Oddity:
    """A row for an answer to a streamed request."""
    options = {"content_type": EVENTS, **more}
    return Oddity(
        name=name, sender=sender, what_koo_does=what_koo_does, body=events(*frames), streamed=True, **options
    )


CHAT: dict[str, Any] = {"format": "openai_compatible"}
FAILED: dict[str, Any] = {**CHAT, "text": "Par", "requests": 1}


def usage(**counts: Any) -> dict[str, Any]:
    """A chat completion with these counts."""
    return chat(usage={**CHAT_USAGE, **counts})


ODDITIES: tuple[Oddity, ...] = (
    # counts
    whole("counts with a decimal point", "gateways in JavaScript and Lua", "reads 12.0 as 12",
          usage(prompt_tokens=12.0, completion_tokens=3.0), **CHAT),
    whole("counts as strings", "gateways in PHP", "reads \"12\" as 12",
          usage(prompt_tokens="12", completion_tokens="3"), **CHAT),
    whole("counts that are null", "local servers without a tokenizer", "estimates them and marks the usage",
          usage(prompt_tokens=None, completion_tokens=None, total_tokens=None), **CHAT),
    whole("counts below zero", "servers that subtract cached tokens", "reads them as zero and estimates",
          usage(prompt_tokens=-1, completion_tokens=-3, total_tokens=-4), **CHAT),
    whole("a list instead of a count", "aggregators of several upstreams", "reads a single number, estimates several",
          usage(prompt_tokens=[12], completion_tokens=[1, 2]), **CHAT),
    whole("a list instead of usage", "gateways in PHP, where empty objects are lists", "estimates it and marks it",
          chat(usage=[]), **CHAT),
    whole("a string instead of usage details", "gateways that fill in unknown fields", "ignores them",
          usage(prompt_tokens_details="none", completion_tokens_details=0), **CHAT),
    # ids and names
    whole("numbers as ids and models", "custom servers", "reads them as strings",
          chat(id=17, model=4, created="now", object=None), **CHAT),
    whole("a number as the finish reason", "servers that write an enum's index", "treats it as the end",
          chat(finish=1), **CHAT),
    # choices and errors
    whole("an empty error next to an answer", "One API and similar gateways", "ignores an empty error",
          chat(error={"message": "", "type": "", "param": None, "code": None}), **CHAT),
    whole("an error next to choices", "aggregators with a failed upstream", "raises the error",
          chat("Par", None, error={"code": 502, "message": "upstream failed"}), **CHAT, kind=Kind.SERVER_ERROR,
          requests=3),
    whole('"error" as the finish reason', "OpenRouter, after it has sent a 200",
          "raises an error and calls the next service",
          chat("Par", "error"), **CHAT, kind=Kind.SERVER_ERROR, requests=3),
    whole("missing resources as the finish reason", "DeepSeek", "raises an error for an overloaded server",
          chat("Par", "insufficient_system_resource"), **CHAT, kind=Kind.OVERLOADED, requests=3),
    whole("an answer that was aborted", "vLLM, SGLang", "raises an error and calls the next service",
          chat("Par", "abort"), **CHAT, kind=Kind.SERVER_ERROR, requests=3),
    # text
    whole("usage without choices", "gateways with a broken upstream", "raises bad_answer after at most one retry",
          chat(choices=[]), **CHAT, kind=Kind.BAD_ANSWER, requests=2),
    whole("content as a list of parts", "Mistral", "joins the parts",
          chat([{"type": "text", "text": "Par"}, {"type": "text", "text": "is."}]), **CHAT),
    whole("content as an object", "gateways in front of Anthropic and Gemini", "uses its text",
          chat({"type": "text", "text": "Paris."}), **CHAT),
    whole("content as a list of strings", "gateways in front of Cohere", "joins them", chat(["Par", "is."]), **CHAT),
    whole("a choice with text instead of a message", "servers of the old completions format", "uses the text",
          {"choices": [{"text": "Paris.", "index": 0, "finish_reason": "stop"}], "usage": CHAT_USAGE}, **CHAT),
    whole("a single choice instead of a list", "custom servers", "treats it as the list's only item",
          chat(choices={"message": {"content": "Paris."}, "finish_reason": "stop"}), **CHAT),
    # bytes
    whole("a UTF-8 byte order mark before the answer", "servers on Windows", "skips it",
          b"\xef\xbb\xbf" + document(chat()), **CHAT),
    whole("NaN among log probabilities", "vLLM, llama.cpp", "reads it, although it is not JSON",
          document(chat(logprobs=float("nan"))), **CHAT),
    whole("half a character", "servers that stop inside an emoji", "replaces the half character",
          b'{"choices":[{"message":{"content":"Paris \\ud83d"},"finish_reason":"stop"}]}', **CHAT,
          text="Paris \ufffd"),
    whole("bytes that are not UTF-8", "servers that cut text at a byte limit", "replaces them",
          b'{"choices":[{"message":{"content":"Paris \xf0\x9f"},"finish_reason":"stop"}]}', **CHAT,
          text="Paris \ufffd"),
    whole("an answer in Latin-1 or windows-1252", "gateways in Java and .NET", "reads it by the charset of its type",
          json.dumps(chat("Paris – “café”."), ensure_ascii=False).encode("cp1252"), **CHAT, text="Paris – “café”.",
          content_type="application/json; charset=ISO-8859-1"),
    whole("an answer in UTF-16", "gateways in .NET", "recognises it",
          json.dumps(chat("Paris: café."), ensure_ascii=False).encode("utf-16"), **CHAT, text="Paris: café."),
    whole("a line break inside a string", "servers that build JSON by hand", "keeps it as part of the text",
          b'{"choices":[{"message":{"content":"Par\nis."},"finish_reason":"stop"}]}', **CHAT, text="Par\nis."),
    whole("comments before the answer", "DeepSeek, while a request waits", "skips them",
          b": keep-alive\n\n: keep-alive\n\n" + document(chat()), **CHAT),
    whole("a stream in response to a whole request", "gateways that always stream", "joins the stream's pieces",
          events(chunk("Par"), chunk("is.", "stop"), USED, DONE), **CHAT, content_type=EVENTS),
    whole("JSON with a text content type", "file servers and similar", "reads it as JSON",
          document(chat()), **CHAT, content_type="text/plain"),
    whole("an unknown path with status 200", "LM Studio", "raises an error that points to the address: no retry",
          {"error": "Unexpected endpoint or method. (POST /chat/completions)"}, **CHAT, kind=Kind.NOT_FOUND),
    whole("a web page with status 200", "portals and proxies on the way",
          "raises bad_answer after at most one retry", b"<html>Sign in</html>", **CHAT,
          content_type="text/html", kind=Kind.BAD_ANSWER, requests=2),
    # streams: frames without content
    streamed("pings as comments", "OpenRouter", "skips them",
             ": OPENROUTER PROCESSING\n\n", chunk("Par"), ": ping\n\n", chunk("is.", "stop"), DONE, **CHAT),
    streamed("an empty frame", "gateways in Java", "skips it",
             "data:\n\n", chunk("Par"), "data: \n\n", chunk("is.", "stop"), DONE, **CHAT),
    streamed("frames with null, {} or []", "gateways that convert unknown events", "skips them",
             "data: null\n\n", chunk("Par"), "data: {}\n\n", "data: []\n\n", chunk("is.", "stop"), DONE, **CHAT),
    streamed("pings as plain words", "gateways in Go", "skips them",
             "data: ping\n\n", chunk("Par"), 'data: "ping"\n\n', "data: [KEEP-ALIVE]\n\n", chunk("is.", "stop"), DONE,
             **CHAT),
    streamed("pings as events", "gateways in front of Anthropic", "skips them",
             'event: ping\ndata: {"type":"ping"}\n\n', chunk("Par"), "event: heartbeat\ndata: 1791000000\n\n",
             chunk("is.", "stop"), DONE, **CHAT),
    streamed("null as choices", "One API", "reads them as no choices",
             chunk("Par"), chunk("is.", "stop"), {**USED, "choices": None}, DONE, **CHAT),
    streamed("a chunk without choices", "Azure, in its first chunk (prompt filter)", "skips it",
             {"id": "", "choices": [], "prompt_filter_results": []}, chunk("Par"), {"id": 5, "created": 1},
             chunk("is.", "stop"), DONE, **CHAT),
    streamed("an object or a string as choices", "gateways in PHP", "reads them as no choices",
             chunk("Par"), chunk(choices={}), chunk(choices=""), chunk("is.", "stop"), DONE, **CHAT),
    streamed("empty errors in each chunk", "LiteLLM, New API", "ignores an empty error",
             chunk("Par", error=None), chunk("is.", "stop", error={}), chunk(choices=[], error=""), DONE, **CHAT),
    streamed("numbers as ids, strings as counts", "custom servers", "converts them",
             chunk("Par", id=7), chunk("is.", "stop", id=7, usage={"prompt_tokens": "12", "completion_tokens": 3.0}),
             DONE, **CHAT),
    # streams: text where it is not expected
    streamed("a whole message in a chunk", "gateways that only appear to stream", "uses it if no delta had text",
             {"choices": [{"delta": {"content": ""}, "message": {"content": "Paris."}, "finish_reason": "stop"}]}, DONE,
             **CHAT),
    streamed("a whole message after its deltas", "gateways that send a summary",
             "uses only what the deltas did not contain",
             chunk("Par"), {"choices": [{"message": {"content": "Paris."}, "finish_reason": "stop"}]}, DONE, **CHAT),
    streamed("a string instead of a delta", "custom servers", "uses it as the delta's content",
             {"choices": [{"delta": "Par"}]}, {"choices": [{"delta": "is.", "finish_reason": "stop"}]}, DONE, **CHAT),
    streamed("an emoji in two chunks", "servers that split a character between tokens",
             "joins the halves", chunk("Hi "),
             'data: {"choices":[{"delta":{"content":"\\ud83d"}}]}\n\n',
             'data: {"choices":[{"delta":{"content":"\\ude00!"},"finish_reason":"stop"}]}\n\n', DONE, **CHAT,
             text="Hi \U0001f600!"),
    streamed("an emoji's bytes in two chunks", "servers that cut text at a byte limit",
             "joins the bytes", chunk("Hi "),
             b'data: {"choices":[{"delta":{"content":"\xf0\x9f"}}]}\n\n',
             b'data: {"choices":[{"delta":{"content":"\x98\x80!"},"finish_reason":"stop"}]}\n\n', DONE, **CHAT,
             text="Hi \U0001f600!"),
    streamed("half an emoji and nothing after it", "servers that stop inside an emoji", "replaces the half character",
             'data: {"choices":[{"delta":{"content":"Paris \\ud83d"}}]}\n\n', chunk(None, "length"), DONE, **CHAT,
             text="Paris \ufffd"),
    # streams: labels and framing
    streamed("a whole answer in response to a streamed request", "servers that do not stream",
             "treats it as a stream of one piece",
             document(chat()), **CHAT, content_type="application/json"),
    streamed("a whole answer with a stream's content type", "gateways", "treats it as a stream of one piece",
             json.dumps(chat(), indent=2), **CHAT),
    streamed("events with JSON's content type", "gateways that always set the same type", "reads the events",
             chunk("Par"), chunk("is.", "stop"), DONE, **CHAT, content_type="application/json"),
    streamed("events with a web page's content type", "Flask's default", "reads the events",
             chunk("Par"), chunk("is.", "stop"), DONE, **CHAT, content_type="text/html; charset=utf-8"),
    streamed("events in another charset", "gateways in Java", "reads them by the charset of their type",
             'data: {"choices":[{"delta":{"content":"巴"}}]}\n\n'.encode("gb18030"),
             'data: {"choices":[{"delta":{"content":"黎"},"finish_reason":"stop"}]}\n\n'.encode("gb18030"), DONE,
             **CHAT, text="巴黎", content_type="text/event-stream; charset=gb18030"),
    streamed("one document per line", "servers like Ollama", "reads each as a chunk",
             json.dumps(chunk("Par")) + "\n", json.dumps(chunk("is.", "stop")) + "\n", **CHAT,
             content_type="application/x-ndjson"),
    streamed("events without an empty line between them", "custom servers", "reads each line as an event",
             "data: " + json.dumps(chunk("Par")) + "\n", "data: " + json.dumps(chunk("is.", "stop")) + "\n", DONE,
             **CHAT),
    streamed("data: twice", "proxies that treat a whole line as data", "reads what follows the second one",
             "data: data: " + json.dumps(chunk("Par")) + "\n\n",
             "data: data: " + json.dumps(chunk("is.", "stop")) + "\n\n", "data: data: [DONE]\n\n", **CHAT),
    streamed("a UTF-8 byte order mark before the stream", "servers on Windows", "skips it",
             b"\xef\xbb\xbf", chunk("Par"), chunk("is.", "stop"), DONE, **CHAT),
    # streams: ends
    streamed("no [DONE], only silence", "servers that keep the connection open",
             "ends one second after the finish reason",
             chunk("Par"), chunk("is.", "stop"), USED, **CHAT, stays_open=True),
    streamed("endless pings after the end", "gateways", "ends one second after the finish reason",
             chunk("Par"), chunk("is.", "stop"), USED, ": ping\n\n", ": ping\n\n", **CHAT, stays_open=True),
    streamed("a connection that breaks after the end", "load balancers during a restart",
             "treats the answer as complete",
             chunk("Par"), chunk("is.", "stop"), **CHAT, headers={"content-length": "9999"}),
    streamed("a last chunk without its empty line", "servers that close immediately", "reads it",
             chunk("Par"), "data: " + json.dumps(chunk("is.", "stop")), **CHAT),
    streamed("[DONE] as a JSON string", "gateways that encode everything they send", "treats it as the end",
             chunk("Par"), chunk("is.", "stop"), 'data: "[DONE]"\n\n', **CHAT, stays_open=True),
    streamed("[DONE] without a finish reason", "self-hosted servers", "treats it as the end",
             chunk("Par"), chunk("is."), DONE, **CHAT),
    # streams: failures
    streamed('"error" as the finish reason of a stream', "OpenRouter", "raises StreamTruncated with the text so far",
             chunk("Par"), chunk(None, "error"), DONE, **FAILED, kind=Kind.SERVER_ERROR),
    streamed("an error in a stream's chunk", "OpenRouter", "raises StreamTruncated with the text so far",
             chunk("Par"), chunk(None, None, error={"code": 502, "message": "upstream failed"}), DONE, **FAILED,
             kind=Kind.SERVER_ERROR),
    streamed("an error next to a chunk's last text", "aggregators", "raises StreamTruncated with that text",
             chunk("Pa"), chunk("r", error={"code": 502, "message": "upstream failed"}), DONE, **FAILED,
             kind=Kind.SERVER_ERROR),
    streamed("a bare error in a stream", "old llama.cpp, gateways", "raises that error with the text so far",
             chunk("Par"), '{"error": {"code": 503, "message": "overloaded"}}\n', **FAILED, kind=Kind.OVERLOADED),
    streamed("a bare error instead of a stream", "gateways", "raises that error",
             '{\n  "error": {\n    "code": 401,\n    "message": "no"\n  }\n}', **{**CHAT, "text": ""}, kind=Kind.AUTH),
    streamed("a web framework's error in a stream", "servers on FastAPI",
             "raises StreamTruncated with the text so far, although [DONE] follows",
             chunk("Par"), {"detail": "Internal Server Error"}, DONE, **FAILED, kind=Kind.SERVER_ERROR),
    streamed("a list of errors in a stream", "Cloudflare",
             "raises StreamTruncated with the text so far, although [DONE] follows",
             chunk("Par"), {"success": False, "errors": [{"code": 7009, "message": "Upstream unavailable"}]}, DONE,
             **FAILED, kind=Kind.SERVER_ERROR),
    streamed("an error as a status in a stream", "custom gateways",
             "raises StreamTruncated with the text so far, although [DONE] follows",
             chunk("Par"), {"status": "error", "message": "upstream failed"}, DONE, **FAILED,
             kind=Kind.SERVER_ERROR),
    streamed("[DONE] and nothing else", "gateways with a broken upstream", "raises StreamTruncated",
             DONE, **{**CHAT, "text": ""}, kind=Kind.TRUNCATED_STREAM, requests=3),
    streamed("a role and an end without any text", "gateways with a broken upstream", "raises StreamTruncated",
             chunk(""), chunk(None, "stop"), DONE, **{**CHAT, "text": ""}, kind=Kind.TRUNCATED_STREAM, requests=3),
    streamed("a stream that just stops", "gateways that time out", "raises StreamTruncated with the text so far",
             chunk("Par"), **FAILED, kind=Kind.TRUNCATED_STREAM),
    streamed("a web page in response to a streamed request", "portals and proxies on the way",
             "raises bad_answer after at most one retry", "<html>Sign in</html>",
             **{**CHAT, "text": ""}, content_type="text/html", kind=Kind.BAD_ANSWER, requests=2),
)  # fmt: skip
