"""The reasons that allow a fallback, the services that koo skips because of them, and the reasons that the error
keeps.
"""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from koo.ai.abilities import LONG_CHARACTERS
from koo.ai.types import Query
from koo.errors import AllServicesFailed, ExternalServiceError, InvalidRequest, Kind
from koo.testing.providers import answer, error
from tests.ai.worlds import World, run

TOO_LONG = error(400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum")
TOO_LONG_TOO = error(
    400, "invalid_request_error", "Your input exceeds the context window", code="context_length_exceeded"
)
SMALL = "claude-haiku-4-5"
"""Reads 200,000 tokens; the default of `openai` in these worlds 1,050,000, of `claude` 1,000,000."""


async def failure(world: World, **options: Any) -> ExternalServiceError:
    with pytest.raises(ExternalServiceError) as caught:
        await world.ask(**options)
    return caught.value


def test_a_prompt_that_is_too_long_for_one_model_is_answered_by_a_model_with_a_larger_window() -> None:
    async def test(world: World) -> None:
        world.claude.script(TOO_LONG)
        got = await world.ask(model=SMALL, fallback=("openai",))
        assert (got.service, len(world.claude.queries), len(world.openai.queries)) == ("openai", 1, 1)
        assert world.nothing_is_taken()

    run(test)


def test_a_request_too_large_for_one_service_is_answered_by_another() -> None:
    async def test(world: World) -> None:
        world.claude.script(error(413, "request_too_large", "Request exceeds the maximum size"))
        assert (await world.ask(fallback=("openai",))).service == "openai"

    run(test)


def test_a_model_without_a_larger_window_is_not_called_and_the_mistake_is_the_callers() -> None:
    async def test(world: World) -> None:
        world.openai.script(TOO_LONG_TOO)
        failed = await failure(world, service="openai", fallback=("claude",))
        assert isinstance(failed, InvalidRequest) and (failed.kind, failed.service) == (
            Kind.CONTEXT_LENGTH,
            "openai",
        )
        assert world.claude.queries == []
        shown = "".join(traceback.format_exception(failed))
        assert "claude: not called: the prompt is longer than the 1000000 tokens" in shown
        assert world.nothing_is_taken()

    run(test)


def test_a_prompt_that_is_too_long_for_all_is_the_callers_mistake_with_each_services_reason() -> None:
    async def test(world: World) -> None:
        world.claude.script(TOO_LONG)
        world.openai.script(TOO_LONG_TOO)
        failed = await failure(world, model=SMALL, fallback=("openai",))
        assert (failed.kind, failed.service) == (Kind.CONTEXT_LENGTH, "claude")
        assert [note.partition(":")[0] for note in failed.__notes__] == ["openai"]

    run(test)


def test_if_the_larger_model_fails_the_error_has_both_reasons() -> None:
    async def test(world: World) -> None:
        world.claude.script(TOO_LONG)
        world.openai.fails(401)
        failed = await failure(world, model=SMALL, fallback=("openai",))
        assert isinstance(failed, AllServicesFailed)
        kinds = [one.kind for one in failed.exceptions if isinstance(one, ExternalServiceError)]
        assert kinds == [Kind.CONTEXT_LENGTH, Kind.AUTH]

    run(test)


def test_a_mistake_that_ends_the_query_keeps_the_earlier_services_reasons() -> None:
    async def test(world: World) -> None:
        world.claude.script(error(401))
        world.openai.script(error(400, "invalid_request_error", "no such thing"))
        failed = await failure(world, fallback=("openai",))
        assert (failed.kind, failed.service) == (Kind.INVALID_REQUEST, "openai")
        assert [note.startswith("claude: it rejects the API key") for note in failed.__notes__] == [True]

    run(test)


def test_a_prompt_that_cannot_fit_is_detected_before_the_call() -> None:
    async def test(world: World) -> None:
        prompt = "x" * (LONG_CHARACTERS + 1)
        failed = await failure(world, service="openai", prompt=prompt, model="gpt-4")
        assert (failed.kind, world.openai.queries) == (Kind.CONTEXT_LENGTH, [])
        assert (await world.ask(service="openai", prompt=prompt, model="gpt-4", fallback=("claude",))).text

    run(test)


def test_a_stream_falls_back_for_the_same_reason() -> None:
    async def test(world: World) -> None:
        world.claude.script(TOO_LONG)
        world.openai.script(answer("Paris."))
        query = Query(service="claude", prompt="Hi", model=SMALL, fallback=("openai",))
        assert "".join([str(piece) async for piece in world.gateway.stream(query)]) == "Paris."

    run(test)
