"""A prompt that continues a counted one is bounded by that count, and no prompt is bounded too low."""

from __future__ import annotations

import gc
import pickle
import threading
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koo.ai.conversations import HEADS_MAX, KNOWN_S_MAX, PROMPTS_MAX, Conversations
from koo.ai.providers import transport
from koo.ai.providers.base import Request
from koo.ai.providers.transport import FRAMING_TOKENS, bound_tokens
from koo.ai.types import Usage
from tests.ai.worlds import World, run

PAST = "You are a careful engineer. " * 400


class Now:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def ask(prompt: str, model: str = "m", system: str | None = None) -> Request:
    return Request(prompt=prompt, model=model, max_tokens=100, system=system)


def bound(conversations: Conversations, request: Request, service: str = "claude") -> int:
    return conversations.measure(service, request, bound_tokens).tokens_max


def counted(
    conversations: Conversations, request: Request, read: int, answer: str = "ok", written: int = 10
) -> None:
    mark = conversations.measure("claude", request, bound_tokens).mark
    conversations.learn(mark, Usage(cache_read_tokens=read, output_tokens=written), answer)


def test_a_counted_prompt_is_not_counted_by_its_bytes_again() -> None:
    conversations, answer = Conversations(Now()), "The answer is that nothing is wrong with it. " * 20
    counted(conversations, ask(PAST), read=2800, answer=answer, written=200)
    new = "\n\nUser: and now?"
    seam = 3000 // 32 + FRAMING_TOKENS
    assert bound(conversations, ask(PAST + new)) == 2800 + 2800 // 32 + len(new) + FRAMING_TOKENS
    assert bound(conversations, ask(PAST + "\n\nAssistant: " + answer + new)) == 3000 + seam + len(
        "\n\nAssistant: " + new
    )


@pytest.mark.parametrize(
    "other",
    [
        ask("x" + PAST + "new"),
        ask(PAST[:-9] + "x" * 9 + "new"),
        ask(PAST[:-1]),
        ask(PAST + "new", model="n"),
        ask(PAST + "new", system="Be kind."),
    ],
    ids=["begins otherwise", "ends otherwise", "shorter", "another model", "another system"],
)
def test_an_unknown_prompt_is_bounded_by_its_bytes(other: Request) -> None:
    conversations = Conversations(Now())
    counted(conversations, ask(PAST), read=2800)
    assert bound(conversations, other) == bound_tokens(other)
    assert bound(conversations, ask(PAST + "new"), service="openai") == bound_tokens(ask(PAST + "new"))


def test_an_incomplete_count_is_not_used() -> None:
    conversations = Conversations(Now())
    counted(conversations, ask(PAST), read=9)
    assert bound(conversations, ask(PAST + "new")) == bound_tokens(ask(PAST + "new"))


def test_a_count_expires_after_an_hour() -> None:
    now = Now()
    conversations = Conversations(now)
    counted(conversations, ask(PAST), read=2800)
    now.s = KNOWN_S_MAX + 1
    assert bound(conversations, ask(PAST + "new")) == bound_tokens(ask(PAST + "new"))


def test_conversations_with_the_same_beginning_are_kept_apart() -> None:
    conversations = Conversations(Now())
    pasts = [PAST + f"{number:04}" * 30 for number in range(PROMPTS_MAX)]
    for number, past in enumerate(pasts):
        counted(conversations, ask(past), read=3000 + number)
    for number, past in enumerate(pasts):
        expected = 3000 + number + (3000 + number) // 32 + 3 + FRAMING_TOKENS
        assert bound(conversations, ask(past + "new")) == expected
    # If a prompt continues several known ones, the longest counts.
    counted(conversations, ask(pasts[0] + "more"), read=3100)
    assert bound(conversations, ask(pasts[0] + "more" + "new")) == 3100 + 3100 // 32 + 3 + FRAMING_TOKENS


def test_memory_is_bounded_and_contains_no_text() -> None:
    conversations = Conversations(Now())
    for number in range(HEADS_MAX + 50):
        for more in range(3):
            prompt = f"secret{number} " * 200 + "x" * more
            counted(conversations, ask(prompt), read=1000, answer="secret answer " * 9)
    assert len(conversations._heads) == HEADS_MAX
    assert all(len(known) <= PROMPTS_MAX for known in conversations._heads.values())
    assert b"secret" not in pickle.dumps({key: list(known) for key, known in conversations._heads.items()})
    gc.collect()
    assert not any(
        isinstance(one, str) for known in conversations._heads.values() for one in gc.get_referents(known)
    )


@given(st.lists(st.sampled_from(["ab ", "漢", "½", "é" * 9, "\n"]), max_size=30), st.integers(0, 40))
def test_no_bound_is_below_the_counted_part_and_the_new_text(parts: list[str], cut: int) -> None:
    """The tokenizer here makes a token of every two bytes, and one more at each seam."""
    conversations = Conversations(Now())
    first = PAST + "".join(parts[:cut])
    tokens = len(first.encode()) // 2 + 1
    counted(conversations, ask(first), read=tokens)
    whole = PAST + "".join(parts)
    assert bound(conversations, ask(whole)) >= len(whole.encode()) // 2 + 2
    assert bound(conversations, ask(whole)) <= bound_tokens(ask(whole))


def test_a_long_text_is_measured_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice takes a few milliseconds at most, whatever its content, and the loop runs between two slices."""
    sizes = list[int]()
    measure = transport._bytes

    def note(text: str) -> int:
        sizes.append(len(text))
        return measure(text)

    monkeypatch.setattr(transport, "_bytes", note)
    prompt = "漢" * 100_000 + "½ab" * 30_000
    assert bound_tokens(ask(prompt)) >= len(prompt.encode())
    assert len(sizes) > 10 and max(sizes) <= transport.SLICE


@pytest.mark.parametrize("prompt", ["漢" * 200_000, "x" * 8 * 2**20], ids=["beyond ASCII", "8 MB"])
def test_a_long_prompt_is_measured_off_the_loop(prompt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = list[int]()

    def note(self: object, request: Request) -> int:
        threads.append(threading.get_ident())
        return bound_tokens(request)

    async def test(world: World) -> None:
        provider = world.gateway.services["claude"].provider
        monkeypatch.setattr(type(provider), "bound_input_tokens", note)
        await world.ask(prompt)
        await world.ask("a short one")

    run(test, daily_budget_usd=Decimal(1000))
    assert threads[0] != threading.get_ident() == threads[1]
