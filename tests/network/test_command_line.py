"""The command line uses the same proxies for its server, and no command shows a secret of the network settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from koo.testing.http_proxy import FakeHttpProxy
from koo.testing.providers import FakeAnthropic
from tests.cli.running import Here, settings_of

SECRET = "s3cret-9f8e7d"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return Here(tmp_path, monkeypatch, capsys)


def test_the_command_line_uses_the_proxy_and_reports_its_failure(here: Here) -> None:
    with FakeHttpProxy() as proxy:
        here.set({"KOO_URL": "http://koo.example", "HTTP_PROXY": proxy.url})
        _, _, said = here.run("status")
        assert [one.target for one in proxy.requests] == ["http://koo.example/api/v1/monitoring/health"]
        assert "koo.example" in said
    _, _, said = here.run("status")
    assert f"cannot connect to the proxy {proxy.url}" in said


def test_no_command_shows_a_password_a_header_or_a_field(here: Here) -> None:
    with FakeAnthropic() as fake, FakeHttpProxy(user="user", password="other") as proxy:
        here.set(
            settings_of(
                fake,
                AI_SERVICES__CLAUDE__PROXY=f"http://user:{SECRET}@127.0.0.1:{proxy.port}",
                AI_SERVICES__CLAUDE__HEADERS__X_GATEWAY_KEY=SECRET,
                AI_SERVICES__CLAUDE__BODY__METADATA__USER_ID=SECRET,
                HTTPS_PROXY=f"http://user:{SECRET}@proxy.invalid:1",
                AI_LOCAL_ENABLED="false",
            )
        )
        for command in (["doctor"], ["config"], ["query", "claude", "Hello"]):
            _, out, err = here.run(*command)
            assert SECRET not in out + err, command
            if command != ["config"]:
                assert f"the proxy http://127.0.0.1:{proxy.port} rejects the user and password" in out + err
