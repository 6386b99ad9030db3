"""The ledger's public interface."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path

from koo import Platform
from koo.options import PlatformOptions


def test_after_a_refresh_another_processs_bookings_are_visible_immediately(tmp_path: Path) -> None:
    options = PlatformOptions(state_url=f"sqlite:///{tmp_path}/state.db")

    async def answer() -> str:
        return "paid"

    async def spent_usd(platform: Platform) -> Decimal:
        await platform.ledger.refresh()
        return Decimal(platform.service_health("svc")["rate_limits"]["daily_budget"]["spent"])

    async def main() -> None:
        async with Platform(options) as one, Platform(options) as other:
            for platform in (one, other):
                platform.register_service("svc", daily_budget="10", max_cost_usd="0.10")
            assert await one.execute("svc", answer) == "paid"
            await one.ledger.refresh()
            assert await spent_usd(other) == Decimal("0.10")

    asyncio.run(main())
