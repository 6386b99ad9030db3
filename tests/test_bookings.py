"""The last calls with a cost: in order, in pages, with their sum."""

from __future__ import annotations

from decimal import Decimal

import pytest

from koo.errors import InvalidRequest, Kind, ServiceRefused
from koo.logs.lines import request_id
from koo.storage.base import StoreUnavailable
from koo.testing import World
from koo.testing.providers import cut
from tests.testing.test_world import run


def test_each_call_with_a_cost_is_listed_with_its_ledger_entry() -> None:
    async def test(world: World) -> None:
        world.claude.answers("Boots.", input_tokens=1000, output_tokens=50)
        for tag in ("shop", "shop", None):
            await world.ask("claude", tag=tag)
        history = world.platform.history
        page = await history.requests(tag="shop", limit=1)
        (call,) = page["requests"]
        assert (call["service"], call["tag"]) == ("claude", "shop")
        assert (call["input_tokens"], call["output_tokens"]) == (1000, 50)
        assert (call["outcome"], call["request_id"]) == ("answered", "") and call["latency"] is not None
        assert Decimal(call["cost"]) == world.claude.billed_usd / 3 == Decimal(page["amount"])
        rest = await history.requests(tag="shop", cursor=page["next_cursor"])
        assert len(rest["requests"]) == 1 and rest["next_cursor"] is None
        everything = await history.requests()
        assert Decimal(everything["amount"]) == world.spent_usd
        assert "Boots." not in str(everything)

    run(test)


def test_a_billed_call_without_an_answer_has_its_outcome_and_its_request() -> None:
    """An abandoned stream, and a failed attempt that may have been billed, followed by a successful repeat."""

    async def test(world: World) -> None:
        request_id.set("r-17")
        async with world.stream("claude") as pieces:
            await anext(pieces)
        world.claude.script(cut(200))
        await world.ask("claude")
        page = await world.platform.history.requests()
        outcomes = [call["outcome"] for call in page["requests"]]
        assert outcomes == ["answered", "unfinished", "unfinished"]
        assert [call["attempt"] for call in page["requests"]] == [2, 1, 1]
        assert {call["request_id"] for call in page["requests"]} == {"r-17"}

    run(test)


@pytest.mark.parametrize(
    "asked", [{"limit": 0}, {"limit": 501}, {"cursor": "x"}, {"cursor": "-a"}, {"cursor": "9" * 30 + "-a"}]
)
def test_invalid_arguments_are_refused(asked: dict[str, object]) -> None:
    async def test(world: World) -> None:
        with pytest.raises(InvalidRequest):
            await world.platform.history.requests(**asked)  # type: ignore[arg-type]

    run(test)


def test_while_the_store_is_unreachable_the_list_is_refused_with_a_retry_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(world: World) -> None:
        async def away(*_: object, **__: object) -> None:
            raise StoreUnavailable("unreachable")

        await world.tick()
        with monkeypatch.context() as patch:
            patch.setattr(world.platform.parts.store.entries, "latest", away)
            with pytest.raises(ServiceRefused) as caught:
                await world.platform.history.requests()
        assert caught.value.kind is Kind.STORE_UNAVAILABLE and caught.value.retry_after_s == 5.0

    run(test)
