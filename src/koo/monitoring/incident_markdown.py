"""Renders an incident as complete, simple Markdown that a person can paste into a postmortem.

It contains only headings, lists and tables. Text from outside (an operator's reason, a provider's error) is reduced to
one line, and its Markdown characters are escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from koo.errors import describe_s
from koo.monitoring import incident_shapes as shapes
from koo.plain_text import plain

_SIGNS = re.compile(r"([\\`*_{}\[\]<>#|~!])")
WORDS_MAX = 600


def markdown_of(answer: shapes.OneIncident) -> str:
    """The whole incident, with one section for each question."""
    one = answer["incident"]
    parts: Iterable[str] = (
        f"# Incident {one['id']}: {_safe(one['guard'])}",
        "\n".join(_facts(one)),
        *_section("Why it opened", _why(one)),
        *_section("Calls in the window", _calls(one["calls"], one["calls_left_out"])),
        *_section(
            "What happened in the hour before",
            _table(
                ("when", "what", "where", "said"),
                ((_at(m["at"]), m["kind"], m["component"], m["text"]) for m in one["before"]),
            ),
        ),
        *_section("What it did", _did(one)),
        *_section("Probes", _calls(one["probes"], 0)),
        *_section(
            "Timeline",
            _table(("when", "what", "said"), ((_at(s["at"]), s["what"], s["text"]) for s in one["steps"])),
        ),
        *_section(
            "What operators did",
            _table(
                ("when", "what", "by", "reason", "until"),
                (
                    (_at(a["at"]), a["what"], a["by"], a["reason"], _at(a["until"]) if a["until"] else "")
                    for a in one["acts"]
                ),
            ),
        ),
        *_section(
            "In other processes",
            _table(
                ("incident", "process", "state", "opened", "closed", "refused", "reason"),
                (
                    (
                        e["id"],
                        e["process"],
                        e["state"],
                        _at(e["opened_at"]),
                        _at(e["closed_at"]) if e["closed_at"] else "",
                        str(e["refused"]),
                        e["reason"],
                    )
                    for e in one["elsewhere"]
                ),
            ),
        ),
        f"Written {_at(answer['timestamp'])} by koo."
        + (f" {_safe(answer['trouble'])}" if answer["trouble"] else ""),
    )
    return "\n\n".join(parts) + "\n"


def _facts(one: shapes.Incident) -> Iterator[str]:
    yield f"- **What opened:** the circuit breaker of {_safe(one['guard'])} ({one['component']})"
    yield f"- **Reason:** {_safe(one['reason'])}"
    yield f"- **Opened:** {_at(one['opened_at'])}"
    if one["closed_at"]:
        yield f"- **Closed:** {_at(one['closed_at'])}, after {describe_s(one['lasted_s'])}: {_safe(one['ended'])}"
    elif one["state"] == "lost":
        heard = _at(one["last_heard"])
        yield f"- **State:** lost: its process ended without reporting the outcome; its last report was at {heard}"
    else:
        yield f"- **State:** {one['state']}, for {describe_s(one['lasted_s'])} so far"
    if one["shadow"]:
        yield "- **Shadow:** it only counted and refused no call"
    yield f"- **Process:** {_safe(one['process'])}, one of {one['processes']} that had it open"


def _why(one: shapes.Incident) -> str:
    trigger = one["trigger"]
    if trigger is None:
        return _safe(one["reason"])
    rows = [
        ("failures in a row", trigger["failures_in_a_row"], trigger["failures_in_a_row_max"]),
        ("calls in the window", trigger["calls"], f"at least {trigger['calls_min']} for the shares"),
        (
            "failed",
            f"{trigger['failures']} ({trigger['failure_rate']:.0%})",
            f"{trigger['failure_rate_max']:.0%}",
        ),
        ("slow", f"{trigger['slow']} ({trigger['slow_rate']:.0%})", f"{trigger['slow_rate_max']:.0%}"),
        ("slow and still running", trigger["running_slow"], ""),
        ("window", describe_s(trigger["window_s"]), ""),
    ]
    if trigger["slow_s"] is not None:
        rows.append(("slow is from", describe_s(trigger["slow_s"]), ""))
    table = _table(("number", "was", "opens at"), ([str(cell) for cell in row] for row in rows))
    return f"{_safe(trigger['sentence'])}.\n\n{table}"


def _calls(calls: Sequence[shapes.IncidentCall], left_out: int) -> str:
    rows = (
        (
            _at(call["at"]),
            f"{call['duration_s']:.3f} s",
            call["outcome"],
            call["kind"],
            "" if call["status"] is None else str(call["status"]),
            str(call["in_row"] or ""),
            call["sentence"],
        )
        for call in calls
    )
    table = _table(("ended", "took", "outcome", "kind", "status", "in a row", "met"), rows)
    return f"{table}\n\n{left_out} more are not kept." if left_out else table


def _did(one: shapes.Incident) -> str:
    lines = [
        f"- Calls refused, in all processes: {one['refused']}",
        f"- Time in which this process refused calls: {describe_s(one['refused_for_s'])}",
    ]
    if one["passed"]:
        lines.append(f"- Calls that a shadow breaker let through and would have refused: {one['passed']}")
    for service, count in sorted(one["fallback"].items()):
        lines.append(f"- Calls that {_safe(service)} answered instead: {count}")
    return "\n".join(lines)


def _section(title: str, body: str) -> tuple[str, ...]:
    return (f"## {title}", body or "Nothing.")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(_safe(cell) for cell in row)} |" for row in rows]
    if not lines:
        return ""
    return "\n".join((f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *lines))


def _at(time: str) -> str:
    """A time in UTC, to the millisecond."""
    day, _, rest = time.partition("T")
    clock = rest.partition("+")[0]
    whole, _, part = clock.partition(".")
    return f"{day} {whole}.{(part + '000')[:3]}Z"


def _safe(words: str) -> str:
    return _SIGNS.sub(r"\\\1", plain(words, WORDS_MAX))
