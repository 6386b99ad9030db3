"""From variables to the frozen options that the rest of koo sees.

Each row knows the places of its options, so most values go there by themselves. This module does the rest: what a
service takes from more than one variable, which are its kind, key, model, slowness and money.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar, cast

from koo.ai.models import DEFAULT_MODELS
from koo.checked import Checked
from koo.configuration.table import BUDGET, PLATFORM, SERVICE, Place, Table
from koo.configuration.values import reveal
from koo.configuration.variables import BUILT_IN, ServiceSettings, Variables
from koo.options import KEY_HEADERS, PlatformOptions, ServiceKind, ServiceOptions

Options = TypeVar("Options", bound=Checked)
PACKAGED_MODEL = "SmolLM2-135M-Instruct"
FREE = Decimal(0)


def platform_options(settings: Variables) -> PlatformOptions:
    """Everything that one process of koo needs to know."""
    declared = sorted(settings.ai_services.keys() - BUILT_IN.keys())
    options = _with(PLATFORM, _values(settings, PLATFORM))
    return replace(
        options,
        services=tuple(_service_options(settings, name) for name in (*BUILT_IN, *declared)),
        budgets=tuple(
            _with(BUDGET, {("name",): name} | _values(own, BUDGET))
            for name, own in sorted(settings.ai_budgets.items())
        ),
        local_model_path=local_model_path(settings),
    )


def _values(table: Table, root: Checked) -> dict[Place, Any]:
    """What a table's rows say about the options in `root`. None says nothing, unless it is the value `none`."""
    values = {}
    for name, row in table.rows.items():
        value = reveal(getattr(table, name))
        if row.root is root and (value is not None or (row.none and name in table.given)):
            values.update(dict.fromkeys(row.places, value + row.less if row.less else value))
    return values


def _with(options: Options, values: Mapping[Place, Any]) -> Options:
    """The options with each value at its place."""
    own = {place[0]: value for place, value in values.items() if len(place) == 1}
    for part in {place[0] for place in values if len(place) > 1}:
        inside = {place[1:]: value for place, value in values.items() if place[0] == part}
        own[part] = _with(getattr(options, part), inside)
    made: Options = replace(cast("Any", options), **own)
    return made


def _service_options(settings: Variables, name: str) -> ServiceOptions:
    own = settings.ai_services.get(name, ServiceSettings({}, frozenset()))
    kind, key = _kind_and_key(settings, name, own)
    keyless = name not in BUILT_IN and key is None and KEY_HEADERS.isdisjoint(headers_of(own))
    free = (kind == "local" or keyless) and own.input_price is None and own.price_as is None
    off = kind == "local" and not settings.ai_local_enabled
    derived: dict[Place, Any] = {
        ("name",): name,
        ("kind",): kind,
        ("model",): _model(settings, kind, own),
        ("api_key",): key,
        ("declared",): name not in BUILT_IN,
        ("disabled_by",): "AI_LOCAL_ENABLED=false" if off else "",
        ("attempt_timeout_s",): attempt_timeout_s(settings, own),
        ("slow_s",): own.slow_call_seconds,
        ("headers",): headers_of(own),
        ("body",): body_of(own),
        ("budget_is_explicit",): "daily_budget" in own.given or "ai_default_daily_budget" in settings.given,
    }
    if free:
        derived |= {("input_price",): FREE, ("output_price",): FREE}
    if free and "daily_budget" not in own.given:
        derived[("daily_budget_usd",)] = None  # a free service need not wait for a ledger
    return _with(SERVICE, _values(settings, SERVICE) | _values(own, SERVICE) | derived)


def headers_of(own: ServiceSettings) -> dict[str, str]:
    """{"x_title": …} → {"x-title": …}: a variable's name has no dashes, and headers have nothing else."""
    return {name.replace("_", "-").lower(): reveal(text) for name, text in own.headers.items()}


def body_of(own: ServiceSettings) -> dict[str, Any]:
    """{"provider__order": "[…]"} → {"provider": {"order": […]}}.

    Raises `TypeError` if a field would be inside another one that is not an object.
    """
    body: dict[str, Any] = {}
    for path, text in sorted(own.body.items()):
        *outer, name = path.split("__")
        inside = body
        for part in outer:
            inside = inside.setdefault(part, {})
        inside[name] = json.loads(reveal(text))
    return body


def attempt_timeout_s(settings: Variables, own: ServiceSettings) -> float | None:
    """The time of an attempt as set for the service, or for all of them; None: it follows from the query's."""
    for_all = settings.ai_attempt_timeout if "ai_attempt_timeout" in settings.given else None
    return own.attempt_timeout or for_all


def _kind_and_key(settings: Variables, name: str, own: ServiceSettings) -> tuple[ServiceKind, str | None]:
    key = reveal(own.api_key)
    if name in BUILT_IN:
        kind, variable = BUILT_IN[name]
        return kind, key or (reveal(getattr(settings, variable.lower())) if variable else None)
    if own.kind in {None, "openai"}:
        # A self-hosted server speaks chat completions; OpenAI's own has the newer Responses.
        return ("openai_compatible" if own.base_url else "openai"), key
    return ("anthropic" if own.kind == "anthropic" else "gemini"), key


def _model(settings: Variables, kind: ServiceKind, own: ServiceSettings) -> str:
    if kind == "local":
        path = local_model_path(settings)
        return path.stem if path else PACKAGED_MODEL
    vendor = next((name for name, (its_kind, _) in BUILT_IN.items() if its_kind == kind), "")
    return own.model or DEFAULT_MODELS.get(vendor, "")


def local_model_path(settings: Variables) -> Path | None:
    """The file that `AI_SERVICES__LOCAL__MODEL` names, or None: the packaged one."""
    own = settings.ai_services.get("local")
    return (settings.koo_home / Path(own.model).expanduser()).resolve() if own and own.model else None
