"""The server process: one socket, one event loop, one platform.

It prints example commands when it is ready. `ending.py` describes how it shuts down.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal, TextIO

from koo.configuration.urls import url_of
from koo.errors import ConfigurationError
from koo.host import Descriptors, count_descriptors
from koo.log_options import LogLevel, LogOptions
from koo.options import PlatformOptions
from koo.platform import Platform
from koo.web.listener import BACKLOG, bind
from koo.web.logs import LogFormat, chosen_logs, logs_set_up

if TYPE_CHECKING:
    from collections.abc import Iterator
    from socket import socket

    import uvicorn
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from koo.web.crowd import Crowd

TO_START = 28
"""Free descriptors. With fewer, the platform cannot open its files, or the server accepts no connection (measured)."""
SHOWN_PROMPT = "What is the capital of France?"


def serve(
    platform: Platform,
    app: ASGIApp,
    *,
    log_format: LogFormat | Literal["console"] | None = None,
    log_level: LogLevel | None = None,
    out: TextIO | None = None,
) -> None:
    """Serve `app`, an application of this platform (`create_app`, `mount`), until SIGINT or SIGTERM.

    `log_format` and `log_level` default to the settings; "console" means the same as "plain". An application whose
    root logger already has a handler keeps its own logging. Once the server is ready, example commands are printed to
    `out` (default: standard output). Raises `ConfigurationError` if a setting is invalid or the address cannot be
    listened on.
    """
    options = platform.options
    with bind(options.host, options.port) as listener:
        port = listener.getsockname()[1]
        server = make_server(platform, app, lambda: announce(platform, port, out or sys.stdout))
        run(server, listener, chosen_logs(options.log, log_format, log_level))


def run(server: uvicorn.Server, listener: socket, chosen: LogOptions, worker: int | None = None) -> None:
    """Serve on this socket until a signal ends the server. `worker`: the number shown in its log lines.

    Raises `ConfigurationError` if the server did not start.
    """
    with listener, logs_set_up(chosen, worker), _heard(server):
        server.run(sockets=[listener])
    if not server.started:
        raise ConfigurationError("", "the server did not start; see the log above")


def make_server(
    platform: Platform,
    app: ASGIApp,
    on_ready: Callable[[], None] = lambda: None,
    crowd: Crowd | None = None,
) -> uvicorn.Server:
    """Return a uvicorn server, to be run with its sockets. Opens nothing. `crowd`: the limit on open connections.

    Raises `ConfigurationError` if a setting is invalid.
    """
    import uvicorn

    from koo.web.connection import KEEP_ALIVE_S, in_crowd
    from koo.web.crowd import Crowd, bound_of
    from koo.web.ending import GRACE_S, Server

    # uvicorn runs the application's startup inside its lifespan task, where a wrong setting would surface as a
    # traceback followed by "Application startup failed". Validate the settings here, where the caller can still print
    # one sentence.
    platform.assemble()

    if crowd is None:
        descriptors = count_descriptors()
        _check_descriptors(descriptors)
        crowd = Crowd(bound_of(descriptors))
    return Server(
        uvicorn.Config(
            answering_what_is_cut(app),
            http=in_crowd(crowd),
            # "auto" would import whichever websocket library happens to be installed, through uvicorn's deprecated
            # code path. koo has no websocket routes.
            ws="none",
            lifespan="on",
            # Otherwise uvicorn reads WEB_CONCURRENCY, which koo does not use: any value in it that is not a number
            # would make the start fail.
            workers=1,
            log_config=None,
            access_log=False,  # koo's own log lines have a request id and a duration, and no query strings
            server_header=False,
            # Without a token only loopback callers are allowed. If uvicorn trusted X-Forwarded-For, any caller could
            # claim to be on loopback by sending a header.
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_S,
            timeout_keep_alive=KEEP_ALIVE_S,
            backlog=BACKLOG,
        ),
        platform,
        crowd,
        on_ready,
    )


def _check_descriptors(descriptors: Descriptors | None) -> None:
    if descriptors is not None and descriptors.limit - descriptors.used < TO_START:
        least = descriptors.used + TO_START
        sentence = (
            f"the limit on open files (ulimit -n) is {descriptors.limit}; the server needs at least {least}"
        )
        raise ConfigurationError("", sentence)


def answering_what_is_cut(app: ASGIApp) -> ASGIApp:
    """Answer a request cancelled at shutdown with a 503 problem, instead of uvicorn's bare 500 and traceback."""
    from starlette.requests import Request

    from koo.web.bounds import CLOSE
    from koo.web.problems import http_problem, respond

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        # uvicorn cancels every request that outlives the grace period. It treats the cancellation like any exception
        # of the application: it logs a traceback for each request and sends a plain-text 500. Swallowing
        # CancelledError is safe here, and only here: uvicorn made this task for this one request and nothing awaits
        # its result. A response that has already begun cannot be replaced, so its cancellation is passed on and
        # uvicorn closes the connection.
        async def note(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            try:
                await send(message)
            except RuntimeError as error:
                # The caller disconnected a moment ago. uvloop then raises the same error as for a transport that the
                # server itself has closed; asyncio only drops the bytes. It is not a failure of the request and must
                # not be logged as one.
                if "handler is closed" not in str(error):
                    raise

        try:
            await app(scope, receive, note)
        except asyncio.CancelledError:
            if begun or scope["type"] != "http":
                raise
            problem = http_problem(
                Request(scope), 503, "the server is shutting down; try again when it is back"
            )
            await respond(problem, CLOSE)(scope, receive, send)

    return answer


def announce(platform: Platform, port: int, out: TextIO, workers: int = 1) -> None:
    """Print commands that can be copied. A query is shown only if a service can answer it."""
    options = platform.options
    url, koo = _shown_url(options, port), _command()
    token = " -H 'Authorization: Bearer $KOO_TOKEN'".replace("'", '"') if options.token else ""
    service, obstacle = _offered(platform)
    query = [
        f"  curl{token} -X POST {url}/api/v1/ai/query -H 'Content-Type: application/json' \\",
        f"""    -d '{{"service": "{service}", "prompt": "{SHOWN_PROMPT}"}}'""",
    ]
    lines = [
        f"koo is ready on {url}" + (f", with {workers} workers" if workers > 1 else ""),
        "",
        *([f'  {koo} query {service} "{SHOWN_PROMPT}"'] if service else []),
        f"  {koo} status",
        f"  curl{token} {url}/api/v1/monitoring/health | python3 -m json.tool",
        *(query if service else []),
        "",
        *([f"The service local is {obstacle}.", ""] if obstacle else []),
        f"In a browser: {url}/dashboard/ shows the state, {url}/docs describes the API. Press Ctrl-C to stop.",
    ]
    try:
        print(*lines, sep="\n", file=out, flush=True)
    except OSError:
        pass  # the parent process has closed standard output; the server works without it


def _offered(platform: Platform) -> tuple[str, str]:
    """Return the service to suggest (empty if none is configured), and why the local model is unavailable if it is
    wanted.
    """
    services = platform.parts.ai_services
    local = services["local"]
    if local.service.configured:
        return "local", ""
    others = (name for name, one in services.items() if one.service.configured)
    return next(others, ""), local.service.obstacle if local.options.configured else ""


def _shown_url(options: PlatformOptions, port: int) -> str:
    """Return the URL to show: KOO_URL, or the port that the system assigned if KOO_PORT is 0."""
    return url_of(options.host, port) if options.port == 0 else options.url.rstrip("/")


def _command() -> str:
    """Return how to call `koo` from here: by its path if it is not on the PATH (for example in a local `.venv`)."""
    script = Path(sys.argv[0])
    found = shutil.which("koo")
    if script.name != "koo" or (found is not None and Path(found).samefile(script)):
        return "koo"
    here = Path.cwd()
    return str(script.relative_to(here)) if script.is_relative_to(here) else str(script)


@contextmanager
def _heard(server: uvicorn.Server) -> Iterator[None]:
    """Handle the signals that uvicorn leaves to the system, which would end the process in the middle of its requests.

    SIGHUP, which a closed terminal sends, ends the server as SIGTERM does; under `nohup` it stays ignored. SIGUSR2 is
    for the parent of workers, but `systemctl kill` sends it to all processes. A handler of the application stays.
    """
    handlers = {"SIGHUP": server.handle_exit, "SIGUSR2": _pass_over}
    own = {getattr(signal, name): handler for name, handler in handlers.items() if hasattr(signal, name)}
    before = {one: signal.getsignal(one) for one in own}
    taken = [one for one, was in before.items() if was is signal.SIG_DFL]
    for one in taken:
        signal.signal(one, own[one])
    try:
        yield
    finally:
        for one in taken:
            signal.signal(one, before[one])


def _pass_over(_number: int, _frame: FrameType | None) -> None:
    """Not SIG_IGN, which the processes that an application starts would inherit."""
