"""Several credentials under one name: refused keys and pauses belong to the key; limits, slots and breaker to the
name.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from typing import Any

import anthropic
import httpx
import openai
import perplexity
import pytest
from google import genai

from koo.ai import callees, credentials
from koo.ai.client_keys import find_key
from koo.ai.credentials import digest_of
from koo.alerts.absorbing import absorb
from koo.alerts.findings import Finding
from koo.alerts.service_rules import find_in_service
from koo.errors import (
    AuthenticationFailed,
    CircuitOpen,
    ExternalServiceError,
    Kind,
    RateLimited,
    ServiceFailed,
)
from koo.events import CooldownBegan, KeyBlocked, KeyUnblocked
from koo.monitoring.guards import Wall
from koo.monitoring.shapes import ServiceHealth
from koo.monitoring.snapshot import service_view, state_of
from koo.testing.clock import run_virtual
from tests.ai.own import Own

REFUSED = AuthenticationFailed("own", "refused", kind=Kind.AUTH)
THROTTLED = RateLimited("own", "too fast", 30.0, kind=Kind.THROTTLED)
SPENT = RateLimited("own", "spent", 300.0, kind=Kind.QUOTA)
LOST = ServiceFailed("own", "lost", kind=Kind.SERVER_ERROR)


class Client:
    """A tenant's client. `ask` raises `answer`, or returns it."""

    def __init__(self, api_key: str, answer: object = "ok") -> None:
        self.api_key = api_key
        self.answer = answer
        self.asked = 0

    async def ask(self) -> object:
        self.asked += 1
        await asyncio.sleep(0)
        if isinstance(self.answer, ExternalServiceError):
            raise type(self.answer)(
                "own", self.answer.reason, self.answer.retry_after_s, kind=self.answer.kind
            )
        return self.answer


def run(test: Callable[[Own], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        own = Own(**{"timeout_s": 10, **options})
        await test(own)
        assert own.service.gates.bulkhead.used == 0

    run_virtual(main())


async def outcome(own: Own, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> object:
    """The result of an awaitable, or the kind of the error that it raised."""
    try:
        return await own.execute(operation, *args, **kwargs)
    except (AuthenticationFailed, RateLimited, ServiceFailed, CircuitOpen) as error:
        return error.kind


def state(own: Own) -> tuple[str, str]:
    wall = own.clock.wall()
    found, reason = state_of(own.service, own.budgets.view("own", None, wall), Wall(own.clock))
    return found.value, reason


# ── what belongs to the key ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_refused_key_blocks_its_own_calls_and_no_others() -> None:
    async def test(own: Own) -> None:
        good, expired = Client("good"), Client("expired", REFUSED)
        assert await outcome(own, expired.ask) == Kind.AUTH
        assert [await outcome(own, expired.ask) for _ in range(3)] == [Kind.KEY_REFUSED] * 3
        assert [await outcome(own, good.ask) for _ in range(3)] == ["ok"] * 3
        assert (expired.asked, good.asked) == (1, 3)

    run(test)


@pytest.mark.parametrize("limit", [THROTTLED, SPENT], ids=["pause", "quota"])
def test_a_429_pauses_the_calls_of_its_own_key_and_no_others(limit: RateLimited) -> None:
    async def test(own: Own) -> None:
        good, busy = Client("good"), Client("busy", limit)
        assert await outcome(own, busy.ask) == limit.kind
        assert await outcome(own, busy.ask) == limit.kind and busy.asked == 1
        assert await outcome(own, good.ask) == "ok"
        busy.answer = "ok"
        await own.clock.sleep(limit.retry_after_s or 0)
        assert await outcome(own, busy.ask) in ("ok", limit.kind)
        await own.clock.sleep(20)
        assert await outcome(own, busy.ask) == "ok"

    run(test)


def test_only_calls_with_its_key_wait_for_a_pause() -> None:
    async def test(own: Own) -> None:
        good, busy = Client("good"), Client("busy", RateLimited("own", "too fast", 2.0, kind=Kind.THROTTLED))
        began = own.clock.monotonic()
        waiting = asyncio.create_task(own.execute(busy.ask))
        await asyncio.sleep(0.1)
        busy.answer = "ok"
        assert await own.execute(good.ask) == "ok" and own.clock.monotonic() - began < 1
        assert await waiting == "ok" and own.clock.monotonic() - began >= 2

    run(test)


def test_a_changed_key_is_used_immediately() -> None:
    async def test(own: Own) -> None:
        client = Client("expired", REFUSED)
        await outcome(own, client.ask)
        assert await outcome(own, client.ask) == Kind.KEY_REFUSED
        client.api_key, client.answer = "renewed", "ok"
        assert await outcome(own, client.ask) == "ok"
        assert await outcome(own, Client("expired").ask) == Kind.KEY_REFUSED, (
            "another client with the old key"
        )

    run(test)


def test_a_refused_key_is_retried_by_single_calls_at_growing_intervals() -> None:
    """koo cannot check a key that it does not have, so a single call serves as the check."""

    async def test(own: Own) -> None:
        client = Client("k", REFUSED)
        await outcome(own, client.ask)
        asked_at = []
        for _ in range(40):
            await own.clock.sleep(60)
            before = client.asked
            await asyncio.gather(*(outcome(own, client.ask) for _ in range(5)))
            if client.asked > before:
                assert client.asked == before + 1, "one of five concurrent calls"
                asked_at.append(own.clock.monotonic())
        gaps = [later - sooner for sooner, later in itertools.pairwise(asked_at)]
        assert gaps == sorted(gaps) and gaps[0] == 120 and gaps[-1] == 900
        client.answer = "ok"
        await own.clock.sleep(900)
        assert [await outcome(own, client.ask) for _ in range(3)] == ["ok"] * 3
        (unblocked,) = [event for event in own.events if isinstance(event, KeyUnblocked)]
        assert unblocked.credential == digest_of("k")

    run(test)


def test_a_call_sent_before_its_key_was_refused_proves_nothing() -> None:
    async def test(own: Own) -> None:
        client = Client("k")
        over = asyncio.Event()

        class Slow(Client):
            async def ask(self) -> object:
                await over.wait()
                return "ok"

        under_way = asyncio.create_task(own.execute(Slow("k").ask))
        await asyncio.sleep(0)
        client.answer = REFUSED
        await outcome(own, client.ask)
        await own.clock.sleep(60)
        assert await outcome(own, client.ask) == Kind.AUTH, "the call that serves as the check"
        over.set()
        assert await under_way == "ok" and await outcome(own, client.ask) == Kind.KEY_REFUSED

    run(test, timeout_s=600, attempt_timeout_s=300)


# ── what belongs to the name ──────────────────────────────────────────────────────────────────────────────────────────


def test_failures_of_all_keys_open_one_circuit() -> None:
    async def test(own: Own) -> None:
        for number in range(3):
            assert await outcome(own, Client(f"k{number}", LOST).ask) == Kind.SERVER_ERROR
        assert await outcome(own, Client("another").ask) == Kind.CIRCUIT_OPEN
        assert state(own)[0] == "circuit_open"

    run(test, failure_threshold=3)


def test_each_failure_counts_once_whatever_the_key() -> None:
    async def test(own: Own) -> None:
        lost = ServiceFailed("own", "lost", kind=Kind.CONNECTION)
        for number in range(2):
            await outcome(own, Client(f"k{number}", lost).ask)
        assert own.breaker.consecutive == 2

    run(test)


def test_limits_slots_and_money_are_shared_by_all_keys() -> None:
    async def test(own: Own) -> None:
        clients = [Client(f"k{number}") for number in range(4)]
        assert [await outcome(own, client.ask) for client in clients] == ["ok"] * 3 + [Kind.RATE_LIMITED]
        assert own.spent_usd == Decimal(15)
        assert own.verdicts[0] == 3

    run(test, requests_per_minute=3, max_cost_usd=5, daily_budget=100)


def test_a_newcomer_with_another_key_does_not_overtake_callers_waiting_for_a_limit() -> None:
    async def test(own: Own) -> None:
        first, second = Client("first"), Client("second")
        await own.execute(first.ask)
        await own.execute(second.ask)  # its gates have nothing to check now
        guard = own.service.guard_for(digest_of("first"))
        waiting = asyncio.create_task(guard.call(first.ask, on_limit="wait", timeout_s=120))
        await own.clock.sleep(0.1)
        own.service.forget_used()  # units are free, and a waiting caller checks again within a second
        assert await outcome(own, second.ask) == Kind.RATE_LIMITED
        assert await waiting == "ok"

    run(test, requests_per_minute=2)


# ── for display ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_service_with_some_refused_keys_is_healthy_and_says_how_many() -> None:
    async def test(own: Own) -> None:
        assert state(own) == ("healthy", "")
        await outcome(own, Client("secret-one", REFUSED).ask)
        assert state(own) == ("circuit_open", "the provider refused the key"), "the only one there is"
        await outcome(own, Client("secret-two").ask)
        assert state(own) == ("healthy", "the provider refused the keys of 1 of 2 credentials")
        await own.clock.sleep(1)
        await outcome(own, Client("secret-two", REFUSED).ask)
        assert state(own) == ("circuit_open", "the provider refused the keys of 2 of 2 credentials")
        assert "secret" not in repr(own.events) and digest_of("secret-one") not in repr(own.events)
        own.service.reset()
        assert state(own) == ("healthy", "")
        assert await outcome(own, Client("secret-one").ask) == "ok"

    run(test)


def test_a_clients_refused_key_raises_an_alert_with_a_number_and_no_key() -> None:
    def seen(own: Own) -> ServiceHealth:
        budget = own.budgets.view("own", None, own.clock.wall())
        return service_view(own.service, budget, own.clock)

    def alerts(own: Own) -> list[Finding]:
        return absorb(find_in_service(seen(own)))

    async def test(own: Own) -> None:
        await outcome(own, Client("secret-one").ask)
        assert alerts(own) == []
        await outcome(own, Client("secret-two", REFUSED).ask)
        (found,) = alerts(own)
        assert (found.kind, found.severity, found.data["clients"]) == ("client_key_refused", "warning", 1)
        assert "the keys of 1 of 2 clients" in found.message and "1 of 2 clients" in found.data["refuses"]
        shown = repr((found, seen(own)))
        assert "secret" not in shown and digest_of("secret-two") not in shown
        await own.clock.sleep(1)
        await outcome(own, Client("secret-one", REFUSED).ask)
        (found,) = alerts(own)
        assert found.kind == "service_down" and "client_key_refused" in found.data["also"], (
            "one cause, one alert"
        )
        own.service.reset()
        assert alerts(own) == []

    run(test)


def test_successful_calls_without_a_visible_key_count_too() -> None:
    async def hidden() -> str:
        return "ok"

    async def test(own: Own) -> None:
        await outcome(own, Client("k", REFUSED).ask)
        await own.clock.sleep(1)
        assert await outcome(own, hidden) == "ok" and state(own)[0] == "healthy"

    run(test)


def test_a_service_is_rate_limited_when_all_keys_pause() -> None:
    async def test(own: Own) -> None:
        one, two = Client("one", THROTTLED), Client("two")
        await outcome(own, one.ask)
        assert state(own)[0] == "rate_limited"
        await outcome(own, two.ask)
        assert state(own)[0] == "healthy"
        own.service.reset()
        one.answer = "ok"
        assert await outcome(own, one.ask) == "ok"

    run(test)


def test_events_contain_the_digest_of_the_credential() -> None:
    async def test(own: Own) -> None:
        await outcome(own, Client("one", REFUSED).ask)
        await outcome(own, Client("two", THROTTLED).ask)
        told = {
            type(event): event.credential
            for event in own.events
            if isinstance(event, KeyBlocked | CooldownBegan)
        }
        assert told == {KeyBlocked: digest_of("one"), CooldownBegan: digest_of("two")}

    run(test)


def test_a_reset_ends_the_wait_for_a_tenants_pause() -> None:
    async def test(own: Own) -> None:
        client = Client("k", RateLimited("own", "too fast", 5.0, kind=Kind.THROTTLED))
        waiting = asyncio.create_task(own.execute(client.ask))
        await asyncio.sleep(0.1)
        client.answer = "ok"
        began = own.clock.monotonic()
        own.service.reset()
        assert await waiting == "ok" and own.clock.monotonic() - began <= 1

    run(test)


# ── how many are kept ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_beyond_the_limit_the_least_recently_used_credential_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(credentials, "CREDENTIALS_MAX", 3)

    async def test(own: Own) -> None:
        old, kept = Client("old", REFUSED), Client("kept", REFUSED)
        await outcome(own, old.ask)
        await outcome(own, kept.ask)
        for number in range(50):
            assert await outcome(own, Client(f"k{number}").ask) == "ok"
            assert await outcome(own, kept.ask) == Kind.KEY_REFUSED
        assert await outcome(own, old.ask) == Kind.AUTH, "forgotten, and so called once more"
        assert len(own.service.gates.kin) == 4

    run(test)


def test_a_refused_key_that_is_not_used_for_an_hour_is_forgotten() -> None:
    async def test(own: Own) -> None:
        await outcome(own, Client("rotated", REFUSED).ask)
        await outcome(own, Client("new").ask)
        await own.clock.sleep(3700)
        own.service.tick()
        assert state(own) == ("healthy", "")

    run(test)


# ── finding the credential of a call ──────────────────────────────────────────────────────────────────────────────────


def test_a_registration_may_name_the_credential_of_a_call() -> None:
    async def ask(tenant: str | None, answer: object) -> object:
        return await Client("the gateway's", answer).ask()

    async def test(own: Own) -> None:
        assert await outcome(own, ask, "ada", REFUSED) == Kind.AUTH
        assert await outcome(own, ask, "ada", "ok") == Kind.KEY_REFUSED
        assert await outcome(own, ask, "bob", "ok") == "ok" and await outcome(own, ask, None, "ok") == "ok"

    run(test, credential=lambda tenant, answer: tenant)


def test_a_credential_must_have_a_name_that_stays_the_same() -> None:
    async def test(own: Own) -> None:
        with pytest.raises(TypeError, match="credential must return a name"):
            await own.execute(Client("one").ask)

    run(test, credential=object)


def test_one_name_for_all_clients_makes_them_one_credential() -> None:
    async def test(own: Own) -> None:
        await outcome(own, Client("one", REFUSED).ask)
        assert await outcome(own, Client("two").ask) == Kind.KEY_REFUSED

    run(test, credential="the gateway's account")


def test_a_client_in_the_arguments_or_the_closure_is_found() -> None:
    """`execute(name, ask, client)` and `lambda: client.responses.create(...)` are the two usual ways."""

    async def ask(client: openai.AsyncOpenAI, *, other: object = None) -> object:
        if client.api_key == "expired":
            raise AuthenticationFailed("own", "refused", kind=Kind.AUTH)
        return "ok"

    async def test(own: Own) -> None:
        good, expired = openai.AsyncOpenAI(api_key="good"), openai.AsyncOpenAI(api_key="expired")
        ways: list[Callable[[openai.AsyncOpenAI], Awaitable[object]]] = [
            lambda client: outcome(own, ask, client),
            lambda client: outcome(own, ask, client=client),
            lambda client: outcome(own, lambda: ask(client)),
            lambda client: outcome(own, functools.partial(ask, client)),
        ]
        for way in ways:
            own.service.reset()
            assert await way(expired) == Kind.AUTH
            assert await way(expired) == Kind.KEY_REFUSED and await way(good) == "ok"

    run(test)


def test_a_key_in_the_arguments_is_found() -> None:
    """LiteLLM's functions take the key with each call."""

    async def acompletion(*, model: str, api_key: str) -> str:
        if api_key == "expired":
            raise AuthenticationFailed("own", "refused", kind=Kind.AUTH)
        return "ok"

    async def test(own: Own) -> None:
        assert await outcome(own, acompletion, model="m", api_key="expired") == Kind.AUTH
        assert await outcome(own, acompletion, model="m", api_key="expired") == Kind.KEY_REFUSED
        assert await outcome(own, acompletion, model="m", api_key="good") == "ok"

    run(test)


def test_a_key_in_the_headers_of_one_call_replaces_its_clients() -> None:
    """Many gateways take a customer's own key in a header."""

    class Gateway(Client):
        async def send(self, extra_headers: dict[str, str]) -> object:
            if "Bearer expired" in extra_headers.values():
                raise AuthenticationFailed("own", "refused", kind=Kind.AUTH)
            return "ok"

    async def test(own: Own) -> None:
        send = Gateway("the gateway's").send
        for name in ("Authorization", "x-api-key"):
            own.service.reset()
            expired = {name: "Bearer expired"}
            assert await outcome(own, send, extra_headers=expired) == Kind.AUTH
            assert await outcome(own, send, extra_headers=expired) == Kind.KEY_REFUSED
            assert await outcome(own, send, extra_headers={name: "Bearer good"}) == "ok"
            assert await outcome(own, send, extra_headers={"X-Trace": "1"}) == "ok"
            assert await outcome(own, functools.partial(send, extra_headers=expired)) == Kind.KEY_REFUSED

    run(test)


def with_source(source: Any) -> dict[str, Callable[..., Any]]:
    """Operations of clients that get their key from `source` when they need one."""
    azure: Any = {"azure_endpoint": "http://127.0.0.1:9", "api_version": "1"}
    return {
        "openai": openai.AsyncOpenAI(api_key=source).responses.create,
        "azure": openai.AsyncAzureOpenAI(azure_ad_token_provider=source, **azure).responses.create,
        "anthropic": anthropic.AsyncAnthropic(credentials=source).messages.create,
    }


def test_the_source_of_a_clients_keys_identifies_its_tenant() -> None:
    """One tenant's source may return a refused token while another's returns a valid one."""

    def source() -> Any:
        async def token() -> str:
            raise AssertionError("koo must not fetch a token")

        return token

    one, other = source(), source()
    for name in with_source(one):
        keys = []
        for made in (with_source(one), with_source(one), with_source(other)):
            callee, inner, _ = callees.look(made[name])
            keys.append(callee.credential(inner))
        assert keys[0] and keys[0] == keys[1] != keys[2], name


def test_a_stream_also_belongs_to_its_clients_key() -> None:
    class Streaming(Client):
        async def pieces(self) -> AsyncIterator[object]:
            yield await self.ask()

    async def read(own: Own, client: Streaming) -> object:
        try:
            return [piece async for piece in own.stream(client.pieces)]
        except AuthenticationFailed as error:
            return error.kind

    async def test(own: Own) -> None:
        expired = Streaming("expired", REFUSED)
        assert [await read(own, expired) for _ in range(2)] == [Kind.AUTH, Kind.KEY_REFUSED]
        assert await read(own, Streaming("good")) == ["ok"]

    run(test)


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return call


def places() -> dict[str, Any]:
    """Operations of clients whose key is "the key"."""
    gpt = openai.AsyncOpenAI(api_key="the key")
    return {
        "chat": gpt.chat.completions.create,
        "responses": gpt.responses.create,
        "raw": gpt.chat.completions.with_raw_response.create,
        "with options": gpt.with_options(timeout=5).responses.create,
        "the client's own method": gpt.post,
        "partial": functools.partial(gpt.responses.create, model="m"),
        "wrapped": wrapped(gpt.responses.create),
        "azure": openai.AsyncAzureOpenAI(
            api_key="the key", azure_endpoint="http://127.0.0.1:9", api_version="1"
        ).responses.create,
        "anthropic": anthropic.AsyncAnthropic(api_key="the key").messages.create,
        "token": anthropic.AsyncAnthropic(auth_token="the key").messages.create,
        "gemini": genai.Client(api_key="the key").aio.models.generate_content,
        "perplexity": perplexity.AsyncPerplexity(api_key="the key").responses.create,
        "synchronous": openai.OpenAI(api_key="the key").responses.create,
        "headers": openai.AsyncOpenAI(
            api_key="the gateway's", default_headers={"Authorization": "the key"}
        ).responses.create,
        "http": httpx.AsyncClient(headers={"Authorization": "the key"}).post,
        "own class": Client("the key").ask,
    }


@pytest.mark.parametrize("name", places())
def test_a_clients_key_is_found_where_its_library_stores_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    callee, inner, _ = callees.look(places()[name])
    assert callee.credential(inner) == digest_of("the key")


def test_no_property_of_an_applications_object_is_read() -> None:
    class Row:
        @property
        def client(self) -> object:
            raise AssertionError("this would load it from a database")

        api_key = token = client

        async def save(self) -> str:
            return "ok"

    assert find_key(Row()) is None

    async def test(own: Own) -> None:
        assert await own.execute(Row().save) == "ok"

    run(test)


def test_a_digest_distinguishes_keys_and_reveals_none() -> None:
    assert digest_of("sk-1") == digest_of("sk-1") != digest_of("sk-2")
    assert len(digest_of("sk-1")) == 16 and digest_of("\ud800")
