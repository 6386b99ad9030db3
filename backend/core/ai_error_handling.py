"""The guard around AI services, and around your own operations.

    ai_error_handler.register_service("search", idempotent=True, requests_per_minute=100)
    hits = await ai_error_handler.execute_with_error_handling("search", search, "blue shoes")

The operation gets a circuit breaker, retries (only if `idempotent`), a deadline, and limits and a budget if you set
them. Pass options to `register_service`, and the operation's arguments to the call. You can also use the name of a
built-in service: a call through a vendor's SDK then shares that service's breaker, limits, key block and budgets.

An operation's exceptions are treated by type, unless `classify` is given:

* Errors of SDKs and transports become an `ExternalServiceError`, raised `from` the original.
* SQLAlchemy's errors are classified as in koo's database.
* `OSError` and `TimeoutError` are failures.
* `TypeError`, `ValueError`, `LookupError` and `AttributeError` are the caller's mistakes and pass unchanged.
* Anything else is a failure and passes unchanged.

The status functions (`get_all_services_status`, `get_service_status`) are synchronous, do no I/O and change nothing. A
reset clears phases, streaks, cooldowns and key blocks of all models of a service, here and in every process on the same
state store. It never changes money, used limits or counts.
"""

from __future__ import annotations

from koo import ai_error_handler, execute_ai_operation, guarded, stream_ai_operation

__all__ = ["ai_error_handler", "execute_ai_operation", "guarded", "stream_ai_operation"]
