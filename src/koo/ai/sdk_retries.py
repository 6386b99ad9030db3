"""How often a vendor's SDK retries a call by itself, in addition to the guard's retries.

No SDK is imported: its clients are read by their attributes.
"""

from __future__ import annotations

from koo.ai.foreign.peek import field_of


def own_retries(operation: object) -> int:
    """How often an SDK retries this operation: its client's `max_retries`, or 0 if none is found.

    Works for bound methods (`client.messages.create`), even inside `functools.wraps` or `partial`, and reads
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
    # Perplexity's SDK has an adapter between a resource and its client.
    for thing in (owner, client, field_of(client, "_client"), field_of(owner, "client")):
        retries = field_of(thing, "max_retries")
        if isinstance(retries, int) and not isinstance(retries, bool):
            return max(0, retries)
    google = field_of(owner, "_api_client")
    retry = getattr(getattr(google, "_http_options", None), "retry_options", None)
    if retry is None:
        return 1 if _repeats_quietly(owner, google) else 0
    attempts = getattr(retry, "attempts", None)
    # In google-genai, retry options without a number mean five attempts.
    return max(0, (attempts if isinstance(attempts, int) else 5) - 1)


def _repeats_quietly(owner: object, client: object) -> bool:
    """Whether google-genai retries without retry options: over aiohttp it retries once after a lost connection."""
    uses_aiohttp = getattr(client, "_use_aiohttp", None)
    return type(owner).__name__.startswith("Async") and callable(uses_aiohttp) and bool(uses_aiohttp())
