"""`koo tail`: each thing that happens is one line, once, whatever happens to the connection in between."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from koo.cli.client import connect
from koo.cli.following import Line
from koo.cli.tail import Follower
from koo.cli.terminal import CommandFailed
from tests.cli.canned import ALERT, canned
from tests.cli.running import Here, command, environment

BEGIN = 1_764_338_400.0  # 2025-11-28T14:00:00Z


def at(second: float) -> str:
    minute, rest = divmod(second, 60)
    return f"2025-11-28T14:{int(minute):02}:{rest:09.6f}+00:00"


def mark(second: float, kind: str, text: str) -> dict[str, str]:
    return {"at": at(second), "kind": kind, "component": "ai:claude", "text": text}


def request(number: int, second: float) -> dict[str, Any]:
    tokens = dict.fromkeys(("cache_read_tokens", "cache_write_tokens", "reasoning_tokens"), 0)
    return {
        "id": f"r{number}",
        "at": at(second),
        "service": "claude",
        "model": "claude-x",
        "tag": "shop",
        "cost": "0.000082",
        "input_tokens": 14,
        "output_tokens": 5,
        "estimated": False,
        "outcome": "answered",
        "latency": 1.21,
        "request_id": f"q{number}",
        **tokens,
    }


class Server:
    """The documents of a server, which a test changes over time."""

    def __init__(self) -> None:
        self.marks: list[dict[str, str]] = []
        self.requests: list[dict[str, Any]] = []
        self.episodes: list[dict[str, Any]] = []
        self.spans: dict[str, list[tuple[int, int] | None]] = {}
        self.now = 0.0

    def documents(self) -> dict[str, object]:
        """The current documents; the history begins at 14:00:00 in steps of five seconds."""
        series = {
            name: {
                "calls": [None if span is None else 1 for span in spans],
                "failed": [None if span is None else span[0] for span in spans],
                "refused": [None if span is None else span[1] for span in spans],
                "throttled": [None if span is None else 0 for span in spans],
            }
            for name, spans in self.spans.items()
        }
        now = {"timestamp": at(self.now)}
        past = {"since": at(0), "until": at(self.now), "step_s": 5, "scope": "this process", "trouble": ""}
        return {
            "/monitoring/history": {**past, "series": series, "marks": self.marks, **now},
            "/monitoring/alerts/history": {
                "episodes": self.episodes, "next_cursor": None, "since": at(0), "until": at(0), **now,
            },
            "/ai/requests": {"requests": self.requests[::-1], "amount": "0", "next_cursor": None, **now},
            "/ai/services/health": {"services": {"claude": {}, "lab": {}}},
            "/monitoring/fleet": {
                "processes": [{"state": "live"}], "guards": [], "purses": [], "leases": [], "leader": None,
                "differences": [], "state_store": {}, **now,
            },
        }  # fmt: skip


def texts(lines: list[Line]) -> list[str]:
    return [f"{line.word} {line.text}" for line in sorted(lines, key=lambda one: one.at)]


def test_no_line_is_lost_or_repeated_across_a_reconnect() -> None:
    """This applies to what happened while the server was away, to what another process reported late, and to older
    events.
    """
    server, documents, asked = Server(), dict[str, object](), list[str]()

    async def look(follower: Follower, second: float) -> list[str]:
        server.now = second
        documents.update(server.documents())
        return texts([line async for line in follower.look()])

    async def main() -> None:
        with canned(documents) as url:
            async with connect(url) as client:
                follower = Follower(client, BEGIN + 10, None)
                server.marks = [mark(5, "deploy", "too early"), mark(11, "circuit", "opened: 5 failures")]
                server.requests = [request(1, 9), request(2, 12)]
                server.episodes = [{**ALERT, "id": "old", "timestamp": at(1), "message": "lasts already"}]
                server.spans["ai:claude"] = [(0, 0), (0, 0), (5, 0), None]
                first = await look(follower, 16)
        assert first == [
            "circuit opened: 5 failures",
            "request claude-x: answered, 14 → 5 tokens, $0.000082, 1.2 s, tag shop, request q2",
            "calls 5 calls failed in 5 s",
        ]
        async with connect(url) as client:
            follower._client = client
            with pytest.raises(CommandFailed, match="no koo server answers"):
                await look(follower, 17)
            server.marks.append(mark(18, "act", "closed by an operator"))
            server.marks.append(mark(10.5, "circuit", "opened in another process, and reported late"))
            server.requests.append(request(3, 18.5))
            server.episodes.append({**ALERT, "id": "new", "timestamp": at(2), "message": "fires now"})
            server.spans["ai:claude"] = [(0, 0), (0, 0), (5, 0), (0, 31), (1, 0), None]
            documents.update(server.documents())
            with canned(documents, int(url.rpartition(":")[2]), asked):
                assert await look(follower, 26) == [
                    "critical fires now",
                    "circuit opened in another process, and reported late",
                    "act closed by an operator",
                    "request claude-x: answered, 14 → 5 tokens, $0.000082, 1.2 s, tag shop, request q3",
                ]
                # A minute before the last response: another process's records may arrive late.
                past = asked[0].partition("/history?since=")[2].partition("&")[0]
                assert unquote(past) == "2025-11-28T13:59:16+00:00"
                assert await look(follower, 27) == []
                # The sum since the first line, once half a minute is over.
                server.spans["ai:claude"][5:] = [(0, 0)] * 5
                assert await look(follower, 51) == ["calls 1 call failed, 31 calls refused by koo in 10 s"]
                server.episodes[1] |= {"ended_at": at(40), "acknowledged": {"by": "ada", "at": at(39)}}
                assert await look(follower, 52) == [
                    "act ada is working on it: fires now",
                    "ended lasted 38 s: fires now",
                ]
                assert texts(list(follower.calls.rest())) == []

    asyncio.run(main())


def test_old_lines_that_a_server_still_returns_are_not_repeated() -> None:
    """A quiet server's last requests and marks remain in its responses long after they were shown."""
    server, documents = Server(), dict[str, object]()
    server.marks, server.requests = [mark(11, "circuit", "opened: 5 failures")], [request(1, 12)]

    async def main() -> list[list[str]]:
        with canned(documents) as url:
            async with connect(url) as client:
                follower, seen = Follower(client, BEGIN + 10, None), []
                for second in (15, 150, 300, 450):
                    server.now = second
                    documents.update(server.documents())
                    seen.append(texts([line async for line in follower.look()]))
                return seen

    first, *later = asyncio.run(main())
    assert [line.partition(" ")[0] for line in first] == ["circuit", "request"] and later == [[], [], []]


def test_with_several_processes_a_minute_is_counted_when_all_have_recorded_it() -> None:
    server, documents = Server(), dict[str, object]()

    async def main() -> None:
        with canned(documents) as url:
            async with connect(url) as client:
                follower = Follower(client, BEGIN, None)
                follower.has_others = True
                server.spans["ai:claude"] = [(1, 0)]
                for second, count, said in ((6.0, 1, []), (25.5, 7, ["calls 7 calls failed in 5 s"])):
                    server.now, server.spans["ai:claude"] = second, [(count, 0)]
                    documents.update(server.documents())
                    assert texts([line async for line in follower.look()]) == said

    asyncio.run(main())


def test_tail_follows_until_ctrl_c_and_shows_only_what_was_requested(tmp_path: Path) -> None:
    server = Server()
    server.now = 40.0
    server.marks = [mark(12, "circuit", "opened: 5 failures"), mark(13, "act", "closed by an operator")]
    server.requests = [request(1, 14)]
    for arguments, last, unwanted in (
        (["--json"], "request q1", "nothing"),
        (["--errors", "--service", "claude"], "opened", "operator"),
    ):
        with canned(server.documents()) as url:
            env = environment(tmp_path, KOO_URL=url)
            line = command("tail", *arguments)
            with subprocess.Popen(
                line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
            ) as run:
                assert run.stdout is not None and run.stderr is not None
                read: list[str] = []
                while not read or last not in read[-1]:
                    read.append(run.stdout.readline())
                    assert read[-1], run.stderr.read()
                    assert "--json" not in arguments or json.loads(read[-1])["component"] == "ai:claude"
                run.send_signal(signal.SIGINT)
                out, err = run.communicate(timeout=30)
                assert (run.returncode, err) == (0, "")
                assert unwanted not in out and all(unwanted not in one for one in read)


def test_a_mistyped_service_is_a_warning(tmp_path: Path) -> None:
    with canned(Server().documents()) as url:
        line = command("tail", "--service", "clade")
        env = environment(tmp_path, KOO_URL=url)
        with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=env) as run:
            assert run.stderr is not None
            assert run.stderr.readline() == "koo: the server has no service clade; it has claude, lab\n"
            run.send_signal(signal.SIGINT)
            assert run.wait(30) in (0, 130)


def test_an_invalid_duration_is_the_callers_mistake(here: Here) -> None:
    code, _, err = here.run("tail", "--since", "yesterday")
    assert code == 2 and "--since is 'yesterday'" in err
