"""Fields that an operator adds to the body of each request of a service: `AI_SERVICES__X__BODY__…`.

koo's own fields take precedence, inside objects too: a field of the query is the caller's decision, and the hold on the
budget is computed from `max_tokens`. Names are compared without case and underscores, because Gemini accepts
`generation_config` for `generationConfig`, but rejects a request that contains both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

_own: msgspec.json.Decoder[dict[str, msgspec.Raw]] = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.Encoder().encode


class ExtraFields:
    """The extra fields of one service. They add at most `bytes_max` tokens to a prompt."""

    __slots__ = ("_fields", "bytes_max")

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields
        self.bytes_max = len(_encode(dict(fields)))

    def into(self, body: bytes) -> bytes:
        """The body plus the extra fields that it does not have."""
        # The body's own fields stay encoded (`Raw`), so that a prompt of a megabyte is not decoded and encoded again.
        merged: dict[str, Any] = dict(_own.decode(body))
        named = {_plain(name): name for name in merged}
        for name, value in self._fields.items():
            own = named.get(_plain(name))
            if own is None:
                merged[name] = value
            elif isinstance(value, Mapping):
                there = msgspec.json.decode(merged[own])
                merged[own] = _merge(there, value) if isinstance(there, dict) else merged[own]
        return _encode(merged)


def _merge(own: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """An object plus the fields that only the other object has."""
    named = {_plain(name) for name in own}
    return own | {name: value for name, value in more.items() if _plain(name) not in named}


def _plain(name: str) -> str:
    return name.replace("_", "").lower()
