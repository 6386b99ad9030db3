// @ts-check
// One card for the database and one for each service: its state, the reason, and the numbers behind it.

import { database, pool, service } from "../data/store.js";
import { databaseReason, isForced, nextAttemptAt } from "../data/verdict.js";
import { badge } from "../parts/badge.js";
import { bar, figure, nearness } from "../parts/meter.js";
import { h } from "../vendor/preact.js";
import { breakerLook, partLook } from "../words/looks.js";
import { count, counted, latency, percent, rate, usd } from "../words/numbers.js";
import { spaced } from "../words/text.js";
import { timeOf } from "../words/times.js";
import { CheckNow, Menu } from "./acts.js";
import { curve } from "./curve.js";
import { ago, Clock, Plain, Since, Until } from "./moments.js";
import { MoneyOf } from "./money.js";
import { to } from "./route.js";

/**
 * @typedef {import("../data/shapes.js").DatabaseBreaker | import("../data/shapes.js").ModelStatus} Breaker
 * @typedef {import("../data/shapes.js").ServiceHealth} Service
 * @typedef {import("../data/shapes.js").DatabaseHealth} Database
 * @typedef {import("../data/shapes.js").History} History
 */

// ── the database ─────────────────────────────────────────────────────────────────────────────────────────────────

/** @param {{history: History | null}} props */
export function DatabaseCard({ history }) {
  const one = database.value;
  if (one === null) return null;
  const look = partLook(one.state, one.circuit_breaker.state);
  return h("article", { class: `card ${look.tone}`, id: "card-database", "aria-labelledby": "name-database" },
    h("header", null, h("h3", { id: "name-database" }, h("a", { href: to("database") }, "Database")), badge(look), h(Menu, { component: "database" })),
    h("p", { class: "soft" }, serverWords(one.server)),
    h("div", { class: "body" },
      h("div", null, h(DatabaseWhy, { one }), h(CheckNow, { component: "database", ill: false })),
      h("div", null, h("dl", { class: "figures" }, databaseFigures(one, pool.value)), h("div", { class: "curve" }, curve(history, "database", "scopes"))),
      h("div", null, h(Pool, { pool: one.pool_status }), h(Breakers, { named: [["", one.circuit_breaker]], said: databaseReason(one) }))));
}

/** The reasons for its state. @param {{one: Database}} props */
export function DatabaseWhy({ one }) {
  const why = databaseReason(one), since = timeOf(one.answers_since);
  return h("div", { class: "whys" },
    why ? h("p", { class: "why" }, h(Plain, { text: why })) : null,
    one.conditions.length ? h("p", { class: "why" }, `It is ${one.conditions.map(spaced).join(", ")}.`) : null,
    since === null ? null : h("p", null, "Its probe has succeeded again for ", h("strong", null, h(Since, { at: since }))),
    whatBroke(one.last_error, one.state === "healthy" ? null : one.circuit_breaker.last_success));
}

/**
 * The server and database: "shop on db.example:5432", or a file's name.
 * @param {import("../data/shapes.js").DatabaseServer} server
 */
export function serverWords({ host, port, name }) {
  const place = host === null ? "" : port === null ? host : `${host}:${port}`;
  return [name, place].filter(Boolean).join(" on ");
}

/**
 * The error that explains a service's state. A limit or an operator refuses calls whatever failed before.
 * @param {Service} one
 */
function errorOf(one) {
  const { state, last_error: error, health } = one;
  if (isForced("", one, null)) return null;
  return state === "rate_limited" && (timeOf(health.last_success) ?? 0) > (timeOf(error?.at) ?? 0) ? null : error;
}

/**
 * The last error, and the last success if something is failing: "server error 12 s ago: status 500, api_error".
 * @param {import("../data/shapes.js").LastError | null} error
 * @param {string | null} success
 */
export function whatBroke(error, success) {
  const at = timeOf(error?.at), good = timeOf(success);
  if (error === null || at === null) return null;
  return h("p", { class: "soft broke" }, "Last error ", h("b", null, spaced(error.kind)), " ", h(Since, { at }), " ago: ", h(Plain, { text: error.sentence }),
    good === null ? "" : [" · last success ", h(Since, { at: good }), " ago"]);
}

/**
 * @param {Database} one
 * @param {import("../data/shapes.js").DatabaseMetrics | null} metrics
 */
export function databaseFigures(one, metrics) {
  const times = metrics?.response_times;
  const asked = times !== undefined && times.p95 > 0;
  const probe = one.response_time_ms;
  return [
    figure("p50", asked ? latency(times.p50) : "–", "half of the scopes of the last 5 minutes were faster"),
    figure("p95", asked ? latency(times.p95) : "–", "19 of 20 scopes of the last 5 minutes were faster"),
    // After a failed probe, the time only shows how soon it was refused, which must not look like a good number.
    figure("probe", probe === null ? "–" : one.error !== null ? "failed" : latency(probe / 1000), "a query on a separate connection"),
    figure("probed", ago(one.last_health_check)),
  ];
}

/** @param {{pool: import("../data/shapes.js").PoolStatus}} props */
export function Pool({ pool }) {
  const { active_connections: used, max_connections: most, waiting, held_by: holders } = pool;
  const words = `${count(used)} of ${count(most)} connections in use`, ratio = most ? used / most : 0;
  const queue = waiting ? `${count(waiting)} waiting` : "none waiting";
  return h("div", { class: "pool" },
    h("p", { class: "inner" }, "Pool"),
    bar(words, [ratio]),
    h("p", { class: "beside" }, h("span", null, nearness(ratio), words), h("span", { class: "soft" }, pool.suspect_connections
      ? `${counted(pool.suspect_connections, "idle connection")} to an unresponsive server, ` : `${count(pool.idle_connections)} idle, `,
      waiting ? h("strong", null, queue) : queue, pool.turned_away ? `, ${count(pool.turned_away)} turned away` : "")),
    holders.length ? h("ul", { class: "holders small" }, holders.map((one) => h("li", { key: one }, one))) : null);
}

// ── a service ────────────────────────────────────────────────────────────────────────────────────────────────────

/** @param {{name: string, history: History | null}} props */
export function ServiceCard({ name, history }) {
  const one = service(name).value;
  if (one === null) return null;
  const look = partLook(one.state, one.health.circuit_breaker_state);
  const { model, kind } = one.configuration, id = `name-${encodeURIComponent(name)}`;
  return h("article", { class: `card ${look.tone}`, "data-card": name, "aria-labelledby": id },
    h("header", null, h("h3", { id }, h("a", { href: to("service", name) }, name)), badge(look), h(Menu, { component: `ai:${name}` })),
    h("p", { class: "soft" }, [model, kind].filter(Boolean).join(" · ")),
    h("div", { class: "body" },
      h("div", null, h(ServiceWhy, { one }), one.state === "rate_limited" ? null : h(CheckNow, { component: `ai:${name}`, ill: false })),
      h("div", null, h("dl", { class: "figures" }, serviceFigures(one)), h("div", { class: "curve" }, curve(history, `ai:${name}`, "calls"))),
      h("div", null, h(Breakers, { named: Object.entries(one.models), said: one.reason }), h(MoneyOf, { budget: one.rate_limits.daily_budget }))));
}

/** @param {{one: Service}} props */
export function ServiceWhy({ one }) {
  return h("div", { class: "whys" },
    one.reason && one.state !== "healthy" ? h("p", { class: "why" }, h(Plain, { text: one.reason })) : null,
    nextAttempt(one),
    whatBroke(errorOf(one), one.state === "healthy" ? null : one.health.last_success));
}

/** @param {Service} service */
function nextAttempt(service) {
  // The reason says when an operator's override ends. Until then nothing is attempted.
  if (isForced("", service, null)) return null;
  const at = nextAttemptAt(service);
  if (at !== null) return h("p", null, "Next attempt ", h("strong", null, h(Until, { at })), " · ", h(Clock, { at }));
  if (service.state !== "circuit_open") return null;
  return h("p", null, "Next attempt after a successful unbilled check, or after a reset");
}

/** @param {Service} service */
export function serviceFigures(service) {
  const { metrics } = service;
  const { calls, window_s: window } = metrics.recent;
  return [
    figure("calls", rate(calls / window), `${counted(calls, "call")} in ${window / 60} minutes, ${count(metrics.total_requests)} since startup`),
    figure("success", calls > 0 ? percent(metrics.success_rate) : "–", "of the calls of the last 5 minutes"),
    figure("p95", metrics.p95 > 0 ? latency(metrics.p95) : "–", `half of the calls took less than ${latency(metrics.p50)}`),
    figure("refused", count(metrics.refused_requests), "by koo itself since startup: open breaker, limit or budget"),
  ];
}

/** What was spent today. @param {Service} service */
export const spentToday = (service) => usd(service.rate_limits.daily_budget.spent);

/**
 * @param {{named: [string, Breaker][], said: string}} props an empty name: the card already shows it. `said`: the reason
 *   that the card already shows
 */
export function Breakers({ named, said }) {
  return h("div", null, h("p", { class: "inner" }, named.length === 1 ? "Circuit breaker" : "Circuit breakers"), h("ul", { class: "breakers" }, named.map(([name, breaker]) =>
    h("li", { key: name },
      h("span", { class: "name" }, name ? h("b", null, name) : null, badge(breakerLook(breaker.state))),
      h("span", { class: "soft" }, breakerWords(breaker, said))))));
}

/**
 * @param {Breaker} breaker
 * @param {string} said
 */
function breakerWords(breaker, said) {
  const next = timeOf(breaker.next_attempt);
  if (breaker.state === "open") {
    const why = breaker.reason && breaker.reason !== said ? [h(Plain, { text: breaker.reason }), "; "] : "";
    return [why, "tests recovery ", next === null ? "later" : h(Until, { at: next })];
  }
  if (breaker.state === "half_open") return `${breaker.success_threshold} successful calls in a row close it`;
  if (breaker.state === "forced_open") return next === null ? "by an operator, until a reset" : ["by an operator, ends ", h(Until, { at: next })];
  if (breaker.state === "disabled") return "by an operator: failures are not counted";
  if (breaker.consecutive_failures === 0) return "no failures in a row";
  return `${count(breaker.consecutive_failures)} of ${count(breaker.failure_threshold)} failures in a row`;
}
