"""HTTP/1.1 for the fakes: reads requests, and writes replies and events with control over every byte."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import msgspec


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedRequest:
    """A request from a client. `body` is the decoded JSON, or None; header names are in lower case.

    `prompt`: the whole prompt, with the system text first.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    raw: bytes
    body: Any
    prompt: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A response, ready to send."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


class Connection:
    """The connection on which one request is answered."""

    __slots__ = ("reader", "writer")

    def __init__(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, reply: Reply) -> None:
        self.writer.write(encode(reply))
        await self.writer.drain()

    async def begin(self, headers: Mapping[str, str]) -> None:
        """Send the head of a stream of events."""
        lines = [
            "HTTP/1.1 200 OK",
            "content-type: text/event-stream; charset=utf-8",
            "transfer-encoding: chunked",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        self.writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        await self.writer.drain()

    def write(self, event: bytes) -> None:
        if self.writer.is_closing():
            raise ConnectionResetError
        self.writer.write(b"%x\r\n%b\r\n" % (len(event), event))

    async def end(self) -> None:
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()


def event(data: dict[str, Any], name: str | None = None) -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + msgspec.json.encode(data) + b"\n\n"


def json_reply(status: int, document: dict[str, Any], headers: Mapping[str, str] | None = None) -> Reply:
    """A reply with a JSON body."""
    return Reply(status=status, body=msgspec.json.encode(document), headers=headers or {})


def encode(reply: Reply) -> bytes:
    phrase = HTTPStatus(reply.status).phrase if reply.status in HTTPStatus._value2member_map_ else "Unknown"
    lines = [
        f"HTTP/1.1 {reply.status} {phrase}",
        f"content-type: {reply.content_type}",
        f"content-length: {len(reply.body)}",
        *(f"{name}: {value}" for name, value in reply.headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + reply.body


async def read_request(reader: StreamReader) -> ReceivedRequest | None:
    """The next request, or None at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    try:
        document = msgspec.json.decode(body) if body else None
    except msgspec.DecodeError:
        document = None
    return ReceivedRequest(method=method, path=path, headers=headers, raw=body, body=document)
