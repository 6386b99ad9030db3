"""The guard around a user's own operation, on the platform of this process."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Any, TypeVar, overload

from koo.ai.operation_stream import OperationStream
from koo.default.platform import platform
from koo.monitoring.shapes import ServiceHealth

T = TypeVar("T")


class AIErrorHandler:
    """The names under which the platform's guard is known."""

    def register_service(self, name: str, **options: Any) -> None:
        """Guard an operation of your own under `name`; the options are in the complete guide.

        Registering it again replaces it. Raises `ConfigurationError` for an option that cannot be right.
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

        One that blocks runs only where the registration says `in_thread=True`; TypeError elsewhere.
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
        """Read what `operation(*args, **kwargs)` streams under the guard of `name`, to its end.

        `async for piece in …` for its pieces; `async with … as stream` for the operation's own object. Nothing is sent
        before; `UnknownService` is raised there.
        """
        return platform.execute_stream(name, operation, *args, **kwargs)

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
stream_ai_operation = ai_error_handler.stream_with_error_handling
guarded = platform.guarded
