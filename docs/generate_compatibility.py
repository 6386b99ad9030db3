"""Write `docs/compatibility.md` from the odd answers that the tests send: `python -m docs.generate_compatibility`.

The rows are in `tests/ai/oddities.py` and the files beside it, those of libraries in `proofs/own.py`;
`tests/docs/test_compatibility.py` fails when the page is older than they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from proofs.own import GROUPS
from proofs.pins import TEST, versions
from tests.ai.oddities import Format, Oddity
from tests.ai.test_oddities import ALL

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
FORMATS: dict[Format, str] = {
    "anthropic": "Anthropic Messages",
    "openai_compatible": "OpenAI chat completions",
    "openai": "OpenAI Responses",
    "gemini": "Gemini generateContent",
    "perplexity": "Perplexity Agent API",
    "local": "the local model's server",
}
SDKS = ("anthropic", "openai", "google-genai", "perplexityai")
HEAD = """\
# Compatibility

What AI services, gateways and self-hosted servers have been seen to send that differs from their documentation, and
what koo does with it. koo first decodes strictly, which costs good answers nothing; if that fails, a second, lenient
reading follows. It needs a text and an end. Everything else is optional: what cannot be read is estimated, and marked
as an estimate.

Each row is one sample, sent to koo over a socket in every test run (`tests/ai/test_oddities.py`). The vendors' own
SDKs read the answers among them too (`tests/ai/test_sdks_beside_koo.py`), and koo reads at least what they read:
{sdks}.

*Ends with* is what koo's caller gets: the answer, or an error of that kind ([errors.md](errors.md)). `3×` means that
koo asks the service that many times before that. `make docs` writes this page from the same rows.
"""
LIBRARIES = """\
## Libraries, servers and loops of your own

`make prove-own` tries libraries that the test suite does not install, each group in its own environment.
[own.md](proofs/own.md) says when, and with what result.

| with | what was seen |
| --- | --- |"""


def page() -> str:
    """The whole page."""
    sdks = [f"{name} {version_of(name)}" for name in SDKS]
    answers = [one for one in ALL if one.status < 400]
    parts = [
        HEAD.format(sdks=", ".join(sdks)),
        *section("Whole answers", (one for one in answers if not one.streamed)),
        *section("Streams", (one for one in answers if one.streamed)),
        *section("Refusals and failures", (one for one in ALL if one.status >= 400)),
        LIBRARIES,
        *(
            f"| {', '.join(pins.replace('==', ' ') for pins in one.pins)} | {one.proves} |"
            for one in GROUPS.values()
        ),
        "",
    ]
    return "\n".join(parts)


def section(title: str, rows: Iterable[Oddity]) -> Iterator[str]:
    """A table for each format that has rows."""
    given = list(rows)
    if given:
        yield f"## {title}\n"
    for name, words in FORMATS.items():
        of_format = [one for one in given if one.format == name]
        if of_format:
            yield f"### {title}: {words}\n"
            yield "| what comes | who sends it | what koo does | ends with |\n| --- | --- | --- | --- |"
            yield "\n".join(map(line, of_format)) + "\n"


def line(oddity: Oddity) -> str:
    """One row of a table."""
    came = oddity.name if oddity.status == 200 else f"{oddity.status}: {oddity.name}"
    cells = (came, oddity.sender, oddity.what_koo_does, end_of(oddity))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def end_of(oddity: Oddity) -> str:
    """What koo's caller gets."""
    end = "the answer" if oddity.kind is None else f"`{oddity.kind}`"
    if oddity.kind is not None and oddity.streamed and oddity.text:
        end = f"the text so far, then {end}"
    return end if oddity.requests == 1 else f"{end}, {oddity.requests}×"


def version_of(distribution: str) -> str:
    """The version that is pinned for the tests."""
    return versions(TEST)[distribution]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
