"""Composes messages: what is wrong, since when, what it refuses, what to do, and where to look.

A message is read at 3 a.m., on a small screen, by a person who was asleep. So the first line contains everything
important, and nothing requires a second page. Text from a provider, a server or a caller is reduced to plain text.

A message depends only on its notices, not on a clock, so a repeated message is identical.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from koo.alerts.channels.base import Message
from koo.alerts.kinds import KINDS
from koo.clock import iso
from koo.errors import describe_s
from koo.events import Severity
from koo.monitoring.runbook import Runbook, runbook, runbook_path
from koo.notices import Notice
from koo.plain_text import plain

WIDTH = 100
LISTED_MAX = 40
"""A message about more alerts than this only counts the rest."""
DATA_DEPTH_MAX = 6
HEADS = {"firing": "", "resolved": "resolved: ", "reminder": "still: ", "test": "test: "}
RANK: dict[Severity, int] = {"critical": 0, "warning": 1, "info": 2}
ALONE = (
    "The state store cannot be reached, so this process sends this on its own. Other processes may send the same "
    "alert, and acknowledgements and silences are not known."
)


@dataclass(frozen=True, slots=True)
class Sender:
    """The sender: its name in messages, and koo's URL for people's browsers (None if not set)."""

    name: str
    public_url: str | None = None

    def link(self, path: str) -> str | None:
        return None if self.public_url is None else f"{self.public_url}{path}"


def compose(
    key: str,
    notices: Sequence[Notice],
    sender: Sender,
    *,
    epoch: int | None = None,
    is_alone: bool = False,
) -> Message:
    """One message about one or more notices. `epoch` is that of the sender's lease; `is_alone`: without the store."""
    note = ALONE if is_alone else ""
    one = notices[0]
    is_one = len(notices) == 1
    subject = _subject(one) if is_one else _subject_of_many(notices)
    text = _text_of_one(one, sender) if is_one else _text_of_many(notices, sender)
    # The thread is the same for all messages about one alert (firing, reminder, resolved), whose keys differ. A message
    # about several alerts belongs to none of their threads.
    return Message(
        key=key,
        thread=f"{one.fingerprint}:{round(one.started_at)}" if is_one else key,
        subject=f"[koo] {subject}",
        text=f"{text}\n\n{note}\n" if note else f"{text}\n",
        document=_document(key, notices, sender, subject, note),
        epoch=epoch,
    )


# ── for people ────────────────────────────────────────────────────────────────────────────────────────────────────


def _subject(notice: Notice) -> str:
    if notice.what == "test":
        return f"test: {plain(notice.message, 160)}"
    head = HEADS[notice.what]
    return f"{head}{notice.severity}: {plain(notice.component, 80)}: {plain(notice.message, 160)}"


def _subject_of_many(notices: Sequence[Notice]) -> str:
    """A subject such as "4 alerts (3 critical, 1 resolved): database, ai:claude and 2 more", the worst first."""
    what = Counter(one.severity if one.what != "resolved" else "resolved" for one in notices)
    counts = ", ".join(
        f"{what[word]} {word}" for word in ("critical", "warning", "info", "resolved") if what[word]
    )
    parts = list(dict.fromkeys(plain(one.component, 60) for one in sorted(notices, key=_rank)))
    more = f" and {len(parts) - 3} more" if len(parts) > 3 else ""
    return f"{len(notices)} alerts ({counts}): {', '.join(parts[:3])}{more}"


def _rank(notice: Notice) -> tuple[bool, int]:
    return notice.what == "resolved", RANK[notice.severity]


def _text_of_one(notice: Notice, sender: Sender) -> str:
    book = runbook(notice.kind)
    head = f"{HEADS[notice.what] or f'{notice.severity}: '}{_name(notice.kind)}: {plain(notice.component)}"
    if notice.what == "test":
        return "\n".join([plain(notice.message), "", f"From:     {sender.name}"])
    lines = [head, plain(notice.message, 2000), "", *_times(notice)]
    if notice.what in {"firing", "reminder"}:
        if refuses := _refuses(notice, book):
            lines.append(f"Refuses:  {refuses}")
        if book is not None:
            lines += ["", "What to do", *_wrapped(_advice(notice, book))]
    return "\n".join([*lines, "", *_where(notice, sender), f"From:     {sender.name}"])


def _advice(notice: Notice, book: Runbook) -> str:
    also = notice.data.get("also")
    return book.advice_for(plain(notice.component), also if isinstance(also, list) else ())


def _wrapped(advice: str) -> Iterator[str]:
    for paragraph in advice.split("\n\n"):
        yield from textwrap.wrap(paragraph, WIDTH, break_long_words=False, break_on_hyphens=False)


def _text_of_many(notices: Sequence[Notice], sender: Sender) -> str:
    ranked = sorted(notices, key=_rank)
    lines = [_subject_of_many(notices), ""]
    for notice in ranked[:LISTED_MAX]:
        head = HEADS[notice.what] or f"{notice.severity}: "
        lines.append(f"- {head}{plain(notice.component, 80)}: {plain(notice.message, 300)} ({_when(notice)})")
    if len(ranked) > LISTED_MAX:
        lines.append(f"… and {len(ranked) - LISTED_MAX} more")
    lines += [
        "",
        "What to do",
        *dict.fromkeys(_advice_line(one, sender) for one in ranked if one.what != "resolved"),
    ]
    return "\n".join([*lines, "", *_dashboard(None, sender), f"From:     {sender.name}"])


def _name(kind: str) -> str:
    return KINDS[kind].title if kind in KINDS else plain(kind.replace("_", " "), 80)


def _times(notice: Notice) -> Iterator[str]:
    yield f"Since:    {_clock(notice.started_at)}"
    if notice.ended_at is not None:
        lasted = describe_s(max(0.0, notice.ended_at - notice.started_at))
        yield f"Until:    {_clock(notice.ended_at)} ({lasted})"


def _when(notice: Notice) -> str:
    since = f"since {_clock(notice.started_at)}"
    return since if notice.ended_at is None else f"{since}, until {_clock(notice.ended_at)}"


def _clock(wall_s: float) -> str:
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _refuses(notice: Notice, book: Runbook | None) -> str:
    """What the alert refuses now, if its rule says so, or else what alerts of its kind refuse."""
    said = notice.data.get("refuses")
    if not isinstance(said, str):
        return book.refuses if book is not None else ""
    return plain(said) or "nothing: calls pass"


def _advice_line(notice: Notice, sender: Sender) -> str:
    path = runbook_path(notice.kind)
    return f"- {_name(notice.kind)}: {sender.link(path) or f'{path} on the koo server'}"


def _where(notice: Notice, sender: Sender) -> Iterator[str]:
    yield from _dashboard(notice, sender)
    path = runbook_path(notice.kind)
    yield f"Runbook:  {sender.link(path) or f'{path} on the koo server'}"


def _dashboard(notice: Notice | None, sender: Sender) -> Iterator[str]:
    link = sender.link(_card_path(notice))
    yield f"Look at:  {link or f'{_card_path(notice)} on the koo server (KOO_PUBLIC_URL would make it a link)'}"


def _card_path(notice: Notice | None) -> str:
    return "/dashboard/" if notice is None else f"/dashboard/#{quote(plain(notice.component, 200), safe=':')}"


# ── for programs ──────────────────────────────────────────────────────────────────────────────────────────────────


def _document(key: str, notices: Sequence[Notice], sender: Sender, subject: str, note: str) -> dict[str, Any]:
    return {
        "type": f"koo.alert.{notices[0].what}" if len(notices) == 1 else "koo.alerts",
        "key": key,
        "title": subject,
        "note": note,
        "from": sender.name,
        "dashboard_url": sender.link(_card_path(None)),
        "alerts": [_alert(notice, sender) for notice in notices],
    }


def _alert(notice: Notice, sender: Sender) -> dict[str, Any]:
    book = runbook(notice.kind)
    ended_at = notice.ended_at
    return {
        "key": notice.key,
        "what": notice.what,
        "fingerprint": plain(notice.fingerprint),
        "kind": notice.kind,
        "severity": notice.severity,
        "component": plain(notice.component),
        "title": _name(notice.kind),
        "message": plain(notice.message, 2000),
        "started_at": iso(notice.started_at),
        "ended_at": iso(ended_at),
        "lasted_s": None if ended_at is None else max(0.0, ended_at - notice.started_at),
        "refuses": _refuses(notice, book),
        "advice": _advice(notice, book) if book is not None else "",
        "dashboard_url": sender.link(_card_path(notice)),
        "runbook_url": sender.link(runbook_path(notice.kind)),
        "data": _harmless(notice.data),
    }


def _harmless(value: object, depth: int = 0) -> Any:
    """A rule's data, with all strings reduced to plain text."""
    # The bounds on depth and length exist because the data may come from another version of koo through the store, and
    # a receiver must not get a message of megabytes.
    if depth > DATA_DEPTH_MAX:
        return None
    if isinstance(value, Mapping):
        return {plain(name, 100): _harmless(its, depth + 1) for name, its in value.items()}
    if isinstance(value, (list, tuple)):
        return [_harmless(one, depth + 1) for one in value[:100]]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no infinity
    return value if value is None or isinstance(value, (bool, int, float)) else plain(value)
