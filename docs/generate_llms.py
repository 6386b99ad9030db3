"""`llms.txt`: what koo is and where everything is documented, for programs that read documentation.

Its sections are the rows of the README's table; its sentences are the first ones of the documents themselves.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "llms.txt"
ROW = re.compile(r"^\| ([a-z][^|]*) \| (.*\]\(.*) \|$", re.MULTILINE)
LINK = re.compile(r"\[([^\]]+)\]\(([^)#]+\.md)\)")
MORE = {
    "docs/openapi.json": "the HTTP API in OpenAPI, with an example of each response",
    ".env.example": "all settings with their defaults",
}
SENTENCE_MAX = 250


def page() -> str:
    """The whole file."""
    about = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["description"]
    lines = ["# koo", "", f"> {about}.", "", *_paragraphs()]
    for title, links in rows():
        lines += ["", f"## {title[0].upper()}{title[1:]}", ""]
        lines += [f"- [{name}]({target}): {sentence_of(ROOT / target)}" for name, target in links]
    lines += ["", "## More", ""]
    named = {(ROOT / target).resolve() for _, links in rows() for _, target in links}
    for path in sorted((ROOT / "docs").glob("*.md")):
        if path.resolve() not in named:
            title = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
            lines.append(f"- [{title}](docs/{path.name}): {sentence_of(path)}")
    lines += [f"- [{path}]({path}): {sentence}" for path, sentence in MORE.items()]
    return "\n".join(lines) + "\n"


def _paragraphs() -> list[str]:
    return [
        "Everything public is imported from `koo`: `from koo import query_ai, db_manager, guarded, Platform`. "
        "All of it is asynchronous; `koo.run` is the bridge for code without an event loop. Without configuration koo "
        "uses SQLite and a local model. Errors are subclasses of `koo.KooError`, with `kind` and `retry_after_s`."
    ]


def rows() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The rows of the README's table that link to documents: the reader's goal, and the links."""
    for title, cell in ROW.findall((ROOT / "README.md").read_text(encoding="utf-8")):
        yield title, LINK.findall(cell)


def sentence_of(path: Path) -> str:
    """The first sentence of a document, as plain text."""
    for block in path.read_text(encoding="utf-8").split("\n\n")[1:]:
        if not block.lstrip().startswith(("<!--", "|", "#", "```", "- ", "**Contents**", "![")):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(block.split())).replace("**", "")
            first = re.split(r"(?<=[.?]) (?=[A-Z`])", text)[0].removesuffix(".").removesuffix(":")
            return first if len(first) <= SENTENCE_MAX else f"{first[: SENTENCE_MAX - 1]}…"
    return ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
