"""The server process: one socket, one event loop, one platform; it prints what to try, and ends in order.
How it ends is in `ending.py`.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

from koo.configuration.urls import url_of
from koo.errors import ConfigurationError
from koo.host import count_descriptors
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

    `log_format` and `log_level`: None is what the settings say; "console" is an older word for "plain". An application
    that has given its root logger a handler keeps its own logging. `out` gets what to try, once the server is ready;
    None is standard output. Raises `ConfigurationError` for settings that cannot be right and for an address that
    cannot be listened on.
    """
    options = platform.options
    with bind(options.host, options.port) as listener:
        port = listener.getsockname()[1]
        server = make_server(platform, app, lambda: announce(platform, port, out or sys.stdout))
        run(server, listener, chosen_logs(options.log, log_format, log_level))


def run(server: uvicorn.Server, listener: socket, chosen: LogOptions, worker: int | None = None) -> None:
    """Serve on this socket until a signal ends it. `worker`: the number that stands in the log lines.

    Raises `ConfigurationError` where the server did not start.
    """
    with listener, logs_set_up(chosen, worker), _hanging_up(server):
        server.run(sockets=[listener])
    if not server.started:
        raise ConfigurationError("", "the server did not start; the log above says why")


def make_server(
    platform: Platform,
    app: ASGIApp,
    on_ready: Callable[[], None] = lambda: None,
    crowd: Crowd | None = None,
) -> uvicorn.Server:
    """A uvicorn server, which is run with its sockets. Opens nothing. `crowd`: the bound on connections.

    Raises `ConfigurationError` for settings that cannot be right.
    """
    import uvicorn

    from koo.web.connection import KEEP_ALIVE_S, in_crowd
    from koo.web.crowd import Crowd, bound_of
    from koo.web.ending import GRACE_S, Server

    # Report wrong settings now, in one sentence, and not as a traceback out of the application's start.
    platform.assemble()

    if crowd is None:
        crowd = Crowd(bound_of(count_descriptors()))
    return Server(
        uvicorn.Config(
            answering_what_is_cut(app),
            http=in_crowd(crowd),
            ws="none",  # "auto" would load a websocket library that is installed by chance, in its deprecated half
            lifespan="on",
            log_config=None,
            access_log=False,  # ours has an id, a time, and no query strings
            server_header=False,
            proxy_headers=False,  # a request without a token must come from this machine, not claim so in a header
            timeout_graceful_shutdown=GRACE_S,
            timeout_keep_alive=KEEP_ALIVE_S,
            backlog=BACKLOG,
        ),
        platform,
        crowd,
        on_ready,
    )


def answering_what_is_cut(app: ASGIApp) -> ASGIApp:
    """uvicorn cancels what outlives its grace, and would answer that with a bare 500 and log a traceback for each.

    The cancellation ends here: the task is uvicorn's own, made for this one request, and nothing awaits it.
    """
    from starlette.requests import Request

    from koo.web.bounds import CLOSE
    from koo.web.problems import http_problem, respond

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def note(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            try:
                await send(message)
            except RuntimeError as error:
                # The caller has left a moment ago; uvloop raises as if we had closed the connection ourselves.
                if "handler is closed" not in str(error):
                    raise

        try:
            await app(scope, receive, note)
        except asyncio.CancelledError:
            if begun or scope["type"] != "http":
                raise
            problem = http_problem(Request(scope), 503, "the server ends now; ask again when it is back")
            await respond(problem, CLOSE)(scope, receive, send)

    return answer


def announce(platform: Platform, port: int, out: TextIO, workers: int = 1) -> None:
    """What to try, in words that can be copied: a query only of a service that can answer it."""
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
        f"In a browser: {url}/dashboard/ shows the state, {url}/docs describes the API. Ctrl-C ends it.",
    ]
    try:
        print(*lines, sep="\n", file=out, flush=True)
    except OSError:
        pass  # the parent process has closed our output; the server works without it


def _offered(platform: Platform) -> tuple[str, str]:
    """The service to try, empty without any, and why it is not the local model, where its operator wants that one."""
    services = platform.parts.ai_services
    local = services["local"]
    if local.service.configured:
        return "local", ""
    others = (name for name, one in services.items() if one.service.configured)
    return next(others, ""), local.service.obstacle if local.options.configured else ""


def _shown_url(options: PlatformOptions, port: int) -> str:
    """Where people reach it: KOO_URL; with the port that was given to us, where we asked for any."""
    return url_of(options.host, port) if options.port == 0 else options.url.rstrip("/")


def _command() -> str:
    """How the command `koo` is called from here: by its path, where it is not on the PATH (a `.venv` beside us)."""
    script = Path(sys.argv[0])
    found = shutil.which("koo")
    if script.name != "koo" or (found is not None and Path(found).samefile(script)):
        return "koo"
    here = Path.cwd()
    return str(script.relative_to(here)) if script.is_relative_to(here) else str(script)


@contextmanager
def _hanging_up(server: uvicorn.Server) -> Iterator[None]:
    """SIGHUP, which a closed terminal sends, ends the server as SIGTERM does; uvicorn leaves it alone."""
    name = getattr(signal, "SIGHUP", None)
    before = name and signal.signal(name, server.handle_exit)
    try:
        yield
    finally:
        if name:
            signal.signal(name, before)
