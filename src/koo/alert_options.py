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
        "secret that signs what is sent to `KOO_ALERT_WEBHOOK`, so that the receiver can verify the sender",
        "a receiver that does not verify the sender needs none",
        secret=True,
    )
    slack: str | None = option(
        None,
        "incoming webhook of Slack, or of a server that accepts the same format",
        "as for the webhook",
        secret=True,
    )
    email: tuple[str, ...] = option((), "addresses that each alert is mailed to", "as for the webhook")
    sender: str | None = option(
        None,
        "sender address of the mails; without it, the user of `KOO_SMTP_URL`",
        "most servers accept only the account that logs in as the sender",
    )
    smtp_url: str | None = option(
        None, "SMTP server that sends the mails", "mail needs a server that koo may use", secret=True
    )
    severity: Literal["critical", "warning", "info"] = option(
        "warning",
        "lowest severity that is sent; `critical` sends only alerts of refused or failing calls",
        "a warning in the evening can prevent an outage at night",
    )
    public_url: str | None = option(
        None,
        "address of koo in a browser: the start of the links in messages",
        "without it messages say where to look, and have no links",
    )
    reminder_every_s: float = option(
        14_400.0,
        "time after which a critical alert that is still firing and is not acknowledged is sent again; 0: never",
        "four hours: twice a night",
        unit="s",
        at_least=0,
        at_most=604_800,
    )
