"""Turns your settings into the options of a platform that talks only to fakes.

No part of a real account is left: every service has the key and the address of its fake, `local` is a fake too, and no
proxy is used. The state store and the database are files in a temporary folder (or the database that the test names).
Your limits, budgets, deadlines, fallbacks and breakers stay as they are. Only the pauses between repeats are removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from koo.errors import ConfigurationError
from koo.network_options import NetworkOptions
from koo.options import DatabaseOptions, PlatformOptions, RetryOptions, ServiceOptions
from koo.settings import Settings, environment_with
from koo.storage.store import SqlStore
from koo.testing.providers.anthropic import FakeAnthropic
from koo.testing.providers.gemini import FakeGemini
from koo.testing.providers.openai import FakeCompatible, FakeOpenAI
from koo.testing.providers.perplexity import FakePerplexity
from koo.testing.providers.server import FakeProvider

KEY = "test-key"
STATE = "koo-state.db"
NO_PAUSE_S = 1e-6
FAKES: dict[str, tuple[type[FakeProvider], tuple[str, ...]]] = {
    "anthropic": (FakeAnthropic, ("claude-",)),
    "openai": (FakeOpenAI, ("gpt-", "o1", "o3", "o4")),
    "gemini": (FakeGemini, ("gemini-",)),
    "perplexity": (FakePerplexity, ("perplexity/", "sonar")),
    "openai_compatible": (FakeCompatible, ("",)),
    "local": (FakeCompatible, ("",)),
}
"""For each kind of service: its fake, and the prefixes of the model names that the fake accepts by default."""


def your_options(settings: Mapping[str, str]) -> PlatformOptions:
    """The options from `settings`, the environment and `.env`, in this order. Raises `ConfigurationError`."""
    read = Settings(environ=environment_with(settings))
    for said in read.unknown_variables:
        # An unknown name in the environment may belong to another program. One in a test's own settings is a typo.
        if said.name in settings:
            raise ConfigurationError("", str(said))
    return read.platform_options()


def make_fake(service: ServiceOptions) -> FakeProvider:
    """A fake for a service, which accepts the service's model."""
    kind, begins = FAKES[service.kind]
    knows = not service.model or service.model.startswith(begins)
    return kind(key=_key(service), models=None if knows else (service.model,))


def staged(
    options: PlatformOptions,
    fakes: dict[str, FakeProvider],
    home: Path,
    state: Path,
    database_url: str | None,
) -> PlatformOptions:
    """`options`, with the given fakes (by service name) as its services, and its files in the given folders."""
    services = [_service(one, fakes[one.name]) if one.name in fakes else one for one in options.services]
    return replace(
        options,
        home=home,
        state_url=f"sqlite:///{state / STATE}",
        database=_database(options.database, database_url or f"sqlite:///{home / 'app.db'}"),
        services=tuple(services),
        network=NetworkOptions(),
    )


async def empty_store(folder: Path) -> bytes:
    """The file of a state store with empty tables."""
    # The file is made once in a process: creating the tables takes longer than everything else in a world's start.
    if not _EMPTY:
        store = SqlStore(f"sqlite:///{folder / 'empty.db'}")
        await store.executor.run(lambda _: None)
        await store.executor.stop()
        _EMPTY.append((folder / "empty.db").read_bytes())
    return _EMPTY[0]


_EMPTY: list[bytes] = []


def _key(service: ServiceOptions) -> str | None:
    """The fake's key: always for a vendor, and for a self-hosted server only if the settings have one."""
    asks = service.kind not in ("local", "openai_compatible") or service.api_key is not None
    return KEY if asks else None


def _service(one: ServiceOptions, fake: FakeProvider) -> ServiceOptions:
    own_server = one.kind in ("local", "openai_compatible")
    return replace(
        one,
        kind="openai_compatible" if one.kind == "local" else one.kind,
        model=one.model or "local",
        declared=one.declared or own_server,
        base_url=fake.base_url,
        api_key=_key(one),
        proxy="",
        retry=_without_pauses(one.retry),
    )


def _database(options: DatabaseOptions, url: str) -> DatabaseOptions:
    return replace(options, url=url, retry=_without_pauses(options.retry))


def _without_pauses(retry: RetryOptions) -> RetryOptions:
    return replace(retry, base_s=NO_PAUSE_S, cap_s=NO_PAUSE_S)
