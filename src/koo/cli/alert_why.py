"""`koo alerts why` and `koo alerts test`: whether alerts are sent, on which channel, and if not, why."""

from __future__ import annotations

from typing import TypedDict

from koo.cli.alert_past import PAGE
from koo.cli.alerts import state_of
from koo.cli.client import TIMEOUT_S, connect, who
from koo.cli.tables import Column, put_table, put_words
from koo.cli.terminal import CommandFailed, Exit, progress, put, put_json, run_async, say
from koo.cli.words import in_utc, latency, when
from koo.monitoring.alert_shapes import AlertHistory
from koo.monitoring.notice_shapes import (
    AlertDeliveries,
    AlertDelivery,
    AlertTests,
    ChannelStatus,
    UntoldAlert,
)
from koo.monitoring.shapes import Alert, SystemAlerts

DELIVERIES = (
    Column("written", whole=True),
    Column("what", whole=True),
    Column("component"),
    Column("channel", whole=True),
    Column("state", whole=True),
    Column("attempts", right=True),
    Column("why"),
)
UNTOLD = (
    Column("not sent", whole=True),
    Column("severity", coloured=True),
    Column("component"),
    Column("kind"),
    Column("state"),
    Column("why"),
    Column("id", whole=True),
)
CHANNELS = (
    Column("channel", whole=True),
    Column("state", whole=True),
    Column("last message", whole=True),
    Column("waiting", right=True),
    Column("why"),
)
TESTS = (
    Column("channel", whole=True),
    Column("result", whole=True),
    Column("took", right=True),
    Column("why"),
)


class Explained(TypedDict):
    """What `koo alerts why --json` prints. `alert` is null if no id was given."""

    alert: Alert | None
    note: str
    channels: list[ChannelStatus]
    deliveries: list[AlertDelivery]
    untold: list[UntoldAlert]


def why(alert: str | None, url: str | None, *, as_json: bool) -> Exit:
    """For one alert or all of the last day, show what happened to each notice on each channel, or why there is none."""
    answer = run_async(_explain(alert, url))
    if as_json:
        put_json(answer)
        return Exit.OK
    if answer["alert"] is not None:
        _put_alert(answer["alert"])
    if answer["note"]:
        put(answer["note"])
    if answer["untold"]:
        put_table(UNTOLD, [_untold_row(one) for one in answer["untold"]])
    if answer["deliveries"]:
        put_table(DELIVERIES, [_delivery_row(one) for one in answer["deliveries"]])
    if answer["channels"]:
        put_table(CHANNELS, [_channel_row(one) for one in answer["channels"]])
    return Exit.OK


async def _explain(alert: str | None, url: str | None) -> Explained:
    async with connect(url) as client:
        with progress(f"querying {client.url}"):
            told = await client.get("/monitoring/alerts/deliveries", AlertDeliveries)
            if alert is None:
                found = None
            else:
                listed = (await client.get("/monitoring/alerts", SystemAlerts))["alerts"]
                past = await client.get(f"/monitoring/alerts/history?limit={PAGE}", AlertHistory)
                found = next((one for one in [*listed, *past["episodes"]] if one["id"] == alert), None)
                if found is None:
                    sentence = f"no alert has the id {alert}; `koo alerts` and `koo alerts history` list them"
                    raise CommandFailed(sentence, Exit.USAGE, "not_found")
    deliveries = [one for one in told["deliveries"] if alert is None or one["key"].partition(":")[0] == alert]
    return {
        "alert": found,
        "note": told["note"] or told["store"] or "",
        "channels": told["channels"],
        "deliveries": deliveries,
        "untold": [one for one in told["untold"] if alert in (None, one["id"])],
    }


def _put_alert(alert: Alert) -> None:
    put_words(f"{alert['component']}: {in_utc(alert['message'])}")
    put_words(f"{alert['type']}, {state_of(alert)}, since {when(alert['timestamp'])}")
    told = alert["notified"]
    words = (
        f"notified at {when(told['at'])}"
        if told["at"]
        else f"not notified: {told['reason'] or told['state']}"
    )
    put_words(words)


def _delivery_row(one: AlertDelivery) -> list[str]:
    return [
        when(one["noticed_at"]), one["what"], one["component"], one["channel"], one["state"], str(one["attempts"]),
        _next(one["reason"], one["next_attempt"]),
    ]  # fmt: skip


def _untold_row(one: UntoldAlert) -> list[str]:
    return [
        when(one["since"]),
        one["severity"],
        one["component"],
        one["kind"],
        one["state"],
        one["reason"],
        one["id"],
    ]


def _channel_row(one: ChannelStatus) -> list[str]:
    last = when(one["last_sent"]) if one["last_sent"] else "never"
    reasons = [_next(one["reason"], one["next_attempt"]), *one["warnings"]]
    return [one["channel"], one["state"], last, str(one["waiting"]), "; ".join(filter(None, reasons))]


def _next(reason: str, at: str | None) -> str:
    return "; ".join(filter(None, [reason, at and f"next attempt {when(at)}"]))


def send_test(channel: str | None, url: str | None, *, as_json: bool) -> Exit:
    """Send a test now. Exit code 1 if a channel did not accept it."""
    answer = run_async(_test(channel, url))
    if as_json:
        put_json(answer)
    else:
        rows = [
            [
                one["channel"],
                "sent" if one["sent"] else "failed",
                latency(one["took_ms"] / 1000),
                "; ".join(filter(None, [one["error"], *one["warnings"]])),
            ]
            for one in answer["results"]
        ]
        put_table(TESTS, rows)
    failed = [one["channel"] for one in answer["results"] if not one["sent"]]
    if failed and not as_json:
        say(f"koo: the test was not accepted by {', '.join(failed)}")
    return Exit.FAILED if failed else Exit.OK


async def _test(channel: str | None, url: str | None) -> AlertTests:
    body = {"by": who()} | ({} if channel is None else {"channel": channel})
    async with connect(url) as client:
        with progress("sending a test"):
            return await client.post("/monitoring/alerts/test", AlertTests, body, patience_s=2 * TIMEOUT_S)
