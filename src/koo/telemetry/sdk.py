"""Finds the SDK that the process has set up, if any, and creates instruments."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

from koo.telemetry.names import SCHEMA_URL, SCOPE

if TYPE_CHECKING:
    from opentelemetry.metrics import Histogram, Meter, MeterProvider
    from opentelemetry.trace import Tracer, TracerProvider


class Sdk(NamedTuple):
    """The providers of spans and of metrics; None if the process has not set one up."""

    traces: TracerProvider | None
    metrics: MeterProvider | None

    @property
    def tracer(self) -> Tracer | None:
        """The tracer for koo's spans."""
        return None if self.traces is None else self.traces.get_tracer(SCOPE, version("koo"), SCHEMA_URL)

    @property
    def meter(self) -> Meter | None:
        """The meter for koo's measurements."""
        return None if self.metrics is None else self.metrics.get_meter(SCOPE, version("koo"), SCHEMA_URL)


NO_SDK = Sdk(None, None)


def find_sdk() -> Sdk:
    """The providers set in this process. The API's own default providers do nothing, and count as none."""
    if "opentelemetry" not in sys.modules:
        return NO_SDK  # not imported, so nothing has set it up
    try:
        from opentelemetry import metrics, trace
    except ImportError:
        return NO_SDK
    return Sdk(_set_up(trace.get_tracer_provider()), _set_up(metrics.get_meter_provider()))


def _set_up(provider: Any) -> Any:
    ours = type(provider).__module__.startswith(("opentelemetry.trace", "opentelemetry.metrics"))
    return None if ours else provider


def histogram(meter: Meter, name: str, unit: str, description: str, bounds: Sequence[float]) -> Histogram:
    """A histogram with the conventions' bucket boundaries, if this release of the API supports them."""
    try:
        return meter.create_histogram(
            name, unit, description, explicit_bucket_boundaries_advisory=list(bounds)
        )
    except TypeError:
        return meter.create_histogram(name, unit, description)
