"""Write the package's instructions for each kind of alert: `python -m docs.generate_runbook`.

`docs/alerts.md` is the only source, with its links and code. A server has no docs next to it, and a message to a phone
has no markup, so the package contains the same text without markup.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from koo.alerts.kinds import KINDS

PAGE = Path(__file__).parent / "alerts.md"
FILE = Path(__file__).parents[1] / "src" / "koo" / "monitoring" / "runbook.json"
SECTION = re.compile(r"^### `(\w+)`\n(.*?)(?=^###? |\Z)", re.MULTILINE | re.DOTALL)
FIELD = re.compile(r"\*\*(Severity|Refuses|Begins|Ends|At 3 a\.m\.)\*\*:?")
NAMES = {"Refuses": "refuses", "Begins": "begins", "Ends": "ends", "At 3 a.m.": "advice"}


def plain(text: str) -> str:
    """The text without markup: links as their text, lines joined, paragraphs separate."""
    words = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text).replace("`", "").replace("**", "")
    words = re.sub(r"(?<!\w)\*(\w[^*]*)\*", r"\1", words)
    return "\n\n".join(" ".join(part.split()) for part in words.split("\n\n") if part.strip())


def fields_of(section: str) -> dict[str, str]:
    """The parts of a section by their names; "" for a part that a kind does not have."""
    parts = FIELD.split(section)
    found = {name: plain(text) for name, text in zip(parts[1::2], parts[2::2], strict=True)}
    parts_of = {key: found.get(name, "") for name, key in NAMES.items()}
    return {**parts_of, "advice": "\n\n".join(map(sentence, parts_of["advice"].split("\n\n")))}


def sentence(text: str) -> str:
    """The text with a capital letter, unless it starts with "koo", the product or its command."""
    return text if re.match(r"koo\b", text) else f"{text[:1].upper()}{text[1:]}"


def runbook() -> dict[str, dict[str, str]]:
    """The kinds that the page explains."""
    sections = {kind: fields_of(text) for kind, text in SECTION.findall(PAGE.read_text(encoding="utf-8"))}
    return {
        kind: {"title": row.title, "severity": row.severity, **sections[kind]}
        for kind, row in KINDS.items()
        if kind in sections
    }


def text() -> str:
    """The generated file."""
    return json.dumps(runbook(), ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
