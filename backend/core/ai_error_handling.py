"""The guard around AI services, and around anybody's own operation.

    ai_error_handler.register_service("search", idempotent=True, requests_per_minute=100)
    hits = await ai_error_handler.execute_with_error_handling("search", search, "blue shoes")

The operation gets a circuit breaker, retries (only if `idempotent`), a deadline, limits and a budget (none unless
given). Its options belong to `register_service`, its arguments to the call. A built-in service's name works as well:
then a vendor's SDK shares that service's breaker, limits and key block.

What happens to an operation's exceptions: errors of SDKs and transports become an `ExternalServiceError`, raised `from`
the original; SQLAlchemy's are judged as in koo's database; `OSError` and `TimeoutError` are failures; `TypeError`,
`ValueError`, `LookupError` and `AttributeError` are the caller's own and pass unchanged; anything else is a failure and
passes unchanged; `classify` overrides.

Looking (`get_all_services_status`, `get_service_status`) is synchronous, does no I/O and changes nothing. A reset
clears phases, streaks, cooldowns and key blocks of all models of a service, here and in every process on the same
state store; never money, limits used or counts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from core.platform import platform
from koo.monitoring.shapes import ServiceHealth

__all__ = ["ai_error_handler", "execute_ai_operation"]

T = TypeVar("T")


class AIErrorHandler:
    """The names under which the platform's guard is known."""

    def register_service(self, name: str, **options: Any) -> None:
        """Guard an operation of your own under `name`; the options are in the complete guide.

        Registering it again replaces it. Raises `ConfigurationError` for an option that cannot be right.
        """
        platform.register_service(name, **options)

    async def execute_with_error_handling(
        self, name: str, operation: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any
    ) -> T:
        """Run `operation(*args, **kwargs)` under the guard of `name`. Raises `UnknownService`."""
        return await platform.execute(name, operation, *args, **kwargs)

    def get_all_services_status(self) -> dict[str, ServiceHealth]:
        """{name: status} of every service, also of registered ones."""
        return platform.services_status()

    def get_service_status(self, name: str) -> ServiceHealth:
        """One service's status. Raises `UnknownService`, which lists the known ones."""
        return platform.service_health(name)

    def reset_circuit_breaker(self, name: str) -> bool:
        """Let a service start afresh; False for an unknown one."""
        return platform.reset_service(name)

    def reset_rate_limiter(self, name: str) -> bool:
        """Forget what was used of a service's request limits; False for an unknown one. Money is never forgotten."""
        return platform.reset_limits(name)


ai_error_handler = AIErrorHandler()
execute_ai_operation = ai_error_handler.execute_with_error_handling
