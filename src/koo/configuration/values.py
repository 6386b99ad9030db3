"""The forms of values: how each is parsed from text, checked, displayed and described.

An invalid value raises `ValueError`. If the error has a text, it says what was expected and replaces the form's
description. It never quotes the value, because that may be a secret.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from ipaddress import ip_network
from pathlib import Path
from typing import Any, NamedTuple

from koo.alerts.channels.signature import ALLOWED_SECRET, read_secret
from koo.alerts.channels.smtp_url import ALLOWED_SMTP, read_smtp_url
from koo.checked import allowed, is_inside
from koo.configuration.urls import (
    ALLOWED_DATABASES,
    ALLOWED_HOSTS,
    ALLOWED_WEB,
    ALLOWED_WEBHOOK,
    check_host,
    check_proxy_url,
    check_web_url,
    check_webhook_url,
    effective_database_url,
    effective_state_url,
    mask_to_scheme,
    mask_url,
)
from koo.http.proxies import ALLOWED_PROXY
from koo.paths import absolute

SHOWN_MAX = 40
TAG_MAX = 200
ADDRESS_MAX = 254
ADDRESSES_MAX = 20
# ASCII without quotes, spaces and the characters that separate addresses in mail headers: an address must not be able
# to add another recipient or header.
_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
OPTIONAL_PARAMETERS = ("temperature", "stream_options")
"""Parameters that can be left out of a request. `max_tokens` cannot, because the budget depends on it."""
# Names of variables are in upper case and have no dots, so these names have neither upper case nor dots.
SERVICE_WORD = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
SWITCH = {
    "true": True,
    "on": True,
    "yes": True,
    "1": True,
    "false": False,
    "off": False,
    "no": False,
    "0": False,
}
# Recognises a key in the wrong variable. The message that refuses it goes to logs and terminals, and must not contain
# it.
_LOOKS_SECRET = re.compile(r"://|@|^(?:sk|pk|key|AIza|pplx|xai|gsk|ghp|eyJ)[-_A-Za-z0-9]{6}")


@dataclass(frozen=True, slots=True, repr=False)
class SecretStr:
    """Text that is masked in every `repr`, log and message; `get_secret_value()` returns it."""

    _text: str

    def get_secret_value(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"SecretStr('{self}')"

    def __str__(self) -> str:
        return "**********"


def reveal(value: Any) -> Any:
    """Return the text of a secret (also of pydantic's); return any other value unchanged."""
    return value.get_secret_value() if hasattr(value, "get_secret_value") else value


# ── showing ───────────────────────────────────────────────────────────────────────────────────────────────────────


def as_text(value: object) -> str:
    """A value as it would be written in a `.env`; "" for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:g}" if isinstance(value, float) else str(reveal(value))


def quoted(text: str) -> str:
    """A variable's value for a message: quoted, shortened, and "…" if it looks like a key."""
    # Control characters could move the cursor or change colours in a terminal, and hide the rest of the message.
    text = "".join(letter if letter.isprintable() else "�" for letter in text)
    if _LOOKS_SECRET.search(text):
        return '"…"'
    return f'"{text[:SHOWN_MAX]}…"' if len(text) > SHOWN_MAX else f'"{text}"'


# ── the forms ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Form(NamedTuple):
    """The form of a value. `read(text, home)` parses it and raises `ValueError`.

    `allowed` describes the form. `held` formats an invalid text for an error, and `shown` a valid value for display.
    `types` are the types that a Python argument may have.
    """

    allowed: str
    read: Callable[[str, Path], object]
    held: Callable[[str], str] = quoted
    shown: Callable[[str], str] = str
    types: tuple[type, ...] = (str,)


def number(kind: type[int] | type[float] | type[Decimal], about: Any) -> Form:
    """A number in an option's range. Infinity is not allowed: write `none` for no limit."""

    def read(text: str, _home: Path) -> object:
        try:
            value = kind(
                re.sub(r"\.0+$", "", text) if kind is int else text
            )  # accepts 10.0 as a whole number
        except (ValueError, ArithmeticError):
            raise ValueError from None
        # `int` and `float` also accept digits of other scripts, such as Arabic ones.
        if not text.isascii() or not is_inside(about, value) or not math.isfinite(value):
            raise ValueError
        return value

    words = {int: "a whole number", "s": "a number of seconds", "USD": "an amount of USD"}
    text = words.get(kind) or words.get(about["unit"], "a number")
    return Form(
        text if (bounds := allowed(about)) == "any" else f"{text}, {bounds}",
        read,
        types=(str, int, float, Decimal),
    )


def choice(*words: str) -> Form:
    """One of a few words, in upper or lower case."""

    def read(text: str, _home: Path) -> str:
        if text.lower() not in words:
            raise ValueError
        return text.lower()

    return Form(f"{', '.join(words[:-1])} or {words[-1]}", read)


def _switch(text: str, _home: Path) -> bool:
    if text.lower() not in SWITCH:
        raise ValueError
    return SWITCH[text.lower()]


def _key(text: str, _home: Path) -> str:
    # A quote that was copied along with a key makes it a wrong key, and a line break would start another header.
    if not re.fullmatch(r"[\x21\x23-\x26\x28-\x7e]+", text):
        raise ValueError
    return text


def _model(text: str, _home: Path) -> str:
    if len(text) > 4096 or not text.isprintable():
        raise ValueError
    return text


def _service_name(text: str, _home: Path) -> str:
    if not SERVICE_WORD.fullmatch(text.lower()):
        raise ValueError
    return text.lower()


def _tag(text: str, _home: Path) -> str:
    if len(text) > TAG_MAX or not text.isprintable():
        raise ValueError
    return text


def _label(text: str, _home: Path) -> str:
    if len(text) > LABEL_MAX or not text.isprintable():
        raise ValueError
    return text


def _masked(text: str) -> str:
    return f'"{mask_url(text)}"' if "://" in text else quoted(text)


def _scheme(text: str) -> str:
    return f'"{mask_to_scheme(text)}"'


def _proxy(text: str, _home: Path) -> str:
    # The check is not stricter, because other programs may need a proxy that koo cannot use. An error is raised only if
    # one of koo's services would use it.
    if not text.isprintable() or " " in text:
        raise ValueError
    return text


def _hosts(text: str, _home: Path) -> str:
    if not text.isprintable():
        raise ValueError
    return text


def _certificates(text: str, home: Path) -> Path:
    path = absolute(text, home)
    if not path.is_file():
        raise ValueError("expected the path of an existing file")
    import ssl  # loaded only if such a file is named

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except (ssl.SSLError, OSError):
        raise ValueError("expected a readable file of certificates in PEM format") from None
    return path


def _certificate_folders(text: str, home: Path) -> str:
    # OpenSSL accepts several folders, and some systems list one that does not exist on all machines. So one existing
    # folder is enough.
    folders = [absolute(one, home) for one in text.split(os.pathsep)]
    if not any(one.is_dir() for one in folders):
        raise ValueError
    return os.pathsep.join(map(str, folders))


def _header(text: str, _home: Path) -> str:
    # A line break would start another header.
    if not re.fullmatch(r"[\x20-\x7e\t]+", text):
        raise ValueError
    return text


def _field(text: str, _home: Path) -> str:
    """Return JSON unchanged, and any other text as a JSON string."""
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return json.dumps(text)
    return text


def _refuse_constant(name: str) -> object:
    raise ValueError(name)  # NaN and Infinity are extensions of Python's `json` that servers do not accept


def _parameters(text: str, _home: Path) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    if not names or not set(names) <= set(OPTIONAL_PARAMETERS):
        raise ValueError
    return names


def _networks(text: str, _home: Path) -> tuple[str, ...]:
    try:
        return tuple(str(ip_network(one.strip(), strict=False)) for one in text.split(",") if one.strip())
    except ValueError:
        raise ValueError from None  # the caught error's message quotes the value


def _webhook(text: str, _home: Path) -> str:
    return check_webhook_url(text)


def _smtp_url(text: str, _home: Path) -> str:
    read_smtp_url(text)
    return text


def _signing_secret(text: str, _home: Path) -> str:
    read_secret(text)
    return text


def _address(text: str, _home: Path) -> str:
    if len(text) > ADDRESS_MAX or not _ADDRESS.fullmatch(text):
        raise ValueError
    return text


def _addresses(text: str, home: Path) -> tuple[str, ...]:
    found = dict.fromkeys(_address(one.strip(), home) for one in text.split(",") if one.strip())
    if len(found) > ADDRESSES_MAX:
        raise ValueError
    return tuple(found)


YES_OR_NO = Form("true or false", _switch, types=(str, bool))
KEY = Form("ASCII text without quotes and spaces", _key, lambda _text: '"…"', lambda _text: "…")
PARAMETERS = Form(
    f"one or more of {', '.join(OPTIONAL_PARAMETERS)}, separated by commas", _parameters, types=(str, tuple)
)
TOKENS_PARAMETER = choice("max_tokens", "max_completion_tokens")
MODEL = Form("the name of a model; for `local` the path of an existing file", _model)
MODEL_NAME = Form("the name of a model", _model)
FOLDER = Form(
    "an existing folder; set it in the environment, not in a `.env`",
    lambda _text, home: home,
    types=(str, Path),
)
HOST = Form(ALLOWED_HOSTS, lambda text, _home: check_host(text))
WEB_URL = Form(ALLOWED_WEB, lambda text, _home: check_web_url(text), _masked)
HEADER = Form("printable ASCII text", _header, lambda _text: '"…"', lambda _text: "…")
FIELD = Form(
    "JSON, or text",
    _field,
    lambda _text: '"…"',
    lambda _text: "…",
    types=(str, bool, int, float, list, dict, type(None)),
)
PROXY = Form("the URL of a proxy", _proxy, lambda _text: '"…"', mask_url)
SERVICE_PROXY = Form(ALLOWED_PROXY, lambda text, _home: check_proxy_url(text), lambda _text: '"…"', mask_url)
HOSTS = Form("hosts, separated by commas", _hosts)
CERTIFICATE_FILE = Form("the path of a file of certificates in PEM format", _certificates, types=(str, Path))
CERTIFICATE_FOLDERS = Form(
    f"an existing folder, or several separated by {os.pathsep}",
    _certificate_folders,
    types=(str, Path),
)
DATABASE_URL = Form(ALLOWED_DATABASES, effective_database_url, _scheme, mask_url)
STATE_URL = Form(ALLOWED_DATABASES, effective_state_url, _scheme, mask_url)
WEBHOOK = Form(ALLOWED_WEBHOOK, _webhook, _scheme, mask_to_scheme)
SMTP_URL = Form(ALLOWED_SMTP, _smtp_url, _scheme, mask_url)
SIGNING_SECRET = Form(ALLOWED_SECRET, _signing_secret, lambda _text: '"…"', lambda _text: "…")
NETWORKS = Form(
    "addresses or networks, such as 10.0.0.7 or 10.0.0.0/8, separated by commas",
    _networks,
    types=(str, tuple),
)
ADDRESS = Form("an e-mail address, such as koo@example.com, without a name", _address)
ADDRESSES = Form(
    f"e-mail addresses without names, separated by commas, no more than {ADDRESSES_MAX}",
    _addresses,
    types=(str, tuple),
)
SERVICE_NAME = Form("the name of a service", _service_name)
SERVICE_OR_REFUSE = Form("refuse, or the name of another service", _service_name)
TAG = Form(f"a tag of at most {TAG_MAX} characters, or * for a separate budget for each tag", _tag)
LABEL_MAX = 64
LABEL = Form(f"at most {LABEL_MAX} characters", _label)
SERVICE_KIND = choice("openai", "anthropic", "gemini")
SERVICE_KIND = SERVICE_KIND._replace(allowed=f"{SERVICE_KIND.allowed}; only for a declared service")
