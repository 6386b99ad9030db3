"""koo warns once of each key, token or password that would be sent to another machine over plain http://."""

from __future__ import annotations

import asyncio
import logging

import pytest

from koo import Platform
from koo.alert_options import AlertOptions
from koo.cli.client import ServerClient
from koo.http.plain_http import _say
from koo.network_options import NetworkOptions
from koo.options import PlatformOptions, ServiceOptions

AWAY, NEAR = "http://models.example:8000/v1", "http://127.0.0.1:8000/v1"
PROXY = "http://user:pass@proxy.example:3128"


@pytest.fixture(autouse=True)
def _unsaid() -> None:
    _say.cache_clear()


def warned(caplog: pytest.LogCaptureFixture, **options: object) -> list[str]:
    """The warnings when a platform with these options is created twice."""
    caplog.set_level(logging.WARNING, "koo")
    for _ in range(2):
        _ = Platform(PlatformOptions(**options)).parts  # type: ignore[arg-type]
    said = [record.getMessage() for record in caplog.records if "plain http" in record.getMessage()]
    assert not any("canary" in one or "pass" in one.replace("password", "") for one in said)
    return said


def service(url: str, **more: object) -> dict[str, object]:
    one = ServiceOptions(name="own", kind="openai_compatible", declared=True, model="m", base_url=url, **more)  # type: ignore[arg-type]
    return {"services": (one,)}


@pytest.mark.parametrize("more", [{"api_key": "canary"}, {"headers": {"x-api-key": "canary"}}], ids=str)
def test_a_key_over_plain_http_causes_one_warning(
    more: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    assert warned(caplog, **service(AWAY, **more)) == [
        "the key of own goes to models.example over plain http://, where others can read it; "
        "use https:// or a tunnel"
    ]


@pytest.mark.parametrize(
    "options",
    [
        service(NEAR, api_key="canary"),
        service("http://localhost:1/v1", api_key="canary"),
        service("http://[::1]:1/v1", api_key="canary"),
        service("https://models.example/v1", api_key="canary"),
        service(AWAY),
        service(AWAY, headers={"x-title": "t"}),
        {"services": (ServiceOptions(name="openai", kind="openai", api_key="canary"),)},
        service("https://models.example/v1", proxy="http://proxy.example:3128"),
        service("https://models.example/v1", proxy="http://u:canary@localhost:3128"),
        service("https://models.example/v1", proxy="https://u:canary@proxy.example"),
    ],
    ids=range(10),
)
def test_there_is_no_warning_if_no_secret_is_sent_unencrypted(
    options: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    assert warned(caplog, **options) == []


def test_a_proxy_password_over_plain_http_causes_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    options = {
        **service("https://models.example/v1", proxy=PROXY),
        "alerts": AlertOptions(webhook="https://hooks.example/x"),
        "network": NetworkOptions(https_proxy=PROXY),
    }
    (said,) = warned(caplog, **options)
    assert said.startswith(
        "the password of the proxy http://proxy.example:3128 goes to it over plain http://"
    )


def test_the_command_line_warns_of_its_token_over_plain_http(caplog: pytest.LogCaptureFixture) -> None:
    for url in ("http://koo.example", "http://127.0.0.1:8000"):
        asyncio.run(ServerClient(PlatformOptions(url=url, token="canary")).close())
    assert [record.getMessage()[:48] for record in caplog.records] == [
        "the token goes to koo.example over plain http://"
    ]
