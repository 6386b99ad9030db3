"""Odd answers in the formats of Anthropic, OpenAI's Responses, Perplexity and Gemini, as rows of the same table."""

from __future__ import annotations

import json
from typing import Any

from koo.errors import Kind
from tests.ai.oddities import Oddity, document, events, streamed, whole

ANTHROPIC: dict[str, Any] = {"format": "anthropic"}
RESPONSES: dict[str, Any] = {"format": "openai"}
PERPLEXITY: dict[str, Any] = {"format": "perplexity"}
GEMINI: dict[str, Any] = {"format": "gemini"}


# ── good answers, which the rows change ───────────────────────────────────────────────────────────────────────────────


def message(text: str = "Paris.", **changes: Any) -> dict[str, Any]:
    """A whole answer of Anthropic's."""
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-5-5",
        "content": [{"type": "text", "text": text}], "stop_reason": "end_turn", "stop_sequence": None,
        "usage": {"input_tokens": 12, "output_tokens": 3}, **changes,
    }  # fmt: skip


def block_start(text: str = "", **changes: Any) -> dict[str, Any]:
    block = {"type": "text", "text": text}
    return {"type": "content_block_start", "index": 0, "content_block": block, **changes}


def delta(text: str, **changes: Any) -> dict[str, Any]:
    """A piece of a streamed answer of Anthropic's."""
    return {
        "type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}, **changes
    }  # fmt: skip


def message_end(reason: Any = "end_turn", **changes: Any) -> dict[str, Any]:
    return {
        "type": "message_delta",
        "delta": {"stop_reason": reason},
        "usage": {"output_tokens": 3},
        **changes,
    }


MESSAGE_START: dict[str, Any] = {
    "type": "message_start",
    "message": message(content=[], stop_reason=None, usage={"input_tokens": 12, "output_tokens": 1}),
}
BLOCK_STOP: dict[str, Any] = {"type": "content_block_stop", "index": 0}
MESSAGE_STOP: dict[str, Any] = {"type": "message_stop"}


def run(text: str = "Paris.", **changes: Any) -> dict[str, Any]:
    """A completed response in the Responses format."""
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]}
    return {
        "id": "resp_1", "object": "response", "created_at": 1, "model": "gpt-6.1-terra", "status": "completed",
        "output": [item], "error": None, "incomplete_details": None, "parallel_tool_calls": True, "tools": [],
        "tool_choice": "auto", "usage": {"input_tokens": 12, "output_tokens": 3, "total_tokens": 15}, **changes,
    }  # fmt: skip


RUN_START: dict[str, Any] = {
    "type": "response.created", "sequence_number": 0, "response": run(status="in_progress", output=[], usage=None)
}  # fmt: skip


def words(text: str, **changes: Any) -> dict[str, Any]:
    """A piece of a streamed response in the Responses format."""
    return {
        "type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0, "content_index": 0,
        "sequence_number": 1, "delta": text, **changes,
    }  # fmt: skip


def run_end(text: str = "Paris.", **changes: Any) -> dict[str, Any]:
    return {"type": "response.completed", "sequence_number": 9, "response": run(text, **changes)}


def candidates(text: Any = "Paris.", reason: Any = "STOP", **changes: Any) -> dict[str, Any]:
    """A whole answer of Gemini's, or a chunk of one."""
    candidate = {"content": {"parts": [{"text": text}], "role": "model"}, "finishReason": reason, "index": 0}
    return {
        "candidates": [candidate],
        "usageMetadata": {"promptTokenCount": 12, "candidatesTokenCount": 3, "totalTokenCount": 15},
        "modelVersion": "gemini-3.5-flash", "responseId": "r1", **changes,
    }  # fmt: skip


def bare(chunk: dict[str, Any]) -> str:
    """An event without its `event:` line, which some proxies drop."""
    return f"data: {json.dumps(chunk)}\n\n"


ANSWERS: tuple[Oddity, ...] = (
    # Anthropic
    whole("Anthropic's counts as null and strings", "gateways in front of Bedrock",
          "reads what it can and estimates the rest",
          message(usage={"input_tokens": "12", "output_tokens": 0, "output_tokens_details": {"thinking_tokens": -1}}),
          **ANTHROPIC),
    whole("an answer without usage, id or type", "gateways that convert formats", "estimates the usage",
          {"content": [{"type": "text", "text": "Paris."}]}, **ANTHROPIC),
    whole("Anthropic's content as a string", "gateways that convert formats", "uses it as the text",
          message(content="Paris."), **ANTHROPIC),
    whole("null among the content blocks", "gateways that drop unknown blocks", "skips it",
          message(content=[None, {"type": "text", "text": "Paris.", "citations": None}]), **ANTHROPIC),
    whole("a failure as Anthropic's stop reason", "gateways that convert formats", "raises an error",
          message("Par", stop_reason="error"), **ANTHROPIC, kind=Kind.SERVER_ERROR, requests=3),
    whole("an error next to content", "gateways that convert formats", "raises the error",
          message("Par", error={"type": "overloaded_error", "message": "overloaded"}), **ANTHROPIC,
          kind=Kind.OVERLOADED, requests=3),
    whole("Anthropic's events in response to a whole request", "gateways that always stream", "joins the pieces",
          events(MESSAGE_START, block_start(), delta("Par"), delta("is."), BLOCK_STOP, message_end(), MESSAGE_STOP),
          **ANTHROPIC, content_type="text/event-stream"),
    streamed("text in a block's start event", "gateways that convert whole answers", "uses it if no delta has text",
             MESSAGE_START, block_start("Paris."), BLOCK_STOP, message_end(), MESSAGE_STOP, **ANTHROPIC),
    streamed("the first words in a block's start event", "gateways that convert formats", "puts them before the deltas",
             MESSAGE_START, block_start("Par"), delta("is."), BLOCK_STOP, message_end(), MESSAGE_STOP, **ANTHROPIC),
    streamed("the whole text in a block's start and in deltas", "gateways that convert formats", "uses it once",
             MESSAGE_START, block_start("Paris."), delta("Par"), delta("is."), BLOCK_STOP, message_end(), MESSAGE_STOP,
             **ANTHROPIC),
    streamed("text in a message's start event", "gateways that convert whole answers",
             "uses it if no delta has text",
             {**MESSAGE_START, "message": message()}, message_end(), MESSAGE_STOP, **ANTHROPIC),
    streamed("Anthropic's whole message as a stream", "gateways that do not stream",
             "treats it as a stream of one piece", document(message()), **ANTHROPIC, content_type="application/json"),
    streamed("Anthropic's events without names", "proxies that drop unknown lines", "reads their types",
             *map(bare, (MESSAGE_START, delta("Par"), {"type": "ping"}, delta("is."), message_end(), MESSAGE_STOP)),
             **ANTHROPIC),
    streamed("Anthropic's events all with the same name", 'gateways that name every event "data"', "reads their types",
             *(f"event: data\n{bare(one)}" for one in (MESSAGE_START, delta("Par"), delta("is."), message_end(),
                                                        MESSAGE_STOP)), **ANTHROPIC),
    streamed("pings of all forms among Anthropic's events", "gateways", "skips them",
             "event: ping\ndata:\n\n", MESSAGE_START, "event: ping\ndata: ping\n\n", delta("Par"), "data: null\n\n",
             delta("is."), "event: keepalive\ndata: {}\n\n", message_end(), MESSAGE_STOP, **ANTHROPIC),
    streamed("a delta without a type", "gateways that convert formats", "uses its text",
             MESSAGE_START, delta("Par", delta={"text": "Par"}), delta("is.", index="0"), message_end(), MESSAGE_STOP,
             **ANTHROPIC),
    streamed("no message_stop, only silence", "gateways that convert formats", "ends one second after the stop reason",
             MESSAGE_START, delta("Par"), delta("is."), message_end(), **ANTHROPIC, stays_open=True),
    streamed("[DONE] instead of message_stop", "gateways that convert formats", "treats it as the end",
             MESSAGE_START, delta("Par"), delta("is."), "data: [DONE]\n\n", **ANTHROPIC),
    streamed("an unnamed error among Anthropic's events", "gateways", "raises the error with the text so far",
             MESSAGE_START, delta("Par"), bare({"error": {"type": "overloaded_error", "message": "overloaded"}}),
             **ANTHROPIC, text="Par", kind=Kind.OVERLOADED),
    streamed("a failure as the stop reason of Anthropic's stream", "gateways", "raises StreamTruncated",
             MESSAGE_START, delta("Par"), message_end("error"), MESSAGE_STOP, **ANTHROPIC, text="Par",
             kind=Kind.SERVER_ERROR),
    streamed("a message without any content", "gateways with a broken upstream", "raises StreamTruncated",
             MESSAGE_START, message_end(usage={}), MESSAGE_STOP, **ANTHROPIC, text="", kind=Kind.TRUNCATED_STREAM,
             requests=3),
    # OpenAI's Responses, and Perplexity
    whole("a response without a status", "gateways that convert formats", "uses its text as the answer",
          run(status=None, usage=None), **RESPONSES),
    whole("a single item as output, a string as content", "gateways that convert formats", "uses the text",
          run(output={"type": "message", "content": "Paris."}), **RESPONSES),
    whole("output_text alone", "gateways that imitate the SDK", "uses it as the text",
          run(output=[], output_text="Paris."), **RESPONSES),
    whole("an empty error next to a response", "gateways", "ignores an empty error", run(error={}), **RESPONSES),
    whole("an error next to a completed response", "gateways", "raises the error",
          run("Par", error={"code": "server_error", "message": "failed"}), **RESPONSES, kind=Kind.SERVER_ERROR,
          requests=3),
    whole("Perplexity's counts as strings", "gateways", "reads them",
          run(usage={"input_tokens": "12", "output_tokens": 3.0, "total_tokens": None, "cost": "free"}), **PERPLEXITY),
    streamed("a response's text only in its last event", "gateways that do not stream", "uses it",
             RUN_START, run_end(), **RESPONSES),
    streamed("a response's text only in its done event", "gateways that convert formats", "uses it",
             RUN_START, {"type": "response.output_text.done", "text": "Paris."}, run_end(output=None), **RESPONSES),
    streamed("a whole response to a streamed request", "gateways that do not stream",
             "treats it as a stream of one piece",
             document(run()), **RESPONSES, content_type="application/json"),
    streamed("[DONE] instead of a response's end", "gateways that convert formats", "treats it as the end",
             RUN_START, words("Par"), words("is."), "data: [DONE]\n\n", **RESPONSES),
    streamed("pings of all forms among a response's events", "gateways", "skips them",
             RUN_START, "data: null\n\n", words("Par"), "event: ping\ndata: ping\n\n", words("is."), run_end(),
             **RESPONSES),
    streamed("a failed status in the completed event", "Perplexity", "raises StreamTruncated",
             bare(RUN_START), bare(words("Par")), bare(run_end("Par", status="failed")), **PERPLEXITY, text="Par",
             kind=Kind.SERVER_ERROR),
    streamed("a bare error among a response's events", "gateways", "raises that error with the text so far",
             RUN_START, words("Par"), '{"error": {"message": "slow", "code": "rate_limit_exceeded"}}\n', **RESPONSES,
             text="Par", kind=Kind.THROTTLED),
    streamed("a web framework's error among a response's events", "gateways on FastAPI",
             "raises that error with the text so far, although [DONE] follows",
             RUN_START, words("Par"), {"detail": "Internal Server Error"}, "data: [DONE]\n\n", **RESPONSES, text="Par",
             kind=Kind.SERVER_ERROR),
    streamed("an error event that is only a sentence", "gateways",
             "raises an error with the text so far, although [DONE] follows",
             RUN_START, words("Par"), 'event: error\ndata: "upstream failed"\n\n', "data: [DONE]\n\n", **RESPONSES,
             text="Par", kind=Kind.SERVER_ERROR),
    # Gemini
    whole("Gemini's counts as strings and null", "gateways in front of Vertex",
          "reads what it can and estimates the rest",
          candidates(usageMetadata={"promptTokenCount": "12", "candidatesTokenCount": None}), **GEMINI),
    whole("an answer as a list of chunks", "servers that stream without alt=sse", "uses the only chunk",
          json.dumps([candidates()]).encode(), **GEMINI),
    whole("a string as Gemini's parts", "gateways that convert formats", "uses it as the text",
          candidates(candidates=[{"content": {"parts": "Paris."}, "finishReason": 1}]), **GEMINI),
    whole("an empty error and an empty promptFeedback", "gateways", "ignores them",
          candidates(error={}, promptFeedback=None), **GEMINI),
    whole("a candidate without content or a reason", "Gemini under load",
          "raises bad_answer after at most one retry", candidates(candidates=[{"content": {"role": "model"}}],
          usageMetadata={"promptTokenCount": 12}), **GEMINI, kind=Kind.BAD_ANSWER, requests=2),
    streamed("Gemini's chunks as a list", "proxies that drop alt=sse from the URL", "reads each as a chunk",
             "[" + json.dumps(candidates("Par", None), indent=1) + "\n,\n" + json.dumps(candidates("is."), indent=1)
             + "\n]", **GEMINI, content_type="application/json"),
    streamed("Gemini's error as bare JSON", "Google", "raises that error",
             '{"error": {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT", '
             '"details": [{"reason": "API_KEY_INVALID"}]}}\n', **GEMINI, text="", kind=Kind.AUTH),
    streamed("a web framework's error among Gemini's chunks", "gateways on FastAPI",
             "raises that error with the text so far, although [DONE] follows",
             candidates("Par", None), {"detail": "Internal Server Error"}, "data: [DONE]\n\n", **GEMINI, text="Par",
             kind=Kind.SERVER_ERROR),
    streamed("Gemini's error as a list in an event", "gateways in front of Google",
             "raises that error with the text so far",
             candidates("Par", None), 'data: [{"error": {"code": 503, "status": "UNAVAILABLE"}}]\n\n', **GEMINI,
             text="Par", kind=Kind.OVERLOADED),
    streamed("chunks with only usage, empty chunks", "Gemini", "skips them",
             candidates("Par", None), {"usageMetadata": {"promptTokenCount": 12}}, "data: {}\n\n", "data:\n\n",
             candidates("is."), **GEMINI),
    streamed("[DONE] after Gemini's chunks", "gateways that convert formats", "treats it as the end",
             candidates("Par", None), candidates("is.", None), "data: [DONE]\n\n", **GEMINI),
    streamed("Gemini's end, then silence", "gateways that keep the connection open",
             "ends one second after the stop reason",
             candidates("Par", None), candidates("is."), **GEMINI, stays_open=True),
    streamed("a finish reason in every chunk", "older Gemini models", "reads on while chunks arrive",
             candidates("Par"), candidates("is."), **GEMINI),
    streamed("half an emoji in a Gemini chunk", "gateways", "joins the halves",
             'data: {"candidates":[{"content":{"parts":[{"text":"Hi \\ud83d"}]}}]}\n\n',
             'data: {"candidates":[{"content":{"parts":[{"text":"\\ude00!"}]},"finishReason":"STOP"}]}\n\n', **GEMINI,
             text="Hi \U0001f600!"),
)  # fmt: skip
