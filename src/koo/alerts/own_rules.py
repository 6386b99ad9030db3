"""Findings about koo itself: its state store, disks, file descriptors, background checks and channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from koo.alerts.findings import Finding
from koo.alerts.money_rules import STORE
from koo.alerts.words import count, say
from koo.monitoring.notice_shapes import ChannelStatus
from koo.monitoring.own_shapes import DescriptorHealth, DiskHealth, KooHealth, StoreHealth
from koo.monitoring.shapes import AlertData, ServiceHealth

PROCESS = "process"
DISK = "disk:"
CHANNEL = "channel:"
FAILING_S = 60.0
"""After this time a receiver that is being restarted is back."""
DESCRIPTORS_MOST = 0.97
DESCRIPTORS_MANY = 0.85
MIB = 2**20


def find_in_koo(view: KooHealth) -> Iterator[Finding]:
    """All findings about this process, its disks and its descriptors."""
    for disk in view["disks"]:
        yield from _disk(disk)
    if view["descriptors"] is not None:
        yield from _descriptors(view["descriptors"])
    if view["short_of"]:
        message = f"{view['short_of']}: calls that need it fail, which is not counted against any service"
        yield Finding("out_of_resources", PROCESS, message)
    yield from _monitors(view)


def find_in_store(store: StoreHealth | None, services: Sequence[ServiceHealth]) -> Iterator[Finding]:
    """Findings about the state store. It is one store for all services, so it is one alert."""
    budgets = {view["service_name"]: view["rate_limits"]["daily_budget"] for view in services}
    names = sorted(
        name
        for name, budget in budgets.items()
        if budget["limit"] is not None and budget["scope"] != "shared"
    )
    is_away = store is not None and not store["reachable"]
    if not names and not is_away:
        return
    message = (store["reason"] if store is not None else "") or "the state store cannot be reached"
    local = f"; default budgets apply to this process only (affected: {', '.join(names)})" if names else ""
    data: AlertData = {"services": names}
    if store is not None and store["lost_at"] is not None:
        data["since"] = store["lost_at"]
    yield Finding("budget_local", STORE, message + local, data)
    if store is not None and is_away and store["refuses"]:
        whom = ", ".join(store["refuses"])
        once = "once the money granted to this process is used up"
        what = f"calls to {whom} that count against a budget that was set"
        refuses: AlertData = {**data, "refuses": f"{what}, {once}"}
        soon = f"calls to {whom} will be refused {once}"
        yield Finding("store_unavailable", STORE, f"{message}; {soon}", refuses)


def find_in_channels(channels: Sequence[ChannelStatus], now: float) -> Iterator[Finding]:
    """Channels that have been failing for a while, or that gave a message up. `now` is in wall seconds."""
    for channel in channels:
        since = channel["failing_since"]
        failing_s = 0.0 if since is None else now - datetime.fromisoformat(since).timestamp()
        if failing_s < FAILING_S and not channel["given_up"]:
            continue
        waiting = count(channel["waiting"], "notice is", "notices are")
        message = say(f"{waiting} waiting for {channel['channel']}", channel["reason"])
        if channel["given_up"]:
            message += f"; {count(channel['given_up'], 'was', 'were')} given up within the last hour"
        data: AlertData = {"next_attempt": channel["next_attempt"]}
        if since is not None:
            data["since"] = since
        yield Finding("notification_failing", f"{CHANNEL}{channel['channel']}", message, data)


def _disk(disk: DiskHealth) -> Iterator[Finding]:
    # A full disk is also nearly full. Both are found, and `absorbing` makes the lesser one a part of the greater one.
    # So the alert about the nearly full disk goes on, and does not end when the disk gets worse.
    component = f"{DISK}{disk['name']}"
    where = "of KOO_HOME" if disk["name"] == "home" else "of the state store"
    if disk["state"] != "ok":
        message = f"{disk['free_bytes'] / MIB:.0f} MiB are free on the disk {where}"
        yield Finding("disk_nearly_full", component, message)
        if disk["state"] == "full":
            yield Finding("disk_full", component, f"{message}: koo's writes to it begin to fail")


def _descriptors(view: DescriptorHealth) -> Iterator[Finding]:
    used, limit = view["used"], view["limit"]
    message = f"{used} of {limit} file descriptors are open"
    data: AlertData = {"share": used / limit}
    if used >= DESCRIPTORS_MANY * limit:
        yield Finding("descriptors_nearly_used_up", PROCESS, message, data)
    if used >= DESCRIPTORS_MOST * limit:
        yield Finding("descriptors_used_up", PROCESS, f"{message}: new connections fail", data)


def _monitors(view: KooHealth) -> Iterator[Finding]:
    if view["late"]:
        message = f"overdue: {', '.join(view['late'])}; what is shown may be outdated"
        yield Finding("monitor_stale", PROCESS, message)
    elif view["blocked_s"]:
        message = f"the event loop was blocked for {view['blocked_s']:.0f} s: no koo code ran, not even its deadlines"
        yield Finding("monitor_stale", PROCESS, message)
