"""Convert variables to the frozen options that the rest of koo uses.

Each row contains the places of its options, so most values are copied there generically. This module handles what
depends on more than one variable: a service's kind, key, model, prices, budget and timeouts.
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
from koo.paths import absolute

Options = TypeVar("Options", bound=Checked)
PACKAGED_MODEL = "SmolLM2-135M-Instruct"
FREE = Decimal(0)


def platform_options(settings: Variables) -> PlatformOptions:
    """All options of one koo process."""
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
    """The values of a table's rows for the options in `root`."""
    # None has two meanings. In a row that was not set it means "keep the option's default". In a row that accepts the
    # word `none` and was set, it is the value itself ("no limit"), and must replace the default.
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
    # A declared server without a key is assumed to be self-hosted, and costs nothing. A key may also be in a header
    # (`x-api-key`): such a vendor sends bills, and a missing price must stop its queries.
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
        derived[("daily_budget_usd",)] = None  # calls of a free service need not wait for the ledger
    return _with(SERVICE, _values(settings, SERVICE) | _values(own, SERVICE) | derived)


def headers_of(own: ServiceSettings) -> dict[str, str]:
    """{"x_title": …} → {"x-title": …}: a variable's name cannot contain the dashes of a header's name."""
    return {name.replace("_", "-").lower(): reveal(text) for name, text in own.headers.items()}


def body_of(own: ServiceSettings) -> dict[str, Any]:
    """{"provider__order": "[…]"} → {"provider": {"order": […]}}.

    Raises `TypeError` if a field would be inside another one that is not an object.
    """
    # The fields are sorted, so that an outer field comes before the fields inside it, whatever order the environment
    # has.
    body: dict[str, Any] = {}
    for path, text in sorted(own.body.items()):
        *outer, name = path.split("__")
        inside = body
        for part in outer:
            inside = inside.setdefault(part, {})
        inside[name] = json.loads(reveal(text))
    return body


def attempt_timeout_s(settings: Variables, own: ServiceSettings) -> float | None:
    """The attempt timeout that is set for the service or for all; None if it is derived from the query's timeout."""
    for_all = settings.ai_attempt_timeout if "ai_attempt_timeout" in settings.given else None
    return own.attempt_timeout or for_all


def _kind_and_key(settings: Variables, name: str, own: ServiceSettings) -> tuple[ServiceKind, str | None]:
    key = reveal(own.api_key)
    if name in BUILT_IN:
        kind, variable = BUILT_IN[name]
        return kind, key or (reveal(getattr(settings, variable.lower())) if variable else None)
    if own.kind in {None, "openai"}:
        # Self-hosted servers have chat completions; OpenAI's own API has the newer Responses.
        return ("openai_compatible" if own.base_url else "openai"), key
    return ("anthropic" if own.kind == "anthropic" else "gemini"), key


def _model(settings: Variables, kind: ServiceKind, own: ServiceSettings) -> str:
    if kind == "local":
        path = local_model_path(settings)
        return path.stem if path else PACKAGED_MODEL
    vendor = next((name for name, (its_kind, _) in BUILT_IN.items() if its_kind == kind), "")
    return own.model or DEFAULT_MODELS.get(vendor, "")


def local_model_path(settings: Variables) -> Path | None:
    """The file in `AI_SERVICES__LOCAL__MODEL`; None for the packaged one."""
    own = settings.ai_services.get("local")
    return absolute(own.model, settings.koo_home) if own and own.model else None
