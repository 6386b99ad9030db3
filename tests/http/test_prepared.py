"""Prepared requests equal those of aiohttp's session, and requests that are not plain go through the session."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from typing import Any

import aiohttp
import pytest

from tests.http.test_client import OK, client, failure_of, read_request, serving, talking

HEADERS = {
    "accept": "application/json",
    "accept-encoding": "identity",
    "user-agent": "koo",
    "content-type": "application/json",
    "authorization": "Bearer k3y",
}


def read(request: bytes) -> tuple[bytes, set[bytes], bytes]:
    """The first line, the headers in any order and case, and the body."""
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    split = [line.partition(b":") for line in lines]
    return first, {name.lower() + b":" + value.strip() for name, _, value in split}, body


@pytest.mark.parametrize("headers", [HEADERS, {}, {"Content-Type": "text/plain"}], ids=str)
@pytest.mark.parametrize("path", ["", "/v1/messages", "/a b/ü?x=1&y=%20#part"])
def test_the_request_equals_the_one_that_aiohttps_session_sends(path: str, headers: dict[str, str]) -> None:
    async def main() -> None:
        seen: list[bytes] = []

        async def talk(reader: StreamReader, writer: StreamWriter) -> None:
            while True:
                seen.append(await read_request(reader))
                writer.write(OK)

        async with serving(talk) as url, client() as http, aiohttp.ClientSession() as session:
            for body in (b"{}", b'{"a": "long enough for two digits"}'):
                await http.request("POST", url + path, headers=headers, body=body)
                async with session.post(url + path, headers=headers, data=body):
                    pass
        assert len(seen) == 4
        assert read(seen[0]) == read(seen[1])
        assert read(seen[2]) == read(seen[3])

    asyncio.run(main())


def test_services_at_the_same_url_keep_separate_headers() -> None:
    async def main() -> None:
        seen: list[bytes] = []

        async def talk(reader: StreamReader, writer: StreamWriter) -> None:
            while True:
                seen.append(await read_request(reader))
                writer.write(OK)

        mine, yours = {"x-api-key": "mine"}, {"x-api-key": "yours"}
        async with serving(talk) as url, client() as http:
            for headers in (mine, yours, mine):
                await http.request("POST", url, headers=headers, body=b"{}")
            mine["x-api-key"] = "new"
            await http.request("POST", url, headers=mine, body=b"{}")
            await http.request("POST", url, headers={"authorization": "new"}, body=b"{}")
        keys = [
            {line for line in read(one)[1] if b"mine" in line or b"yours" in line or b"new" in line}
            for one in seen
        ]
        assert keys == [
            {b"x-api-key:mine"},
            {b"x-api-key:yours"},
            {b"x-api-key:mine"},
            {b"x-api-key:new"},
            {b"authorization:new"},
        ]

    asyncio.run(main())


def test_a_connection_closed_before_the_request_is_written_has_stage_connect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = aiohttp.TCPConnector._create_connection

    async def closed(self: Any, *arguments: Any) -> Any:
        protocol = await real(self, *arguments)
        assert protocol.transport is not None
        protocol.transport.close()
        return protocol

    monkeypatch.setattr(aiohttp.TCPConnector, "_create_connection", closed)

    async def main() -> None:
        async with serving(talking(OK)) as url, client() as http:
            error = await failure_of(http.request("POST", url, body=b"x"))
        assert error.stage == "connect" and "before anything was sent" in error.reason

    asyncio.run(main())


def test_interim_responses_are_skipped() -> None:
    async def main() -> None:
        early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
        async with serving(talking(early, OK)) as url, client() as http:
            response = await http.request("POST", url, body=b"x")
            assert (response.status, response.body) == (200, b"ok")

    asyncio.run(main())


def test_a_response_without_a_body_frees_its_connection_immediately() -> None:
    async def main() -> None:
        connections: list[StreamWriter] = []

        async def talk(reader: StreamReader, writer: StreamWriter) -> None:
            connections.append(writer)
            while True:
                await read_request(reader)
                writer.write(b"HTTP/1.1 204 Nothing\r\n\r\n")

        async with serving(talk) as url, client() as http:
            for _ in range(3):
                assert (await http.request("POST", url, body=b"x")).body == b""
        assert len(connections) == 1

    asyncio.run(main())


def test_credentials_in_the_url_are_sent_as_the_session_sends_them() -> None:
    async def main() -> None:
        seen: list[bytes] = []

        async def talk(reader: StreamReader, writer: StreamWriter) -> None:
            seen.append(await read_request(reader))
            writer.write(OK)

        async with serving(talk) as url, client() as http:
            await http.request("POST", url.replace("//", "//me:secret@"), body=b"{}")
        assert b"authorization:Basic bWU6c2VjcmV0" in read(seen[0])[1]

    asyncio.run(main())


@pytest.mark.parametrize("value", ["a\r\nx-more: 1", "a\nb"])
def test_a_header_with_a_line_break_is_never_sent(value: str) -> None:
    async def main() -> None:
        seen: list[bytes] = []

        async def talk(reader: StreamReader, writer: StreamWriter) -> None:
            seen.append(await reader.read(1000))

        async with serving(talk) as url, client() as http:
            with pytest.raises(ValueError):
                await http.request("POST", url, headers={"x-key": value}, body=b"{}")
        assert not any(seen)

    asyncio.run(main())
