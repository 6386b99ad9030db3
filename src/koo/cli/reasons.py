"""What is wrong with a component and when it is tried again: sentences shared by `koo status` and `koo watch`."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from koo.cli.words import latency, moment, plainly, seconds_of, span, time_in, when
from koo.monitoring.own_shapes import KooHealth
from koo.monitoring.shapes import WINDOWS, Dashboard, DatabaseHealth, DatabaseServer, LastError, ServiceHealth


def server_words(server: DatabaseServer | None) -> str:
    """Describe the server: "on db.example:5432/shop", or "in app.db"."""
    if server is None:
        return ""
    name = server["name"] or ""
    if server["host"] is None:
        return f"in {name}" if name else ""
    port = "" if server["port"] is None else f":{server['port']}"
    return f"on {server['host']}{port}{'/' if name else ''}{name}"


def database_state(view: DatabaseHealth) -> str:
    """Return the state, or "no answer" after a first failed probe, when "healthy" would contradict the alert."""
    is_silent = view["state"] == "healthy" and view["error"] is not None
    return "no answer" if is_silent else view["state"]


def database_figures(view: DatabaseHealth) -> str:
    """ "on db.example:5432/shop, 1.9 ms, 3 of 30 connections in use, 2 waiting (saturated)"."""
    pool = view["pool_status"]
    words = [server_words(view.get("server"))]
    # After a failed probe, the time only shows how soon it was refused, and would suggest a fast database.
    if view["response_time_ms"] is not None and view["error"] is None:
        words.append(latency(view["response_time_ms"] / 1000))
    words.append(f"{pool['active_connections']} of {pool['max_connections']} connections in use")
    if pool["waiting"]:
        words.append(f"{pool['waiting']} waiting")
    conditions = "".join(f" ({condition})" for condition in view["conditions"])
    return ", ".join(filter(None, words)) + conditions


def why_database(view: DatabaseHealth, now: float) -> str:
    """Return what is wrong with the database and when it is tried again; empty if nothing is."""
    # The line already names the database.
    why = view["reason"] or view["error"] or ""
    if not why:
        return ""
    again = f"; its probe has succeeded since {when(since)}" if (since := view.get("answers_since")) else ""
    breaker = view["circuit_breaker"]
    if breaker.get("state") == "forced_open":
        return plainly(why, now) + again
    error = _last_error(view.get("last_error"), why, now)
    return f"{plainly(why, now)}{error}{again}{_again(seconds_of(breaker['next_attempt']), now)}"


def why_service(view: ServiceHealth, now: float) -> str:
    """Return what is wrong with a service and when it is tried again; empty if nothing is."""
    if not view["reason"] or not (view["configured"] or is_local(view)):
        return ""
    if _is_forced(view):
        return plainly(view["reason"], now)
    at = next_attempt(view)
    again = _again(at, now)
    if at is None and view["state"] == "circuit_open":
        again = f"; next attempt after an unbilled check that succeeds{_next_check(view, now)}, or a reset"
    return plainly(view["reason"], now) + _last_error(_error_of(view), view["reason"], now) + again


def breaker_word(view: ServiceHealth) -> str:
    """Return what refuses its calls: the breaker's state, or a refused key, which is not part of a breaker's state."""
    refused = any(model.get("key_refused") for model in view["models"].values())
    breaker = view["health"]["circuit_breaker_state"]
    return "key refused" if refused and breaker == "closed" else breaker


def why_koo(koo: KooHealth | None) -> Iterator[str]:
    """Yield what is wrong with koo itself and with what it depends on, one sentence each."""
    if koo is None:  # an older server does not send it
        return
    store = koo["state_store"]
    if not store["reachable"]:
        since = f" since {when(store['lost_at'])}" if store["lost_at"] else ""
        whom = ", ".join(store["refuses"])
        refuses = f"; calls of {whom} are refused once the money granted to this process is used up"
        yield f"state store: unreachable{since}: {store['reason']}{refuses if whom else ''}"
    for disk in koo["disks"]:
        if disk["state"] != "ok":
            free = f"{disk['free_bytes'] / 2**30:.1f} of {disk['total_bytes'] / 2**30:.1f} GiB free"
            yield f"disk of {disk['name']}: {disk['state'].replace('_', ' ')}, {free}"
    if koo["short_of"]:
        yield f"koo: calls lacked {koo['short_of']} within the last minute"
    if koo["late"]:
        yield f"koo: overdue: {', '.join(koo['late'])}; what is shown may be outdated"
    if koo["blocked_s"]:
        yield f"koo: its event loop was blocked for {span(koo['blocked_s'])} within the last five minutes"


def next_attempt(view: ServiceHealth) -> float | None:
    """Return when this service is tried again, as shown on the page; None if it is in use or the time is unknown."""
    if view["state"] == "circuit_open":
        return None if _is_forced(view) else seconds_of(view["health"]["next_attempt"])
    if view["state"] != "rate_limited":
        return None
    named = time_in(view["reason"])
    return max(_ends_of_what_is_full(view), default=None) if named is None else named


def _next_check(view: ServiceHealth, now: float) -> str:
    """Return when a refused key is checked again."""
    ends = [seconds_of(model.get("key_checked_at")) for model in view["models"].values()]
    at = min((end for end in ends if end is not None), default=None)
    return "" if at is None else f", the next one {moment(at, now)}"


def _is_forced(view: ServiceHealth) -> bool:
    """Return whether an operator forced its breaker open: then the reason says when that ends, and nothing is tried."""
    return next((model.get("state") == "forced_open" for model in view["models"].values()), False)


def is_forced(answer: Dashboard, component: str) -> bool:
    """Return whether an operator forced the breaker of an alert's component open."""
    if component == "database":
        return answer["database"]["circuit_breaker"].get("state") == "forced_open"
    name, _, model = component.removeprefix("ai:").partition("/")
    view = answer["ai_services"]["services"].get(name)
    if view is None:
        return False
    one = view["models"].get(model)
    return _is_forced(view) if one is None else one.get("state") == "forced_open"


def _error_of(view: ServiceHealth) -> LastError | None:
    """Return the error that explains its state: a limit refuses calls whatever failed before the last success."""
    error, success = view.get("last_error"), seconds_of(view["health"].get("last_success"))
    is_over = error is not None and (success or 0.0) > (seconds_of(error["at"]) or 0.0)
    return None if view["state"] == "rate_limited" and is_over else error


def is_local(view: ServiceHealth) -> bool:
    """Return whether this is the local model, which needs no key and whose reason names what is missing."""
    return view["configuration"].get("kind") == "local"


def _last_error(error: LastError | None, reason: str, now: float) -> str:
    """Describe the last error, as far as the reason does not contain it."""
    if error is None:
        return ""
    at = seconds_of(error["at"])
    ago = "" if at is None else f", {span(now - at)} ago"
    sentence = "" if error["sentence"] in reason else f": {error['sentence']}"
    return f"; last error {error['kind']}{sentence}{ago}"


def _again(at: float | None, now: float) -> str:
    return "" if at is None else f"; next attempt {moment(at, now)}"


def _ends_of_what_is_full(view: ServiceHealth) -> Iterator[float]:
    limits = view["rate_limits"]
    budget = limits["daily_budget"]
    ends = [limits[window]["resets_at"] for window in WINDOWS if limits[window]["remaining"] == 0]
    if budget["remaining"] is not None and Decimal(budget["remaining"]) <= 0:
        ends.append(budget["resets_at"])
    return (at for at in map(seconds_of, ends) if at is not None)
