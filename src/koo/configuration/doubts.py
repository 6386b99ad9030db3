"""Values that are valid, but have no effect, or do harm, because of another value.

Unlike contradictions they do not stop the start, because a long time may be meant as "never". But the person who set
such a value relies on it, so each one is logged.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from koo.checked import following_s
from koo.configuration.cross_checks import ORDERED
from koo.configuration.to_options import attempt_timeout_s
from koo.configuration.urls import sqlite_file
from koo.configuration.values import reveal
from koo.configuration.variables import BUILT_IN, Name, ServiceSettings, Variables

WINDOWS = ("requests_per_minute", "requests_per_hour", "requests_per_day")
NEVER = "so it never takes effect"


def doubts(settings: Variables) -> Iterator[tuple[Name, str]]:
    """Each such value, with the message to put after the variable's name."""
    for name, sentence in (*_of_times(settings), *_of_files(settings), *_of_channels(settings)):
        yield Name("", "", name), sentence
    for_all = {window: getattr(settings, f"ai_default_{window}") for window in WINDOWS}
    given = {window for window in WINDOWS if f"ai_default_{window}" in settings.given}
    for window, sentence in _of_limits(for_all, given):
        yield Name("", "", f"ai_default_{window}"), sentence
    for service, own in settings.ai_services.items():
        for name, sentence in _of_service(settings, own, for_all):
            yield Name("ai_services", service, name), sentence
    for budget, its in settings.ai_budgets.items():
        other = its.on_exhausted
        if other in BUILT_IN and not _has_key(settings, other):
            yield (
                Name("ai_budgets", budget, "on_exhausted"),
                f'is "{other}", which has no key, so it cannot take over when the budget is used up',
            )


def _of_times(settings: Variables) -> Iterator[tuple[str, str]]:
    # Only values that a user has set are reported: a default without effect needs no action.
    given = settings.given
    for less, more in ORDERED:
        low, high = getattr(settings, less), getattr(settings, more)
        if less in given and more not in given and low > high:
            yield less, f'is "{low:g}", but {more.upper()}, which is not set, limits it to {high:g}'
    whole_s, scope_s = settings.ai_query_timeout, settings.database_scope_timeout
    attempt_s, _ = following_s(whole_s, attempt_timeout_s(settings, ServiceSettings({}, frozenset())), None)
    for name, end_s, what in (
        ("ai_first_token_timeout", attempt_s, "an attempt ends after"),
        ("ai_stall_timeout", whole_s, "a query ends after"),
        ("database_held_warning", scope_s, "a scope ends after"),
        ("db_slow_call_seconds", scope_s, "a scope ends after"),
    ):
        value = getattr(settings, name)
        if name in given and value >= end_s:
            yield name, f'is "{value:g}", but {what} {end_s:g} s, {NEVER}'
    for interval in ("db_health_check_interval", "ai_health_check_interval"):
        each_s, longest_s = getattr(settings, interval), settings.health_check_timeout
        if {"health_check_timeout", interval} <= given and longest_s > each_s:
            yield (
                interval,
                (
                    f'is "{each_s:g}", but a check may take {longest_s:g} s (HEALTH_CHECK_TIMEOUT): '
                    "a check that hangs delays the next one"
                ),
            )


def _of_files(settings: Variables) -> Iterator[tuple[str, str]]:
    # SQLite has one write lock for each file. While a transaction of the application holds it, koo can book nothing,
    # and a budget that was set refuses paid calls.
    state = sqlite_file(reveal(settings.koo_state_url))
    if state is not None and state == sqlite_file(reveal(settings.database_url)):
        yield (
            "koo_state_url",
            "names the same file as DATABASE_URL: each write transaction of the application blocks koo's state store",
        )


def _of_channels(settings: Variables) -> Iterator[tuple[str, str]]:
    if settings.koo_alert_email_from is not None and not settings.koo_alert_email:
        yield "koo_alert_email_from", "is set, but no mail is sent without KOO_ALERT_EMAIL"
    # A user who sets a severity expects notifications. Without a channel none are sent, and no other message reports
    # that.
    channels = (settings.koo_alert_webhook, settings.koo_alert_slack, settings.koo_alert_email)
    if any(channels):
        return
    for name in ("koo_alert_severity", "koo_alert_reminder_interval"):
        if name in settings.given:
            yield name, "is set, but nothing is sent without KOO_ALERT_WEBHOOK, _SLACK or _EMAIL"


def _of_limits(limits: dict[str, int | None], given: set[str]) -> Iterator[tuple[str, str]]:
    """Limits for a short window that are above the limit for a longer one, if both are set."""
    for less, more in pairwise(WINDOWS):
        low, high = limits[less], limits[more]
        if low is not None and high is not None and low > high and {less, more} <= given:
            yield less, f'is "{low}", above the {high} of {more.upper()}, {NEVER}'


def _of_service(
    settings: Variables, own: ServiceSettings, for_all: dict[str, int | None]
) -> Iterator[tuple[str, str]]:
    whole_s = own.timeout or settings.ai_query_timeout
    attempt_s, _ = following_s(whole_s, attempt_timeout_s(settings, own), None)
    for name, end_s, what in (
        ("first_token_timeout", attempt_s, "an attempt ends after"),
        ("stall_timeout", whole_s, "a query ends after"),
    ):
        value = getattr(own, name)
        if value is not None and value >= end_s:
            yield name, f'is "{value:g}", but {what} {end_s:g} s, {NEVER}'
    # These are the limits in effect; some may come from the defaults. Only pairs that this service sets are reported:
    # the defaults' own pairs are reported once, and not again for each service.
    limits = {window: getattr(own, window) if window in own.given else for_all[window] for window in WINDOWS}
    yield from _of_limits(limits, {window for window in WINDOWS if window in own.given})


def _has_key(settings: Variables, service: str) -> bool:
    own, variable = settings.ai_services.get(service), BUILT_IN[service][1]
    has_own = own is not None and own.api_key is not None
    return has_own or not variable or getattr(settings, variable.lower()) is not None
