"""The instructions for each kind of alert, as plain text that is part of the package.

They are written once, in `docs/alerts.md`, and `make docs` copies them into `runbook.json`. The server serves them at
`/runbook`, so that a link in an alert works even if nothing but this server can be reached.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from koo.events import Severity

PREFIX = "/api/v1"
"""The prefix of koo's routes, unless an application mounts them elsewhere."""
PATH = "/runbook"


@dataclass(frozen=True, slots=True)
class Runbook:
    """The text about one kind of alert, in sentences without markup.

    `refuses` says which calls are refused, and is empty if none are. An empty line separates the paragraphs of
    `advice`.
    """

    kind: str
    title: str
    severity: Severity
    refuses: str
    begins: str
    ends: str
    advice: str

    def advice_for(self, component: str, also: Sequence[str] = ()) -> str:
        """The advice for one alert: a command names its service, so that it can be pasted. `also`: the alert's
        `data.also`."""
        advice = self.advice
        if self.kind == "service_down" and not any(kind.endswith("key_refused") for kind in also):
            # Its first paragraph is about a refused key: the page leaves it out then, and a message puts it last.
            of_key, *others = advice.split("\n\n")
            advice = "\n\n".join([*others, of_key])
        if not component.startswith("ai:"):
            return advice
        return advice.replace("koo reset SERVICE", f"koo reset {component[3:].partition('/')[0]}")

    @property
    def anchor(self) -> str:
        """The runbook's path in the docs."""
        return f"alerts.md#{self.kind}"


@cache
def runbooks() -> Mapping[str, Runbook]:
    """All runbooks, by kind."""
    content = json.loads(files("koo.monitoring").joinpath("runbook.json").read_text(encoding="utf-8"))
    return {kind: Runbook(kind=kind, **entry) for kind, entry in content.items()}


def runbook(kind: str) -> Runbook | None:
    """The runbook of a kind; None for news, and for a kind that this version does not have."""
    return runbooks().get(kind)


def runbook_path(kind: str, base: str = PREFIX) -> str:
    """The path on the server: the kind's own page, or the page of all kinds. `base` is the prefix of the routes."""
    return f"{base}{PATH}/{kind}" if kind in runbooks() else f"{base}{PATH}"
