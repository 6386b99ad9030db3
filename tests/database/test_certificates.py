"""An untrusted TLS certificate is a configuration error: the message says so, and koo does not retry."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from koo.database.faults import ScopeStage, explain
from koo.errors import DatabaseUnavailable, Kind
from koo.server_words import by_words
from tests.database.support import ONE, opened, run
from tests.network.support import certificate

HERE, THERE = "127.0.0.1", "db.example"


@asynccontextmanager
async def server(made: Path) -> AsyncIterator[int]:
    """Stands in for PostgreSQL with this certificate, up to the TLS handshake. Yields its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, made.with_name("key.pem"))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError):
            await reader.readexactly(8)  # SSLRequest
            writer.write(b"S")
            await writer.start_tls(context)
            await reader.read(1)
        writer.close()

    async with await asyncio.start_server(serve, HERE, 0) as listening:
        yield listening.sockets[0].getsockname()[1]


async def refusal(driver: str, port: int) -> DatabaseUnavailable:
    asks = "sslmode=verify-full" if driver == "psycopg" else "ssl=verify-full"
    async with opened(f"postgresql+{driver}://user:secret@{HERE}:{port}/app?{asks}") as database:
        with pytest.raises(DatabaseUnavailable) as caught:
            async with database.session_scope() as session:
                await session.execute(ONE)
    return caught.value


@pytest.fixture
def authorities(tmp_path: Path) -> dict[str, Path]:
    """The authorities of two servers, neither of which is valid for 127.0.0.1."""
    made = {name: tmp_path / name for name in ("ours", "another")}
    for folder in made.values():
        folder.mkdir()
    return {name: certificate(folder, THERE) for name, folder in made.items()}


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@pytest.mark.parametrize(
    ("trusted", "words"),
    [
        ("another", "the server's TLS certificate is not trusted"),
        ("ours", "the server's TLS certificate is not for the host name"),
        ("none", "the file of trusted TLS certificate authorities cannot be read"),
    ],
)
def test_an_untrusted_certificate_is_named_in_the_error_and_not_retried(
    driver: str, trusted: str, words: str, authorities: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with server(authorities["ours"]) as port:
            error = await refusal(driver, port)
        assert words in error.reason
        assert (error.kind, error.attempts, error.retry_after_s) == (Kind.NOT_CONFIGURED, 1, None)

    if trusted == "none":
        monkeypatch.setenv("HOME", str(authorities["ours"].parent))  # where both drivers look by default
    else:
        monkeypatch.setenv("PGSSLROOTCERT", str(authorities[trusted]))
    run(main)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("SSL error: certificate has expired", "has expired"),
        ('could not load private key file "/etc/app.key": wrong tag', "the client's own TLS certificate"),
        ("SSL error: tlsv13 alert certificate required", "requires a client certificate"),
        ("SSL error: tlsv1 alert unknown ca", "requires a client certificate"),
    ],
)
def test_other_certificate_errors_of_the_tls_library_are_recognised(said: str, words: str) -> None:
    meaning = by_words(Exception(f'connection to server at "h", port 5432 failed: {said}'))
    assert words in meaning.says
    assert meaning.kind is Kind.NOT_CONFIGURED and not meaning.repeatable


def test_another_tls_handshake_failure_may_be_temporary() -> None:
    meaning = explain(ssl.SSLError(1, "[SSL] internal error"), ScopeStage.CONNECT)
    assert meaning.kind is Kind.CONNECTION and meaning.repeatable
