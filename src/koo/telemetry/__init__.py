"""Metrics and spans of OpenTelemetry, where the process has set an SDK up.

koo does not depend on OpenTelemetry, and imports it only where something else has. Without an SDK nothing here is on a
call's way: the gateway's watch does nothing, and the database's samples are sorted each second, as always. With one, a
query of a service is a span and a measurement; statements are measured from those samples, behind the calls.

`names.py` has the names and the version of the conventions; `queries.py` the spans and measurements of AI services;
`pools.py` those of databases; `sdk.py` finds the SDK.
"""
