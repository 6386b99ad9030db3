"""The `local` service: a model that koo runs itself. It is a provider like any other, without a key, price or network.

`koo.ai.local_server` starts a llama.cpp server on a Unix socket with the first query, and this adapter sends it chat
completions (`OpenAICompatibleProvider`). Every request is a stream; `complete` collects its pieces. So both return the
same text, and both can be stopped quickly: llama.cpp checks after every token, and after every batch of a prompt,
whether its client is still connected.

Queries wait here for one of the slots, in order of arrival; the server itself would take waiting ones in any order. On
two cores, four answers of 64 tokens took 2.9 s one after another, 2.2 s with two slots and 1.9 s with four. But with
four slots every caller waits as long as the last one, and the mean was 1.8 s either way. One slot is the default. It
needs the least memory, since each slot has its own context. And an answer at temperature 0 does not depend on other
callers, because floating-point sums are always computed in the same order.
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
"""The context for prompt and answer together. It takes 94 MB of memory with the small model, whose own limit is
8192."""

SYSTEM = "You are a helpful assistant."
"""Used if the caller sets none. With its own default ("... named SmolLM, trained by Hugging Face") the small model
tends to answer in French when it is asked for the capital of France."""
TEMPERATURE = 0.0
"""The most likely answer, and always the same one. At 0.2, which SmolLM2's authors recommend, two of six answers about
the capital of France were French nonsense, and two of twelve did not end (at 0, one of twelve)."""
REPEAT_PENALTY = 1.1
"""Without it, three of five answers at temperature 0 repeated themselves until the context was full; with it, none."""

BYTES_PER_TOKEN_MAX = 128
"""Bytes of the longest token in the usual vocabularies (a run of spaces). A prompt longer than this times the context
cannot fit. It is refused before the server spends seconds on tokenizing it, which cannot be stopped."""
ENDED_WITHIN_S = 1.0
"""How long to wait for an exit code after a connection broke: a process that ends closes its connections some
milliseconds before its exit code is known."""
MEAN_WEIGHT = 0.2
"""Weight of the newest answer in the moving average of an answer's duration."""

LOAD_FAILED = (
    "the model could not be loaded: the file is damaged or has an unknown format; "
    f"run `koo model install` to get a working one, or {SET_PATH}"
)
NO_MEMORY = f"there is not enough memory to run the model: free some, or {SET_PATH} of a smaller one"
WAS_KILLED = (
    "the model's process was killed, probably by the system because memory ran out: free some, or "
    f"{SET_PATH} of a smaller one"
)
NO_FOLDER = "cannot create a folder for the model's socket: set TMPDIR to a writable folder with a short path"


class LocalProvider:
    """A GGUF model in a separate process.

    `model_path` None means the file of the installed package, which is searched for at each use, so installing it needs
    no restart. `context_tokens` is for prompt and answer together; `threads` None means as many as are useful;
    `queue_max` limits the queries that wait for a free slot; `slots` is the number of answers generated at the same
    time. Providers with the same file, context, threads and slots share one loaded model, in all event loops, until the
    process ends.
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
        """UTF-8 bytes of prompt and system, plus an allowance for the chat template."""
        return bound_tokens(request)

    def obstacle(self) -> str:
        """What is missing and the command that fixes it, or "". Reads a few files and loads nothing."""
        setup = self._setup()
        if setup is not None and SERVERS.find(setup) is not None:
            # A loaded model no longer needs its files.
            return ""
        return engine_obstacle(doubted=self._engine_failed) or model_obstacle(self._model_path)

    def server(self) -> ModelServer | None:
        """The process with the model, if the model is loaded or being loaded."""
        setup = self._setup()
        return None if setup is None else SERVERS.find(setup)

    async def load(self) -> None:
        """Load the model now and not with the first query. Raises `ServiceFailed`."""
        await self._loaded(self._open(self._usable()))

    async def check(self) -> None:
        """Check that a GGUF file and an engine to run it exist. Loads and sends nothing. Raises `ServiceFailed`."""
        self._usable()

    async def complete(self, request: Request) -> Completion:
        """Return the complete answer. Raises `InvalidRequest`, `ServiceSaturated` and `ServiceFailed`."""
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
        """Yield the answer as it is generated. Closing the generator or cancelling its task stops the model.

        Raises the same errors as `complete`, and `StreamTruncated` if the stream ends early.
        """
        setup = self._usable()
        self._check(request, setup.path.stem)
        session = self._open(setup)
        # The queries of a list are exempt (`is_fed`): a list starts no more of them than there are slots, and would
        # otherwise have its own queries refused.
        if session.under_way >= self._slots + self._queue_max and not is_fed.get():
            waiting = session.under_way - self._slots
            queue = "1 query is" if waiting == 1 else f"{waiting} queries are"
            reason = f"the model is busy and {queue} already waiting for it"
            raise ServiceSaturated(self.service, reason, self._mean_s)
        # A query counts from here, before the first `await`: queries that arrive while the model is loading have to
        # count, or any number of them would pass the check above.
        session.under_way += 1
        try:
            await self._loaded(session)
            async with session.turn, aclosing(self._answer(session, request)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            session.under_way -= 1

    async def close(self) -> None:
        """Stop this provider's answers. The model stays loaded for other providers and the next event loop."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def body(self, request: Request) -> dict[str, Any]:
        """The request with llama.cpp's parameters."""
        return {
            "messages": [
                {"role": "system", "content": SYSTEM if request.system is None else request.system},
                {"role": "user", "content": request.prompt},
            ],
            "max_tokens": min(request.max_tokens, self._context_tokens),
            "temperature": TEMPERATURE if request.temperature is None else request.temperature,
            "repeat_penalty": REPEAT_PENALTY,
            # A prompt that is partly in the cache is computed in different batches. So the rounding differs, and at
            # temperature 0 the same prompt could have two answers, depending on the query before.
            "cache_prompt": False,
            "stream": True,
            "stream_options": {"include_usage": True},
            # With this each chunk reports the usage so far, which is needed if the caller stops before the end.
            "timings_per_token": True,
        }

    # ── querying ──────────────────────────────────────────────────────────────────────────────────────────────────

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
        """The session with the model in this event loop; starts to load the model unless it is loaded."""
        try:
            server = SERVERS.get(setup)
        except Stopped:
            raise self._unloaded() from None
        except FolderMissing:
            raise self._not_configured(NO_FOLDER) from None
        except OSError as error:
            if shortage_in(error) is not None:
                raise out_of_resources(self.service, error) from None
            reason = f"cannot start a process for the model ({error.strerror})"
            raise ServiceFailed(self.service, reason) from None
        session, loop = self._session, asyncio.get_running_loop()
        # A session belongs to one server process and one loop. After a crash the process is a new one, and in another
        # loop the old semaphore would raise RuntimeError.
        if session is None or session.server is not server or session.loop is not loop:
            session = self._session = Session(server, loop)
        return session

    async def _loaded(self, session: Session) -> None:
        """Wait until the model is loaded. Raises `ExternalServiceError`."""
        try:
            await asyncio.wrap_future(session.server.ready)
        except Stopped:
            raise self._unloaded() from None
        # The engine is installed, but cannot be imported (a missing system library). That shows only when it is loaded;
        # `obstacle` reports it from then on.
        except EngineMissing as missing:
            self._engine_failed = True
            raise self._not_configured(import_obstacle(str(missing))) from None
        except LoadFailed as failed:
            raise ServiceFailed(self.service, NO_MEMORY if failed.memory else LOAD_FAILED) from None

    async def _answer(self, session: Session, request: Request) -> AsyncGenerator[CompletionChunk, None]:
        # The session may have been closed while this query waited for its slot.
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

    # ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _explain(self, error: ExternalServiceError, session: Session) -> ExternalServiceError:
        """A better error than the connection's, from the state of koo's own server process."""
        if session.closed or session.server.stopped:
            return self._unloaded()
        if error.kind is Kind.CONTEXT_LENGTH:
            counted = (error.detail or {}).get("prompt_tokens", f"more than {self._context_tokens}")
            return self._too_long(str(counted))
        # A process that is killed or crashes looks like a broken connection at first. Its exit code tells whether more
        # memory would help.
        if error.kind in (Kind.CONNECTION, Kind.BAD_ANSWER, Kind.TRUNCATED_STREAM):
            code = await _exit_code(session.server)
            if code is not None:
                ended = f"the model's process ended during an answer (exit code {code})"
                return ServiceFailed(self.service, WAS_KILLED if code == KILLED else ended)
        return error

    def _unloaded(self) -> StreamTruncated:
        reason = "the model was unloaded before its answer was complete"
        return StreamTruncated(self.service, reason, kind=Kind.DRAINING)

    def _too_long(self, tokens: str) -> InvalidRequest:
        reason = (
            f"the prompt has {tokens} tokens, but the model's context is {self._context_tokens}, including the answer: "
            "shorten it"
        )
        return InvalidRequest(self.service, reason, kind=Kind.CONTEXT_LENGTH)

    def _not_configured(self, reason: str) -> ServiceFailed:
        return ServiceFailed(self.service, reason, kind=Kind.NOT_CONFIGURED)


class Session:
    """One provider's use of one loaded model in one event loop: the queue for its slots, and the connections."""

    def __init__(self, server: ModelServer, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.loop = loop
        self.turn = asyncio.Semaphore(server.setup.slots)
        self.under_way = 0
        self.closed = False
        self._clients: set[HttpClient] = set()

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[HttpClient, None]:
        """A client for one answer. Nothing stays open after it, so nothing has to be closed before the loop ends."""
        http = HttpClient(unix_socket=self.server.socket_path)
        self._clients.add(http)
        try:
            yield http
        finally:
            self._clients.discard(http)
            await http.close()

    async def close(self) -> None:
        """Stop running answers, and those that wait for a slot."""
        self.closed = True
        for http in tuple(self._clients):
            await http.close()


class Chat(OpenAICompatibleProvider):
    """Chat completions with llama.cpp's own parameters."""

    def __init__(self, provider: LocalProvider, http: HttpClient, key: str) -> None:
        super().__init__(provider.service, http, base_url="http://local", api_key=key)
        self._provider = provider
        self._tokens: list[int] | None = None

    @staticmethod
    def address(base_url: str) -> str:
        return base_url

    async def without_marks(self, request: Request) -> Chat:
        """Tokenize messages that contain special tokens (see `local_text`). Raises `ExternalServiceError`."""
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
    """The exit code of a process that has ended or is ending; None if it is still running."""
    try:
        async with asyncio.timeout(ENDED_WITHIN_S):
            return await asyncio.wrap_future(server.ended)
    except TimeoutError:
        return None


def _means(name: str, model: str, service: str) -> bool:
    """Whether `name` means this model: it is empty, or the beginning of the file's name in upper or lower case."""
    name = name.lower().removesuffix(".gguf")
    return name in ("", "local", service) or model.lower().startswith(name)
