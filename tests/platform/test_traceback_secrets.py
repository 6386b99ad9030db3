"""Error reporters record the local variables of each frame of a traceback: none of koo's shows a secret.

Each failure through each public entry point, as shown by `traceback`, rich, and a reporter that expands mappings and
lists. Frames of the caller and of other libraries are not checked.
"""

from __future__ import annotations

import asyncio
import os
import traceback
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import is_dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import sqlalchemy
from rich.pretty import pretty_repr
from sqlalchemy import make_url, text

import koo
from koo import Database, Platform
from koo.ai.types import Query
from koo.alert_options import AlertOptions
from koo.alerts.channels.base import Message
from koo.alerts.outbox import make_channels
from koo.cli.client import ServerClient
from koo.network_options import NetworkOptions
from koo.options import DatabaseOptions, PlatformOptions, RetryOptions
from koo.settings import Settings
from koo.testing.postgres import PostgresServer
from koo.testing.providers import (
    FakeAnthropic,
    FakeCompatible,
    FakeGemini,
    FakeOpenAI,
    FakePerplexity,
    FakeProvider,
    Hang,
    Nothing,
    Raw,
    error,
    stream,
)

KEY, PROMPT, SYSTEM = "sk-canary-key-47110815", "canary-prompt of a patient", "canary-system of a hospital"
PASSWORD, HEADER, PROXY = "canary-password", "canary-header", "canary-proxy"
SECRETS = (KEY, "canary")
SOURCES = Path(koo.__file__).parents[1]
LONG = 50  # longer values are cut by reporters


def frames_of(error: BaseException | None) -> Iterator[FrameType]:
    """The frames shown with an error: its own, those of its cause or context, and those of a group."""
    while error is not None:
        yield from (frame for frame, _ in traceback.walk_tb(error.__traceback__))
        if isinstance(error, BaseExceptionGroup):
            for one in error.exceptions:
                yield from frames_of(one)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def shown(value: object, depth: int = 3) -> Iterator[str]:
    """The texts that reporters show for a variable: its `repr`, rich's version, and those of its contents."""
    try:
        yield repr(value)
    except AttributeError:  # reporters say this of a half-initialized object
        return
    if isinstance(value, (str, bytes, Mapping, list, tuple)) or is_dataclass(value):
        yield pretty_repr(value, max_string=LONG, max_length=LONG)
    inside = (
        value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    )
    for one in inside if depth else ():
        yield from shown(one, depth - 1)


def leaks(error: BaseException, sources: Path = SOURCES) -> list[str]:
    """The places in koo's own frames, or those of other `sources`, that show a secret."""
    return [
        f"{Path(frame.f_code.co_filename).relative_to(sources)}:{frame.f_code.co_name}: {name}"
        for frame in frames_of(error)
        if Path(frame.f_code.co_filename).is_relative_to(sources)
        for name, value in frame.f_locals.items()
        if any(secret in text for text in shown(value) for secret in SECRETS)
    ]


async def failing(ask: Awaitable[object]) -> BaseException:
    try:
        await ask
    except Exception as error:  # other tests check which error it is
        return error
    raise AssertionError("it did not fail")


SERVERS: dict[str, Callable[..., FakeProvider]] = {
    "claude": FakeAnthropic,
    "openai": FakeOpenAI,
    "gemini": FakeGemini,
    "perplexity": FakePerplexity,
    "own": FakeCompatible,
}
STEPS: dict[str, Any] = {
    "refused key": error(401, message=f"Incorrect API key provided: {KEY}"),
    "invalid": error(400, message=f"your prompt was: {PROMPT}"),
    "broken": error(503),
    "no answer": Nothing(),
    "not JSON": Raw(body=f"<html>{PROMPT}".encode()),
    "other JSON": Raw(body=f'{{"said": "{PROMPT}"}}'.encode()),
    "cut": stream([PROMPT, "."], cut_after=1),
    "error in a stream": stream([PROMPT, "."], error_after=1, error=error(500, message=PROMPT)),
    "late": Hang(),
}


DOORS = [
    *((door, what) for door in ("query", "stream") for what in STEPS),
    ("query_ai", "broken"),
    ("stream_ai", "broken"),
]
QUOTED = {"refused key", "invalid", "not JSON", "other JSON", "error in a stream"}
"""Cases that depend on the vendor's format; the others depend only on the connection, and are tested with one
vendor."""
STREAMED = {"cut", "error in a stream"}
DOORS = [(door, what) for door, what in DOORS if "stream" in door or what not in STREAMED]


@asynccontextmanager
async def platform_of(server: FakeProvider, name: str, **more: str) -> AsyncIterator[Platform]:
    server.key = KEY
    environ = {
        "KOO_HOME": os.environ["KOO_HOME"],
        f"AI_SERVICES__{name.upper()}__BASE_URL": server.base_url,
        f"AI_SERVICES__{name.upper()}__API_KEY": KEY,
        f"AI_SERVICES__{name.upper()}__HEADERS__X_OWN": HEADER,
        f"AI_SERVICES__{name.upper()}__DAILY_BUDGET": "none",
        f"AI_SERVICES__{name.upper()}__INPUT_PRICE": "1",
        f"AI_SERVICES__{name.upper()}__OUTPUT_PRICE": "1",
        "AI_MAX_RETRIES": "0",
        **({"AI_SERVICES__OWN__MODEL": "m"} if name == "own" else {}),
        **more,
    }
    async with Platform(Settings(environ=environ).platform_options()) as platform:
        yield platform


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KOO_HOME", str(tmp_path))


@pytest.mark.parametrize("name", SERVERS)
def test_a_failed_query_shows_neither_key_nor_prompt(name: str) -> None:
    async def main() -> dict[str, list[str]]:
        found = {}
        async with SERVERS[name](strict=False) as server, platform_of(server, name) as platform:
            asked = Query(service=name, prompt=PROMPT, system=SYSTEM)
            doors: dict[str, Callable[[Query], Awaitable[object]]] = {
                "query": platform.query,
                "stream": lambda one: read(platform.stream(one)),
                "query_ai": lambda one: koo.query_ai(
                    name, one.prompt, system=one.system, timeout_s=one.timeout_s
                ),
                "stream_ai": lambda one: read(koo.stream_ai(name, one.prompt, system=one.system)),
            }
            for door, what in DOORS:
                if name != "own" and what not in QUOTED:
                    continue
                step, ask = STEPS[what], doors[door]
                with koo.testing.use(platform):
                    server.script(step, step, step)
                    query = replace(asked, timeout_s=0.3) if what == "late" else asked
                    found[f"{door}: {what}"] = leaks(await failing(ask(query)))
                    server.forget()
                    platform.reset_service(name)
        return found

    assert {where: at for where, at in asyncio.run(main()).items() if at} == {}


async def read(stream: AsyncIterator[object]) -> None:
    async for _ in stream:
        pass


def test_a_failed_operation_of_the_callers_own_shows_no_argument() -> None:
    async def fails(*_: object, **__: object) -> None:
        raise ConnectionResetError

    def blocks(*_: object, **__: object) -> None:
        raise ConnectionResetError

    async def streams(*_: object, **__: object) -> AsyncIterator[str]:
        yield "one"
        raise ConnectionResetError

    async def main() -> dict[str, list[str]]:
        async with Platform(PlatformOptions()) as platform:
            platform.register_service("own", retry_base_delay=0.001)
            platform.register_service("thread", in_thread=True, max_retries=0)
            platform.register_service(
                "paid", max_cost_usd=1, cost_usd="usage", max_retries=1, retry_base_delay=0.001
            )
            asks = {
                "execute": platform.execute("own", fails, PROMPT, key=KEY),
                "partial": platform.execute("own", partial(fails, PROMPT, key=KEY)),
                "paid": platform.execute(
                    "paid", fails, messages=[{"role": "user", "content": PROMPT}], key=KEY
                ),
                "not to be awaited": platform.execute("own", lambda *_: None, PROMPT),
                "in a thread": platform.execute("thread", blocks, PROMPT, key=KEY),
                "stream": read(platform.execute_stream("own", streams, PROMPT, key=KEY)),
                "guarded": platform.guarded("guarded", max_retries=0)(fails)(PROMPT, key=KEY),
                "guarded stream": read(platform.guarded("guarded", max_retries=0)(streams)(PROMPT, key=KEY)),
                "guarded blocking": asyncio.to_thread(
                    platform.guarded("blocking", max_retries=0)(blocks), PROMPT, key=KEY
                ),
            }
            return {what: leaks(await failing(ask)) for what, ask in asks.items()}

    assert {what: at for what, at in asyncio.run(main()).items() if at} == {}


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_database_that_refuses_shows_no_password(postgres16: PostgresServer, driver: str) -> None:
    url = make_url(postgres16.url()).set(drivername=f"postgresql+{driver}")
    refused = url.set(username="ghost", password=PASSWORD).render_as_string(hide_password=False)
    nowhere = f"postgresql+{driver}://user:{PASSWORD}@127.0.0.1:1/db"

    async def scope(database: Database) -> None:
        async with database.session_scope() as session:
            await session.execute(text("SELECT 1"))

    async def main() -> dict[str, list[str]]:
        found = {}
        for what, of in (("refused", refused), ("nowhere", nowhere)):
            options = DatabaseOptions(
                url=of, pool_timeout_s=2, retry=RetryOptions(attempts_max=1, base_s=0.01)
            )
            database = Database(options)
            refusal = await failing(scope(database))
            found[what] = leaks(refusal)
            found[f"SQLAlchemy: {what}"] = leaks(refusal, Path(sqlalchemy.__file__).parent)
            found[f"rotate: {what}"] = leaks(await failing(database.rotate(of)))
            found[f"other driver: {what}"] = leaks(await failing(database.rotate("sqlite:///other.db")))
            found[f"password: {what}"] = leaks(await failing(database.rotate(password=lambda: PASSWORD)))
            await database.close()
        found["no database"] = leaks(await failing(make(f"nothing://user:{PASSWORD}@host/db")))
        return found

    async def make(of: str) -> None:
        Database(of)

    assert {what: at for what, at in asyncio.run(main()).items() if at} == {}


def test_a_state_store_that_cannot_be_reached_shows_no_password() -> None:
    url = f"postgresql://user:{PASSWORD}@127.0.0.1:1/db"

    async def main() -> dict[str, list[str]]:
        async with Platform(PlatformOptions(state_url=url)) as platform:
            return {
                "refresh": leaks(await failing(platform.ledger.refresh())),
                "spend": leaks(await failing(platform.spend())),
            }

    assert {what: at for what, at in asyncio.run(main()).items() if at} == {}


MESSAGE = Message(key="k", thread="t", subject="s", text="t", document={})


def test_a_channel_that_fails_shows_neither_address_nor_password() -> None:
    async def main() -> dict[str, list[str]]:
        network, web = NetworkOptions(), "http://127.0.0.1:1/canary"
        alerts = AlertOptions(
            webhook=web, webhook_secret="whsec_" + b64encode(b"canary" * 4).decode(), slack=web,
            smtp_url=f"smtp://user:{PASSWORD}@127.0.0.1:1", email=("a@example.com",),
        )  # fmt: skip
        channels = make_channels(alerts, network, lambda: 0.0)
        assert len(channels) == 3
        found = {one.name: leaks(await failing(one.send(MESSAGE))) for one in channels}
        for one in channels:
            await one.close()
        return found

    assert {what: at for what, at in asyncio.run(main()).items() if at} == {}


def test_a_proxy_that_fails_shows_no_password() -> None:
    async def main() -> list[str]:
        async with FakeCompatible(strict=False) as server:
            proxy = f"http://user:{PASSWORD}@127.0.0.1:1"
            async with platform_of(server, "own", AI_SERVICES__OWN__PROXY=proxy) as platform:
                return leaks(await failing(platform.query(Query(service="own", prompt=PROMPT))))

    assert asyncio.run(main()) == []


def test_the_command_line_shows_no_token() -> None:
    async def main() -> list[str]:
        client = ServerClient(PlatformOptions(url="http://127.0.0.1:1", token=KEY))
        found = leaks(await failing(client.get("/monitoring/health", dict)))
        found += leaks(await failing(client.post("/x", dict, {})))
        await client.close()
        return found

    assert asyncio.run(main()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"KOO_TOKEN": "canary \u00e9"},
        {"KOO_TOKEN": "'canary'"},
        {"OPENAI_API_KEY": "canary key"},
        {"DATABASE_URL": "nothing://user:canary@host/db"},
        {"KOO_STATE_URL": "postgresql://user:canary@host:port/db"},
        {"KOO_SMTP_URL": "smtp://user:canary@host?x=1"},
        {"KOO_ALERT_WEBHOOK": "ftp://canary"},
        {"KOO_ALERT_WEBHOOK_SECRET": "canary"},
        {"KOO_ALERT_SLACK": "https://host:port/canary"},
        {"AI_SERVICES__OWN__HEADERS__X_OWN": "canary\n"},
        {"AI_SERVICES__OWN__BODY__X__Y": "canary", "AI_SERVICES__OWN__BODY__X": "canary"},
        {"AI_SERVICES__OPENAI__BASE_URL": "https://user:canary@host:port/"},
        {"AI_SERVICES__OPENAI__PROXY": "socks5://user:canary@host"},
        {"AI_SERVICES__OPENAI__NO_SUCH": "canary"},
        {"KOO_READ_TOKEN": "canary-canary-canary"},
        {"KOO_HOST": "0.0.0.0", "KOO_TOKEN": "canary-short"},
    ],
    ids=str,
)
def test_a_refused_setting_is_not_shown(wrong: dict[str, str], tmp_path: Path) -> None:
    async def main() -> list[str]:
        async def set_up() -> None:
            async with Platform(Settings(environ={"KOO_HOME": str(tmp_path), **wrong}).platform_options()):
                pass

        return [at for at in leaks(await failing(set_up())) if "environ" not in at]

    assert asyncio.run(main()) == []
