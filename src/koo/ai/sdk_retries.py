"""How often a vendor's SDK repeats a call by itself, beside the repeats of the guard.

No SDK is imported: its clients are read by their attributes.
"""

from __future__ import annotations

from koo.ai.foreign.peek import field_of


def own_retries(operation: object) -> int:
    """How often an SDK repeats this operation by itself: its client's `max_retries`, or 0.

    Knows bound methods (`client.messages.create`), what `functools.wraps` or `partial` put around them, and
    google-genai's `HttpRetryOptions`.
    """
    for _ in range(5):
        owner = getattr(operation, "__self__", None)
        if owner is not None:
            return _retries_of(owner)
        operation = getattr(operation, "__wrapped__", None) or getattr(operation, "func", None)
        if operation is None:
            break
    return 0


def _retries_of(owner: object) -> int:
    client = field_of(owner, "_client")
    # Perplexity's has an adapter between a resource and its client.
    for thing in (owner, client, field_of(client, "_client"), field_of(owner, "client")):
        retries = field_of(thing, "max_retries")
        if isinstance(retries, int) and not isinstance(retries, bool):
            return max(0, retries)
    google = field_of(owner, "_api_client")
    retry = getattr(getattr(google, "_http_options", None), "retry_options", None)
    if retry is None:
        return 1 if _repeats_quietly(owner, google) else 0
    attempts = getattr(retry, "attempts", None)
    # google-genai: options without a number mean five attempts.
    return max(0, (attempts if isinstance(attempts, int) else 5) - 1)


def _repeats_quietly(owner: object, client: object) -> bool:
    """google-genai without options: over aiohttp, its asynchronous half repeats once what a connection broke off."""
    uses_aiohttp = getattr(client, "_use_aiohttp", None)
    return type(owner).__name__.startswith("Async") and callable(uses_aiohttp) and bool(uses_aiohttp())
