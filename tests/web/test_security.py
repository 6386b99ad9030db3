"""Access rules: as a table, and with attacks on a real server."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from koo.options import PlatformOptions
from koo.passage import Passage
from koo.web import create_app
from koo.web.security import Access, Asked, host_name, is_local_peer
from tests.web.serving import Client, platform, served

RESET = "/api/v1/monitoring/database/reset-circuit-breaker"
HEALTH = "/api/v1/monitoring/health"
ACTS = (
    "/api/v1/ai/query",
    "/api/v1/ai/batch-query",
    "/api/v1/ai/services/health-check",
    "/api/v1/ai/services/claude/reset-errors",
    "/api/v1/ai/services/reset-all-errors",
    "/api/v1/monitoring/database/health-check",
)
OWN = "127.0.0.1:8000"


def asked(method: str = "GET", path: str = HEALTH, peer: str | None = "127.0.0.1", **headers: str) -> Asked:
    named = {"host": OWN, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return Asked(method, path, named, peer)


def status(access: Access, question: Asked) -> int:
    denial = access.judge(question)
    return 200 if denial is None else denial.status


OPEN = Access.of(PlatformOptions())
LOCKED = Access.of(PlatformOptions(token="write", read_token="read", url="https://koo.example.org"))
TWO = Access.of(PlatformOptions(token="write", token_2="write2", read_token="read", read_token_2="read2"))
PROXIED = Access.of(PlatformOptions(trusted_proxies=("127.0.0.1", "10.0.0.0/8")))


# ── without a token ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1:8000", True),
        ("localhost:8000", True),
        ("LOCALHOST", True),
        ("localhost.", True),
        ("[::1]:8000", True),
        ("127.0.0.2:9999", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("evil.example:127.0.0.1", False),
        ("evil.example@127.0.0.1", False),
        ("127.0.0.1/evil", False),
        ("192.168.1.7:8000", False),
        ("0.0.0.0:8000", False),
        ("[::ffff:10.0.0.1]", False),
        ("", False),
        ("[", False),
        ("127.0.0.1:port", False),
    ],
)
def test_a_foreign_host_name_is_refused_for_any_request(host: str, known: bool) -> None:
    """Otherwise a page whose name suddenly resolves to this machine would be taken for koo's own."""
    for question in (asked(host=host), asked("POST", RESET, host=host), asked(path="/livez", host=host)):
        assert status(OPEN, question) == (200 if known else 403)


def test_the_host_names_in_the_settings_are_accepted() -> None:
    access = Access.of(
        PlatformOptions(host="192.168.1.7", url="http://koo.internal:8000", token="t"), ["my.name"]
    )
    for host in ("192.168.1.7:8000", "koo.internal", "my.name:80"):
        assert host_name(host) in (access.hosts or ())
    everywhere = PlatformOptions(host="0.0.0.0", token="t")
    assert status(Access.of(everywhere), asked(host="10.1.2.3", authorization="Bearer t")) == 200


def test_two_host_headers_are_refused() -> None:
    twice = Asked("GET", HEALTH, {"host": OWN}, "127.0.0.1", frozenset({"host"}))
    assert status(OPEN, twice) == 403


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),  # curl
        ({"sec_fetch_site": "none"}, True),  # typed by the user
        ({"sec_fetch_site": "same-origin", "origin": f"http://{OWN}"}, True),
        ({"origin": f"http://{OWN}"}, True),
        ({"origin": "http://127.0.0.1:8000"}, True),
        ({"sec_fetch_site": "cross-site"}, False),
        ({"sec_fetch_site": "same-site"}, False),  # another port of localhost
        ({"sec_fetch_site": "cross-site", "origin": f"http://{OWN}"}, False),
        ({"origin": "http://127.0.0.1:3000"}, False),
        ({"origin": "http://localhost:8000"}, False),  # the page came from another name than it requests
        ({"origin": "https://evil.example"}, False),
        ({"origin": f"http://{OWN}.evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": ""}, False),
        ({"sec_fetch_site": ""}, False),
        ({"sec_fetch_site": "none", "origin": "https://evil.example"}, False),  # no browser sends both
        ({"sec_fetch_site": "same-origin", "origin": "https://evil.example"}, False),
    ],
)
def test_a_page_of_another_origin_cannot_change_anything(headers: dict[str, str], allowed: bool) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "BREW"):
        assert status(OPEN, asked(method, RESET, **headers)) == (200 if allowed else 403)
    assert status(OPEN, asked("GET", HEALTH, **headers)) == 200


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        (None, False),
        ("", False),
        ("testclient", False),
        ("/run/koo.sock", False),
        ("192.168.1.7", False),
        ("::ffff:192.168.1.7", False),
        ("2001:db8::1", False),
    ],
)
def test_without_a_token_only_this_machine_is_allowed(peer: str | None, local: bool) -> None:
    """The application's server may listen on all addresses, where a Host header proves nothing."""
    assert is_local_peer(peer) is local
    assert status(OPEN, asked(peer=peer)) == (200 if local else 403)


# ── with a token ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("authorization", "reads", "writes"),
    [
        (None, 401, 401),
        ("", 401, 401),
        ("Bearer", 401, 401),
        ("Bearer ", 401, 401),
        ("Bearer wrong", 401, 401),
        ("Basic write", 401, 401),
        ("write", 401, 401),
        ("Bearer writ", 401, 401),
        ("Bearer wríte", 401, 401),
        ("Bearer read", 200, 403),
        ("Bearer write", 200, 200),
        ("bearer  write ", 200, 200),
    ],
)
def test_a_token_is_required_if_one_is_set(authorization: str | None, reads: int, writes: int) -> None:
    given = {} if authorization is None else {"authorization": authorization}
    assert status(LOCKED, asked("GET", HEALTH, **given)) == reads
    assert status(LOCKED, asked("POST", RESET, **given)) == writes


def test_probes_answer_any_caller_and_host_name_and_pages_need_no_token() -> None:
    for name in (OWN, "10.244.0.5:8000", "evil.example"):
        assert status(LOCKED, replace(asked(host=name), kind="probe")) == 200
    assert status(LOCKED, replace(asked(), kind="page")) == 200
    assert status(LOCKED, replace(asked(host="evil.example"), kind="page")) == 403


def test_with_a_valid_token_the_host_name_does_not_matter() -> None:
    for given, expected in (("Bearer write", 200), ("Bearer read", 200), ("Bearer no", 403)):
        assert status(LOCKED, asked(host="10.244.0.5:8000", authorization=given)) == expected


@pytest.mark.parametrize(
    ("token", "writes"), [("write", 200), ("write2", 200), ("read", 403), ("read2", 403)]
)
def test_two_tokens_of_a_kind_are_valid_at_the_same_time(token: str, writes: int) -> None:
    assert status(TWO, asked(authorization=f"Bearer {token}")) == 200
    assert status(TWO, asked("POST", RESET, authorization=f"Bearer {token}")) == writes


def test_two_authorization_headers_are_refused_even_if_one_is_valid() -> None:
    twice = replace(asked(authorization="Bearer write"), repeated=frozenset({"authorization"}))
    denial = LOCKED.judge(twice)
    assert denial is not None and denial.status == 401 and "twice" in denial.detail


def test_a_caller_with_the_token_may_come_from_any_origin() -> None:
    """A browser never sends a token without a script."""
    page = {
        "origin": "https://other.example",
        "sec_fetch_site": "cross-site",
        "authorization": "Bearer write",
    }
    assert status(LOCKED, asked("POST", RESET, peer="10.0.0.9", host="koo.example.org", **page)) == 200


# ── through a proxy ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "header",
    [
        {"x_forwarded_for": "127.0.0.1"},
        {"forwarded": "for=127.0.0.1"},
        {"via": "1.1 nginx"},
        {"x_real_ip": "127.0.0.1"},
        {"x_forwarded_proto": "https"},
        {"x_forwarded_host": "koo.example.org"},
    ],
)
def test_a_request_through_a_proxy_is_not_from_this_machine(header: dict[str, str]) -> None:
    """Otherwise every client of a proxy on this machine would count as local."""
    denial = OPEN.judge(asked(**header))
    assert denial is not None and denial.status == 403 and "KOO_TRUSTED_PROXIES" in denial.detail
    assert status(LOCKED, asked(authorization="Bearer write", **header)) == 200
    if "x_forwarded_for" not in header:
        assert not PROXIED.caller(asked(**header))  # not the proxy itself, although it is trusted


@pytest.mark.parametrize(
    ("peer", "header", "caller"),
    [
        ("127.0.0.1", "127.0.0.1, 10.0.0.7", None),  # each of them is a proxy
        ("127.0.0.1", "::1", "::1"),
        ("127.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("10.9.9.9", "127.0.0.2, 10.0.0.7", "127.0.0.2"),
        ("10.9.9.9", "127.0.0.2, 203.0.113.9, 10.0.0.7", "203.0.113.9"),
        ("203.0.113.1", "127.0.0.2", None),
        (None, "127.0.0.2", None),
        ("127.0.0.1", "", ""),
        ("::ffff:10.9.9.9", "203.0.113.9, ::ffff:10.0.0.7", "203.0.113.9"),  # a server that listens on ::
        ("10.9.9.9", "203.0.113.9:4711, 10.0.0.7:443", "203.0.113.9"),
        ("10.9.9.9", "[2001:db8::1]:4711", "2001:db8::1"),
    ],
)
def test_only_a_trusted_proxy_names_its_client(peer: str | None, header: str, caller: str | None) -> None:
    """The last address that is not our proxy counts. The client may have written those before it."""
    question = asked(peer=peer, x_forwarded_for=header)
    assert PROXIED.caller(question) == caller
    assert status(PROXIED, question) == (200 if caller in ("::1", "127.0.0.2") else 403)


def test_a_client_of_a_unix_socket_learns_why_it_is_not_local() -> None:
    """A proxy may serve any client through it, so even an operator on this machine is refused, with the reason."""
    denial = OPEN.judge(asked(peer=None))
    assert denial is not None and "Unix socket" in denial.detail


def test_a_repeated_header_names_no_client() -> None:
    twice = replace(asked(x_forwarded_for="127.0.0.2"), repeated=frozenset({"x-forwarded-for"}))
    assert PROXIED.caller(twice) is None


# ── on a real server ──────────────────────────────────────────────────────────────────────────────────────────────


def test_another_sites_page_cannot_reset_anything(tmp_path: Path) -> None:
    """Requests as a browser sends them for a form, a fetch and a rebound name get a problem, and nothing is closed."""
    attacks: list[dict[str, Any]] = [
        {"headers": {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}, "data": {"a": "b"}},
        {"headers": {"Origin": "null", "Content-Type": "text/plain"}, "data": b"{}"},
        {"headers": {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"}},
        {"headers": {"Host": "evil.example"}},
        {
            "headers": {
                "Host": "evil.example",
                "Origin": "http://evil.example",
                "Sec-Fetch-Site": "same-origin",
            }
        },
    ]

    async def main() -> None:
        from koo.policies.breaker import CLOSED

        koo = platform(tmp_path)
        async with served(create_app(koo)) as client:
            guard = koo.database.guard
            for _ in range(5):
                passage = Passage(None, guard.now() + 1, None)
                permit = await guard.enter(passage)
                guard.leave(passage, permit, _failure())
            assert guard.breaker.phase is not CLOSED
            for attack in attacks:
                for path in (RESET, *ACTS):
                    reply = await client.post(path, **attack)
                    assert (reply.status, reply.body["kind"]) == (403, "forbidden")
                assert guard.breaker.phase is not CLOSED
            assert (await client.post(RESET)).status == 200
            assert guard.breaker.phase is CLOSED

    asyncio.run(main())


@pytest.mark.parametrize("origin", [b"", b"Origin: http://evil.example\r\n", b"Origin: null\r\n"])
def test_websockets_are_not_accepted(tmp_path: Path, origin: bytes) -> None:
    """A browser opens one to any address without a preflight request. No route of koo uses them."""
    upgrade = (
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    )

    async def main() -> None:
        async with served(create_app(platform(tmp_path))) as client:
            for path in (HEALTH, RESET, "/dashboard/"):
                head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode()
                answer = await _raw(client, head + upgrade + origin, closing=False)
                assert answer.startswith(b"HTTP/1.1 403"), answer

    asyncio.run(main())


def _failure() -> Any:
    from koo.errors import Kind
    from koo.policies.verdict import FAILURE, Fault

    return Fault(verdict=FAILURE, kind=Kind.CONNECTION)


def test_a_server_with_a_token_requires_it(tmp_path: Path) -> None:
    async def main() -> None:
        app = create_app(platform(tmp_path, token="write-4711", read_token="read-4711"))
        async with served(app) as client:
            reply = await client.get(HEALTH)
            assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert reply.body["kind"] == "unauthorized"
            assert "4711" not in reply.text
            assert (await client.get("/readyz")).status == 200
            for token, reads, writes in (("read-4711", 200, 403), ("write-4711", 200, 200)):
                headers = {"Authorization": f"Bearer {token}"}
                assert (await client.get(HEALTH, headers=headers)).status == reads
                assert (await client.post(RESET, headers=headers)).status == writes

    asyncio.run(main())


def test_two_host_lines_are_refused(tmp_path: Path) -> None:
    """A proxy may read one of them and koo the other."""

    async def main() -> None:
        async with served(create_app(platform(tmp_path))) as client:
            answer = await _raw(client, b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n")
            assert answer.startswith((b"HTTP/1.1 403", b"HTTP/1.1 400"))

    asyncio.run(main())


async def _raw(client: Client, head: bytes, *, closing: bool = True) -> bytes:
    host, port = client.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), family=socket.AF_INET)
    writer.write(head + (b"Connection: close\r\n\r\n" if closing else b"\r\n"))
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer
