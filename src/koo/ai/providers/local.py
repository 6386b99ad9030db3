"""The `local` service: a model that koo runs itself, as a provider like any other. No key, no price, no network.

It is a server that speaks chat completions (`OpenAICompatibleProvider`) on a Unix socket, which `koo.ai.local_server`
starts with the first query. There is one kind of request, a stream, and `complete` collects it. So both return the same
text, and both stop at once: llama.cpp checks after every token, and after every batch of a prompt, whether its client
is gone.

Queries wait here for one of the slots, in order of arrival; the server would take simultaneous ones in any order. On
two cores, four answers of 64 tokens took 2.9 s one after another, 2.2 s with two slots and 1.9 s with four; but with
four, all callers waited as long as the last one: the mean was 1.8 s either way. One slot is the default: it costs the
least memory (each slot has a context of its own), and an answer at temperature 0 does not depend on other callers,
because numbers are never added up in another order.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from koo.ai.local_llama import Setup
from koo.ai.local_model import find_model
from koo.ai.local_obstacle import SET_PATH, engine_obstacle, import_obstacle, model_obstacle
from koo.ai.local_server import (
    KILLED,
    SERVERS,
    EngineMissing,
    FolderMissing,
    LoadFailed,
    ModelServer,
    Stopped,
)
from koo.ai.providers.base import Completion, CompletionChunk, Request
from koo.ai.providers.local_text import tokens_of
from koo.ai.providers.openai_compatible import OpenAICompatibleProvider
from koo.ai.providers.transport import bound_tokens
from koo.ai.types import Usage
from koo.errors import (
    ExternalServiceError,
    InvalidRequest,
    Kind,
    ServiceFailed,
    ServiceSaturated,
    StreamTruncated,
)
from koo.gates import is_fed
from koo.http.client import HttpClient
from koo.options import LOCAL_QUEUE_MAX
from koo.policies.treatment import out_of_resources
from koo.shortages import shortage_in

CONTEXT_TOKENS = 4096
"""Prompt and answer together; 94 MB of memory with the small model, whose own bound is 8192."""

SYSTEM = "You are a helpful assistant."
"""If the caller sets none: with its own default ("... named SmolLM, trained by Hugging Face") the small model tends to
answer in French when it is asked for the capital of France."""
TEMPERATURE = 0.0
"""The same answer each time, and the likeliest. At the 0.2 that SmolLM2's makers recommend two of six answers about the
capital of France were French nonsense, and two of twelve answers found no end, one at 0."""
REPEAT_PENALTY = 1.1
"""Without it three of five answers at temperature 0 went round in circles to the end of the context; with it all of
them ended by themselves."""

BYTES_PER_TOKEN_MAX = 128
"""Longest token of the usual vocabularies (a run of spaces): a prompt longer than this many times the context cannot
fit, and is refused before the server spends seconds on cutting it up, which nothing can stop."""
ENDED_WITHIN_S = 1.0
"""A process that ends closes its connections some milliseconds before its exit code is known."""
MEAN_WEIGHT = 0.2
"""Of the newest answer in the mean time of an answer."""

LOAD_FAILED = (
    "the model could not be loaded: the file is damaged or of an unknown kind; "
    f"run `koo model install` to get one that works, or {SET_PATH}"
)
NO_MEMORY = f"there is too little memory to run the model: free some, or {SET_PATH} of a smaller one"
WAS_KILLED = (
    "the model's process was killed, which the system does when there is too little memory: free some, or "
    f"{SET_PATH} of a smaller one"
)
NO_FOLDER = "no folder can be made for the model's socket: set TMPDIR to a writable folder with a short path"


class LocalProvider:
    """A GGUF model in a process of its own.

    `model_path` None means the installed package's file, looked for at each use: installing it needs no restart.
    `context_tokens` is for prompt and answer together; `threads` None means as many as help; `queue_max` bounds the
    queries that wait for a free slot; `slots` are the answers made at once. Providers with the same file, context,
    threads and slots share one loaded model, in all event loops of the process, until it ends.
    """

    output_tokens_min = 1

    def __init__(
        self,
        service: str,
        *,
        model_path: Path | None = None,
        context_tokens: int = CONTEXT_TOKENS,
        threads: int | None = None,
        queue_max: int = LOCAL_QUEUE_MAX,
        slots: int = 1,
    ) -> None:
        self.service = service
        self._model_path = model_path
        self._context_tokens = context_tokens
        self._threads = threads
        self._queue_max = queue_max
        self._slots = slots
        self._session: Session | None = None
        self._mean_s: float | None = None
        self._engine_failed = False

    def __repr__(self) -> str:
        session = self._session
        under_way = 0 if session is None else session.under_way
        return (
            f"<LocalProvider {self.service!r} {self._model_path or 'of the package'} | {under_way} under way>"
        )

    def bound_input_tokens(self, request: Request) -> int:
        """UTF-8 bytes of prompt and system, and more than a chat template puts around them."""
        return bound_tokens(request)

    def obstacle(self) -> str:
        """What is missing, and the one command that fixes it; empty if nothing is. Reads a few files, loads nothing."""
        setup = self._setup()
        if setup is not None and SERVERS.find(setup) is not None:
            # What is loaded needs neither file any more.
            return ""
        return engine_obstacle(doubted=self._engine_failed) or model_obstacle(self._model_path)

    def server(self) -> ModelServer | None:
        """The process that has the model, if it is loaded or being loaded."""
        setup = self._setup()
        return None if setup is None else SERVERS.find(setup)

    async def load(self) -> None:
        """Load the model now, rather than with the first query. Raises `ServiceFailed`."""
        await self._loaded(self._open(self._usable()))

    async def check(self) -> None:
        """Check for a GGUF file, and an engine to run it. Loads nothing, sends nothing. Raises `ServiceFailed`."""
        self._usable()

    async def complete(self, request: Request) -> Completion:
        """The whole answer. Raises `InvalidRequest`, `ServiceSaturated` and `ServiceFailed`."""
        texts: list[str] = []
        model, request_id, usage = "", None, Usage()
        last = CompletionChunk()
        async with aclosing(self.stream(request)) as pieces:
            async for last in pieces:
                if not last.reasoning:
                    texts.append(last.text)
                model, request_id = last.model or model, last.request_id or request_id
                usage = last.usage or usage
        return Completion(
            text="".join(texts),
            model=model or request.model,
            usage=usage,
            stop_reason=last.stop_reason,
            request_id=request_id,
        )

    async def stream(self, request: Request) -> AsyncGenerator[CompletionChunk, None]:
        """The answer as it is made. Closing it, or cancelling its reader, stops the model at that token.

        Raises as `complete` does, and `StreamTruncated` if it ends early.
        """
        setup = self._usable()
        self._check(request, setup.path.stem)
        session = self._open(setup)
        if session.under_way >= self._slots + self._queue_max and not is_fed.get():
            waiting = session.under_way - self._slots
            reason = f"the model is busy and {waiting} queries are waiting for it already"
            raise ServiceSaturated(self.service, reason, self._mean_s)
        session.under_way += 1
        try:
            await self._loaded(session)
            async with session.turn, aclosing(self._answer(session, request)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            session.under_way -= 1

    async def close(self) -> None:
        """End this provider's answers. The model stays loaded, for other providers and the next event loop."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def body(self, request: Request) -> dict[str, Any]:
        """The request, in llama.cpp's words."""
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
            # Each chunk then reports its usage so far: for a reader that leaves before the end.
            "timings_per_token": True,
        }

    # ── asking ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _setup(self) -> Setup | None:
        path = self._model_path or find_model()
        return (
            None if path is None else Setup(path.resolve(), self._context_tokens, self._threads, self._slots)
        )

    def _usable(self) -> Setup:
        """The model to use. Raises `ServiceFailed` if something is missing."""
        obstacle, setup = self.obstacle(), self._setup()
        if obstacle or setup is None:
            raise self._not_configured(obstacle)
        return setup

    def _open(self, setup: Setup) -> Session:
        """The way to the model in this event loop; begins to load it unless it is loaded."""
        try:
            server = SERVERS.get(setup)
        except Stopped:
            raise self._unloaded() from None
        except FolderMissing:
            raise self._not_configured(NO_FOLDER) from None
        except OSError as error:
            if shortage_in(error) is not None:
                raise out_of_resources(self.service, error) from None
            reason = f"no process can be started for the model ({error.strerror})"
            raise ServiceFailed(self.service, reason) from None
        session, loop = self._session, asyncio.get_running_loop()
        if session is None or session.server is not server or session.loop is not loop:
            session = self._session = Session(server, loop)
        return session

    async def _loaded(self, session: Session) -> None:
        """Wait until the model is loaded. Raises `ExternalServiceError`."""
        try:
            await asyncio.wrap_future(session.server.ready)
        except Stopped:
            raise self._unloaded() from None
        except EngineMissing as missing:
            self._engine_failed = True
            raise self._not_configured(import_obstacle(str(missing))) from None
        except LoadFailed as failed:
            raise ServiceFailed(self.service, NO_MEMORY if failed.memory else LOAD_FAILED) from None

    async def _answer(self, session: Session, request: Request) -> AsyncGenerator[CompletionChunk, None]:
        if session.closed:
            raise self._unloaded()
        began_at = session.loop.time()
        try:
            async with session.connect() as http:
                chat = await Chat(self, http, session.server.key).without_marks(request)
                async with aclosing(chat.stream(request)) as pieces:
                    async for piece in pieces:
                        yield piece
        except ExternalServiceError as error:
            raise await self._explain(error, session) from None
        took_s = session.loop.time() - began_at
        self._mean_s = (
            took_s if self._mean_s is None else (1 - MEAN_WEIGHT) * self._mean_s + MEAN_WEIGHT * took_s
        )

    def _check(self, request: Request, model: str) -> None:
        if not _means(request.model, model, self.service):
            reason = f"model {request.model[:80]!r} is not loaded: the running one is {model!r}"
            raise InvalidRequest(self.service, reason, kind=Kind.NOT_FOUND)
        if len(request.prompt) + len(request.system or "") > self._context_tokens * BYTES_PER_TOKEN_MAX:
            raise self._too_long(f"more than {self._context_tokens}")

    # ── what an error means ───────────────────────────────────────────────────────────────────────────────────────

    async def _explain(self, error: ExternalServiceError, session: Session) -> ExternalServiceError:
        """The error of our own server: it knows more than the connection does."""
        if session.closed or session.server.stopped:
            return self._unloaded()
        if error.kind is Kind.CONTEXT_LENGTH:
            counted = (error.detail or {}).get("prompt_tokens", f"more than {self._context_tokens}")
            return self._too_long(str(counted))
        if error.kind in (Kind.CONNECTION, Kind.BAD_ANSWER, Kind.TRUNCATED_STREAM):
            code = await _exit_code(session.server)
            if code is not None:
                ended = f"the model's process ended in the middle of an answer (exit code {code})"
                return ServiceFailed(self.service, WAS_KILLED if code == KILLED else ended)
        return error

    def _unloaded(self) -> StreamTruncated:
        reason = "the model was unloaded before its answer was complete"
        return StreamTruncated(self.service, reason, kind=Kind.DRAINING)

    def _too_long(self, tokens: str) -> InvalidRequest:
        reason = (
            f"the prompt has {tokens} tokens, but the model reads {self._context_tokens}, its answer included: "
            "shorten it"
        )
        return InvalidRequest(self.service, reason, kind=Kind.CONTEXT_LENGTH)

    def _not_configured(self, reason: str) -> ServiceFailed:
        return ServiceFailed(self.service, reason, kind=Kind.NOT_CONFIGURED)


class Session:
    """One provider's way to one loaded model in one event loop: whose turn it is, and the connections."""

    def __init__(self, server: ModelServer, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.loop = loop
        self.turn = asyncio.Semaphore(server.setup.slots)
        self.under_way = 0
        self.closed = False
        self._clients: set[HttpClient] = set()

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[HttpClient, None]:
        """A client for one answer: nothing stays open that would have to be closed before the loop ends."""
        http = HttpClient(unix_socket=self.server.socket_path)
        self._clients.add(http)
        try:
            yield http
        finally:
            self._clients.discard(http)
            await http.close()

    async def close(self) -> None:
        """End what is under way, and what waits for its turn."""
        self.closed = True
        for http in tuple(self._clients):
            await http.close()


class Chat(OpenAICompatibleProvider):
    """Chat completions with the words that only llama.cpp knows."""

    def __init__(self, provider: LocalProvider, http: HttpClient, key: str) -> None:
        super().__init__(provider.service, http, base_url="http://local", api_key=key)
        self._provider = provider
        self._tokens: list[int] | None = None

    @staticmethod
    def address(base_url: str) -> str:
        return base_url

    async def without_marks(self, request: Request) -> Chat:
        """Itself, with the request's messages as text alone. Raises `ExternalServiceError`."""
        self._tokens = await tokens_of(self._wire, self._provider.body(request)["messages"])
        return self

    def path(self, request: Request, *, stream: bool) -> str:
        return "/v1/chat/completions" if self._tokens is None else "/v1/completions"

    def encode(self, request: Request, *, stream: bool) -> bytes:
        body = self._provider.body(request)
        if self._tokens is not None:
            del body["messages"]
            body["prompt"] = self._tokens
        return msgspec.json.encode(body)


async def _exit_code(server: ModelServer) -> int | None:
    """The exit code of a process that has ended, or ends at this moment."""
    try:
        async with asyncio.timeout(ENDED_WITHIN_S):
            return await asyncio.wrap_future(server.ended)
    except TimeoutError:
        return None


def _means(name: str, model: str, service: str) -> bool:
    """Whether a query's `name` means this model: the beginning of its file's name, in any case; or no name at all."""
    name = name.lower().removesuffix(".gguf")
    return name in ("", "local", service) or model.lower().startswith(name)
