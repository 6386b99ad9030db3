"""`koo fleet` against running servers."""

from __future__ import annotations

import asyncio
import json

from koo.policies.fleet import GuardKey, GuardLine
from koo.testing.polling import wait_until
from koo.testing.providers import FakeAnthropic
from tests.cli.canned import NOW, canned
from tests.cli.running import Here, serving, settings_of
from tests.fleet.others import say


def test_processes_guards_purses_and_differences_are_shown(here: Here) -> None:
    with FakeAnthropic() as fake:
        one, two = (
            settings_of(fake, KOO_VERSION_LABEL="blue"),
            settings_of(fake, AI_SERVICES__CLAUDE__MAX_TOKENS="77"),
        )
        with serving(here.home, **one) as (url, _), serving(here.home, **two) as (other, _):
            here.set({"KOO_URL": url})
            store = f"sqlite:///{here.home}/data/koo-state.db"
            asyncio.run(say(store, GuardLine(GuardKey("claude/m", "x"), "open", True, 5.0, 3), count=1))
            code, out, err = here.run("fleet")
            assert code == 0
            lines = [line for line in out.splitlines() if "responding" in line or "blue" in line]
            assert len(lines) == 1 and "blue" in lines[0] and "responding" in lines[0]
            assert "3 processes on the state store" in out
            assert "in 1 of 1" in out and "ai:claude" in out
            assert "configuration differs: ai_services.claude.max_tokens: " in out + err

            def seen_by_the_other() -> dict[str, object]:
                code, out, _ = here.run("fleet", "--json", "--url", other)
                return dict(json.loads(out)) if code == 0 else {}

            found = wait_until(seen_by_the_other)
            processes = found["processes"]
            assert isinstance(processes, list) and len(processes) == 3
            assert sum(process["leads"] for process in processes) == 1


def test_without_a_server_it_explains_what_to_do(here: Here) -> None:
    here.set({"KOO_URL": "http://127.0.0.1:9"})
    code, out, err = here.run("fleet")
    assert code != 0 and out == "" and "127.0.0.1:9" in err


def test_a_silent_process_was_up_until_its_last_beat(here: Here) -> None:
    """It may have ended right after it."""
    seen = {
        "id": "a", "host": "vm", "worker": "", "pid": 7, "version": "1.0", "label": "",
        "started_at": "2026-11-28T13:06:24Z", "seen_at": "2026-11-28T13:16:24Z", "beat_age": 3000.0,
        "state": "silent", "in_flight": 0, "leads": False, "answers": False,
    }  # fmt: skip
    status: dict[str, object] = {
        "processes": [seen], "guards": [], "purses": [], "leases": [], "leader": None, "differences": [],
        "state_store": {"reachable": True, "reason": "", "lost_at": None, "refuses": []}, "timestamp": NOW,
    }  # fmt: skip
    with canned({"/monitoring/fleet": status}) as url:
        here.set({"KOO_URL": url})
        (line,) = (one for one in here.run("fleet")[1].splitlines() if one.startswith("vm:7"))
    assert "10 min  50 min ago" in line
