"""Queries through a proxy on real sockets: what is sent, how failures are reported, and what is billed."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path
from urllib.parse import quote

import anthropic
import openai
import pytest

from koo.errors import AuthenticationFailed, ExternalServiceError, Kind, ServiceFailed
from koo.http.client import HttpClient
from koo.http.connector import TransportError
from koo.http.proxies import read_proxy
from koo.network_options import NetworkOptions
from koo.options import RetryOptions
from koo.testing.http_proxy import FakeHttpProxy
from koo.testing.providers import FakeAnthropic, FakeCompatible, raw
from koo.testing.providers.script import Raw
from tests.network.support import (
    NAME,
    PASSWORD,
    ask,
    certificate,
    failure,
    platform,
    proxied,
    service,
    tunnelled,
)

URL = f"http://{NAME}"


def with_password(proxy: FakeHttpProxy, password: str = PASSWORD) -> str:
    return f"http://user:{quote(password, safe='')}@127.0.0.1:{proxy.port}"


def refused_port() -> int:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port: int = closed.getsockname()[1]
        return port


# ── success ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_host_that_only_the_proxy_can_resolve_is_reached(tmp_path: Path) -> None:
    """No name is looked up on this machine, as in a container whose only way out is the proxy."""
    with FakeAnthropic() as server, proxied(server) as proxy:
        koo = platform(tmp_path, service(URL), NetworkOptions(http_proxy=proxy.url))
        assert ask(koo).text
        assert [one.target for one in proxy.requests] == [f"{URL}/v1/messages"]
        assert koo.service_health("claude")["configuration"]["proxy"] == proxy.url


def test_the_password_goes_to_the_proxy_and_not_to_the_service(tmp_path: Path) -> None:
    with FakeAnthropic() as server, proxied(server, user="user", password=PASSWORD) as proxy:
        koo = platform(tmp_path, service(URL), NetworkOptions(http_proxy=with_password(proxy)))
        assert ask(koo).text
        assert "proxy-authorization" not in server.queries[0].headers
        shown = koo.service_health("claude")["configuration"]["proxy"]
        assert shown == f"http://127.0.0.1:{proxy.port}"


def test_https_uses_a_tunnel_and_only_its_opening_contains_the_password(tmp_path: Path) -> None:
    """SSL_CERT_FILE names the network's own certificate authority."""
    authority = certificate(tmp_path, NAME)
    with FakeAnthropic() as server, tunnelled(server, authority, user="user", password=PASSWORD) as proxy:
        network = NetworkOptions(https_proxy=with_password(proxy), cert_file=authority)
        koo = platform(tmp_path, service(f"https://{NAME}"), network)
        assert ask(koo).text
        assert [(one.method, one.target) for one in proxy.requests] == [("CONNECT", f"{NAME}:443")]
        assert "proxy-authorization" not in server.queries[0].headers


def test_a_tunnel_is_reused_for_the_next_query(tmp_path: Path) -> None:
    authority = certificate(tmp_path, NAME)
    with FakeAnthropic(strict=False) as server, tunnelled(server, authority) as proxy:
        http = HttpClient(network=NetworkOptions(cert_file=authority), proxy=read_proxy(proxy.url))

        async def main() -> list[int]:
            got = [(await http.request("GET", f"https://{NAME}/v1/models")).status for _ in range(3)]
            await http.close()
            return got

        assert asyncio.run(main()) == [401, 401, 401]
        assert len(proxy.requests) == 1


def test_a_service_on_this_machine_bypasses_the_environments_proxy(tmp_path: Path) -> None:
    with FakeAnthropic() as server, FakeHttpProxy() as proxy:
        assert ask(platform(tmp_path, service(server.base_url), NetworkOptions(all_proxy=proxy.url))).text
        assert proxy.requests == []
    with FakeAnthropic() as server, FakeHttpProxy() as proxy:
        koo = platform(tmp_path, service(server.base_url, proxy=proxy.url), NetworkOptions())
        assert ask(koo).text and len(proxy.requests) == 1


@pytest.mark.parametrize("vendor", ["anthropic", "openai"])
def test_the_vendors_sdks_use_the_same_proxy_in_the_same_environment(
    vendor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTPS_PROXY with a user and password, and SSL_CERT_FILE: koo reaches what the SDKs reach."""
    from koo.settings import Settings

    authority = certificate(tmp_path, NAME)
    kinds = {"anthropic": FakeAnthropic, "openai": FakeCompatible}
    with kinds[vendor]() as server, tunnelled(server, authority, user="user", password="plain") as proxy:
        for name in ("HTTP_PROXY", "NO_PROXY", "no_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        environ = {
            "HTTPS_PROXY": with_password(proxy, "plain"),
            "SSL_CERT_FILE": str(authority),
            "AI_SERVICES__LAB__KIND": vendor,
            "AI_SERVICES__LAB__MODEL": "claude-sonnet-5-5" if vendor == "anthropic" else "lab",
            "AI_SERVICES__LAB__API_KEY": "test-key",
            "AI_SERVICES__LAB__INPUT_PRICE": "1",
            "AI_SERVICES__LAB__OUTPUT_PRICE": "1",
            "AI_SERVICES__LAB__BASE_URL": f"https://{NAME}" + ("" if vendor == "anthropic" else "/v1"),
        }
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        assert _text_of_the_sdk(vendor, environ["AI_SERVICES__LAB__BASE_URL"])
        from koo import Platform

        options = Settings(environ={**environ, "KOO_HOME": str(tmp_path)}).platform_options()
        assert ask(Platform(options), service="lab").text
        assert [one.method for one in proxy.requests] == ["CONNECT", "CONNECT"]


def _text_of_the_sdk(vendor: str, base_url: str) -> str:
    said = [{"role": "user", "content": "Capital of France?"}]
    if vendor == "anthropic":
        with anthropic.Anthropic(api_key="test-key", base_url=base_url, max_retries=0) as one:
            message = one.messages.create(model="claude-sonnet-5-5", max_tokens=50, messages=said)  # type: ignore[arg-type]
            return str(message.content)
    with openai.OpenAI(api_key="test-key", base_url=base_url, max_retries=0) as other:
        made = other.chat.completions.create(model="lab", max_tokens=50, messages=said)  # type: ignore[arg-type]
        return made.choices[0].message.content or ""


# ── failures: they name the proxy, cost nothing, and do not blame the vendor ──────────────────────────────────────────


@pytest.mark.parametrize(
    ("trouble", "words", "asked"),
    [
        (403, "refuses to connect to", 1),
        (502, "refuses to connect to", 2),
        ("reset", "closed the connection before", 2),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not respond like an HTTP proxy", 2),
        (b"", "closed the connection before", 2),
    ],
)
def test_a_refused_tunnel_is_blamed_on_the_proxy_and_has_stage_connect(
    trouble: int | str | bytes, words: str, asked: int, tmp_path: Path
) -> None:
    with FakeHttpProxy(user="user", password=PASSWORD) as proxy:
        proxy.trouble = trouble
        network = NetworkOptions(all_proxy=with_password(proxy))
        koo = platform(tmp_path, service(f"https://{NAME}"), network)
        found = failure(koo)
        check(found, words, proxy)
        assert len(proxy.requests) == asked
        assert koo.service_health("claude")["rate_limits"]["daily_budget"]["spent"] == "0"


def check(found: ExternalServiceError, words: str, proxy: FakeHttpProxy) -> None:
    assert isinstance(found, ServiceFailed) and not isinstance(found, AuthenticationFailed)
    assert (found.kind, found.billable) == (Kind.CONNECTION, False)
    assert words in str(found) and f"the proxy http://127.0.0.1:{proxy.port}" in str(found)
    assert PASSWORD not in str(found) and "user:" not in str(found)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("password", "words"),
    [("wrong", "rejects the user and password"), (None, "requires a user and password")],
)
def test_a_407_is_not_retried_and_not_taken_for_a_refused_key(
    scheme: str, password: str | None, words: str, tmp_path: Path
) -> None:
    """Many companies lock an account after several attempts with a wrong password."""
    with FakeHttpProxy(user="user", password=PASSWORD) as proxy:
        url = proxy.url if password is None else with_password(proxy, password)
        koo = platform(tmp_path, service(f"{scheme}://{NAME}"), NetworkOptions(all_proxy=url))
        check(failure(koo), words, proxy)
        assert len(proxy.requests) == 1
        health = koo.service_health("claude")
        assert health["rate_limits"]["daily_budget"]["spent"] == "0"
        assert (
            health["health"]["circuit_breaker_state"] == "closed" and health["health"]["failure_count"] == 1
        )


def test_an_unreachable_proxy_is_named(tmp_path: Path) -> None:
    port = refused_port()
    koo = platform(tmp_path, service(URL), NetworkOptions(http_proxy=f"http://u:secret@127.0.0.1:{port}"))
    found = failure(koo)
    assert f"cannot connect to the proxy http://127.0.0.1:{port}" in str(found) and found.billable is False
    koo = platform(tmp_path, service(URL), NetworkOptions(http_proxy="http://proxy.invalid:3128"))
    assert "the host name of the proxy http://proxy.invalid:3128 cannot be resolved" in str(failure(koo))


def test_a_silent_proxy_is_given_up_after_three_times_the_connect_timeout() -> None:
    with FakeHttpProxy() as proxy:
        proxy.trouble = "silent"
        http = HttpClient(connect_timeout_s=0.05, proxy=read_proxy(proxy.url))

        async def main() -> TransportError:
            with pytest.raises(TransportError) as caught:
                await http.request("POST", f"https://{NAME}/", body=b"{}")
            await http.close()
            return caught.value

        found = asyncio.run(main())
        assert found.stage == "connect" and "did not connect to ai.example in time" in found.reason


def test_an_untrusted_certificate_names_the_proxy_and_the_setting(tmp_path: Path) -> None:
    authority = certificate(tmp_path, NAME)
    with FakeAnthropic() as server, tunnelled(server, authority) as proxy:
        koo = platform(tmp_path, service(f"https://{NAME}"), NetworkOptions(https_proxy=proxy.url))
        found = str(failure(koo))
        assert "through the proxy" in found and "SSL_CERT_FILE" in found
        assert server.queries == []


@pytest.mark.parametrize(
    ("answered", "kind"),
    [
        (raw(status=502, body=b"<html>bad gateway</html>", content_type="text/html"), Kind.SERVER_ERROR),
        (
            raw(status=403, body=b"<html>forbidden here</html>", content_type="text/html"),
            Kind.INVALID_REQUEST,
        ),
        (raw(status=511, body=b"<html>log in first</html>", content_type="text/html"), Kind.SERVER_ERROR),
        (raw(body=b"<html>please log in</html>", content_type="text/html"), Kind.BAD_ANSWER),
    ],
)
def test_a_web_page_in_place_of_a_response_names_the_proxy(answered: Raw, kind: Kind, tmp_path: Path) -> None:
    """Over plain HTTP a proxy's page looks like the service's. The vendor's own errors do not name the proxy."""
    with FakeAnthropic(default=answered) as server, proxied(server) as proxy:
        koo = platform(
            tmp_path, service(URL, retry=RetryOptions(attempts_max=1)), NetworkOptions(http_proxy=proxy.url)
        )
        found = failure(koo)
        assert (
            found.kind is kind
            and f"through the proxy {proxy.url}, which may have sent this response" in str(found)
        )


def test_a_407_from_an_unknown_proxy_falls_back_to_the_next_service(
    tmp_path: Path,
) -> None:
    with FakeAnthropic(default=raw(status=407, body=b"<html>who?</html>")) as server:
        found = failure(platform(tmp_path, service(server.base_url), NetworkOptions()))
        assert (found.kind, found.billable) == (Kind.CONNECTION, False) and "status 407" in str(found)


def test_a_refusal_that_a_proxy_passes_on_counts_as_the_services_refusal(tmp_path: Path) -> None:
    with FakeAnthropic() as server, proxied(server) as proxy:
        server.fails(401)
        koo = platform(tmp_path, service(URL), NetworkOptions(http_proxy=proxy.url))
        assert isinstance(failure(koo), AuthenticationFailed)


def test_the_password_of_a_proxy_is_in_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with FakeHttpProxy(user="user", password=PASSWORD) as proxy:
        koo = platform(
            tmp_path, service(f"https://{NAME}"), NetworkOptions(all_proxy=with_password(proxy, "wr0ng"))
        )
        logging.getLogger("test").error("it failed", exc_info=failure(koo))
        assert "wr0ng" not in caplog.text + repr(koo.options) + str(koo.services_status())
