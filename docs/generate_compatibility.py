"""Write `docs/compatibility.md` from the unusual responses in the tests: `python -m docs.generate_compatibility`.

The rows are in `tests/ai/oddities.py` and the files next to it, and those of libraries in `proofs/own.py`.
`tests/docs/test_compatibility.py` fails if the page is out of date.
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

AI services, gateways and self-hosted servers do not always send what their documentation says. This page lists the
unusual responses that koo handles, and what it does with each. koo first decodes a response strictly. If that fails, a
lenient decoder tries again: it requires only a text and an end. A usage that it cannot read is estimated, and marked as
an estimate.

Each row is one sample that every test run sends to koo over a socket (`tests/ai/test_oddities.py`). The tests also give
the samples of answers to the vendors' own SDKs ({sdks}); koo
reads every sample that its vendor's SDK reads (`tests/ai/test_sdks_beside_koo.py`).

*Ends with* is what the caller gets: the answer, or an error of that kind ([errors.md](errors.md)). The tests allow two
retries, so `3×` means that koo sends the request three times in total, as often as it may. `make docs` writes this page
from the same rows.
"""
LIBRARIES = """\
## Other libraries, servers and event loops

`make prove-own` tests libraries that the test suite does not install, each group in its own environment.
[own.md](proofs/own.md) has the date and the result.

| with | result |
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
            f"| {', '.join(pin.replace('==', ' ') for pin in (*one.pins, *one.alone))} | {one.proves} |"
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
