"""The state of everything in this process, without a request or a running server."""

from __future__ import annotations

from koo.clock import SYSTEM_CLOCK
from koo.default.platform import platform
from koo.monitoring.overview import alerts_view, dashboard_view
from koo.monitoring.shapes import Dashboard, SystemAlerts, SystemHealth


async def get_system_health() -> SystemHealth:
    """`overall_health`, `database` (probed within the last seconds), `ai_services`, `timestamp`. Never raises."""
    return await platform.system_health()


async def get_monitoring_dashboard() -> Dashboard:
    """`summary`, `database`, `ai_services`, `alerts`, `timestamp`."""
    return dashboard_view(await platform.system_health(), platform.active_alerts())


async def get_system_alerts() -> SystemAlerts:
    """`alerts` (active, worst first, then those of the last fifteen minutes), `alert_count`, `timestamp`."""
    return alerts_view(platform.active_alerts(), SYSTEM_CLOCK)
