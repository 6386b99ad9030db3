// @ts-check
// One card for the database and one for each service: what it is, why, and the numbers behind it.

import { moneyOf } from "./budgets.js";
import { acts } from "./checks.js";
import { h } from "./dom.js";
import { bar, figure, nearness } from "./meters.js";
import { placeOf } from "./places.js";
import { badge, breakerLook, partLook, severityLook, shape } from "./shapes.js";
import { capital, clock, count, counted, latency, percent, plainly, span, timeIn, timeOf, until } from "./words.js";

/**
 * @typedef {import("./data.js").DatabaseBreaker | import("./data.js").ModelStatus} Breaker
 * @typedef {import("./data.js").ServiceHealth} Service
 * @typedef {import("./dom.js").Child} Child
 */

/** From this share of failures on, an alert begins, too. */
const ERRORS_MAX = 0.1;

// ── the database ─────────────────────────────────────────────────────────────────────────────────────────────────

/**
 * @param {import("./data.js").DatabaseHealth} database
 * @param {import("./data.js").DatabaseMetrics | null} metrics
 * @param {number} now
 */
export function databaseCard(database, metrics, now) {
  const breaker = database.circuit_breaker;
  const look = partLook(database.state, breaker.state);
  const why = databaseReason(database);
  return h("article", { class: `card part wide ${look.tone}`, key: "database", id: placeOf("database"), "aria-labelledby": "database-name" },
    h("header", {}, h("h2", { id: "database-name" }, "Database"), badge(look)),
    h("p", { class: "soft" }, serverWords(database.server)),
    why ? h("p", { class: "why" }, capital(plainly(why, now))) : null,
    database.conditions.length ? h("p", { class: "why" }, `It is ${database.conditions.map(spaced).join(", ")}.`) : null,
    answersAgain(database.answers_since, now),
    whatBroke(database.last_error, look.tone === "ok" ? null : breaker.last_success, now),
    h("div", { class: "columns" },
      h("dl", { class: "figures" }, databaseFigures(database, metrics, now)),
      pool(database.pool_status),
      breakers("h3", "Circuit breaker", [[null, breaker]], why, now)),
    acts("database", "the database", resetButton("database", null, "Reset the breaker…"), look.tone),
  );
}

/**
 * Why it is not healthy; empty if it is. The card says already whose reason it is.
 * @param {import("./data.js").DatabaseHealth} database
 */
export function databaseReason(database) {
  return database.reason || database.error || "";
}

/**
 * Which one it is: "shop on db.example:5432", or a file's name.
 * @param {import("./data.js").DatabaseServer} server
 */
function serverWords({ host, port, name }) {
  const place = host === null ? "" : port === null ? host : `${host}:${port}`;
  return [name, place].filter(Boolean).join(" on ");
}

/**
 * @param {string | null} since
 * @param {number} now
 */
function answersAgain(since, now) {
  const at = timeOf(since);
  return at === null ? null : h("p", { class: "next" }, "It answers its probe again, for ", h("strong", {}, span(now - at)));
}

/**
 * The last error, and of what is sick the last success: "server error 12 s ago: status 500, api_error".
 * @param {import("./data.js").LastError | null} error
 * @param {string | null} success
 * @param {number} now
 */
function whatBroke(error, success, now) {
  const at = timeOf(error?.at), good = timeOf(success);
  if (error === null || at === null) return null;
  return h("p", { class: "soft broke" }, "Last error ", h("b", {}, spaced(error.kind)), ` ${span(now - at)} ago: ${plainly(error.sentence, now)}`,
    good === null ? "" : ` · last success ${span(now - good)} ago`);
}

/** @param {string} word */
const spaced = (word) => word.replaceAll("_", " ");

/**
 * @param {import("./data.js").DatabaseHealth} database
 * @param {import("./data.js").DatabaseMetrics | null} metrics
 * @param {number} now
 */
function databaseFigures(database, metrics, now) {
  const times = metrics?.response_times;
  const asked = times !== undefined && times.p95 > 0;
  const checked = timeOf(database.last_health_check);
  const probe = database.response_time_ms;
  return [
    figure("p50", asked ? latency(times.p50) : "–", "half of the scopes of the last 5 minutes were faster"),
    figure("p95", asked ? latency(times.p95) : "–", "19 of 20 scopes of the last 5 minutes were faster"),
    // Of a probe that failed the time says how soon it was refused: no number to stand among good ones.
    figure("probe", probe === null ? "–" : database.error !== null ? "failed" : latency(probe / 1000), "a question on a connection of its own"),
    figure("probed", checked === null ? "–" : `${span(now - checked)} ago`),
  ];
}

/** @param {import("./data.js").PoolStatus} pool */
function pool(pool) {
  const used = pool.active_connections, most = pool.max_connections;
  const words = `${count(used)} of ${count(most)} connections in use`;
  const waiting = pool.waiting ? `${count(pool.waiting)} waiting` : "none waiting";
  return h("div", {},
    h("h3", { class: "inner" }, "Pool"),
    bar(words, [most ? used / most : 0]),
    h("p", { class: "beside" }, nearness(most ? used / most : 0), words, h("span", {}, pool.suspect_connections
      ? `${counted(pool.suspect_connections, "idle one")} to a server that does not answer, ` : `${count(pool.idle_connections)} idle, `,
      pool.waiting ? h("strong", {}, waiting) : waiting)),
  );
}

// ── a service ────────────────────────────────────────────────────────────────────────────────────────────────────

/**
 * @param {Service} service
 * @param {number} place
 * @param {number} now
 */
export function serviceCard(service, place, now) {
  const look = partLook(service.state, service.health.circuit_breaker_state);
  const name = service.service_name, id = `service-${place}`;
  const { model, kind } = service.configuration;
  return h("article", { class: `card part ${look.tone}`, key: `service ${name}`, id: placeOf(`ai:${name}`), "aria-labelledby": id },
    h("header", {}, h("h3", { id }, name), badge(look)),
    h("p", { class: "soft" }, [model, kind].filter(Boolean).join(" · ")),
    service.reason && service.state !== "healthy" ? h("p", { class: "why" }, capital(plainly(service.reason, now))) : null,
    nextAttempt(service, now),
    whatBroke(service.last_error, look.tone === "ok" ? null : service.health.last_success, now),
    h("dl", { class: "figures" }, serviceFigures(service)),
    breakers("h4", "Circuit breakers", Object.entries(service.models), service.reason, now),
    limits(service, now),
    money(service.rate_limits.daily_budget, now),
    acts(`ai:${name}`, name, resetButton("service", name, "Reset…"), look.tone),
  );
}

/** @param {Service} service */
function serviceFigures(service) {
  const metrics = service.metrics;
  const calls = metrics.recent.calls;
  const failed = calls > 0 ? 1 - metrics.success_rate : 0;
  return [
    figure("success", calls > 0 ? [failed >= ERRORS_MAX ? shape(severityLook("warning"), "tiny") : null, percent(metrics.success_rate)] : "–",
      "of the calls of the last 5 minutes"),
    figure("p95", metrics.p95 > 0 ? latency(metrics.p95) : "–", `half of the calls took less than ${latency(metrics.p50)}`),
    figure("calls in 5 min", count(calls), `${count(metrics.total_requests)} since the start`),
    figure("refused", count(metrics.refused_requests), "by koo itself since the start: open breaker, limit or budget"),
  ];
}

/**
 * When this service will be asked again; null while it is.
 * @param {Service} service
 * @returns {number | null}
 */
export function nextAttemptAt(service) {
  if (service.state === "circuit_open") return timeOf(service.health.next_attempt);
  if (service.state !== "rate_limited") return null;
  const named = timeIn(service.reason);
  if (named !== null) return named;
  const { requests_per_minute, requests_per_hour, requests_per_day, daily_budget } = service.rate_limits;
  const full = [requests_per_minute, requests_per_hour, requests_per_day].filter((one) => one.remaining === 0);
  if (daily_budget.limit !== null && Number(daily_budget.remaining) <= 0) full.push(/** @type {any} */ (daily_budget));
  const ends = full.map((one) => timeOf(one.resets_at)).filter((end) => end !== null);
  return ends.length ? Math.max(...ends) : null;
}

/**
 * @param {Service} service
 * @param {number} now
 */
function nextAttempt(service, now) {
  const at = nextAttemptAt(service);
  if (at !== null) {
    return h("p", { class: "next" }, "Asked again ", h("strong", {}, until(at, now)), ` · ${clock(at, now)}`);
  }
  if (service.state !== "circuit_open") return null;
  return h("p", { class: "next" }, "Asked again when an unbilled check succeeds, or after a reset");
}

/**
 * @param {"h3" | "h4"} level one below the card's own heading: a reader that jumps from heading to heading misses none
 * @param {string} title
 * @param {[string | null, Breaker][]} named a name of null: the card says whose it is
 * @param {string} said the reason that stands on the card already
 * @param {number} now
 */
function breakers(level, title, named, said, now) {
  return h("div", {}, h(level, { class: "inner" }, title), h("ul", { class: "breakers" }, named.map(([name, breaker]) =>
    h("li", { key: `breaker ${name}` },
      h("span", { class: "name" }, name === null ? null : h("b", {}, name), badge(breakerLook(breaker.state))),
      h("span", { class: "soft" }, breakerWords(breaker, said, now))))));
}

/**
 * @param {Breaker} breaker
 * @param {string} said
 * @param {number} now
 */
function breakerWords(breaker, said, now) {
  const next = timeOf(breaker.next_attempt);
  if (breaker.state === "open") {
    const why = breaker.reason && breaker.reason !== said ? `${breaker.reason}; ` : "";
    return `${why}tests recovery ${next === null ? "later" : until(next, now)}`;
  }
  if (breaker.state === "half_open") return `${breaker.success_threshold} good calls in a row close it`;
  if (breaker.state === "forced_open") return "by an operator, until a reset";
  if (breaker.state === "disabled") return "by an operator: failures are not counted";
  if (breaker.consecutive_failures === 0) return "";
  return `${count(breaker.consecutive_failures)} of ${count(breaker.failure_threshold)} failures in a row`;
}

// ── limits and money ─────────────────────────────────────────────────────────────────────────────────────────────

/**
 * @param {Service} service
 * @param {number} now
 */
function limits(service, now) {
  const all = service.rate_limits;
  return h("div", { class: "limits" },
    h("h4", { class: "inner" }, "Requests"),
    limit("minute", all.requests_per_minute, now), limit("hour", all.requests_per_hour, now), limit("day", all.requests_per_day, now));
}

/**
 * @param {string} period
 * @param {import("./data.js").RateLimit} one
 * @param {number} now
 */
function limit(period, one, now) {
  const used = count(one.used);
  if (one.limit === null) return h("p", {}, h("span", { class: "soft" }, period), h("span", {}, "no limit"));
  const words = `${used} of ${count(one.limit)}`;
  const ratio = one.limit ? one.used / one.limit : 1;
  const end = timeOf(one.resets_at);
  const title = end !== null && one.used ? `free again ${until(end, now)}` : undefined;
  return h("p", { title },
    h("span", { class: "soft" }, period), h("span", {}, nearness(ratio), words),
    bar(`${words} requests a ${period}`, [ratio]));
}

/**
 * @param {import("./data.js").DailyBudget} budget
 * @param {number} now
 */
function money(budget, now) {
  return h("div", { class: "money" }, h("h4", { class: "inner" }, "Money today"), moneyOf(budget, now));
}

/**
 * Quiet on every card: while the other side is down a reset only costs more failures.
 * @param {string} kind
 * @param {string | null} name
 * @param {string} words
 */
function resetButton(kind, name, words) {
  const whose = name === null ? "" : ` ${name}`;
  return h("button", { type: "button", class: "quiet", "data-reset": kind, "data-name": name,
    "aria-haspopup": "dialog", "aria-label": `${words.replace("…", "")}${whose}…` }, words);
}

// ── what is not there ────────────────────────────────────────────────────────────────────────────────────────────

/** @param {Service[]} services */
export function unconfigured(services) {
  if (services.length === 0) return null;
  // The local model needs no key: what it lacks, and the command that mends it, is in its reason.
  const local = services.filter((one) => one.configuration.kind === "local");
  const keyless = services.filter((one) => one.configuration.kind !== "local");
  return h("section", { key: "unconfigured", class: "soft unconfigured", "aria-label": "Services that are not configured" },
    keyless.length === 0 ? null : h("p", {}, `${counted(keyless.length, "service has", "services have")} no key and `,
      `${keyless.length === 1 ? "takes" : "take"} no part in anything above: `,
      keyless.map((one, place) => [place ? ", " : "", h("span", {}, one.service_name)]), "."),
    local.map((one) => h("p", { key: one.service_name }, h("span", {}, one.service_name),
      ` takes no part in anything above: ${one.reason}.`)));
}
