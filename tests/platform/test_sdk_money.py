"""A vendor's SDK under a built-in service's name: its calls count for that service's budgets, over real sockets."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import perplexity
import pytest
from google import genai
from google.genai import types

from koo import BudgetExceeded, ExternalServiceError, Platform, PriceUnknown
from koo.budget_options import BudgetOptions
from koo.events import BillExceededHold
from koo.options import LimitOptions, PlatformOptions, RetryOptions, ServiceOptions
from koo.testing.providers import (
    FakeAnthropic,
    FakeCompatible,
    FakeGemini,
    FakeOpenAI,
    FakePerplexity,
    FakeProvider,
    Gate,
    answer,
    cut,
    error,
    raw,
    stream,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of the SDKs about themselves
KEY: Any = {"api_key": "test-key", "max_retries": 0}
WORDS = "What is the capital of France? " * 100
SAID: Any = [{"role": "user", "content": WORDS}]
Call = Callable[..., Any]


class Vendor:
    """A vendor's fake, with the table's prices for `model`, and the way to call its SDK."""

    def __init__(
        self,
        service: str,
        kind: Any,
        fake: type[FakeProvider],
        model: str,
        prices: tuple[str, str],
        **ask: Any,
    ) -> None:
        self.service, self.kind, self.fake, self.model = service, kind, fake, model
        self.prices = [Decimal(one) for one in prices]
        self.ask: dict[str, Any] = {"model": model, **ask}

    def server(self) -> FakeProvider:
        return self.fake(input_price=self.prices[0], output_price=self.prices[1])

    @asynccontextmanager
    async def call(self, server: FakeProvider) -> AsyncIterator[Call]:
        """The SDK's method for a whole answer."""
        raise NotImplementedError
        yield


class Claude(Vendor):
    @asynccontextmanager
    async def call(self, server: FakeProvider) -> AsyncIterator[Call]:
        async with anthropic.AsyncAnthropic(base_url=server.base_url, **KEY) as client:
            yield client.messages.create


class Chat(Vendor):
    @asynccontextmanager
    async def call(self, server: FakeProvider) -> AsyncIterator[Call]:
        async with openai.AsyncOpenAI(base_url=server.base_url, **KEY) as client:
            yield client.chat.completions.create


class Responses(Vendor):
    @asynccontextmanager
    async def call(self, server: FakeProvider) -> AsyncIterator[Call]:
        async with openai.AsyncOpenAI(base_url=server.base_url, **KEY) as client:
            yield client.responses.create


class Google(Vendor):
    @asynccontextmanager
    async def call(self, server: FakeProvider) -> AsyncIterator[Call]:
        async with httpx2.AsyncClient() as transport:
            options = types.HttpOptions(base_url=server.url, httpx_async_client=transport)
            client = genai.Client(api_key="test-key", http_options=options).aio
            try:
                yield client.models.generate_content
            finally:
                await client.aclose()


class Sonar(Vendor):
    @asynccontextmanager
    async def call(self, server: FakeProvider) -> AsyncIterator[Call]:
        async with perplexity.AsyncPerplexity(base_url=server.url, **KEY) as client:
            yield client.responses.create


CLAUDE = Claude(
    "claude", "anthropic", FakeAnthropic, "claude-sonnet-5-5", ("2", "10"), max_tokens=100, messages=SAID
)
CHAT = Chat("openai", "openai", FakeOpenAI, "gpt-4.1", ("2", "8"), max_tokens=100, messages=SAID)
VENDORS = {
    "claude": CLAUDE,
    "chat": CHAT,
    "responses": Responses(
        "openai", "openai", FakeOpenAI, "gpt-6.1-terra", ("1", "5"), max_output_tokens=100, input=WORDS
    ),
    "gemini": Google(
        "gemini", "gemini", FakeGemini, "gemini-3.8-flash", ("0.75", "3.75"),
        contents=WORDS, config={"max_output_tokens": 100},
    ),
    "perplexity": Sonar(
        "perplexity", "perplexity", FakePerplexity, "perplexity/sonar", ("0.25", "2.5"),
        input=WORDS, max_output_tokens=100, tools=[{"type": "web_search"}],
    ),
}  # fmt: skip
each_vendor = pytest.mark.parametrize("vendor", VENDORS.values(), ids=VENDORS)


class World:
    """A platform with the vendor's service only, its fake server, and the SDK's method that calls it."""

    def __init__(self, vendor: Vendor, platform: Platform, server: FakeProvider, call: Call) -> None:
        self.vendor, self.platform, self.server, self.call = vendor, platform, server, call

    async def ask(self, operation: Call | None = None, **more: Any) -> Any:
        arguments = {**self.vendor.ask, **more} if operation is None else more
        return await self.platform.execute(self.vendor.service, operation or self.call, **arguments)

    async def ask_many(self, times: int, **more: Any) -> list[Any]:
        """The outcomes of calls that start at the same time."""
        return await asyncio.gather(*(self.ask(**more) for _ in range(times)), return_exceptions=True)

    @property
    def budget(self) -> dict[str, Any]:
        return dict(self.platform.service_health(self.vendor.service)["rate_limits"]["daily_budget"])

    @property
    def spent_usd(self) -> Decimal:
        return Decimal(self.budget["spent"])

    async def rows(self) -> list[Any]:
        return list((await self.platform.spend(by=("service", "model")))["rows"])


def service(vendor: Vendor, **more: Any) -> ServiceOptions:
    options: dict[str, Any] = {
        "limits": LimitOptions(), "retry": RetryOptions(attempts_max=1), "model": vendor.model, "api_key": "k",
    }  # fmt: skip
    return ServiceOptions(name=vendor.service, kind=vendor.kind, **{**options, **more})


def run(
    folder: Path,
    vendor: Vendor,
    work: Callable[[World], Awaitable[None]],
    *,
    day: str | None = "10",
    is_set: bool = True,
    budgets: tuple[BudgetOptions, ...] = (),
    **more: Any,
) -> None:
    async def main() -> None:
        one = service(
            vendor,
            daily_budget_usd=None if day is None else Decimal(day),
            budget_is_explicit=is_set,
            **more,
        )
        options = PlatformOptions(
            services=(one,), budgets=budgets, state_url=f"sqlite:///{folder / 'koo-state.db'}"
        )
        async with vendor.server() as server, vendor.call(server) as call, Platform(options) as platform:
            await work(World(vendor, platform, server, call))

    asyncio.run(main())


# ── what is booked ────────────────────────────────────────────────────────────────────────────────────────────────────


@each_vendor
def test_an_answer_is_booked_at_what_its_usage_costs(tmp_path: Path, vendor: Vendor) -> None:
    async def work(world: World) -> None:
        world.server.script(answer("Paris it is.", input_tokens=1234, output_tokens=56, reasoning_tokens=7))
        await world.ask()
        assert world.spent_usd == world.server.billed_usd > 0
        (row,) = await world.rows()
        assert (row["service"], row["model"]) == (vendor.service, vendor.model)
        assert (row["calls"], row["estimated_calls"]) == (1, 0)
        assert row["output_tokens"] == 56

    run(tmp_path, vendor, work)


@each_vendor
def test_an_answer_without_usage_is_booked_at_its_hold_as_an_estimate(tmp_path: Path, vendor: Vendor) -> None:
    async def work(world: World) -> None:
        world.server.script(answer("Paris.", usage=False))
        await world.ask()
        assert world.spent_usd > world.server.billed_usd
        (row,) = await world.rows()
        assert (row["estimated_calls"], row["model"]) == (1, vendor.model)

    run(tmp_path, vendor, work)


def test_a_refused_call_is_free_and_a_cut_answer_is_not(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        for step, costs in ((error(429), False), (error(500), False), (cut(60), True)):
            before = world.spent_usd
            world.server.script(step)
            with pytest.raises(ExternalServiceError):
                await world.ask()
            assert (world.spent_usd > before) is costs, step
        assert world.spent_usd > world.server.billed_usd > 0

    run(tmp_path, CHAT, work)


def test_a_bill_above_its_hold_is_booked_in_full_and_published(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        heard: list[Any] = []
        world.platform.events.listen(heard.append)
        world.server.script(answer("Paris.", input_tokens=100_000))
        await world.ask()
        assert world.spent_usd == world.server.billed_usd
        assert any(isinstance(event, BillExceededHold) for event in heard)

    run(tmp_path, CLAUDE, work)


# ── what is held ──────────────────────────────────────────────────────────────────────────────────────────────────────


@each_vendor
def test_a_budget_is_enforced_however_many_calls_start_at_the_same_time(
    tmp_path: Path, vendor: Vendor
) -> None:
    """With room for a few worst cases, the bill stays below the budget, and the booked amount equals the bill."""
    day = "0.6" if vendor.service == "perplexity" else "0.03"

    async def work(world: World) -> None:
        came = await world.ask_many(40)
        refused = [one for one in came if isinstance(one, BudgetExceeded)]
        assert refused and len(refused) < len(came)
        assert all(isinstance(one, BudgetExceeded) for one in came if isinstance(one, BaseException))
        assert len(world.server.queries) == len(came) - len(refused)
        assert world.spent_usd == world.server.billed_usd <= Decimal(day)

    run(tmp_path, vendor, work, day=day)


@pytest.mark.parametrize(
    "budget",
    [
        BudgetOptions(name="all", limit_usd=Decimal("0.001")),
        BudgetOptions(name="month", limit_usd=Decimal("0.001"), period="month"),
        BudgetOptions(name="mine", limit_usd=Decimal("0.001"), service="openai"),
        BudgetOptions(name="model", limit_usd=Decimal("0.001"), model="gpt-4.1"),
    ],
    ids=lambda budget: budget.name,
)
def test_each_kind_of_budget_counts_an_sdk_call(tmp_path: Path, budget: BudgetOptions) -> None:
    async def work(world: World) -> None:
        with pytest.raises(BudgetExceeded, match=budget.name):
            await world.ask()
        assert not world.server.queries

    run(tmp_path, CHAT, work, budgets=(budget,))


def test_the_longest_possible_answer_is_held_while_it_is_generated(tmp_path: Path) -> None:
    """32,768 tokens of gpt-4.1 if the call sets no limit, and three answers if it requests three."""

    async def work(world: World) -> None:
        for more, most in (({"max_tokens": openai.NOT_GIVEN}, 32_768), ({"n": 3}, 300)):
            gate = Gate(answer("Paris."))
            world.server.script(gate)
            asking = asyncio.create_task(world.ask(**more))
            await gate.arrived()
            written = most * Decimal(8) / 1_000_000
            read = Decimal(2) / 1_000_000
            held = Decimal(world.budget["reserved"])
            assert written + len(WORDS) * read <= held <= written + (len(WORDS) + 1000) * read
            gate.open()
            await asking
            assert Decimal(world.budget["reserved"]) == 0

    run(tmp_path, CHAT, work)


def test_calls_that_no_vendor_bills_are_neither_held_nor_booked(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        client = world.call.__self__._client  # type: ignore[attr-defined]
        assert (await world.ask(client.models.list)).data
        assert world.spent_usd == 0

    run(tmp_path, CHAT, work, day="0")


def test_an_own_server_with_a_price_is_booked_and_one_without_is_free(tmp_path: Path) -> None:
    vendor = Chat("mine", "openai_compatible", FakeCompatible, "a-private-model", ("3", "4"), messages=SAID)
    priced: Any = {"input_price": Decimal(3), "output_price": Decimal(4), "declared": True}

    async def paid(world: World) -> None:
        await world.ask(max_tokens=10)
        assert world.spent_usd == world.server.billed_usd > 0

    async def free(world: World) -> None:
        await world.ask(max_tokens=10)
        assert world.spent_usd == 0 and not await world.rows()

    url: Any = {"base_url": "http://127.0.0.1:9/v1"}
    run(tmp_path / "a", vendor, paid, **priced, **url)
    run(tmp_path / "b", vendor, free, declared=True, api_key=None, **url)


def test_the_hold_of_a_chat_of_googles_sdk_includes_its_history_and_settings(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        config = types.GenerateContentConfig(max_output_tokens=50)
        chats = genai.chats.AsyncChats(world.call.__self__)  # type: ignore[attr-defined]
        chat = chats.create(model=world.vendor.model, config=config)
        for number in range(1, 3):
            gate = Gate(answer("Paris."))
            world.server.script(gate)
            asking = asyncio.create_task(world.platform.execute("gemini", chat.send_message, WORDS))
            await gate.arrived()
            least = (number * len(WORDS) * world.vendor.prices[0] + 50 * world.vendor.prices[1]) / 1_000_000
            assert least <= Decimal(world.budget["reserved"]) < 2 * least
            gate.open()
            await asking
        assert world.spent_usd == world.server.billed_usd > 0

    run(tmp_path, VENDORS["gemini"], work)


# ── streams ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def read(world: World, most: int = 1000, **more: Any) -> int:
    arguments = {**world.vendor.ask, **more}
    pieces = world.platform.execute_stream(world.vendor.service, world.call, **arguments)
    number = 0
    async for _ in pieces:
        number += 1
        if number == most:
            break
    await pieces.aclose()
    return number


class GoogleStream(Google):
    @asynccontextmanager
    async def call(self, server: FakeProvider) -> AsyncIterator[Call]:
        async with super().call(server) as whole:
            yield whole.__self__.generate_content_stream  # type: ignore[attr-defined]


STREAMED = {
    "gemini": (
        GoogleStream(
            "gemini",
            "gemini",
            FakeGemini,
            "gemini-3.8-flash",
            ("0.75", "3.75"),
            contents=WORDS,
            config={"max_output_tokens": 100},
        ),
        {},
    ),
    "claude": (CLAUDE, {"stream": True}),
    "chat": (CHAT, {"stream": True, "stream_options": {"include_usage": True}}),
    "responses": (VENDORS["responses"], {"stream": True}),
}
each_stream = pytest.mark.parametrize(("vendor", "more"), STREAMED.values(), ids=STREAMED)


@each_stream
def test_a_stream_is_booked_at_what_its_pieces_report(
    tmp_path: Path, vendor: Vendor, more: dict[str, Any]
) -> None:
    async def work(world: World) -> None:
        world.server.script(stream(["Par", "is"], input_tokens=1234))
        await read(world, **more)
        assert world.spent_usd == world.server.billed_usd > 0
        (row,) = await world.rows()
        assert (row["input_tokens"], row["estimated_calls"]) == (1234, 0)

    run(tmp_path, vendor, work)


def test_a_message_whose_text_alone_is_read_is_booked_at_its_usage(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        world.server.script(stream(["Par", "is"], input_tokens=1234))
        create = world.call.__self__.stream  # type: ignore[attr-defined]
        async with world.platform.execute_stream("claude", create, **world.vendor.ask) as message:
            texts = [text async for text in message.text_stream]
        assert texts == ["Par", "is"]
        assert world.spent_usd == world.server.billed_usd > 0

    run(tmp_path, CLAUDE, work)


def test_a_stream_without_usage_is_estimated_by_its_text_if_the_model_hides_no_tokens(tmp_path: Path) -> None:
    """gpt-4.1 sends all the tokens that it bills. gpt-6.1-terra hides its reasoning, so its hold is booked."""

    async def work(world: World) -> None:
        for step, most in (
            (stream(["Par", "is"] * 20), 1000),
            (stream(["Par", "is"] * 20, cut_after=3), 1000),
        ):
            before, billed = world.spent_usd, world.server.billed_usd
            world.server.script(step)
            with suppress(ExternalServiceError):
                await read(
                    world, most, stream=True, max_tokens=openai.NOT_GIVEN, max_completion_tokens=30_000
                )
            booked = world.spent_usd - before
            says_all = world.vendor.model == "gpt-4.1"  # its worst case is 0.24 USD
            assert world.server.billed_usd - billed <= booked
            assert (booked < Decimal("0.02")) is says_all
        assert {row["estimated_calls"] for row in await world.rows()} == {2}

    run(tmp_path / "all", CHAT, work)
    thinks = Chat("openai", "openai", FakeOpenAI, "gpt-6.1-terra", ("1", "5"), messages=SAID)
    run(tmp_path / "unseen", thinks, work)


@each_stream
def test_an_abandoned_stream_is_booked_at_no_less_than_its_bill(
    tmp_path: Path, vendor: Vendor, more: dict[str, Any]
) -> None:
    async def work(world: World) -> None:
        world.server.script(stream(["Par", "is"] * 20, input_tokens=1234, hidden_tokens=30))
        await read(world, 2, **more)
        (row,) = await world.rows()
        assert row["estimated_calls"] == 1
        assert world.spent_usd >= (1234 * vendor.prices[0] + 40 * vendor.prices[1]) / 1_000_000

    run(tmp_path, vendor, work)


# ── costs that koo cannot see ─────────────────────────────────────────────────────────────────────────────────────────


def test_an_own_function_is_refused_under_a_set_budget_that_could_not_be_enforced(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        with pytest.raises(PriceUnknown, match="register_service") as caught:
            await world.ask(lambda: world.call(**world.vendor.ask))
        assert "can cost is unknown" in str(caught.value)
        assert not world.server.queries
        assert Decimal(world.budget["reserved"]) == 0

    run(tmp_path / "day", CHAT, work)
    month = BudgetOptions(name="month", limit_usd=Decimal(5), period="month", model="gpt-4.1")
    run(tmp_path / "month", CHAT, work, is_set=False, budgets=(month,))


def test_under_a_default_budget_an_own_function_runs_and_its_usage_is_booked(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        heard: list[Any] = []
        world.platform.events.listen(heard.append)
        await world.ask(lambda: world.call(**world.vendor.ask))
        assert world.spent_usd == world.server.billed_usd > 0
        assert not [event for event in heard if isinstance(event, BillExceededHold)]
        (row,) = await world.rows()
        assert row["model"] == "gpt-4.1"

    run(tmp_path, CHAT, work, is_set=False)
    run(tmp_path / "none", CHAT, work, day=None)


def test_a_function_of_unknown_cost_runs_and_koo_logs_once_that_it_is_not_booked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def own(words: str) -> str:
        return words

    async def work(world: World) -> None:
        for _ in range(2):
            assert await world.platform.execute("claude", own, "Hi.") == "Hi."
        assert world.spent_usd == 0 and not await world.rows()

    with caplog.at_level(logging.WARNING, "koo"):
        run(tmp_path, CLAUDE, work, is_set=False)
    assert len([line for line in caplog.messages if "not booked" in line]) == 1


def test_a_model_without_a_price_is_refused_only_under_a_set_budget(tmp_path: Path) -> None:
    async def refused(world: World) -> None:
        with pytest.raises(PriceUnknown, match="PRICE_AS"):
            await world.ask(model="gpt-99-preview")
        assert not world.server.queries

    async def goes_on(world: World) -> None:
        await world.ask(model="gpt-99-preview")
        assert len(world.server.queries) == 1

    run(tmp_path / "set", CHAT, refused)
    run(tmp_path / "default", CHAT, goes_on, is_set=False)


# ── a name of one's own ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_registered_operation_is_booked_by_its_answers_usage(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        world.platform.register_service("agent", daily_budget=1, max_cost_usd=0.5, cost_usd="usage")
        health = world.platform.service_health

        async def own(words: str) -> Any:
            return await world.call(**world.vendor.ask)

        await world.platform.execute("agent", own, "Hi.")
        budget = health("agent")["rate_limits"]["daily_budget"]
        assert Decimal(budget["spent"]) == world.server.billed_usd > 0
        (row,) = await world.rows()
        assert (row["service"], row["model"], row["estimated_calls"]) == ("agent", "gpt-4.1", 0)

        world.server.script(answer("Paris.", usage=False))
        await world.platform.execute("agent", own, "Hi.")
        with pytest.raises(BudgetExceeded):
            await world.platform.execute("agent", own, "Hi.")
        assert Decimal(health("agent")["rate_limits"]["daily_budget"]["spent"]) > Decimal("0.5")

    run(tmp_path, CHAT, work)


def test_a_stream_of_a_registered_operation_is_booked_by_its_usage(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        world.platform.register_service("agent", daily_budget=1, max_cost_usd=0.5, cost_usd="usage")
        ask = {**world.vendor.ask, "stream": True}
        async for _ in world.platform.execute_stream("agent", world.call, **ask):
            pass
        budget = world.platform.service_health("agent")["rate_limits"]["daily_budget"]
        assert Decimal(budget["spent"]) == world.server.billed_usd > 0

    run(tmp_path, CLAUDE, work)


@each_vendor
def test_a_stream_of_several_answers_is_booked_at_the_cost_of_all(tmp_path: Path, vendor: Vendor) -> None:
    """An agent's loop yields an answer for each of its turns."""

    async def work(world: World) -> None:
        world.platform.register_service("agent", daily_budget=5, max_cost_usd=1, cost_usd="usage")

        async def agent() -> AsyncIterator[Any]:
            for _ in range(3):
                yield await world.call(**world.vendor.ask)

        async for _ in world.platform.execute_stream("agent", agent):
            pass
        budget = world.platform.service_health("agent")["rate_limits"]["daily_budget"]
        assert Decimal(budget["spent"]) == world.server.billed_usd > 0

    run(tmp_path, vendor, work)


@pytest.mark.parametrize("vendor", [CLAUDE, CHAT, VENDORS["responses"]])
def test_answers_streamed_one_after_another_are_booked_at_the_cost_of_all(
    tmp_path: Path, vendor: Vendor
) -> None:
    async def work(world: World) -> None:
        world.platform.register_service("agent", daily_budget=5, max_cost_usd=1, cost_usd="usage")
        ask = {**vendor.ask, "stream": True}
        if vendor is CHAT:
            ask["stream_options"] = {"include_usage": True}

        async def agent() -> AsyncIterator[Any]:
            for _ in range(3):
                async for piece in await world.call(**ask):
                    yield piece

        async for _ in world.platform.execute_stream("agent", agent):
            pass
        budget = world.platform.service_health("agent")["rate_limits"]["daily_budget"]
        assert Decimal(budget["spent"]) == world.server.billed_usd > 0

    run(tmp_path, vendor, work)


class StreamedRunResult:
    """As pydantic-ai's: its reader receives text, and the usage is its own."""

    __module__ = "pydantic_ai.result"

    def __init__(self) -> None:
        self.usage = {"input_tokens": 1000, "output_tokens": 50}
        self.response = {"model_name": "claude-sonnet-5-5"}

    async def stream_text(self) -> AsyncIterator[str]:
        yield "Sunny."


def test_a_run_of_pydantic_ai_is_booked_at_its_own_usage(tmp_path: Path) -> None:
    @asynccontextmanager
    async def run_stream() -> AsyncIterator[StreamedRunResult]:
        yield StreamedRunResult()

    async def work(world: World) -> None:
        world.platform.register_service("agent", daily_budget=5, max_cost_usd=1, cost_usd="usage")
        async with world.platform.execute_stream("agent", run_stream) as result:
            assert [text async for text in result.stream_text()] == ["Sunny."]
        budget = world.platform.service_health("agent")["rate_limits"]["daily_budget"]
        assert Decimal(budget["spent"]) == Decimal("0.0025")

    run(tmp_path, CLAUDE, work)


def turn(number: int, content: dict[str, Any], stop_reason: str) -> Any:
    """A message of Anthropic's that costs 0.0025 USD."""
    return raw(
        json.dumps(
            {
                "id": f"msg_{number}", "type": "message", "role": "assistant", "model": "claude-sonnet-5-5",
                "content": [content], "stop_reason": stop_reason, "stop_sequence": None,
                "usage": {"input_tokens": 1000, "output_tokens": 50},
            }
        ).encode()
    )  # fmt: skip


@anthropic.beta_async_tool
async def weather(city: str) -> str:
    """The weather."""
    return f"sunny in {city}"


TURNS = [
    turn(1, {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris"}}, "tool_use"),
    turn(2, {"type": "tool_use", "id": "t2", "name": "weather", "input": {"city": "Rome"}}, "tool_use"),
    turn(3, {"type": "text", "text": "Sunny."}, "end_turn"),
]


@pytest.mark.parametrize("way", ["pieces", "until_done"])
def test_each_turn_of_anthropics_tool_runner_is_booked(way: str, tmp_path: Path) -> None:
    async def work(world: World) -> None:
        world.server.script(*TURNS)
        async with anthropic.AsyncAnthropic(base_url=world.server.base_url, **KEY) as client:
            ask: dict[str, Any] = {**world.vendor.ask, "tools": [weather]}
            async with world.platform.execute_stream(
                "claude", client.beta.messages.tool_runner, **ask
            ) as runner:
                if way == "until_done":
                    assert (await runner.until_done()).content[0].text == "Sunny."
                else:
                    assert len([message async for message in runner]) == 3
        assert world.spent_usd == Decimal("0.0075")

    run(tmp_path, CLAUDE, work, is_set=False)


def test_a_tool_runner_is_refused_under_a_set_budget_that_could_not_be_enforced(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        async with anthropic.AsyncAnthropic(base_url=world.server.base_url, **KEY) as client:
            ask: dict[str, Any] = {**world.vendor.ask, "tools": [weather]}
            with pytest.raises(PriceUnknown):
                async for _ in world.platform.execute_stream(
                    "claude", client.beta.messages.tool_runner, **ask
                ):
                    pass
        assert world.server.attempts == 0

    run(tmp_path, CLAUDE, work)


def test_a_registered_operation_with_an_unknown_model_is_booked_at_its_maximum_cost(
    tmp_path: Path,
) -> None:
    async def work(world: World) -> None:
        world.platform.register_service("agent", daily_budget=1, max_cost_usd=0.25, cost_usd="usage")

        async def own() -> dict[str, Any]:
            return {"usage": {"prompt_tokens": 3, "completion_tokens": 4}, "model": "a-private-name"}

        await world.platform.execute("agent", own)
        budget = world.platform.service_health("agent")["rate_limits"]["daily_budget"]
        assert Decimal(budget["spent"]) == Decimal("0.25")

    run(tmp_path, CHAT, work)
