"""A process's configuration as seen by others: a digest of each option, which shows which options differ.

No value leaves the process. The digest of an option that is not secret is long enough to distinguish any two values.
The digest of a secret has four hexadecimal digits. Two keys rarely share them, but they are useless for guessing: one
password in 65536 matches.

Options that differ between processes by nature are left out: the address it listens on, its folder, its label.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import Field, fields, is_dataclass
from typing import Any

from koo.options import PlatformOptions

OWN = {"home", "host", "port", "url", "state_url", "local_model_path", "version_label"}
KOO = "koo"
DIGITS, SECRET_DIGITS = 12, 4


def digests_of(options: PlatformOptions) -> dict[str, dict[str, str]]:
    """The digests of all options, by section ("database", "ai_services.claude", …) and option."""
    found: dict[str, dict[str, str]] = {KOO: {}}
    for one in fields(options):
        value = getattr(options, one.name)
        if one.name in OWN:
            continue
        if one.name in ("services", "budgets"):
            family = f"ai_{one.name}"
            found |= {f"{family}.{part.name}": dict(_digests(part)) for part in value}
        elif is_dataclass(value):
            found[one.name] = dict(_digests(value))
        else:
            found[KOO][one.name] = _digest(one, value)
    return found


def settings_of(options: PlatformOptions) -> dict[str, str]:
    """All digests as one flat dict, by names such as "ai_services.claude.model"."""
    found = digests_of(options)
    return {f"{section}.{name}": digest for section, part in found.items() for name, digest in part.items()}


def _digests(part: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for one in fields(part):
        value = getattr(part, one.name)
        if is_dataclass(value):
            yield from _digests(value, f"{prefix}{one.name}.")
        else:
            yield f"{prefix}{one.name}", _digest(one, value)


def _digest(about: Field[Any], value: Any) -> str:
    text = json.dumps(_plain(value), sort_keys=True)
    hashed = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), person=b"koo option").hexdigest()
    return hashed[: SECRET_DIGITS if about.metadata.get("secret") else DIGITS]


def _plain(value: Any) -> Any:
    """A value as JSON can represent it; a secret, whose `repr` hides it, is represented by its real text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)
