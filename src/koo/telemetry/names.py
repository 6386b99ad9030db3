"""The names from OpenTelemetry's semantic conventions that koo uses, and their versions.

`gen_ai.*` follows version 1.41.1, the last one in which generative AI was part of the common conventions. Since then it
has its own repository, where these names change every month. `db.client.*` follows 1.44.0, where
`db.client.operation.duration` is stable and the names of pools are in development. Names that the conventions lack
start with `koo.`.
"""

from __future__ import annotations

SCOPE = "koo"
"""The instrumentation scope of everything here, by which an SDK's views and samplers select."""
SCHEMA_URL = "https://opentelemetry.io/schemas/1.41.1"

# ── AI services ───────────────────────────────────────────────────────────────────────────────────────────────────────

QUERY_DURATION = "gen_ai.client.operation.duration"
QUERY_DURATION_S = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
)  # fmt: skip
FIRST_CHUNK = "gen_ai.client.operation.time_to_first_chunk"
FIRST_CHUNK_S = QUERY_DURATION_S
TOKEN_USAGE = "gen_ai.client.token.usage"
TOKENS = tuple(4**power for power in range(14))

OPERATION = "gen_ai.operation.name"
CHAT = "chat"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
MAX_TOKENS = "gen_ai.request.max_tokens"
TEMPERATURE = "gen_ai.request.temperature"
STREAM = "gen_ai.request.stream"
FINISH_REASONS = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
TOKEN_TYPE = "gen_ai.token.type"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHE_READ = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE = "gen_ai.usage.cache_creation.input_tokens"
REASONING = "gen_ai.usage.reasoning.output_tokens"

ERROR_TYPE = "error.type"
OTHER = "_OTHER"
"""Replaces a model's name when there are too many."""

SERVICE = "koo.service"
ATTEMPTS = "koo.attempts"
COST_USD = "koo.cost_usd"

PROVIDERS = {
    "anthropic": "anthropic",
    "openai": "openai",
    "gemini": "gcp.gemini",
    "perplexity": "perplexity",
}
"""The conventions' provider names, by kind of service. Any other provider has the name of its service."""

# ── databases ─────────────────────────────────────────────────────────────────────────────────────────────────────────

STATEMENT_DURATION = "db.client.operation.duration"
STATEMENT_DURATION_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
CREATE_TIME = "db.client.connection.create_time"
WAIT_TIME = "db.client.connection.wait_time"
USE_TIME = "db.client.connection.use_time"
CONNECTIONS = "db.client.connection.count"
CONNECTIONS_MAX = "db.client.connection.max"
PENDING = "db.client.connection.pending_requests"
TIMEOUTS = "db.client.connection.timeouts"

SYSTEM = "db.system.name"
NAMESPACE = "db.namespace"
STATEMENT = "db.operation.name"
ADDRESS = "server.address"
PORT = "server.port"
POOL = "db.client.connection.pool.name"
STATE = "db.client.connection.state"
