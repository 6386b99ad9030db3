"""A browser's session: what its cookie allows, and what it does not."""

from __future__ import annotations

import asyncio
import json
import re
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette

from koo.options import PlatformOptions
from koo.web import create_app, live_routes, mount, session_routes
from koo.web.audit import audit_of
from koo.web.guesses import GUESSES_MAX
from koo.web.security import Access, Asked
from koo.web.session import LASTS_S, Sessions
from koo.web.session_routes import login_path
from tests.web.serving import Client, Reply, platform, served
from tests.web.streams import LIVE, listening

WRITE, READ = "w" * 32, "r" * 32
TOKENS = {"token": WRITE, "read_token": READ}
ALL = Sessions((WRITE,), (READ,))
NOW = 1_790_000_000.0
HEALTH, RESET = "/api/v1/monitoring/health", "/api/v1/monitoring/database/reset-circuit-breaker"


# ── the cookie ────────────────────────────────────────────────────────────────────────────────────────────────────


def cookie(token: str, sessions: Sessions = ALL, audience: str = "/api/v1") -> str:
    begun = sessions.begin(token, audience, NOW)
    assert begun is not None
    return f"{begun[0]}={begun[1]}"


@pytest.mark.parametrize(("token", "role"), [(WRITE, "write"), (READ, "read")], ids=["write", "read"])
def test_a_session_has_the_role_of_its_token_and_expires(token: str, role: str) -> None:
    given = f"theme=dark; {cookie(token)}; other=1"
    found = ALL.find(given, "/api/v1", NOW + LASTS_S - 1)
    assert found is not None and (found.role, found.ends_at) == (role, NOW + LASTS_S)
    assert ALL.find(given, "/api/v1", NOW + LASTS_S) is None
    assert ALL.begin("x" * 32, "/api/v1", NOW) is None
    assert ALL.begin("", "/api/v1", NOW) is None


def test_a_modified_cookie_is_invalid() -> None:
    name, _, value = cookie(READ).partition("=")
    role, ends_at, signature = value.split(".")
    write_name = cookie(WRITE).partition("=")[0]
    for forged in (
        f"write.{ends_at}.{signature}",
        f"{role}.{int(ends_at) + 1}.{signature}",
        f"{role}.{ends_at}.{'0' * 64}",
        f"{role}.{ends_at}.",
        f"{role}.{ends_at}",
        f"{role}.-1.{signature}",
        f"{role}.{ends_at}.{signature}.",
        "",
    ):
        assert ALL.find(f"{name}={forged}", "/api/v1", NOW) is None, forged
        assert ALL.find(f"{write_name}={forged}", "/api/v1", NOW) is None, forged
    assert (
        ALL.find(f"{name}=; {name}={value}", "/api/v1", NOW) is not None
    )  # another server's cookie next to it does no harm


def test_a_cookie_is_valid_only_below_its_own_prefix() -> None:
    assert ALL.find(cookie(WRITE, audience="/a/api/v1"), "/b/api/v1", NOW) is None


def test_changing_a_token_ends_its_sessions_and_no_others() -> None:
    changed, added = Sessions(("n" * 32,), (READ,)), Sessions((WRITE, "n" * 32), (READ,))
    assert changed.find(cookie(WRITE), "/api/v1", NOW) is None
    assert changed.find(cookie(READ), "/api/v1", NOW) is not None
    assert added.find(cookie(WRITE), "/api/v1", NOW) is not None
    # A read token that becomes the main token does not extend the sessions that it started.
    risen = Sessions((READ,)).find(cookie(READ), "/api/v1", NOW)
    assert risen is None


# ── what it allows ────────────────────────────────────────────────────────────────────────────────────────────────

LOCKED = Access.of(PlatformOptions(token=WRITE, read_token=READ, url="https://koo.example.org"))
OWN = {"host": "127.0.0.1:8000"}


def status(method: str, given: str, kind: Any = "guarded", **headers: str) -> int:
    named = {**OWN, "cookie": given, **{name.replace("_", "-"): value for name, value in headers.items()}}
    denial = LOCKED.judge(Asked(method, HEALTH, named, "203.0.113.9", kind=kind, audience="/api/v1", at=NOW))
    return 200 if denial is None else denial.status


def test_the_api_accepts_a_session_like_its_token() -> None:
    assert (status("GET", cookie(WRITE)), status("POST", cookie(WRITE))) == (200, 200)
    assert (status("GET", cookie(READ)), status("POST", cookie(READ))) == (200, 403)
    assert status("GET", "koo_0=write.1.0") == 401


@pytest.mark.parametrize(
    "foreign",
    [
        {"origin": "http://localhost:9999"},
        {"origin": "null"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "cross-site"},
    ],
    ids=["another port", "null", "same site", "cross site"],
)
def test_a_page_of_another_origin_cannot_use_a_cookie(foreign: dict[str, str]) -> None:
    """The browser sends the cookie automatically: SameSite allows it for another port of this host."""
    assert status("POST", cookie(WRITE), **foreign) == 403
    assert status("POST", "", kind="page", **foreign) == 403  # nor can it log anyone in
    assert status("POST", cookie(WRITE), origin="http://127.0.0.1:8000", sec_fetch_site="same-origin") == 200


def test_a_foreign_host_name_is_refused_even_with_a_cookie() -> None:
    assert status("GET", cookie(WRITE), host="evil.example") == 403


def test_a_cookie_next_to_a_token_is_ignored() -> None:
    assert status("GET", cookie(WRITE), authorization=f"Bearer {'x' * 32}") == 401
    assert status("POST", cookie(WRITE), authorization=f"Bearer {READ}") == 403


# ── over HTTP ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def log_in(client: Client, token: str, path: str = "/koo-login", **headers: str) -> Reply:
    return await client.post(path, data={"token": token}, headers=headers)


def cookies_of(reply: Reply) -> dict[str, str]:
    """Return the Cookie header that a browser would send next."""
    jar = SimpleCookie(reply.headers["Set-Cookie"])
    return {"Cookie": "; ".join(f"{name}={one.value}" for name, one in jar.items())}


def test_a_token_can_be_exchanged_for_a_cookie_but_a_cookie_cannot_be_exchanged(tmp_path: Path) -> None:
    async def main() -> None:
        koo = platform(tmp_path, **TOKENS)
        async with served(create_app(koo)) as client:
            form = await client.get("/koo-login")
            assert (form.status, form.headers["Referrer-Policy"]) == (200, "same-origin")
            assert "form-action 'self'" in form.headers["Content-Security-Policy"]
            assert "script" not in form.text
            begun = await log_in(client, WRITE, Origin=client.url)
            assert (begun.status, begun.headers["Location"]) == (303, "dashboard/")
            assert re.fullmatch(
                r"koo_[0-9a-f]{12}=write\.\d+\.[0-9a-f]{64}; Max-Age=43200; HttpOnly; SameSite=Strict",
                begun.headers["Set-Cookie"],
            )
            mine = cookies_of(begun)
            who = (await client.get("/api/v1/session", headers=mine)).body
            assert (who["role"], who["who"], who["login"]) == ("write", "session", True)
            assert who["expires_at"] is not None
            assert (await client.post(RESET, headers={**mine, "Origin": client.url})).status == 200
            assert (await client.post(RESET, headers={**mine, "Origin": "http://evil.example"})).status == 403
            async with listening(client, headers=mine) as stream:
                told = (await stream.until("whole"))["session"]
                assert {**told, "timestamp": ""} == {**who, "timestamp": ""}
            ended = await client.post("/koo-logout", headers={**mine, "Origin": client.url})
            assert (ended.status, ended.headers["Location"]) == (303, "koo-login")
            assert "Max-Age=0" in ended.headers["Set-Cookie"]
            entries = [(one["who"], one["what"], one["status"]) for one in audit_of(koo).entries()]
            assert ("session", "POST /koo-login", 200) in entries
            assert ("session", "POST /monitoring/database/reset-circuit-breaker", 200) in entries

    asyncio.run(main())


def test_a_read_session_is_refused_each_act(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(create_app(platform(tmp_path, **TOKENS))) as client:
            mine = cookies_of(await log_in(client, READ))
            assert (await client.get("/api/v1/session", headers=mine)).body["role"] == "read"
            refused = await client.post(RESET, headers={**mine, "Origin": client.url})
            assert refused.status == 403 and "read-only" in refused.body["detail"]

    asyncio.run(main())


def test_wrong_tokens_are_counted_and_a_valid_one_still_passes(tmp_path: Path) -> None:
    async def main() -> None:
        koo = platform(tmp_path, **TOKENS)
        async with served(create_app(koo)) as client:
            wrong = await log_in(client, "x" * 32)
            assert wrong.status == 401 and session_routes.WRONG in wrong.text and "x" * 32 not in wrong.text
            assert "Set-Cookie" not in wrong.headers
            for _ in range(GUESSES_MAX - 1):
                assert (await log_in(client, "x" * 32)).status == 401
            slowed = await log_in(client, "x" * 32)
            assert (slowed.status, slowed.headers["Retry-After"]) == (429, "60")
            assert (await client.post("/koo-login", data="token=" + "x" * 5000)).status == 429
            assert (await log_in(client, WRITE)).status == 303
            refused = [one["what"] for one in audit_of(koo).entries() if one["status"] == 401]
            assert refused == ["POST /koo-login"]

    asyncio.run(main())


def test_a_form_of_another_origin_logs_no_one_in(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(create_app(platform(tmp_path, **TOKENS))) as client:
            assert (await log_in(client, WRITE, Origin="http://evil.example")).status == 403
            assert (await log_in(client, WRITE, Host="evil.example")).status == 403

    asyncio.run(main())


def test_over_https_the_cookie_is_secure(tmp_path: Path) -> None:
    async def main() -> None:
        koo = platform(tmp_path, url="https://koo.example.org", **TOKENS)
        async with served(create_app(koo)) as client:
            begun = await log_in(client, WRITE, Host="koo.example.org", Origin="https://koo.example.org")
            assert begun.headers["Set-Cookie"].endswith("; HttpOnly; SameSite=Strict; Secure")

    asyncio.run(main())


def test_without_a_token_there_is_no_login(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(create_app(platform(tmp_path))) as client:
            for reply in (await client.get("/koo-login"), await log_in(client, WRITE)):
                assert (reply.status, reply.headers["Location"]) == (303, "dashboard/")
            who = (await client.get("/api/v1/session")).body
            assert (who["role"], who["who"], who["login"]) == ("write", "this machine", False)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("prefix", "page", "path"),
    [
        ("/api/v1", "/dashboard", "/koo-login"),
        ("/ops/api", "/ops/page", "/ops/koo-login"),
        ("", "/dashboard", "/koo-login"),
        ("/t/{tenant}/api", "/t/{tenant}/page", "/t/{tenant}/koo-login"),
    ],
    ids=["koo serve", "one folder", "no prefix", "a parameter"],
)
def test_the_form_is_in_the_common_folder_of_page_and_api(prefix: str, page: str, path: str) -> None:
    assert login_path(prefix, page) == path


@pytest.mark.parametrize("framework", [FastAPI, Starlette], ids=["FastAPI", "Starlette"])
def test_a_browser_sends_the_cookie_below_the_mount_and_nowhere_else(tmp_path: Path, framework: Any) -> None:
    """The cookie has no path, so a browser uses the form's folder as it sees it."""

    async def main() -> None:
        app = framework()
        mount(app, platform(tmp_path, **TOKENS), prefix="/ops/api", dashboard="/ops/page")
        async with served(app) as client, aiohttp.ClientSession(cookie_jar=jar()) as browser:
            async with browser.post(f"{client.url}/ops/koo-login", data={"token": WRITE}) as page:
                assert (page.status, page.url.path) == (200, "/ops/page/")
            async with browser.get(f"{client.url}/ops/api/session") as who:
                assert (await who.json())["who"] == "session"
            assert len(browser.cookie_jar.filter_cookies(page.url)) == 1
            assert not browser.cookie_jar.filter_cookies(page.url.with_path("/elsewhere"))

    asyncio.run(main())


def jar() -> aiohttp.CookieJar:
    return aiohttp.CookieJar(unsafe=True)  # of a URL


def test_a_stream_ends_with_its_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_routes, "CHECK_S", 0.0)
    monkeypatch.setattr(live_routes, "COMMENT_S", 0.05)
    monkeypatch.setattr("koo.web.session.LASTS_S", 1)  # whole seconds, so it is valid for a second at most

    async def main() -> None:
        async with served(create_app(platform(tmp_path, **TOKENS))) as client:
            mine = cookies_of(await log_in(client, READ))
            async with listening(client, headers=mine) as stream:
                if stream.status == 200:  # a busy machine may already have used up the second
                    assert await stream.until("end") == {"reason": "session"}
            late = await client.get(LIVE, headers=mine)
            assert late.status == 401 and "log in again" in json.loads(late.content)["detail"]

    asyncio.run(main())
