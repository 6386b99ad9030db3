"""Nothing that prints, copies or dumps options shows their secrets, which still work like plain text."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple, fields, is_dataclass, replace
from typing import Any

import pytest
from pydantic import TypeAdapter
from rich.pretty import pretty_repr

from koo.alert_options import AlertOptions
from koo.checked import Checked
from koo.hidden import MASK, Fields, Headers, Secret, Sent
from koo.http.proxies import read_proxy
from koo.network_options import NetworkOptions
from koo.options import DatabaseOptions, PlatformOptions, ServiceOptions

OPTIONS = PlatformOptions(
    database=DatabaseOptions(url="postgresql://u:canary@h/d"),
    services=(
        ServiceOptions(
            name="own", kind="openai_compatible", api_key="sk-canary", proxy="http://u:canary@p",
            headers={"x-own": "canary"}, body={"user": "canary", "n": {"key": ["canary"]}},
        ),
    ),
    network=NetworkOptions(https_proxy="http://u:canary@p", http_proxy="http://canary@p", all_proxy="http://canary@p"),
    alerts=AlertOptions(
        webhook="https://h/canary", webhook_secret="whsec_canary", slack="https://h/canary",
        smtp_url="smtp://u:canary@h",
    ),
    state_url="postgresql://u:canary@h/d", token="canary-token", token_2="canary-token-2", read_token="canary-read",
    read_token_2="canary-read-2",
)  # fmt: skip


def secrets_of(options: Checked) -> Iterator[tuple[str, Any]]:
    """The name and value of each secret option, including nested ones."""
    for one in fields(options):  # type: ignore[arg-type]
        value = getattr(options, one.name)
        if one.metadata.get("secret"):
            yield f"{type(options).__name__}.{one.name}", value
        for inner in value if isinstance(value, tuple) else (value,):
            if is_dataclass(inner) and isinstance(inner, Checked):
                yield from secrets_of(inner)


def test_each_secret_option_is_in_the_sample() -> None:
    found = [
        (name, dict(value) if isinstance(value, Fields) else str(value))
        for name, value in secrets_of(OPTIONS)
    ]
    assert [name for name, value in found if "canary" not in f"{value}"] == []


def variables(options: Any) -> dict[str, Any]:
    return {one.name: getattr(options, one.name) for one in fields(options)}


SHOWS: dict[str, Callable[[PlatformOptions], object]] = {
    "repr": repr,
    "str": str,
    "format": "{}".format,
    "rich": pretty_repr,
    "asdict": asdict,
    "astuple": astuple,
    "JSON of asdict": lambda options: json.dumps(asdict(options), default=str),
    "its variables": variables,
    "those of a service": lambda options: variables(options.services[0]),
    "those of alerts": lambda options: variables(options.alerts),
    "a copy": lambda options: asdict(copy.copy(options)),
    "a deep copy": lambda options: asdict(copy.deepcopy(options)),
    "a pickled one": lambda options: asdict(pickle.loads(pickle.dumps(options))),
    "a changed one": lambda options: asdict(replace(options, port=1)),
    "pydantic": lambda options: TypeAdapter(AlertOptions).dump_python(options.alerts),
}


@pytest.mark.parametrize("way", SHOWS)
def test_no_way_to_show_options_shows_a_secret(way: str) -> None:
    assert "canary" not in str(SHOWS[way](OPTIONS))


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one)), replace]
)
def test_a_copy_of_the_options_has_the_real_secrets(again: Any) -> None:
    assert again(OPTIONS) == OPTIONS
    assert f"{again(OPTIONS).services[0].api_key}" == "sk-canary"
    assert again(OPTIONS).services[0].headers["x-own"] == "canary"


def test_a_secret_works_like_the_text_that_it_hides() -> None:
    secret = Secret("canary-key")
    assert (
        secret == "canary-key"
        and hash(secret) == hash("canary-key")
        and f"{secret}" == str(secret) == "canary-key"
    )
    assert [repr(one) for one in (secret, secret[:6], secret + "/v1", [secret])] == [
        f"'{MASK}'", f"'{MASK}'", f"'{MASK}'", f"['{MASK}']",
    ]  # fmt: skip
    assert pretty_repr(Secret("canary" * 20), max_string=10) == pretty_repr(Secret("x" * 120), max_string=10)


def test_headers_and_bodies_show_only_names_or_sizes() -> None:
    headers = Headers({"authorization": "Bearer canary", "x": "y"})
    assert repr(headers) == "<headers authorization, x>" and "canary" not in str(list(headers.values()))
    assert headers == {"authorization": "Bearer canary", "x": "y"} and hash(headers) == hash(
        Headers(dict(headers))
    )
    body = Sent(b"canary")
    assert (body, repr(body), repr(body[1:3]), body[0]) == (b"canary", "<6 bytes>", "<2 bytes>", ord("c"))
    assert "canary" not in repr(read_proxy("http://u:canary@p")) + str(
        asdict(read_proxy("http://u:canary@p"))
    )
