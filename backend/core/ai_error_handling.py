"""The guard around AI services, and around anybody's own operation.

    ai_error_handler.register_service("search", idempotent=True, requests_per_minute=100)
    hits = await ai_error_handler.execute_with_error_handling("search", search, "blue shoes")

The operation gets a circuit breaker, retries (only if `idempotent`), a deadline, limits and a budget (none unless
given). Its options belong to `register_service`, its arguments to the call. A built-in service's name works as well:
then a vendor's SDK shares that service's breaker, limits, key block and budgets.

What happens to an operation's exceptions: errors of SDKs and transports become an `ExternalServiceError`, raised `from`
the original; SQLAlchemy's are judged as in koo's database; `OSError` and `TimeoutError` are failures; `TypeError`,
`ValueError`, `LookupError` and `AttributeError` are the caller's own and pass unchanged; anything else is a failure and
passes unchanged; `classify` overrides.

Looking (`get_all_services_status`, `get_service_status`) is synchronous, does no I/O and changes nothing. A reset
clears phases, streaks, cooldowns and key blocks of all models of a service, here and in every process on the same
state store; never money, limits used or counts.
"""

from __future__ import annotations

from koo import ai_error_handler, execute_ai_operation, guarded, stream_ai_operation

__all__ = ["ai_error_handler", "execute_ai_operation", "guarded", "stream_ai_operation"]
