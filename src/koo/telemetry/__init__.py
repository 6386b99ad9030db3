"""OpenTelemetry metrics and spans, if the process has set up an SDK.

koo does not depend on OpenTelemetry, and imports it only if something else has imported it. Without an SDK, calls pay
nothing: the gateway's watch does nothing, and the database's samples are sorted each second anyway. With an SDK, each
query of a service has a span and a measurement, and statements are measured from those samples, outside the calls.

`names.py` has the names and versions of the conventions, `queries.py` the spans and measurements of AI services,
`pools.py` those of databases, and `sdk.py` finds the SDK.
"""
