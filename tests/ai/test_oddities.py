"""What koo makes of odd answers: each row of the tables, sent over a socket."""

from __future__ import annotations

import asyncio

import pytest

from tests.ai.odd_answers import ANSWERS
from tests.ai.odd_refusals import ROWS as REFUSALS
from tests.ai.odd_server import ask_koo
from tests.ai.oddities import ODDITIES, Oddity

ALL = (*ODDITIES, *ANSWERS, *REFUSALS)


@pytest.mark.parametrize("oddity", ALL, ids=lambda oddity: oddity.name)
def test_koo_does_what_the_table_says(oddity: Oddity) -> None:
    text, error, requests = asyncio.run(ask_koo(oddity))
    assert (error.kind if error else None, requests) == (oddity.kind, oddity.requests), error
    if oddity.streamed or error is None:
        assert text == oddity.text


def test_each_oddity_has_a_name_of_its_own() -> None:
    names = [oddity.name for oddity in ALL]
    assert sorted(names) == sorted(set(names))
