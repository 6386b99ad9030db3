"""What is wrong with koo itself: its state store, its disks, its descriptors, its background checks, its channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from koo.alerts.findings import Finding
from koo.alerts.money_rules import STORE
from koo.alerts.words import say
from koo.monitoring.notice_shapes import ChannelStatus
from koo.monitoring.own_shapes import DescriptorHealth, DiskHealth, KooHealth, StoreHealth
from koo.monitoring.shapes import AlertData, ServiceHealth

PROCESS = "process"
DISK = "disk:"
CHANNEL = "channel:"
FAILING_S = 60.0
"""A receiver that is restarted is back by then."""
DESCRIPTORS_MOST = 0.97
DESCRIPTORS_MANY = 0.85
MIB = 2**20


def find_in_koo(view: KooHealth) -> Iterator[Finding]:
    """Everything that holds for this process, its disks and its descriptors."""
    for disk in view["disks"]:
        yield from _disk(disk)
    if view["descriptors"] is not None:
        yield from _descriptors(view["descriptors"])
    if view["short_of"]:
        message = f"{view['short_of']}: calls that need it fail, which does not count against any service"
        yield Finding("out_of_resources", PROCESS, message)
    yield from _monitors(view)


def find_in_store(store: StoreHealth | None, services: Sequence[ServiceHealth]) -> Iterator[Finding]:
    """One store for all services, so one alert: five would say the same thing five times."""
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
    local = (
        f"; default budgets hold for this process only, which concerns {', '.join(names)}" if names else ""
    )
    data: AlertData = {"services": names}
    if store is not None and store["lost_at"] is not None:
        data["since"] = store["lost_at"]
    yield Finding("budget_local", STORE, message + local, data)
    if store is not None and is_away and store["refuses"]:
        whom = ", ".join(store["refuses"])
        refuses: AlertData = {**data, "refuses": f"calls to {whom} that count against a budget that was set"}
        soon = f"calls to {whom} are refused when what this process was granted of their budgets is used up"
        yield Finding("store_unavailable", STORE, f"{message}; {soon}", refuses)


def find_in_channels(channels: Sequence[ChannelStatus], now: float) -> Iterator[Finding]:
    """Channels that have not accepted messages for a while, or gave one up. `now` in wall seconds."""
    for channel in channels:
        since = channel["failing_since"]
        failing_s = 0.0 if since is None else now - datetime.fromisoformat(since).timestamp()
        if failing_s < FAILING_S and not channel["given_up"]:
            continue
        given_up = (
            f"; {channel['given_up']} were given up within the last hour" if channel["given_up"] else ""
        )
        message = (
            say(f"{channel['waiting']} notices wait for {channel['channel']}", channel["reason"]) + given_up
        )
        data: AlertData = {"next_attempt": channel["next_attempt"]}
        if since is not None:
            data["since"] = since
        yield Finding("notification_failing", f"{CHANNEL}{channel['channel']}", message, data)


def _disk(disk: DiskHealth) -> Iterator[Finding]:
    component = f"{DISK}{disk['name']}"
    where = "of KOO_HOME" if disk["name"] == "home" else "of the state store"
    if disk["state"] != "ok":
        message = f"{disk['free_bytes'] / MIB:.0f} MiB are free on the disk {where}"
        yield Finding("disk_nearly_full", component, message)
        if disk["state"] == "full":
            yield Finding("disk_full", component, f"{message}: what koo writes there begins to fail")


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
        message = f"overdue: {', '.join(view['late'])}; what is shown of it may be old"
        yield Finding("monitor_stale", PROCESS, message)
    elif view["blocked_s"]:
        message = f"the event loop was blocked for {view['blocked_s']:.0f} s: nothing in koo ran, not even deadlines"
        yield Finding("monitor_stale", PROCESS, message)
