"""Bodies are counted before parsing, and read in pieces and within a common memory budget."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koo.testing.polling import until
from koo.testing.providers import FakeAnthropic, hang
from koo.web import bodies, create_app, reading
from koo.web.bodies import QUERIES_MAX
from koo.web.pieces import Pieces, pieces_of
from koo.web.reading import BATCH_MARKS_MAX, MARKS_MAX, PIECE_BYTES, SLICE, Marks
from tests.web.serving import Client, claude, platform, served
from tests.web.test_problems import SECRET, problem

QUERY = "/api/v1/ai/query"
BATCH = "/api/v1/ai/batch-query"
JSON = {"Content-Type": "application/json"}


def with_server(folder: Path, work: Any) -> None:
    async def main() -> None:
        async with (
            FakeAnthropic(strict=False) as fake,
            served(create_app(platform(folder, claude(fake)))) as client,
        ):
            await work(client, fake)

    asyncio.run(main())


texts = st.text(st.sampled_from('"\\[]{},:a\n'), max_size=20)
documents = st.recursive(
    texts | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=30,
)


def marks_in(document: Any) -> int:
    if isinstance(document, dict):
        inner = sum(map(marks_in, document.values()))
        return 2 + len(document) + max(0, len(document) - 1) + inner
    if isinstance(document, list):
        return 2 + max(0, len(document) - 1) + sum(map(marks_in, document))
    return 0


@given(documents, st.integers(1, 7))
def test_the_content_of_strings_is_not_counted_wherever_the_pieces_are_cut(document: Any, size: int) -> None:
    body, marks = json.dumps(document).encode(), Marks()
    for begin in range(0, len(body), size):
        marks.feed(body[begin : begin + size])
    assert marks.count == marks_in(document)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (QUERY, b"[" + b"[]," * MARKS_MAX + b"[]]"),
        (QUERY, b'{"service": "claude", "prompt": "x", "fallback": [' + b"1," * MARKS_MAX + b"1]}"),
        (BATCH, b'{"queries": [' + b"1," * BATCH_MARKS_MAX + b"1]}"),
        (BATCH, b'{"queries": [{"metadata": {' + b'"a":1,' * MARKS_MAX + b'"a":1}}]}'),
    ],
)
def test_more_names_and_values_than_a_request_needs_are_refused_without_parsing(
    tmp_path: Path, path: str, body: bytes
) -> None:
    async def work(client: Client, fake: FakeAnthropic) -> None:
        reply = await client.post(path, data=io.BytesIO(body), headers=JSON)
        assert (reply.status, problem(reply)["kind"]) == (422, "invalid_request")
        assert "names and values" in reply.body["detail"]

    with_server(tmp_path, work)


def test_a_prompt_may_be_full_of_characters_that_are_counted_elsewhere(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic) -> None:
        asked = {"service": "claude", "prompt": '{"a": [1, "\\"]},' * MARKS_MAX, "max_tokens": 1}
        body = json.dumps(asked).encode()
        assert (await client.post(QUERY, data=io.BytesIO(body), headers=JSON)).status == 200

    with_server(tmp_path, work)


def test_a_long_batch_is_parsed_and_answered_in_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts how many queries are built between two turns of the loop."""
    turns, made = [0], list[int]()
    real = bodies.QueryBody.model_validate

    def note(given: Any) -> Any:
        made.append(turns[0])
        return real(given)

    async def work(client: Client, fake: FakeAnthropic) -> None:
        async def turn() -> None:
            while True:
                turns[0] += 1
                await asyncio.sleep(0)

        turning = asyncio.create_task(turn())
        queries = [{"service": f"s{n}", "prompt": SECRET, "tag": "t" * 60} for n in range(10 * SLICE)]
        reply = await client.post(BATCH, json={"queries": queries})
        turning.cancel()
        assert [one["service"] for one in reply.body["results"]] == [one["service"] for one in queries]
        assert len(made) == len(queries)
        assert max(made.count(one) for one in set(made)) <= SLICE
        assert reply.body["failed_queries"] == len(queries) and reply.body["total_cost"] == "0"

    monkeypatch.setattr(bodies.QueryBody, "model_validate", note)
    with_server(tmp_path, work)


def turns_in(work: Coroutine[Any, Any, object]) -> int:
    """Return how often another task ran while this one did."""
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def main() -> None:
        turning = asyncio.create_task(turn())
        await work
        turning.cancel()

    asyncio.run(main())
    return turns


def test_other_tasks_run_between_pieces_of_a_body_and_slices_of_a_list() -> None:
    async def read() -> None:
        sizes = [len(piece) async for piece in reading._pieces(b"a" * (10 * PIECE_BYTES))]
        assert sizes == [PIECE_BYTES] * 10

    assert turns_in(read()) >= 8
    assert turns_in(reading.in_slices(str, range(10 * SLICE))) >= 8


def test_other_tasks_run_between_pieces_of_a_response() -> None:
    rows = list(range(10 * SLICE))
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    async def main() -> None:
        made.append(await pieces_of({"rows": rows, "count": 1}, "rows"))

    async def answer() -> None:
        await made[0]({"type": "http"}, None, send)  # type: ignore[arg-type]

    made: list[Pieces] = []
    assert turns_in(main()) >= 8
    assert turns_in(answer()) >= 8
    assert json.loads(b"".join(sent)) == {"rows": rows, "count": 1}


def test_a_slice_has_few_rows_or_few_bytes() -> None:
    small, large = msgspec.Raw(b"1"), msgspec.Raw(b"1" * (PIECE_BYTES // 2))
    assert [len(rows) for rows in reading._slices([small] * (2 * SLICE + 1))] == [SLICE, SLICE, 1]
    assert [len(rows) for rows in reading._slices([large] * 5)] == [2, 2, 1]


def test_the_first_invalid_query_of_a_long_batch_is_named_by_its_number(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic) -> None:
        queries: list[Any] = [{"service": "claude", "prompt": "a" * 1000} for _ in range(300)]
        queries[123] = {"service": "claude", "prompt": SECRET, "max_tokens": 0}
        reply = await client.post(BATCH, json={"queries": queries})
        assert reply.status == 422 and problem(reply)["errors"][0]["loc"] == [
            "body",
            "queries",
            123,
            "max_tokens",
        ]
        for wrong in ({"queries": queries[:100], "more": []}, {"quarries": queries[:100]}):
            assert (await client.post(BATCH, json=wrong)).status == 422
        reply = await client.post(BATCH, json=queries[:100])
        assert reply.status == 422 and "cannot be read" in problem(reply)["detail"]
        few = [{"service": "a", "prompt": "a"}] * (QUERIES_MAX + 1)
        reply = await client.post(BATCH, json={"queries": few})
        assert reply.status == 422 and f"at most {QUERIES_MAX}" in problem(reply)["detail"]

    with_server(tmp_path, work)


def test_large_bodies_together_are_limited_until_answered_and_small_ones_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = {"service": "claude", "prompt": "a" * (2 * PIECE_BYTES), "max_tokens": 1}
    monkeypatch.setattr(reading.BUDGET, "most", len(json.dumps(large)) + 10)

    async def work(client: Client, fake: FakeAnthropic) -> None:
        fake.script(hang())
        first = asyncio.create_task(client.post(QUERY, json=large))
        await until(lambda: fake.queries)
        refused = await client.post(QUERY, json=large)
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        assert refused.body["kind"] == "too_many_bodies"
        small = await client.post(QUERY, json={"service": "claude", "prompt": "a", "max_tokens": 1})
        assert small.status == 200
        first.cancel()
        await until(lambda: reading.BUDGET.used == 0)
        assert (await client.post(QUERY, json=large)).status == 200
        assert reading.BUDGET.used == 0

    with_server(tmp_path, work)


def test_the_number_of_query_parameters_is_limited(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic) -> None:
        reply = await client.get("/api/v1/ai/spend?" + "by=day&" * 5000)
        assert reply.status == 422 and "parameters" in problem(reply)["detail"]

    with_server(tmp_path, work)


def test_an_unknown_name_is_not_repeated_and_a_long_path_is_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "koo.web")
    name = SECRET.replace(" ", "%20")

    async def work(client: Client, fake: FakeAnthropic) -> None:
        for reply in (
            await client.get(f"/api/v1/ai/services/{name}/health"),
            await client.post(f"/api/v1/ai/services/{name}/reset-errors"),
            await client.post(f"/api/v1/ai/services/health-check?service={name}"),
            await client.post(QUERY, json={"service": SECRET, "prompt": "x"}),
            await client.post(QUERY, json={"service": "claude", "prompt": "x", "on_limit": SECRET}),
            await client.post("/api/v1/ai/spend/write-off", json={"process": SECRET, "by": "a"}),
            await client.get(f"/api/v1/ai/spend?by={name}&month={name}"),
        ):
            assert reply.status in (404, 422, 503), reply.text
            assert SECRET not in reply.text and name not in reply.text
        reply = await client.get("/nowhere/" + "a" * 5000)
        assert reply.status == 404 and len(reply.text) < 1000

    with_server(tmp_path, work)
    assert max(len(record.getMessage()) for record in caplog.records) < 600
