"""What to do about each kind of alert, as plain text that comes with the package.

It is written once, in `docs/alerts.md`; `make docs` copies it beside this file. The server serves it at `/runbook`, so
that a link in an alert leads to something also where nothing but this server can be reached.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from koo.events import Severity

PREFIX = "/api/v1"
"""Below which the routes are, unless an application mounts them elsewhere."""
PATH = "/runbook"


@dataclass(frozen=True, slots=True)
class Runbook:
    """What a person reads about one kind of alert, in sentences without markup.

    `refuses` says which calls do not pass, and is empty where they do. Paragraphs of `advice` are separated by an empty
    line.
    """

    kind: str
    title: str
    severity: Severity
    refuses: str
    begins: str
    ends: str
    advice: str

    @property
    def anchor(self) -> str:
        """Where it stands in the docs."""
        return f"alerts.md#{self.kind}"


@cache
def runbooks() -> Mapping[str, Runbook]:
    """All of them, by kind."""
    content = json.loads(files("koo.monitoring").joinpath("runbook.json").read_text(encoding="utf-8"))
    return {kind: Runbook(kind=kind, **entry) for kind, entry in content.items()}


def runbook(kind: str) -> Runbook | None:
    """What to do about this kind; None for news, and for a kind that this version does not know."""
    return runbooks().get(kind)


def runbook_path(kind: str, base: str = PREFIX) -> str:
    """Where the server answers with it: its own page, or the page of all. `base`: what stands before the routes."""
    return f"{base}{PATH}/{kind}" if kind in runbooks() else f"{base}{PATH}"
