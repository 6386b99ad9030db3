"""The same guard for your own operation: retries, limits and a circuit breaker around anything awaitable.

.venv/bin/python examples/own_operation.py
"""

from __future__ import annotations

import asyncio

from koo import CircuitOpen, RateLimited, ai_error_handler


class Rates:
    """A stand-in for a client of another service. `trouble`: how many of the next calls fail."""

    def __init__(self, trouble: int) -> None:
        self.trouble = trouble
        self.calls = 0

    async def read(self, currency: str) -> float:
        self.calls += 1
        if self.trouble:
            self.trouble -= 1
            raise ConnectionError("the rates server is down")
        return 1.08


async def repeat() -> None:
    """A call that is safe to repeat fails twice: the caller gets the result of the third attempt."""
    ai_error_handler.register_service("rates", idempotent=True, retry_base_delay=0.01)
    rates = Rates(trouble=2)
    rate = await ai_error_handler.execute_with_error_handling("rates", rates.read, "EUR")
    print(f"{rate} after {rates.calls} calls")


async def open_and_reset() -> None:
    """A server that stays down gets no calls until the breaker's open time ends, or until an operator resets it."""
    ai_error_handler.register_service("rates", failure_threshold=3, recovery_timeout=30)
    rates = Rates(trouble=3)
    for _ in range(5):
        try:
            await ai_error_handler.execute_with_error_handling("rates", rates.read, "EUR")
        except CircuitOpen as refusal:
            print(f"refused; try again in {refusal.retry_after_s:.0f} s")
        except ConnectionError as error:
            print(f"failed: {error}")
    print(f"{rates.calls} calls reached the server")
    ai_error_handler.reset_circuit_breaker("rates")
    print(await ai_error_handler.execute_with_error_handling("rates", rates.read, "EUR"))


async def limit() -> None:
    """A limit of two calls a minute never admits three in any minute."""
    ai_error_handler.register_service("rates", requests_per_minute=2)
    rates = Rates(trouble=0)
    for _ in range(3):
        try:
            await ai_error_handler.execute_with_error_handling("rates", rates.read, "EUR")
        except RateLimited as refusal:
            print(f"refused: {refusal.reason}")
    print(f"{rates.calls} calls reached the server")


async def main() -> None:
    await repeat()
    await open_and_reset()
    await limit()


if __name__ == "__main__":
    asyncio.run(main())
