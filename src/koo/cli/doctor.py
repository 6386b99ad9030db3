"""`koo doctor`: checks everything that koo needs and suggests how to fix what is missing. Changes nothing."""

from __future__ import annotations

import asyncio
import logging
import shutil
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from koo.ai.providers.base import Request
from koo.ai.service import AIService
from koo.cli.check import Check, Result
from koo.cli.client import ServerClient, settings_for
from koo.cli.doctor_database import behind_database, database_itself
from koo.cli.doctor_store import state_store
from koo.cli.terminal import CommandFailed, Exit, progress, put, put_json, run_async
from koo.cli.words import in_utc
from koo.configuration.variables import BUILT_IN
from koo.errors import ConfigurationError, KooError
from koo.monitoring.overview import digest_of_home
from koo.monitoring.shapes import SystemHealth
from koo.platform import Platform
from koo.settings import Settings

EXITS: dict[Result, Exit] = {"problem": Exit.UNHEALTHY, "warning": Exit.DEGRADED}
FREE_BYTES_MIN = 200 * 1024 * 1024


SIGNS: dict[Result, str] = {"ok": "ok     ", "note": "note   ", "warning": "warning", "problem": "PROBLEM"}


def doctor(url: str | None, *, as_json: bool, workers: int = 1) -> Exit:
    """Run all checks; the exit code is that of the worst. `workers`: number of processes with this configuration."""
    with _quiet():
        checks = run_async(_examine(workers, url))
    worst: Result = next((one for one in EXITS if any(f.result == one for f in checks)), "ok")
    if as_json:
        put_json({"worst": worst, "findings": [asdict(check) for check in checks]})
    else:
        for check in checks:
            put(f"{SIGNS[check.result]}  {check.subject}: {check.found}")
            if check.advice:
                put(f"{'':9}→ {check.advice}")
    return EXITS.get(worst, Exit.OK)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log: the checks report the same, once and with advice."""
    log = logging.getLogger("koo")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


async def _examine(workers: int, url: str | None) -> list[Check]:
    try:
        settings = settings_for(url)
        platform = Platform(settings.platform_options())
        _ = platform.options  # building the parts can reveal more mistakes
    except ConfigurationError as error:
        return [
            Check(
                "configuration",
                "problem",
                str(error),
                "fix this variable; nothing else can be checked until then",
            )
        ]
    checks = [*_configuration(settings), *_files(settings), *_clock()]
    with progress("checking") as shown:
        async with platform:
            async for check in _connections(platform, workers):
                checks.append(check)
                shown.tell(f"checked {check.subject}")
    return checks


# ── without a network ─────────────────────────────────────────────────────────────────────────────────────────────


def _configuration(settings: Settings) -> Iterator[Check]:
    yield Check("configuration", "ok", f"read; KOO_HOME is {settings.koo_home}")
    for unknown in settings.unknown_variables:
        yield Check("configuration", "warning", str(unknown), "correct its name, or remove it")
    for doubt in settings.doubts:
        yield Check("configuration", "warning", doubt, "change or remove one of the two")


def _files(settings: Settings) -> Iterator[Check]:
    env = settings.koo_home / ".env"
    if env.is_file() and env.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        yield Check(
            "permissions", "warning", f"other users can read {env}, which contains keys", f"chmod 600 {env}"
        )
    data = settings.koo_home / "data"
    folder = data if data.is_dir() else settings.koo_home
    flaw = _write_flaw(folder)
    if flaw:
        yield Check(
            "permissions", "problem", f"{folder} cannot be written: {flaw}", "change its owner to koo's user"
        )
    else:
        yield Check("permissions", "ok", f"{folder} can be written")
    free = shutil.disk_usage(folder).free
    result: Result = "ok" if free >= FREE_BYTES_MIN else "problem"
    advice = "" if result == "ok" else "free some space; without it no spending can be recorded"
    yield Check("disk", result, f"{free / 2**30:.1f} GiB free", advice)


def _write_flaw(folder: Path) -> str:
    try:
        # The name is random, so that no one can have placed a symbolic link there.
        tempfile.NamedTemporaryFile(prefix=".koo-doctor-", dir=folder).close()
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


def _clock() -> Iterator[Check]:
    """Check that the clock is not earlier than koo's own files. If it is, days and budgets are wrong too."""
    written_at = Path(__file__).stat().st_mtime
    now = time.time()
    if now < written_at - 86_400:
        shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
        yield Check(
            "clock",
            "problem",
            f"it shows {shown}, which is in the past",
            "set it: budgets are counted by UTC day",
        )
    else:
        yield Check("clock", "ok", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now)))


# ── with a network ────────────────────────────────────────────────────────────────────────────────────────────────


async def _connections(platform: Platform, workers: int) -> AsyncIterator[Check]:
    yield await database_itself(platform.database)
    async for check in behind_database(platform.database, workers):
        yield check
    async for check in state_store(platform):
        yield check
    await platform.parts.prices.load()
    answers = await platform.check_services()
    for name, ai_service in platform.parts.ai_services.items():
        if name not in answers:
            yield _not_configured(ai_service)
            continue
        error = answers[name]["error"]
        yield Check(name, "problem", _without(name, error)) if error else await _reached(ai_service)
        yield _price(platform, ai_service)
    yield await _server(platform)


def _not_configured(ai_service: AIService) -> Check:
    name = ai_service.options.name
    if ai_service.options.kind == "local":
        return Check(name, "note", ai_service.service.obstacle)
    key = BUILT_IN[name][1].upper() if name in BUILT_IN else "its key"
    return Check(name, "note", "not configured", f"set {key} to use it")


async def _reached(ai_service: AIService) -> Check:
    """Report what a successful check has shown, and no more. The local model generates one token, which is free."""
    options = ai_service.options
    if options.kind == "local":
        return await _ask_local(ai_service)
    if options.api_key is None:
        return Check(options.name, "ok", f"is reachable; {options.model} was not queried")
    found = f"responds and accepts the key; {options.model} was not queried, because that would be billed"
    return Check(options.name, "ok", found)


async def _ask_local(ai_service: AIService) -> Check:
    options = ai_service.options
    request = Request(prompt="Hello", model=options.model, max_tokens=1)
    try:
        async with asyncio.timeout(options.attempt_timeout_s):
            completion = await ai_service.provider.complete(request)
    except TimeoutError:
        return Check(options.name, "problem", f"generated no token within {options.attempt_timeout_s:g} s")
    except KooError as error:
        return Check(options.name, "problem", error.reason)
    return Check(options.name, "ok", f"{completion.model} was loaded and responds")


def _price(platform: Platform, ai_service: AIService) -> Check:
    options = ai_service.options
    price = platform.parts.prices.find(options, options.model)
    if price is None:
        variable = f"AI_SERVICES__{options.name.upper()}__"
        advice = (
            f"set {variable}PRICE_AS to a model that costs as much, or {variable}INPUT_PRICE and "
            f"{variable}OUTPUT_PRICE, or pip install -U genai-prices"
        )
        return Check(options.name, "problem", f"the price of {options.model} is unknown", advice)
    return Check(
        options.name, "ok", "costs nothing" if price.free else f"the price of {options.model} is known"
    )


async def _server(platform: Platform) -> Check:
    client = ServerClient(platform.options)
    try:
        async with asyncio.timeout(platform.options.health_check_timeout_s):
            health = await client.get("/monitoring/health", SystemHealth)
    except (CommandFailed, TimeoutError) as error:
        return Check("server", "note", str(error) or "it did not respond in time")
    finally:
        await client.close()
    word, home = health["overall_health"], health.get("home")
    found = f"{client.url} reports {word}"
    if home is not None and home != digest_of_home(platform.options.home):
        found += ", but it runs from another folder, so it is not evidence about the configuration here"
        return Check("server", "note", found, "start koo here, or set KOO_URL to this folder's server")
    if word == "healthy":
        return Check("server", "ok", found)
    found = ": ".join((found, *filter(None, [in_utc("; ".join(_reasons(health)))])))
    return Check("server", "warning" if word == "degraded" else "problem", found, "koo status; koo alerts")


def _reasons(health: SystemHealth) -> Iterator[str]:
    """Yield what is unhealthy on a server, each with its last error."""
    parts = {"database": health.get("database"), **health.get("ai_services", {}).get("services", {})}
    for name, view in parts.items():
        if view is not None and view.get("configured", True) and (view["reason"] or view.get("error")):
            yield f"{name} {view['state']} ({view['reason'] or view.get('error')})"


def _without(name: str, error: str) -> str:
    """Remove the name at the start of the finding: it is already printed."""
    return error.removeprefix(f"{name}: ")
