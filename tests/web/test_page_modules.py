"""The page's pure modules, tested where they run: all cases of `tests/page/*.test.js`, in one Chromium page."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response

from koo.web import create_app
from tests.web.browser import chromium, needs_browser, window
from tests.web.serving import platform, served

pytestmark = [needs_browser, pytest.mark.slow]

FOLDER = Path(__file__).parents[1] / "page"
MODULES = {path.name: path.read_text() for path in sorted(FOLDER.glob("*.test.js"))}
NAMES = [name for text in MODULES.values() for name in re.findall(r'^test\("([^"]+)"', text, re.MULTILINE)]

EXAMPLES = json.loads((Path(__file__).parents[1] / "words.json").read_text())
IN_MS = ("span", "until")
"""Functions to which the page passes milliseconds, the unit of its clock."""
WORDS: list[tuple[str, str]] = [
    ("plainly('no time', 0)", "no time"),
    ("plainly('it ended 2026-11-23T22:27:19Z', 1795472849000).replace(/\\d/g, '9')", "it ended 99:99:99"),
    (
        "plainly('it ends 2026-11-23T22:27:19Z', 1795472829000).replace(/\\d/g, '9')",
        "it ends 99:99:99 (in 99 s)",
    ),
    ("String(timeOf('2026-11-23T22:27:19.474790+00:00'))", "1795472839474"),
    ("String(timeOf(null))", "null"),
    ("String(timeIn('until 2026-11-23T22:27:19+00:00'))", "1795472839000"),
    ("rate(0)", "0 /min"),
    ("rate(12.34)", "12 /s"),
    ("rate(1.25)", "1.3 /s"),
    ("rate(0.2)", "12 /min"),
    ("rate(0.0575)", "3.5 /min"),
    ("rate(0.001)", "3.6 /h"),
    ("rate(0.000001)", "0.1 /h"),
]


def call_of(one: dict[str, Any]) -> str:
    """An example shared with the terminal, as the page's own call."""
    given = one["given"]
    numbers = [round(number * 1000) for number in given] if one["rule"] in IN_MS else given
    return f"{one['rule']}({', '.join(map(json.dumps, numbers))})"


WANTED = dict([*((call_of(one), one["reads"]) for one in EXAMPLES), *WORDS])


Ran = tuple[dict[str, str], dict[str, str], dict[str, list[str]]]
STORIES = {path.stem: path.read_text() for path in sorted(FOLDER.glob("stories/*.jsonl"))}
HEAR = """(async () => {
    const store = await import('/dashboard/data/store.js'), verdict = await import('/dashboard/data/verdict.js');
    const said = {}, runbook = await (await fetch('/api/v1/runbook')).json();
    for (const [name, text] of Object.entries(await (await fetch('/page-tests/stories.json')).json())) {
        store.forget();
        said[name] = [];
        for (const line of text.split('\\n').filter(Boolean)) {
            const {event, data} = JSON.parse(line);
            store.apply(event, data);
            const look = verdict.verdictOf({state: 'live', failure: null}, store.health.value, store.severity.value);
            const lead = verdict.leadOf(store.lasting.value, store.configured.value, store.database.value, runbook);
            const words = `${look.tone} ${look.word}, ${lead?.alert.component ?? 'no alert'}, ${
                verdict.stateSentence(store.database.value, store.configured.value)} ${
                (lead?.advice ?? '').slice(0, 30)}`.trim();
            if (said[name].at(-1) !== words) said[name].push(words);
        }
    }
    return said;
})()"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The result of each case, of each call in `WANTED`, and of each story."""
    app = create_app(platform(tmp_path_factory.mktemp("koo")))
    for name in (*MODULES, "tiny.js"):
        script = Response((FOLDER / name).read_bytes(), media_type="text/javascript")
        app.add_api_route(f"/page-tests/{name}", lambda script=script: script)
    stories = Response(json.dumps(STORIES), media_type="application/json")
    app.add_api_route("/page-tests/stories.json", lambda: stories)
    imports = "".join(f"await import('/page-tests/{name}'); " for name in MODULES)
    calls = ", ".join(f"[{json.dumps(call)}, {call}]" for call in WANTED)
    names = sorted({call.removeprefix("String(").partition("(")[0] for call in WANTED})
    words = "{...await import('/dashboard/words/numbers.js'), ...await import('/dashboard/words/times.js')}"

    async def main() -> Any:
        with chromium() as address:
            async with served(app) as client, window(address) as page:
                await page.go(client.url + "/dashboard/")
                await page.until("document.querySelector('h1') !== null")
                tests = f"{imports} return (await import('/page-tests/tiny.js')).outcomes();"
                return (
                    await page.run(f"(async () => {{ {tests} }})()"),
                    await page.run(
                        f"(async () => {{ const {{{', '.join(names)}}} = {words}; return [{calls}]; }})()"
                    ),
                    await page.run(HEAR),
                )

    outcomes, read, told = asyncio.run(main())
    return dict(outcomes), dict(read), told


@pytest.mark.parametrize("name", NAMES)
def test_a_module_passes_its_case(ran: Ran, name: str) -> None:
    assert ran[0][name] == ""


def test_each_case_ran_once(ran: Ran) -> None:
    assert sorted(ran[0]) == sorted(NAMES) and len(NAMES) > 20


def test_numbers_are_formatted_for_people(ran: Ran) -> None:
    """The terminal has the same formats: `tests/cli/test_words.py` runs the same examples."""
    assert ran[1] == WANTED


def test_the_first_screen_follows_a_story(ran: Ran) -> None:
    """The test applies events of the real producer one by one, and checks what the page shows whenever that changes."""
    well = "ok healthy, no alert, The database and all 3 AI services work."
    assert {name: (said[0], said[-1]) for name, said in ran[2].items()} == {
        "healthy": (well, well),
        "server-gone": (well, well),
        "service-down": (well, well),
        "over-budget": (
            well,
            "critical degraded, ai:claude, claude: rate limited. The database and 2 other AI services work. "
            "First find out which callers s",
        ),
        "two-outages": (
            well,
            "critical unhealthy, database, Calls to the database are refused: its circuit is open. "
            "openai: circuit open. 2 other AI services work. "
            "Is the server running (pg_isre",
        ),
    }
    worst = "critical degraded, ai:claude, claude: circuit open. The database and 2 other AI services work. "
    assert f"{worst}If its breaker opened, koo nee" in ran[2]["service-down"]
