// @ts-check
// The shapes of the server's answers, as far as this page reads them. Types only.

/**
 * @typedef {{
 *   state: string, override?: string, reason?: string, consecutive_failures?: number, failure_threshold?: number,
 *   success_threshold?: number, recovery_timeout?: number, next_attempt?: string | null, times_opened?: number,
 *   window?: {calls: number, failures: number, slow: number}, running?: number, refused_count?: number,
 * }} Breaker
 *
 * @typedef {{
 *   size: number, active_connections: number, idle_connections: number, overflow_connections: number,
 *   waiting: number, max_connections: number, utilization: number,
 * }} Pool
 *
 * @typedef {{
 *   healthy: boolean, state: string, reason?: string, conditions: string[], response_time_ms: number | null,
 *   circuit_breaker: Breaker, pool_status: Pool, last_health_check: string | null, error: string | null,
 * }} Database
 *
 * @typedef {{response_times: {p50: number, p95: number, phases?: {statement?: {count: number}}}}} PoolMetrics
 *
 * @typedef {{used: number, limit: number | null, remaining: number | null, resets_at: string | null}} Limit
 *
 * @typedef {{
 *   spent: string, reserved: string, limit: string | null, remaining: string | null, resets_at: string,
 *   currency: string, scope?: string, as_of?: string | null,
 * }} Budget
 *
 * @typedef {{
 *   service_name: string, state: string, configured: boolean, reason: string,
 *   health: {circuit_breaker_state: string, next_attempt: string | null, last_failure: string | null,
 *            last_success: string | null},
 *   metrics: {total_requests: number, refused_requests: number, failed_requests: number, success_rate: number,
 *             p50: number, p95: number, recent?: {calls: number, window_s: number},
 *             error_counts: Record<string, number>},
 *   rate_limits: {requests_per_minute: Limit, requests_per_hour: Limit, requests_per_day: Limit,
 *                 daily_budget: Budget},
 *   models?: Record<string, Breaker>,
 *   configuration: Record<string, unknown>,
 * }} Service
 *
 * @typedef {{
 *   type: string, component: string, message: string, timestamp: string, kind?: string, active?: boolean,
 *   ended_at?: string | null, data?: Record<string, unknown>,
 * }} Alert
 *
 * @typedef {{
 *   summary: {overall_health: string, database_healthy: boolean, ai_services_healthy: string,
 *             active_alerts: number, circuit_breakers_open: number},
 *   database: Database,
 *   ai_services: {healthy_services: number, total_services: number, services: Record<string, Service>},
 *   alerts: Alert[],
 *   timestamp: string,
 * }} Dashboard
 */

export {};
