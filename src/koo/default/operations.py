"""The guard around a user's own operation, on the platform of this process."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Any, TypeVar, overload

from koo.ai.operation_stream import OperationStream
from koo.default.platform import platform
from koo.monitoring.shapes import ServiceHealth

T = TypeVar("T")


class AIErrorHandler:
    """The platform's guard, under the names that its users know."""

    def register_service(self, name: str, **options: Any) -> None:
        """Guard your own operation under `name`; the complete guide lists the options.

        Registering the name again with other options replaces the earlier ones, with a new breaker and new limits;
        with the same options it changes nothing. Raises `ConfigurationError` for an invalid option.
        """
        platform.register_service(name, **options)

    @overload
    async def execute_with_error_handling(
        self, name: str, operation: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any
    ) -> T: ...
    @overload
    async def execute_with_error_handling(
        self, name: str, operation: Callable[..., T], /, *args: Any, **kwargs: Any
    ) -> T: ...
    async def execute_with_error_handling(
        self, name: str, operation: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        """Run `operation(*args, **kwargs)` under the guard of `name`. Raises `UnknownService`.

        A blocking operation needs a registration with `in_thread=True`; without it, TypeError is raised.
        """
        return await platform.execute(name, operation, *args, **kwargs)

    @overload
    def stream_with_error_handling(
        self,
        name: str,
        operation: Callable[..., AsyncIterable[T] | Awaitable[AsyncIterable[T]]],
        /,
        *args: Any,
        **kwargs: Any,
    ) -> OperationStream[T]: ...
    @overload
    def stream_with_error_handling(
        self, name: str, operation: Callable[..., object], /, *args: Any, **kwargs: Any
    ) -> OperationStream[Any]: ...
    def stream_with_error_handling(
        self, name: str, operation: Callable[..., object], /, *args: Any, **kwargs: Any
    ) -> OperationStream[Any]:
        """Stream `operation(*args, **kwargs)` under the guard of `name`, until its end.

        `async for piece in …` yields its pieces; `async with … as stream` returns the operation's own object. Nothing
        is sent before that, and `UnknownService` is raised there.
        """
        return platform.execute_stream(name, operation, *args, **kwargs)

    def get_all_services_status(self) -> dict[str, ServiceHealth]:
        """{name: status} of every service, including registered ones."""
        return platform.services_status()

    def get_service_status(self, name: str) -> ServiceHealth:
        """One service's status. Raises `UnknownService`, which lists the known ones."""
        return platform.service_health(name)

    def reset_circuit_breaker(self, name: str) -> bool:
        """Reset a service's breakers, cooldowns and key blocks; False for an unknown service."""
        return platform.reset_service(name)

    def reset_rate_limiter(self, name: str) -> bool:
        """Clear the used units of a service's request limits, never its money; False for an unknown service."""
        return platform.reset_limits(name)


ai_error_handler = AIErrorHandler()
execute_ai_operation = ai_error_handler.execute_with_error_handling
stream_ai_operation = ai_error_handler.stream_with_error_handling
guarded = platform.guarded
