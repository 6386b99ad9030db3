"""Parse Markdown as far as the tests of the documents need it: fenced blocks, headings, links.

The word after a block's language says what the tests do with the block:

    ```python              run as a program
    ```python fragment     part of a program; not run
    ```text output         the output of the program before it; … stands for anything
    ```sh                  the lines with `curl` and `koo` are run against a server
    ```sh fails            the same, but the server responds with an error
    ```sh fragment         not run
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<info>[^`\n]*)$")
_HEADING = re.compile(r"^#{1,6} +(?P<title>.+?) *#* *$")
_LINK = re.compile(r"(?<!!)\[(?:[^\[\]]|\[[^\]]*\])*\]\((?P<target>[^()\s]+)(?: \"[^\"]*\")?\)")
_INLINE_CODE = re.compile(r"`+[^`]*`+")
_LINK_TEXT = re.compile(r"\[([^\]]*)\]\([^)]*\)")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its first line (counted from 1), its language, the words after the language, and its text."""

    path: Path
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    @property
    def name(self) -> str:
        """The block's name, for test ids."""
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def documents() -> list[Path]:
    """All documents of the repository."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a document, in order. Raises ValueError if one is not closed."""
    return list(_blocks(path))


def _blocks(path: Path) -> Iterator[Block]:
    lines = iter(enumerate(path.read_text(encoding="utf-8").splitlines(), 1))
    for number, line in lines:
        fence = _FENCE.match(line)
        if fence is None:
            continue
        words = fence["info"].split()
        inside: list[str] = []
        for _, inner in lines:
            if inner.strip() == fence["ticks"]:
                break
            inside.append(inner.removeprefix(fence["indent"]))
        else:
            raise ValueError(f"{path}:{number}: this block has no end")
        text = "".join(f"{one}\n" for one in inside)
        yield Block(path, number, words[0] if words else "", tuple(words[1:]), text)


def prose(path: Path) -> list[tuple[int, str]]:
    """The lines outside of fenced blocks, with their numbers."""
    found, ticks = [], ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if ticks:
            ticks = "" if line.strip() == ticks else ticks
        elif fence is not None:
            ticks = fence["ticks"]
        else:
            found.append((number, line))
    return found


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    result = set()
    for _, line in prose(path):
        heading = _HEADING.match(line)
        if heading is None:
            continue
        title = _LINK_TEXT.sub(r"\1", heading["title"]).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        result.add(f"{slug}-{count}" if count else slug)
    return result


def links(path: Path) -> list[tuple[int, str]]:
    """The targets of the links in a document's prose, with their lines."""
    return [
        (number, unquote(found["target"]))
        for number, line in prose(path)
        for found in _LINK.finditer(_INLINE_CODE.sub(lambda code: "x" * len(code[0]), line))
    ]
