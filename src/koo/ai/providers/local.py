"""The `local` service: a model in this process, as a provider like any other. No key, no price, no network.

The wire format is the dicts of llama.cpp's chat completions; `koo.ai.local_engine` runs them. There is one way to ask,
a stream, and `complete` collects it: so both give the same text, and both stop at once when their caller leaves.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from koo.ai.local_engine import ENGINES, Chunk, Engine, EngineClosed, EngineFull, Generation, GenerationFailed
from koo.ai.local_llama import EngineMissing, LoadFailed, Setup
from koo.ai.local_model import find_model, flaw_of
from koo.ai.providers.base import Completion, CompletionChunk, Request
from koo.ai.types import Usage
from koo.errors import (
    ExternalServiceError,
    InvalidRequest,
    Kind,
    ServiceFailed,
    ServiceSaturated,
    StreamTruncated,
)

CONTEXT_TOKENS = 4096
"""Prompt and answer together; 94 MB of memory with the small model, whose own bound is 8192."""
QUEUE_MAX = 32
"""At about a second an answer, who comes later would meet his attempt's timeout in the queue."""

SYSTEM = "You are a helpful assistant."
"""Where the caller gives none: with its own default ("... named SmolLM, trained by Hugging Face") the small model tends
to answer in French when it is asked for the capital of France."""
TEMPERATURE = 0.0
"""The same answer each time, and the likeliest. At the 0.2 that SmolLM2's makers recommend two of six answers about the
capital of France were French nonsense, and two of twelve answers found no end, one at 0."""
REPEAT_PENALTY = 1.1
"""Without it three of five answers at temperature 0 went round in circles to the end of the context; with it all of
them ended by themselves."""

TEMPLATE_TOKENS = 256
"""Bound of what a chat template adds around the messages (SmolLM2's: 15)."""
BYTES_PER_TOKEN_MAX = 128
"""Longest token of the usual vocabularies (a run of spaces): a prompt longer than this many times the context cannot
fit, and is refused before a worker spends seconds on cutting it up, which nothing can stop."""

SET_PATH = "set AI_SERVICES__LOCAL__MODEL to the path of a GGUF file"
ENGINE_MISSING = "xllamacpp, which runs the model, is missing or too old: pip install -U 'koo[local]'"
LOAD_FAILED = (
    "the model could not be loaded: the file is damaged or of an unknown kind, or there is not enough memory; "
    f"run `koo model install` to get one that works, or {SET_PATH}"
)


class Inbox:
    """What a worker thread hands to a coroutine. Made on the loop that reads it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[Chunk | Exception | None] = asyncio.Queue()
        self.get = self._items.get

    def put(self, item: Chunk | Exception | None) -> bool:
        """From any thread. False when the loop has closed: nobody will read it."""
        try:
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)
        except RuntimeError:
            return False
        return True


class LocalProvider:
    """A GGUF model in this process.

    `model_path` None means the installed package's file, looked for at each use: installing it needs no restart.
    `context_tokens` is for prompt and answer together; `threads` None means as many as help;
    `queue_max` bounds those who wait for a free slot; `slots` are the answers made at once. Providers with the same
    file, context, threads and slots share one loaded model, in all event loops of the process, until it ends.
    """

    def __init__(
        self,
        service: str,
        *,
        model_path: Path | None = None,
        context_tokens: int = CONTEXT_TOKENS,
        threads: int | None = None,
        queue_max: int = QUEUE_MAX,
        slots: int = 1,
    ) -> None:
        self.service = service
        self._model_path = model_path
        self._context_tokens = context_tokens
        self._threads = threads
        self._queue_max = queue_max
        self._slots = slots
        self._live: dict[Generation, Engine] = {}

    def __repr__(self) -> str:
        return f"<LocalProvider {self.service!r} {self._model_path or 'of the package'} | {len(self._live)} under way>"

    def bound_input_tokens(self, request: Request) -> int:
        """No tokenizer makes more tokens of a text than it has bytes."""
        return _bytes_of(request) + TEMPLATE_TOKENS

    def engine(self) -> Engine:
        """The engine that this provider uses, loaded or not. Raises `ServiceFailed` where there is no model file."""
        path = self._model_path or find_model()
        if path is None:
            raise self._not_configured(f"no model is installed: run `koo model install`, or {SET_PATH}")
        engine = ENGINES.get(Setup(path.resolve(), self._context_tokens, self._threads, self._slots))
        # What is in memory needs its file no more.
        flaw = None if engine.loaded else flaw_of(path)
        if flaw is not None:
            raise self._not_configured(
                f"the model file {path} {flaw}: run `koo model install` to get one, or {SET_PATH}"
            )
        return engine

    async def load(self) -> None:
        """Load the model now, rather than with the first query. Raises `ServiceFailed`."""
        inbox = Inbox()
        generation = self._submit(None, inbox)
        try:
            item = await inbox.get()
            if isinstance(item, Exception):
                raise self._explain(item) from item
        finally:
            self._leave(generation)

    async def check(self) -> None:
        """Is there a GGUF file, and something to run it? Loads nothing, asks nothing. Raises `ServiceFailed`."""
        if not self.engine().loaded and find_spec("xllamacpp") is None:
            raise self._not_configured(ENGINE_MISSING)

    async def complete(self, request: Request) -> Completion:
        """The whole answer. Raises `InvalidRequest`, `ServiceSaturated` and `ServiceFailed`."""
        texts: list[str] = []
        last = CompletionChunk()
        async with aclosing(self.stream(request)) as pieces:
            async for last in pieces:
                if not last.reasoning:
                    texts.append(last.text)
        return Completion(
            text="".join(texts),
            model=last.model or request.model,
            usage=last.usage or Usage(),
            stop_reason=last.stop_reason,
            request_id=last.request_id,
        )

    async def stream(self, request: Request) -> AsyncGenerator[CompletionChunk, None]:
        """The answer as it is made. Closing it, or cancelling who waits for it, stops the model at that token.

        Raises as `complete` does, and `StreamTruncated` where it ends before its end.
        """
        engine = self.engine()
        self._check_request(request, engine.setup.path.stem)
        inbox = Inbox()
        generation = self._submit(self._body(request), inbox)
        reading = Reading(engine.setup.path.stem)
        try:
            while not reading.done:
                item = await inbox.get()
                if not isinstance(item, dict):
                    raise self._explain(item) from item
                if "error" in item:
                    raise self._refusal(item["error"])
                piece = reading.take(item)
                if piece is not None:
                    yield piece
        finally:
            self._leave(generation)

    async def close(self) -> None:
        """End this provider's answers. The model stays loaded, for other providers and the next event loop."""
        for generation in list(self._live):
            generation.end()
            self._leave(generation)

    # ── asking ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _submit(self, body: Chunk | None, inbox: Inbox) -> Generation:
        engine, generation = self.engine(), Generation(body, inbox.put)
        try:
            engine.submit(generation, self._queue_max)
        except EngineFull as full:
            raise ServiceSaturated(
                self.service,
                f"the model is busy and {full.waiting} queries wait for it already",
                full.retry_after_s,
            ) from None
        except EngineClosed:
            raise self._unloaded() from None
        self._live[generation] = engine
        return generation

    def _leave(self, generation: Generation) -> None:
        engine = self._live.pop(generation, None)
        if engine is not None:
            engine.abandon(generation)

    def _body(self, request: Request) -> Chunk:
        return {
            "messages": [
                {"role": "system", "content": SYSTEM if request.system is None else request.system},
                {"role": "user", "content": request.prompt},
            ],
            "max_tokens": min(request.max_tokens, self._context_tokens),
            "temperature": TEMPERATURE if request.temperature is None else request.temperature,
            "repeat_penalty": REPEAT_PENALTY,
            # A prompt that was partly in the cache is computed in other batches: other roundings, another answer.
            "cache_prompt": False,
            "stream": True,
            "stream_options": {"include_usage": True},
            # Without these reports nothing could stop a long prompt from being read to its end.
            "return_progress": True,
        }

    def _check_request(self, request: Request, model: str) -> None:
        if not request.prompt.strip():
            raise InvalidRequest(self.service, "the prompt is empty")
        if not (_is_text(request.prompt) and _is_text(request.system or "")):
            raise InvalidRequest(
                self.service, "the prompt is not valid text: it holds half of a surrogate pair"
            )
        if request.max_tokens < 1:
            raise InvalidRequest(self.service, f"max_tokens must be at least 1, not {request.max_tokens}")
        if request.temperature is not None and not 0 <= request.temperature < math.inf:
            raise InvalidRequest(self.service, f"temperature must be at least 0, not {request.temperature}")
        if not _means(request.model, model, self.service):
            reason = f"no model {request.model[:80]!r} here: the one that runs is {model!r}"
            raise InvalidRequest(self.service, reason, kind=Kind.NOT_FOUND)
        if _bytes_of(request) > self._context_tokens * BYTES_PER_TOKEN_MAX:
            raise self._too_long(f"more than {self._context_tokens}", self._context_tokens)

    # ── what an error means ───────────────────────────────────────────────────────────────────────────────────────

    def _refusal(self, error: dict[str, Any]) -> ExternalServiceError:
        """llama.cpp's own answer. Its message is not quoted: it may hold a piece of the prompt."""
        if error.get("type") == "exceed_context_size_error":
            return self._too_long(
                str(error.get("n_prompt_tokens")), int(error.get("n_ctx", self._context_tokens))
            )
        detail = {"type": error.get("type"), "code": error.get("code")}
        if error.get("code") == 400:
            return InvalidRequest(
                self.service, "the model's engine does not accept this request", detail=detail
            )
        return ServiceFailed(self.service, "the model's engine failed", detail=detail)

    def _explain(self, end: Exception | None) -> ExternalServiceError:
        """Why nothing more comes; None where the answer just ended."""
        match end:
            case None:
                return self._unloaded()
            case EngineMissing():
                return self._not_configured(ENGINE_MISSING)
            case LoadFailed():
                return ServiceFailed(self.service, LOAD_FAILED)
            case GenerationFailed():
                return ServiceFailed(self.service, "the model's engine failed in the middle of an answer")
        return ServiceFailed(self.service, f"the model's engine failed ({type(end).__name__})")

    def _unloaded(self) -> StreamTruncated:
        reason = "the model was unloaded before its answer was complete"
        return StreamTruncated(self.service, reason, kind=Kind.DRAINING)

    def _too_long(self, tokens: str, context_tokens: int) -> InvalidRequest:
        reason = f"the prompt has {tokens} tokens, and the model reads {context_tokens}, its answer included"
        return InvalidRequest(self.service, reason, kind=Kind.CONTEXT_LENGTH)

    def _not_configured(self, reason: str) -> ServiceFailed:
        return ServiceFailed(self.service, reason, kind=Kind.NOT_CONFIGURED)


class Reading:
    """What llama.cpp's chunks come to: pieces of text, and at last the usage."""

    __slots__ = ("_model", "_prompt_tokens", "_stop_reason", "_tokens", "done")

    def __init__(self, model: str) -> None:
        self._model = model
        self._prompt_tokens = 0
        self._tokens = 0
        self._stop_reason: str | None = None
        self.done = False

    def take(self, chunk: Chunk) -> CompletionChunk | None:
        """The piece that this chunk is, or None where it only reports how far the prompt is read."""
        self._prompt_tokens = chunk.get("prompt_progress", {}).get("total", self._prompt_tokens)
        for choice in chunk.get("choices", ()):
            self._stop_reason = choice.get("finish_reason") or self._stop_reason
            delta = choice["delta"]
            text = delta.get("content") or delta.get("reasoning_content")
            if text:
                return self._content(text, reasoning=not delta.get("content"))
        if "usage" in chunk:
            return self._end(chunk)
        return None

    def _content(self, text: str, *, reasoning: bool) -> CompletionChunk:
        # For a reader who leaves now: a chunk may hold two tokens where a character took both.
        self._tokens += 1
        usage = Usage(input_tokens=self._prompt_tokens, output_tokens=self._tokens, estimated=True)
        return CompletionChunk(text=text, reasoning=reasoning, model=self._model, usage=usage)

    def _end(self, chunk: Chunk) -> CompletionChunk:
        self.done = True
        counted = chunk["usage"]
        cached = counted.get("prompt_tokens_details", {}).get("cached_tokens", 0)
        usage = Usage(
            input_tokens=counted["prompt_tokens"] - cached,
            cache_read_tokens=cached,
            output_tokens=counted["completion_tokens"],
        )
        return CompletionChunk(
            model=self._model,
            usage=usage,
            stop_reason=self._stop_reason,
            request_id=chunk.get("id"),
            final=True,
        )


def _bytes_of(request: Request) -> int:
    system = SYSTEM if request.system is None else request.system
    return len(request.prompt.encode(errors="surrogatepass")) + len(system.encode(errors="surrogatepass"))


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _means(name: str, model: str, service: str) -> bool:
    """Does a query's `name` mean this model? The beginning of its file's name, in any case; or no name at all."""
    name = name.lower().removesuffix(".gguf")
    return name in ("", "local", service) or model.lower().startswith(name)
