"""Finds where a client stores its key. The attribute is found once, and the key is read from it on each call.

So a key that was changed on a live client is a new credential. No SDK is imported: an SDK's resource
(`client.chat.completions`), a client, a framework's model (LangChain's `ChatOpenAI`, LlamaIndex's `OpenAI`) or an HTTP
session is searched along the attributes in which such objects keep their client. Only the path is remembered, not the
key or the object. Only stored attributes of an application's own objects are read: a property may run any code, for
example load a row from a database.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from operator import attrgetter
from weakref import WeakKeyDictionary

from koo.ai.foreign.peek import field_of, peek

KEYS = ("api_key", "auth_token", "access_token", "bearer_token", "token", "_token", "_azure_ad_token")
HEADERS = ("authorization", "x-api-key", "api-key", "x-goog-api-key")
SOURCES = ("_api_key_provider", "_azure_ad_token_provider", "_workload_identity_auth", "credentials")
"""Attributes in which openai's and anthropic's clients store a source that they ask for a key whenever they need
one."""
SDKS = (
    "anthropic.", "cerebras.", "cohere.", "google.genai.", "groq.", "langchain_", "llama_index.", "mistralai.",
    "openai.", "perplexity.", "together.",
)  # fmt: skip
WAYS: tuple[tuple[str, ...], ...] = (
    (),
    ("_client",),
    ("_client", "_client"),
    ("client",),
    ("client", "_client"),
    ("_api_client",),
    ("root_async_client",),
    ("root_client",),
    ("async_client",),
    ("async_client", "_client"),
    ("_client_wrapper",),
    ("_raw_client", "_client_wrapper"),
    ("sdk_configuration", "security"),
    ("model", "client"),
    ("model", "_client"),
)
"""Paths from an object to the ones that may store its key: itself, a resource's client, a framework's SDK client."""


ReadKey = Callable[[object], str]
"""Reads an object's current key; returns "" if it has none any more."""
_sources: WeakKeyDictionary[object, str] = WeakKeyDictionary()


def find_key(owner: object) -> ReadKey | None:
    """A function that reads the key of the object that an operation is bound to; None if it has none. Never raises."""
    for way in WAYS:
        holder = _follow(owner, way)
        if holder is None:
            continue
        # Headers and sources come before the key, because they replace it in the request. A client with a source has an
        # empty key, or the same placeholder as every other such client.
        if (header := header_in(field_of(holder, "_custom_headers"))) is not None:
            return _header_at((*way, "_custom_headers"), header)
        if is_client(type(holder)) and (source := next((n for n in SOURCES if field_of(holder, n)), None)):
            return _source_at((*way, source))
        # Only a non-empty value counts. Anthropic's client has `api_key` and `auth_token`, and one of them is None.
        for name in (*KEYS, *_named_so(holder)):
            if _text(field_of(holder, name)):
                return _field_at((*way, name))
    for way in WAYS[:2]:
        if (header := header_in(field_of(_follow(owner, way), "headers"))) is not None:
            return _header_at((*way, "headers"), header)
    return None


def header_in(headers: object) -> str | None:
    """The name, as it is written there, of the first header that contains a key."""
    if not isinstance(headers, Mapping):
        return None
    return next(
        (name for name, value in headers.items() if str(name).lower() in HEADERS and _text(value)), None
    )


def _field_at(way: tuple[str, ...]) -> ReadKey:
    # This reader runs on every guarded call of the client. `attrgetter` follows the whole path in C.
    get = attrgetter(".".join(way))

    def read(owner: object) -> str:
        try:
            value = get(owner)
        except AttributeError:
            return ""
        return value if type(value) is str else _text(value)

    return read


def _source_at(way: tuple[str, ...]) -> ReadKey:
    # What a source will return is known only after a wait, and may be a new token each hour. So a random name stands
    # for the source itself. An `id` would not do: another source could have it later, or in another process.
    def read(owner: object) -> str:
        source = peek(owner, *way)
        try:
            return _sources.get(source) or _sources.setdefault(source, secrets.token_hex(16))
        except TypeError:  # it cannot be referenced weakly, or has no hash
            return ""

    return read


def _header_at(way: tuple[str, ...], name: str) -> ReadKey:
    def read(owner: object) -> str:
        headers = peek(owner, *way)
        return _text(headers.get(name)) if isinstance(headers, Mapping) else ""

    return read


def is_client(kind: type) -> bool:
    """Whether this is a class of an SDK: an operation may send its requests with an argument of such a class."""
    return any(f"{base.__module__}.".startswith(SDKS) for base in kind.__mro__)


def _follow(owner: object, way: tuple[str, ...]) -> object:
    for name in way:
        owner = field_of(owner, name)
    return owner


def _named_so(holder: object) -> list[str]:
    """The attributes in which a framework's model stores its key under the vendor's name (`anthropic_api_key`)."""
    fields = peek(holder, "__dict__")
    return (
        sorted(name for name in fields if str(name).endswith("_api_key")) if isinstance(fields, dict) else []
    )


def _text(value: object) -> str:
    """The text of a key, which may be wrapped in pydantic's `SecretStr`; "" for anything else."""
    if isinstance(value, str):
        return value
    reveal = getattr(value, "get_secret_value", None)
    if callable(reveal):
        shown = _revealed(reveal)
        return shown if isinstance(shown, str) else ""
    return ""


def _revealed(reveal: Callable[[], object]) -> object:
    try:
        return reveal()
    except Exception:  # noqa: BLE001 - an application's own object with a method of that name
        return None
