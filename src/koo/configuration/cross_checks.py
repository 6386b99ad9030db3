"""Reject values that are valid alone but not together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from koo.alerts.channels.smtp_url import read_smtp_url
from koo.checked import following_s
from koo.configuration.names import nearest
from koo.configuration.to_options import attempt_timeout_s, body_of, local_model_path
from koo.configuration.values import quoted, reveal
from koo.configuration.variables import BUILT_IN, NOT_LOCAL, BudgetSettings, Name, ServiceSettings, Variables
from koo.http.proxies import is_loopback
from koo.paths import path_trouble

ORDERED = [
    ("db_retry_base_delay", "db_retry_max_delay"),
    ("ai_retry_base_delay", "ai_retry_max_delay"),
    ("database_pool_timeout", "database_scope_timeout"),
]
"""If both are set, the first must not be larger than the second."""


HEADER_NAME = re.compile(r"[a-z0-9!#$%&'*+.^`|~-]+")
OWN_HEADERS = frozenset({
    "accept-encoding", "connection", "content-length", "content-type", "expect", "host", "keep-alive",
    "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip
"""Headers of the connection, and headers that describe the body's encoding."""
OWN_FIELDS = frozenset({
    "model", "messages", "input", "contents", "prompt", "system", "instructions", "systeminstruction", "stream",
    "maxtokens", "maxcompletiontokens", "maxoutputtokens", "n", "bestof", "candidatecount",
})  # fmt: skip
"""Fields that the query sets, and fields that request several answers, because a hold covers only one."""


def contradictions(settings: Variables) -> Iterator[tuple[Name, str]]:
    """Each value that contradicts others, with the message to put after the variable's name."""
    # They contradict each other only if both are set. If only one is, the smaller value applies and `doubts` logs a
    # warning, so that a person who changes one setting need not know all the others.
    for less, more in ORDERED:
        low, high = getattr(settings, less), getattr(settings, more)
        if {less, more} <= settings.given and low > high:
            yield (
                Name("", "", less),
                f'is "{low:g}"; expected at most {high:g}, the value of {more.upper()}',
            )
    # Without a token, every machine that reaches the port could spend the budgets and reset the breakers.
    if not is_loopback(settings.koo_host) and settings.koo_token is None:
        loopback = "127.0.0.1, ::1 or localhost"
        sentence = f'is "{settings.koo_host}", which other machines can reach; without KOO_TOKEN, expected {loopback}'
        yield Name("", "", "koo_host"), sentence
    for name, sentence in _of_tokens(settings):
        yield Name("", "", name), sentence
    if "ai_attempt_timeout" in settings.given and settings.ai_attempt_timeout > settings.ai_query_timeout:
        limit = f"at most {settings.ai_query_timeout:g}, the timeout of the whole query (AI_QUERY_TIMEOUT)"
        yield (
            Name("", "", "ai_attempt_timeout"),
            f'is "{settings.ai_attempt_timeout:g}"; expected {limit}',
        )
    for name, sentence in _of_alerts(settings):
        yield Name("", "", name), sentence
    for service, own in settings.ai_services.items():
        for name, sentence in _of_service(settings, service, own):
            yield Name("ai_services", service, name), sentence
    services = sorted(BUILT_IN.keys() | settings.ai_services.keys())
    for budget, its in settings.ai_budgets.items():
        for name, sentence in _of_budget(budget, its, services):
            yield Name("ai_budgets", budget, name), sentence
        if its.on_exhausted == "local" and not settings.ai_local_enabled:
            sentence = 'is "local", but AI_LOCAL_ENABLED=false disables that service; expected an enabled one'
            yield Name("ai_budgets", budget, "on_exhausted"), sentence


TOKEN_LENGTH_MIN = 16
"""The length for a token that other machines can try: 16 characters out of 64 are 96 bits, which cannot be guessed."""


def _of_tokens(settings: Variables) -> Iterator[tuple[str, str]]:
    """Tokens that protect less than the operator expects."""
    writes, reads = ("koo_token", "koo_token_2"), ("koo_read_token", "koo_read_token_2")
    for name in (*writes[1:], *reads):
        first = "koo_read_token" if name == "koo_read_token_2" else "koo_token"
        if getattr(settings, name) is not None and getattr(settings, first) is None:
            why = "without it no token is required on this machine, so this one would never be checked"
            yield name, f"is set without {first.upper()}: {why}"
    for name in reads:
        token = getattr(settings, name)
        if token is not None and any(token == getattr(settings, one) for one in writes):
            why = "otherwise read-only callers could do everything"
            yield name, f'is "…", the same as KOO_TOKEN; expected a different token, {why}'
    if not is_loopback(settings.koo_host):
        for name in (*writes, *reads):
            token = reveal(getattr(settings, name))
            if token is not None and len(token) < TOKEN_LENGTH_MIN:
                why = f"because other machines can reach the server at {settings.koo_host}"
                yield name, f'is "…"; expected at least {TOKEN_LENGTH_MIN} characters, {why}'


def _of_alerts(settings: Variables) -> Iterator[tuple[str, str]]:
    """Alert settings that require each other. Without this check people would wait for mails that are never sent."""
    server = reveal(settings.koo_smtp_url)
    together = (
        ("koo_alert_email", bool(settings.koo_alert_email), "koo_smtp_url", server is not None),
        ("koo_smtp_url", server is not None, "koo_alert_email", bool(settings.koo_alert_email)),
        (
            "koo_alert_webhook_secret",
            settings.koo_alert_webhook_secret is not None,
            "koo_alert_webhook",
            settings.koo_alert_webhook is not None,
        ),
    )
    for name, is_set, other, is_there in together:
        if is_set and not is_there:
            yield name, f"is set without {other.upper()}, which it requires"
    # The sender's address defaults to the user of the mail server. A login that is not an address would make every mail
    # fail, and that would show only at the first alert.
    if settings.koo_alert_email and server is not None and settings.koo_alert_email_from is None:
        user = read_smtp_url(server).user
        if "@" not in user:
            yield (
                "koo_alert_email_from",
                "is not set; it is required, because the user of KOO_SMTP_URL is not an e-mail address",
            )


def _of_service(settings: Variables, service: str, own: ServiceSettings) -> Iterator[tuple[str, str]]:
    yield from _of_times(settings, service, own)
    # With only one price, the other half of every call would count as free, and a budget would not limit it.
    prices = {"input_price": own.input_price, "output_price": own.output_price}
    for one, other in (("input_price", "output_price"), ("output_price", "input_price")):
        if prices[one] is not None and prices[other] is None:
            yield one, f'is "{prices[one]}", but {_of(service, other)}, which it requires, is not set'
    yield from _of_extras(own)
    if service == "local":
        yield from _of_local(settings, own)
    elif service in BUILT_IN:
        kind = BUILT_IN[service][0]
        if own.kind not in {None, kind}:
            yield "kind", f'is "{own.kind}", but {service} always uses {kind}; remove it'
    # A service with neither a URL nor a key is most likely a misspelt name of a built-in service. If it were accepted
    # as a new service, its settings (a budget, say) would have no effect on the service that was meant.
    elif own.base_url is None and own.api_key is None:
        setting = next((name for name in own.rows if name in own.given), "base_url")
        meant = nearest(service, BUILT_IN)
        exists = meant and not (meant == "local" and setting in NOT_LOCAL)
        hint = f" (did you mean {_of(meant, setting)}?)" if meant and exists else ""
        known = f"{', '.join(BUILT_IN)}, or a new one with {_of(service, 'base_url')} or an API_KEY"
        yield setting, f"belongs to an unknown service{hint}; expected {known}"


def _of_extras(own: ServiceSettings) -> Iterator[tuple[str, str]]:
    """Headers and fields that koo sets itself, or that a request cannot contain."""
    for name in own.headers:
        header = name.replace("_", "-").lower()
        if not HEADER_NAME.fullmatch(header) or header in OWN_HEADERS:
            yield (
                f"headers__{name}",
                f"cannot be set; expected any header except {', '.join(sorted(OWN_HEADERS))}",
            )
    try:
        body = body_of(own)
    except (TypeError, AttributeError):
        yield (
            "body",
            "sets a field inside another one that is also set; that is possible only if the outer field is an object",
        )
        return
    for path in own.body:
        if not all(path.split("__")):
            yield (
                f"body__{path}",
                "names no field; expected BODY__NAME, or BODY__OUTER__INNER for a field inside an object",
            )
    # This checks the decoded body, because `BODY__GENERATION_CONFIG` may contain `maxOutputTokens` inside its JSON.
    for path in own_fields(body):
        yield (
            f"body__{path}",
            "cannot be set, because koo sets it itself or depends on it to limit the cost of a call",
        )


def own_fields(body: Mapping[str, object]) -> Iterator[str]:
    """The fields that koo sets itself."""
    for name, value in body.items():
        # Servers accept several spellings of a name (`max_tokens`, `maxTokens`), and each of them would override koo's.
        plain = name.replace("_", "").lower()
        if plain in OWN_FIELDS:
            yield name
        elif plain == "generationconfig" and isinstance(value, Mapping):
            yield from (f"{name}__{inner}" for inner in own_fields(value))


def _of_times(settings: Variables, service: str, own: ServiceSettings) -> Iterator[tuple[str, str]]:
    """An attempt's timeout must not exceed its query's, nor the slow-call time the attempt's timeout."""
    whole_s, attempt_s = own.timeout or settings.ai_query_timeout, attempt_timeout_s(settings, own)
    if attempt_s is not None and attempt_s > whole_s:
        if own.attempt_timeout is not None:
            whole = "AI_QUERY_TIMEOUT" if own.timeout is None else _of(service, "timeout")
            limit = f"at most {whole_s:g}, the timeout of the whole query ({whole})"
            yield "attempt_timeout", f'is "{attempt_s:g}"; expected {limit}'
        elif own.timeout is not None:
            limit = f"at least {attempt_s:g}, the timeout of one attempt (AI_ATTEMPT_TIMEOUT)"
            yield "timeout", f'is "{whole_s:g}"; expected {limit}'
        return
    # A threshold above the attempt's timeout could never be reached, so no call would ever count as slow.
    in_force_s, _ = following_s(whole_s, attempt_s, None)
    if own.slow_call_seconds is not None and own.slow_call_seconds > in_force_s:
        limit = f"at most {in_force_s:g}, the timeout of one attempt"
        yield "slow_call_seconds", f'is "{own.slow_call_seconds:g}"; expected {limit}'


def _of(service: str, name: str) -> str:
    return Name("ai_services", service, name).variable


def _of_budget(budget: str, own: BudgetSettings, services: list[str]) -> Iterator[tuple[str, str]]:
    if own.limit is None:
        setting = next((name for name in own.rows if name in own.given), "limit")
        limit = Name("ai_budgets", budget, "limit").variable
        yield setting, f"belongs to a budget without a limit; set {limit} too"
    for name, service in (("service", own.service), ("on_exhausted", own.on_exhausted)):
        # "refuse" is a value only of ON_EXHAUSTED, where it means that no other service is tried.
        if service not in {None, "refuse", *services} or (name, service) == ("service", "refuse"):
            meant = nearest(str(service), services)
            hint = f" (did you mean {meant}?)" if meant else ""
            others = "refuse, " if name == "on_exhausted" else ""
            yield name, f"is {quoted(str(service))}{hint}; expected one of {others}{', '.join(services)}"
    if own.service is not None and own.service == own.on_exhausted:
        yield "on_exhausted", f'is "{own.service}", the service that the budget is for; expected another one'


def _of_local(settings: Variables, own: ServiceSettings) -> Iterator[tuple[str, str]]:
    for name in NOT_LOCAL:
        if name in own.given:
            yield name, "is set, but has no meaning for local, which runs on this machine; remove it"
    try:
        path = local_model_path(settings)
        missing = path is not None and not path.is_file()
    except (ValueError, OSError) as error:
        yield "model", f'is "{own.model}"; {path_trouble(error)}'
        return
    if missing:
        yield (
            "model",
            f'is "{own.model}"; expected the path of an existing GGUF file, and {path} does not exist',
        )
