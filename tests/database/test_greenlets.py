"""Greenlets are reused for the next call, and keep nothing of the last one."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Awaitable
from contextvars import ContextVar, copy_context
from typing import TypeVar

import pytest
from greenlet import getcurrent
from sqlalchemy.util import await_only as await_

from koo.database.greenlets import IDLE_MAX, in_greenlet
from tests.database.support import run

T = TypeVar("T")
name: ContextVar[str] = ContextVar("name", default="nobody")


class Thing:
    """An object that a weak reference can point to."""


def wait_for(awaitable: Awaitable[T]) -> T:
    return await_(awaitable)


def test_arguments_are_passed_and_the_result_is_returned() -> None:
    def add(a: int, *, b: int) -> int:
        return a + b

    async def main() -> None:
        assert await in_greenlet(add, 1, b=2) == 3

    run(main)


def test_the_next_call_reuses_the_greenlet_and_a_concurrent_call_gets_another() -> None:
    async def after_a_turn() -> object:
        await asyncio.sleep(0)
        return getcurrent()

    def ask() -> object:
        await_(asyncio.sleep(0))
        return getcurrent()

    async def main() -> None:
        first = await in_greenlet(ask)
        assert await in_greenlet(ask) is first
        assert await in_greenlet(wait_for, after_a_turn()) is not first, (
            "the awaited coroutine runs outside the greenlet"
        )
        together = await asyncio.gather(in_greenlet(ask), in_greenlet(ask))
        assert first in together
        assert together[0] is not together[1]

    run(main)


def test_each_thread_has_its_own_greenlets() -> None:
    seen: list[object] = []

    def here() -> None:
        seen.append(asyncio.run(in_greenlet(getcurrent)))

    here()
    thread = threading.Thread(target=here)
    thread.start()
    thread.join()
    here()
    assert seen[0] is seen[2] is not seen[1]


def test_an_error_is_raised_and_the_greenlet_remains_usable() -> None:
    def fail() -> None:
        raise ValueError("of the function")

    def catch() -> str:
        try:
            wait_for(failing())
        except KeyError as error:
            return f"caught {error}"
        return "nothing"

    async def failing() -> None:
        raise KeyError("of what it waits for")

    async def main() -> None:
        with pytest.raises(ValueError, match="of the function") as caught:
            await in_greenlet(fail)
        assert caught.value.__context__ is None
        assert await in_greenlet(catch) == "caught 'of what it waits for'"
        with pytest.raises(KeyError):
            await in_greenlet(wait_for, failing())
        assert await in_greenlet(len, "abc") == 3

    run(main)


def test_a_cancellation_is_raised_inside_the_function() -> None:
    seen: list[str] = []

    def stand() -> None:
        try:
            await_(asyncio.Event().wait())
        except asyncio.CancelledError:
            await_(asyncio.sleep(0))
            seen.append("cleaned up")
            raise

    async def main() -> None:
        task = asyncio.create_task(in_greenlet(stand))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == ["cleaned up"]
        assert await in_greenlet(len, "abc") == 3

    run(main)


def test_a_call_whose_coroutine_is_dropped_unwinds() -> None:
    seen: list[str] = []

    def stand() -> None:
        try:
            await_(asyncio.sleep(0))
        finally:
            seen.append("unwound")

    async def main() -> None:
        call = in_greenlet(stand)
        call.send(None)
        call.close()
        assert seen == ["unwound"]
        assert await in_greenlet(len, "abc") == 3

    run(main)


def test_each_call_runs_in_the_context_of_its_caller() -> None:
    def rename(new: str) -> str:
        old = name.get()
        await_(asyncio.sleep(0))
        name.set(new)
        return old

    async def main() -> None:
        name.set("one")
        assert await in_greenlet(rename, "two") == "one"
        assert name.get() == "two", "a variable that it sets is set for the caller"
        other = copy_context()
        other.run(name.set, "other")
        assert await asyncio.create_task(in_greenlet(rename, "three"), context=other) == "other"
        assert name.get() == "two"
        assert await in_greenlet(rename, "four") == "two"

    run(main)


def test_an_idle_greenlet_keeps_nothing_of_its_last_call() -> None:
    def pass_on(thing: Thing) -> Thing:
        await_(asyncio.sleep(0))
        return thing

    def fail(thing: Thing) -> None:
        raise ValueError(thing)

    async def main() -> None:
        argument, in_error, in_context = Thing(), Thing(), Thing()
        request: ContextVar[Thing] = ContextVar("request")
        context = copy_context()
        context.run(request.set, in_context)
        seen = [weakref.ref(one) for one in (argument, in_error, in_context)]
        with pytest.raises(ValueError):
            await in_greenlet(fail, in_error)
        await asyncio.create_task(in_greenlet(pass_on, argument), context=context)
        del argument, in_error, in_context, context
        await asyncio.sleep(0)  # the loop lets go of the task
        gc.collect()
        assert [one() for one in seen] == [None, None, None]

    run(main)


def test_the_number_of_idle_greenlets_is_limited() -> None:
    def ask() -> weakref.ref[object]:
        await_(asyncio.sleep(0))
        return weakref.ref(getcurrent())

    async def main() -> None:
        rush = await asyncio.gather(*(in_greenlet(ask) for _ in range(IDLE_MAX + 20)))
        assert sum(one() is not None for one in rush) <= IDLE_MAX

    run(main)
