// @ts-check
// Sends requests to the server that this page came from, and to no other. The browser's cookie identifies the session;
// no script can read it, and no token is ever part of the page.

const TIMEOUT_MS = 20_000; // the server itself waits up to five seconds for its database
const BASE = new URL(`${document.documentElement.dataset.api}/`, document.baseURI);

/** What went wrong, as a sentence. `status` 0: there was no response. */
export class Failure extends Error {
  /**
   * @param {string} message
   * @param {number} [status]
   */
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/**
 * Everything that the page shows, requested in parallel: what the stream would send as `whole`.
 * @returns {Promise<import("./store.js").Whole>}
 */
export async function look() {
  const [dashboard, pool, fleet, saved, session] = await Promise.all([
    ask("GET", "monitoring/dashboard"),
    // These are optional: without them the page is still correct.
    ask("GET", "monitoring/database/pool-metrics").catch(() => null),
    ask("GET", "monitoring/fleet").catch(() => null),
    ask("GET", "monitoring/saved").catch(() => null),
    ask("GET", "session").catch(() => null),
  ]);
  if (!dashboard?.summary) throw new Failure("the response is not koo's; something else may be listening here");
  return { dashboard, pool: pool?.pool_metrics ?? null, fleet, saved, session };
}

/**
 * End the session; the browser then deletes its cookie.
 * @param {string} address
 */
export async function logOut(address) {
  await fetch(new URL(address, document.baseURI), { method: "POST", redirect: "manual" }).catch(explain);
}

/** @typedef {{title: string, refuses: string, begins: string, ends: string, advice: string}} Advice */

/**
 * What to do about each kind of alert.
 * @returns {Promise<Record<string, Advice>>}
 */
export function runbook() {
  return ask("GET", "runbook");
}

// ── history ──────────────────────────────────────────────────────────────────────────────────────────────────────

/**
 * How everything was in the past.
 * @param {string} range "15m", "1h", "24h" or "30d"
 * @param {string[]} [components] default: all
 * @returns {Promise<import("./shapes.js").History>}
 */
export function past(range, components = []) {
  const asked = new URLSearchParams([["range", range], ...components.map((one) => ["component", one])]);
  return ask("GET", `monitoring/history?${asked}`);
}

/**
 * @param {URLSearchParams} asked service, model, tag, cursor
 * @returns {Promise<import("./shapes.js").BookedCalls>}
 */
export function requests(asked) {
  return ask("GET", `ai/requests?limit=50&${asked}`);
}

/**
 * @param {number} days including today
 * @param {string[]} by of day, service, model, tag
 * @returns {Promise<import("./shapes.js").Spend>}
 */
export function spend(days, by) {
  const asked = new URLSearchParams([["days", String(days)], ...by.map((one) => ["by", one])]);
  return ask("GET", `ai/spend?${asked}`);
}

/**
 * Why breakers opened, newest first.
 * @param {string} component empty: all
 * @returns {Promise<import("./shapes.js").Incidents>}
 */
export function incidents(component) {
  return ask("GET", `monitoring/incidents${component ? `?component=${encodeURIComponent(component)}` : ""}`);
}

/**
 * @param {string} id
 * @returns {Promise<import("./shapes.js").OneIncident>}
 */
export function incident(id) {
  return ask("GET", `monitoring/incidents/${encodeURIComponent(id)}`);
}

/**
 * The URL of an API path, for a link.
 * @param {string} path
 */
export function addressOf(path) {
  return new URL(path, BASE).href;
}

/**
 * Who does something and why, as far as given.
 * @param {{by: string, reason: string}} given
 */
export function signed({ by, reason }) {
  return { ...(by && { by }), ...(reason && { reason }) };
}

/**
 * @param {{by: string, reason: string}} given
 */
export function resetDatabase(given) {
  return ask("POST", "monitoring/database/reset-circuit-breaker", signed(given));
}

/**
 * @param {string} service
 * @param {{by: string, reason: string}} given
 */
export function resetService(service, given) {
  return ask("POST", `ai/services/${encodeURIComponent(service)}/reset-errors`, signed(given));
}

/**
 * The result of an unbilled check of one service.
 * @param {string} service
 * @returns {Promise<{error: string | null, response_time_ms: number | null}>}
 */
export async function checkService(service) {
  const found = await ask("POST", `ai/services/health-check?service=${encodeURIComponent(service)}`);
  return found[service];
}

/**
 * The result of a probe of the database.
 * @returns {Promise<{error: string | null, response_time_ms: number | null}>}
 */
export async function checkDatabase() {
  const { health_check_result: found } = await ask("POST", "monitoring/database/health-check");
  return found;
}

// ── alerts ───────────────────────────────────────────────────────────────────────────────────────────────────────

/** @typedef {import("../parts/dialog.js").Given} Given */

/**
 * @param {string} id
 * @param {Given} given `lasts`: seconds; empty: until it ends
 */
export function acknowledge(id, { by, reason, lasts }) {
  const body = { ...(by && { by }), ...(reason && { note: reason }), ...(lasts && { for_s: Number(lasts) }) };
  return said(ask("POST", `monitoring/alerts/${encodeURIComponent(id)}/acknowledge`, body));
}

/**
 * @param {string} id
 * @param {Given} given
 */
export function unacknowledge(id, given) {
  return said(ask("POST", `monitoring/alerts/${encodeURIComponent(id)}/unacknowledge`, signed(given)));
}

/**
 * @param {string} kind
 * @param {string} component
 * @param {Given} given `lasts`: seconds
 */
export function silence(kind, component, given) {
  const body = { kind, component, for_s: Number(given.lasts), ...signed(given) };
  return said(ask("POST", "monitoring/alerts/silences", body));
}

/**
 * @param {string} id
 * @param {Given} given
 */
export function endSilence(id, given) {
  return said(ask("DELETE", `monitoring/alerts/silences/${encodeURIComponent(id)}`, signed(given)));
}

/** @param {Promise<{message: string}>} answer */
async function said(answer) {
  return (await answer).message;
}

/**
 * The notices of the last day's alerts, by channel.
 * @returns {Promise<import("./shapes.js").AlertDeliveries>}
 */
export function deliveries() {
  return ask("GET", "monitoring/alerts/deliveries");
}

/**
 * The alerts of a week, and the active silences.
 * @returns {Promise<{episodes: import("./shapes.js").Alert[], silences: import("./shapes.js").SilenceView[]}>}
 */
export async function history() {
  const [{ episodes }, { silences }] = await Promise.all([
    ask("GET", "monitoring/alerts/history?limit=100"),
    ask("GET", "monitoring/alerts/silences"),
  ]);
  return { episodes, silences };
}

// ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────

/**
 * @param {string} method
 * @param {string} path
 * @param {object} [body]
 * @returns {Promise<any>}
 */
async function ask(method, path, body) {
  /** @type {Record<string, string>} */
  const headers = { Accept: "application/json" };
  if (body) headers["Content-Type"] = "application/json";
  const request = { method, headers, body: body && JSON.stringify(body), signal: AbortSignal.timeout(TIMEOUT_MS) };
  const answer = await fetch(new URL(path, BASE), { ...request, cache: "no-store" }).catch(explain);
  const content = await answer.json().catch(() => null);
  if (!answer.ok) throw new Failure(content?.detail ?? `the server responded with status ${answer.status}`, answer.status);
  if (content === null) throw new Failure("the response is not JSON, or was cut off", answer.status);
  return content;
}

/**
 * @param {unknown} error
 * @returns {never}
 */
function explain(error) {
  const late = error instanceof DOMException && error.name === "TimeoutError";
  throw new Failure(late ? `no response within ${TIMEOUT_MS / 1000} s` : "the server cannot be reached");
}
