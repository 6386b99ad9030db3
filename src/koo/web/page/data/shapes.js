// @ts-check
// The shapes of the server's answers, as `make docs` wrote them from koo/monitoring/shapes.py. Types only.

/**
 * @typedef {{
 *   overall_health: "healthy" | "degraded" | "unhealthy", severity: "critical" | "warning" | null,
 *   database_healthy: boolean, ai_services_healthy: string, active_alerts: number, circuit_breakers_open: number,
 * }} Summary
 *
 * @typedef {{
 *   kind: string, status: number | null, sentence: string, at: string,
 * }} LastError
 *
 * @typedef {{
 *   host: string | null, port: number | null, name: string | null,
 * }} DatabaseServer
 *
 * @typedef {{
 *   calls: number, failures: number, slow: number,
 * }} WindowCounts
 *
 * @typedef {{
 *   name: string, state: "closed" | "open" | "half_open" | "forced_open" | "disabled",
 *   override: "none" | "forced_open" | "disabled" | "metrics_only", operator: string, reason: string,
 *   primed: string, last_error: LastError | null, consecutive_failures: number, failure_threshold: number,
 *   success_threshold: number, recovery_timeout: number, window: WindowCounts, opened_at: string | null,
 *   next_attempt: string | null, times_opened: number, stale_results: number, running: number,
 *   incident: string | null, failure_count: number, success_count: number, last_failure: string | null,
 *   last_success: string | null, neutral_count: number, refused_count: number,
 * }} DatabaseBreaker
 *
 * @typedef {{
 *   size: number, active_connections: number, idle_connections: number, suspect_connections: number,
 *   overflow_connections: number, open_connections: number, waiting: number, max_connections: number,
 *   utilization: number, turned_away: number, overdue: number, held_by: string[],
 * }} PoolStatus
 *
 * @typedef {{
 *   healthy: boolean, state: "healthy" | "unhealthy" | "circuit_open" | "degraded", reason: string,
 *   conditions: string[], operator: string, last_error: LastError | null, server: DatabaseServer,
 *   answers_since: string | null, response_time_ms: number | null, circuit_breaker: DatabaseBreaker,
 *   pool_status: PoolStatus, last_health_check: string | null, error: string | null, timestamp: string,
 * }} DatabaseHealth
 *
 * @typedef {{
 *   failure_count: number, success_count: number, last_failure: string | null, last_success: string | null,
 *   circuit_breaker_state: "closed" | "open" | "half_open" | "forced_open" | "disabled",
 *   consecutive_failures: number, next_attempt: string | null,
 * }} ServiceBreaker
 *
 * @typedef {{
 *   calls: number, failed: number, slow: number, window_s: number,
 * }} RecentCalls
 *
 * @typedef {{
 *   total_requests: number, successful_requests: number, failed_requests: number, neutral_requests: number,
 *   throttled_requests: number, refused_requests: number, refusals: Record<string, number>,
 *   refusing: Record<string, string>, retries: number, recent: RecentCalls, success_rate: number,
 *   average_response_time: number, error_counts: Record<string, number>, p50: number, p95: number, p99: number,
 * }} ServiceMetrics
 *
 * @typedef {{
 *   used: number, limit: number | null, remaining: number | null, resets_at: string | null,
 * }} RateLimit
 *
 * @typedef {{
 *   used: number, limit: number | null, remaining: number | null, resets_at: string | null, refuses: boolean,
 * }} TokenRate
 *
 * @typedef {{
 *   earliest: string, latest: string | null, then: string,
 * }} RunOut
 *
 * @typedef {{
 *   spent: string, reserved: string, limit: string | null, remaining: string | null, used_up: boolean,
 *   idle: string, unsettled: string, resets_at: string, above_hold: string, currency: "USD", scope: string,
 *   as_of: string | null, runs_out: RunOut | null,
 * }} DailyBudget
 *
 * @typedef {{
 *   requests_per_minute: RateLimit, requests_per_hour: RateLimit, requests_per_day: RateLimit,
 *   tokens_per_minute: TokenRate, daily_budget: DailyBudget, scope: string, notice: string,
 * }} RateLimits
 *
 * @typedef {{
 *   kind: string, reason: string, since: string, until: string,
 * }} Pause
 *
 * @typedef {{
 *   component: string, budget: string, needed: string, left: string, resets_at: string,
 * }} Shortage
 *
 * @typedef {{
 *   known: number, refused: number,
 * }} Clients
 *
 * @typedef {{
 *   name: string, state: "closed" | "open" | "half_open" | "forced_open" | "disabled",
 *   override: "none" | "forced_open" | "disabled" | "metrics_only", operator: string, reason: string,
 *   primed: string, last_error: LastError | null, consecutive_failures: number, failure_threshold: number,
 *   success_threshold: number, recovery_timeout: number, window: WindowCounts, opened_at: string | null,
 *   next_attempt: string | null, times_opened: number, stale_results: number, running: number,
 *   incident: string | null, key_refused: string, key_checked_at: string | null, pause: Pause | null,
 * }} ModelStatus
 *
 * @typedef {{
 *   model: string | null, timeout: number, attempt_timeout: number, slow_call: number | null, max_retries: number,
 *   failure_threshold: number, recovery_timeout: number, success_threshold: number, idempotent?: boolean,
 *   kind?: string, base_url?: string | null, proxy?: string | null, headers?: string[], body?: string[],
 *   has_key?: boolean, max_tokens?: number, first_token_timeout?: number, stall_timeout?: number,
 *   concurrency?: number | null, price_as?: string | null, queue_length?: number, input_price?: string | null,
 *   output_price?: string | null,
 * }} ServiceConfiguration
 *
 * @typedef {{
 *   service_name: string, state: "healthy" | "degraded" | "unhealthy" | "circuit_open" | "rate_limited",
 *   configured: boolean, reason: string, last_error: LastError | null, health: ServiceBreaker,
 *   metrics: ServiceMetrics, rate_limits: RateLimits, pause: Pause | null, shortage: Shortage | null,
 *   clients: Clients | null, models: Record<string, ModelStatus>, configuration: ServiceConfiguration,
 *   last_updated: string,
 * }} ServiceHealth
 *
 * @typedef {{
 *   spent: string, reserved: string, limit: string | null, remaining: string | null, used_up: boolean,
 *   idle: string, unsettled: string, resets_at: string, above_hold: string, currency: "USD", scope: string,
 *   as_of: string | null, runs_out: RunOut | null, name: string, title: string, period: "day" | "month",
 *   service: string | null, model: string | null, tag: string | null, on_exhausted: string,
 * }} Budget
 *
 * @typedef {{
 *   overall_health: "healthy" | "degraded" | "unhealthy", healthy_services: number, total_services: number,
 *   services: Record<string, ServiceHealth>, budgets: Budget[], timestamp: string,
 * }} ServicesHealth
 *
 * @typedef {{
 *   refuses?: string, since?: string | null, also?: string[], unconfirmed?: boolean, turned_away?: number,
 *   next_attempt?: string | null, resets_at?: string | null, error_rate?: number, p95?: number,
 *   services?: string[], lasted_s?: number, clients?: number, share?: number, runs_out?: RunOut | null,
 *   amount?: string, last_error?: LastError | null, server?: DatabaseServer, answers_since?: string | null,
 *   incident?: string,
 * }} AlertData
 *
 * @typedef {{
 *   by: string, at: string, until: string | null, note: string,
 * }} Acknowledged
 *
 * @typedef {{
 *   id: string, kind: string, component: string, made_at: string, ends_at: string, by: string, reason: string,
 * }} SilenceView
 *
 * @typedef {{
 *   state: "pending" | "due" | "notified" | "no_channel" | "silenced" | "acknowledged" | "inhibited" | "kept_quiet" | "ended",
 *   at: string | null, reason: string,
 * }} Notified
 *
 * @typedef {{
 *   type: "critical" | "warning" | "info", component: string, message: string, timestamp: string, kind: string,
 *   active: boolean, ended_at: string | null, data: AlertData, id: string,
 *   phase: "pending" | "firing" | "recovering" | "resolved", since: string, acknowledged: Acknowledged | null,
 *   silenced: SilenceView | null, inhibited_by: string | null, notified: Notified, runbook: string,
 * }} Alert
 *
 * @typedef {{
 *   summary: Summary, database: DatabaseHealth, ai_services: ServicesHealth, alerts: Alert[], timestamp: string,
 * }} Dashboard
 *
 * @typedef {{
 *   created: number, closed: number, broken: number, stale_replaced: number, aborted: number,
 * }} ConnectionCounts
 *
 * @typedef {{
 *   average: number, p50: number, p95: number, p99: number, count: number,
 * }} PhaseTimes
 *
 * @typedef {{
 *   gate_wait: PhaseTimes, connect: PhaseTimes, statement: PhaseTimes, commit: PhaseTimes, hold: PhaseTimes,
 * }} Phases
 *
 * @typedef {{
 *   average: number, p50: number, p95: number, p99: number, success_rate: number, phases: Phases,
 * }} ResponseTimes
 *
 * @typedef {{
 *   by_kind: Record<string, number>, total: number, contention: number, unknown_commits: number,
 *   resolved_commits: number, pool_timeouts: number, last_error: string | null,
 * }} DatabaseErrors
 *
 * @typedef {{
 *   connects: number, transactions: number, first_statements: number,
 * }} DatabaseRetries
 *
 * @typedef {{
 *   pool_status: PoolStatus, connection_metrics: ConnectionCounts, response_times: ResponseTimes,
 *   errors: DatabaseErrors, retries: DatabaseRetries, circuit_breaker: DatabaseBreaker, timestamp: string,
 * }} DatabaseMetrics
 *
 * @typedef {{
 *   episodes: Alert[], next_cursor: string | null, since: string, until: string, timestamp: string,
 * }} AlertHistory
 *
 * @typedef {{
 *   silences: SilenceView[], timestamp: string,
 * }} Silences
 *
 * @typedef {{
 *   channel: string, place: string, state: "ok" | "failing" | "untried", reason: string,
 *   failing_since: string | null, next_attempt: string | null, last_sent: string | null, waiting: number,
 *   given_up: number, least_severity: "critical" | "warning" | "info",
 *   breaker: "closed" | "open" | "half_open" | "forced_open" | "disabled", warnings: string[],
 * }} ChannelStatus
 *
 * @typedef {{
 *   key: string, what: "firing" | "resolved" | "reminder" | "test", kind: string,
 *   severity: "critical" | "warning" | "info", component: string, message: string, started_at: string,
 *   ended_at: string | null, noticed_at: string, channel: string,
 *   state: "waiting" | "sent" | "given_up" | "below_severity", attempts: number, sent_at: string | null,
 *   next_attempt: string | null, reason: string,
 * }} AlertDelivery
 *
 * @typedef {{
 *   id: string, kind: string, component: string, severity: "critical" | "warning" | "info", since: string,
 *   state: "pending" | "due" | "notified" | "no_channel" | "silenced" | "acknowledged" | "inhibited" | "kept_quiet" | "ended",
 *   reason: string,
 * }} UntoldAlert
 *
 * @typedef {{
 *   configured: boolean, note: string, store: string | null, channels: ChannelStatus[],
 *   deliveries: AlertDelivery[], untold: UntoldAlert[], timestamp: string,
 * }} AlertDeliveries
 *
 * @typedef {{
 *   id: string, host: string, worker: string, pid: number, version: string, label: string, started_at: string,
 *   seen_at: string, beat_age: number, state: "live" | "silent", in_flight: number, leads: boolean,
 *   answers: boolean,
 * }} FleetProcess
 *
 * @typedef {{
 *   name: string, place: string, open: number, half_open: number, processes: number, open_in: string[],
 *   open_since: string | null, primed: string, calls: number,
 * }} FleetGuard
 *
 * @typedef {{
 *   budget: string, limit: string | null, spent: string, held: string, idle: string, unsettled: string,
 *   granted: string, resets_at: string,
 * }} FleetPurse
 *
 * @typedef {{
 *   limit: string, units: number, leased: number, processes: number,
 * }} FleetUnits
 *
 * @typedef {{
 *   process: string, epoch: number,
 * }} FleetLeader
 *
 * @typedef {{
 *   section: string, option: string, groups: string[][],
 * }} FleetDifference
 *
 * @typedef {{
 *   reachable: boolean, reason: string, lost_at: string | null, refuses: string[],
 * }} StoreHealth
 *
 * @typedef {{
 *   processes: FleetProcess[], guards: FleetGuard[], purses: FleetPurse[], leases: FleetUnits[],
 *   leader: FleetLeader | null, differences: FleetDifference[], state_store: StoreHealth, timestamp: string,
 * }} FleetStatus
 *
 * @typedef {{
 *   calls: (number | null)[], failed: (number | null)[], throttled: (number | null)[], refused: (number | null)[],
 *   slow: (number | null)[], p50: (number | null)[], p95: (number | null)[], state: (string | null)[],
 *   spent?: (string | null)[], used?: (number | null)[], waiting?: (number | null)[], places?: (number | null)[],
 * }} Series
 *
 * @typedef {{
 *   at: string, kind: string, component: string, text: string,
 * }} HistoryMark
 *
 * @typedef {{
 *   since: string, until: string, step_s: number, scope: "this process" | "all processes",
 *   series: Record<string, Series>, marks: HistoryMark[], trouble: string, timestamp: string,
 * }} History
 *
 * @typedef {{
 *   day?: string, service?: string, model?: string, tag?: string | null, calls: number, amount: string,
 *   estimated: string, estimated_calls: number, input_tokens: number, output_tokens: number,
 * }} SpendRow
 *
 * @typedef {{
 *   budget: string, period: string, amount: string,
 * }} PeriodAmount
 *
 * @typedef {{
 *   process: string, last_seen: string | null, amounts: PeriodAmount[],
 * }} UnsettledProcess
 *
 * @typedef {{
 *   process: string, at: string, by: string, reason: string, amounts: PeriodAmount[],
 * }} WrittenOff
 *
 * @typedef {{
 *   first_day: string, last_day: string, by: string[], rows: SpendRow[], calls: number, amount: string,
 *   estimated: string, currency: "USD", budgets: Budget[], unsettled: UnsettledProcess[],
 *   written_off: WrittenOff[], timestamp: string,
 * }} Spend
 *
 * @typedef {{
 *   id: string, at: string, outcome: string, attempt: number | null, latency: number | null, request_id: string,
 *   service: string, model: string, tag: string | null, cost: string, cost_source: string, estimated: boolean,
 *   held: string, input_tokens: number, cache_read_tokens: number, cache_write_tokens: number,
 *   output_tokens: number, reasoning_tokens: number, metadata: Record<string, string>, process: string,
 * }} BookedCall
 *
 * @typedef {{
 *   requests: BookedCall[], amount: string, next_cursor: string | null, timestamp: string,
 * }} BookedCalls
 *
 * @typedef {{
 *   refused: number, repeated: number, fallen_back: number, over_budget: number, not_spent: string,
 * }} SavedOf
 *
 * @typedef {{
 *   refused: number, repeated: number, fallen_back: number, over_budget: number, not_spent: string, since: string,
 *   scope: "this process" | "all processes", components: Record<string, SavedOf>, timestamp: string,
 * }} Saved
 *
 * @typedef {{
 *   role: "write" | "read", who: string, expires_at: string | null, login: boolean, timestamp: string,
 * }} SessionView
 *
 * @typedef {{
 *   id: string, component: string, guard: string, state: "open" | "recovering" | "closed" | "lost",
 *   shadow: boolean, opened_at: string, closed_at: string | null, lasted_s: number, rule: string, reason: string,
 *   ended: string, refused: number, processes: number, process: string,
 * }} IncidentSummary
 *
 * @typedef {{
 *   incidents: IncidentSummary[], trouble: string, timestamp: string,
 * }} Incidents
 *
 * @typedef {{
 *   sentence: string, failures_in_a_row: number, failures_in_a_row_max: number, calls: number, failures: number,
 *   slow: number, running_slow: number, calls_min: number, failure_rate: number, failure_rate_max: number,
 *   slow_rate: number, slow_rate_max: number, window_s: number, slow_s: number | null, primed: string,
 * }} Trigger
 *
 * @typedef {{
 *   at: string, duration_s: number, outcome: string, kind: string, status: number | null, sentence: string,
 *   in_row: number,
 * }} IncidentCall
 *
 * @typedef {{
 *   at: string, what: string, text: string,
 * }} IncidentStep
 *
 * @typedef {{
 *   at: string, what: string, by: string, reason: string, until: string | null,
 * }} IncidentAct
 *
 * @typedef {{
 *   id: string, process: string, state: "open" | "recovering" | "closed" | "lost", opened_at: string,
 *   closed_at: string | null, reason: string, refused: number,
 * }} IncidentElsewhere
 *
 * @typedef {{
 *   id: string, component: string, guard: string, state: "open" | "recovering" | "closed" | "lost",
 *   shadow: boolean, opened_at: string, closed_at: string | null, lasted_s: number, rule: string, reason: string,
 *   ended: string, refused: number, processes: number, process: string, trigger: Trigger | null,
 *   calls: IncidentCall[], calls_left_out: number, before: HistoryMark[], refused_for_s: number, passed: number,
 *   fallback: Record<string, number>, probes: IncidentCall[], steps: IncidentStep[], acts: IncidentAct[],
 *   left_out: number, elsewhere: IncidentElsewhere[], last_heard: string,
 * }} Incident
 *
 * @typedef {{
 *   incident: Incident, trouble: string, timestamp: string,
 * }} OneIncident
 */

export {};
