"""Options of alerts: who is notified, through which channels, how often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from koo.checked import Checked, option


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertOptions(Checked):
    """Who is notified of alerts, and how."""

    webhook: str | None = option(
        None,
        "URL that each alert is sent to, as JSON",
        "koo has no receiver until you set one",
        secret=True,
    )
    webhook_secret: str | None = option(
        None,
        "secret that signs what is sent to `KOO_ALERT_WEBHOOK`, so that its receiver knows the sender",
        "unsigned: a receiver that checks nothing needs none",
        secret=True,
    )
    slack: str | None = option(
        None,
        "incoming webhook of Slack, or of a server that accepts the same form",
        "as for the webhook",
        secret=True,
    )
    email: tuple[str, ...] = option((), "addresses that each alert is mailed to", "as for the webhook")
    sender: str | None = option(
        None,
        "address that mails are from; without it, the user of `KOO_SMTP_URL`",
        "most servers accept no other sender than the account that logs in",
    )
    smtp_url: str | None = option(
        None, "server that accepts the mails", "mail needs a server that lets koo in", secret=True
    )
    severity: Literal["critical", "warning", "info"] = option(
        "warning",
        "least severity that is sent; `critical` sends only alerts of refused or failing calls",
        "a warning in the evening is a night's sleep",
    )
    public_url: str | None = option(
        None,
        "where people reach koo in a browser: the beginning of the links in messages",
        "without it a message says where to look, and has no links",
    )
    reminder_every_s: float = option(
        14_400.0,
        "time after which an alert that still fires and is not acknowledged is sent again; 0: never",
        "four hours: twice a night, not once a coffee",
        unit="s",
        at_least=0,
        at_most=604_800,
    )
