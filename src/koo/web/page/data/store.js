// @ts-check
// The only copy of the server's state: one signal for each part. `apply` is the only way to change it, whether an event
// came over the stream, from another tab, or by polling. A component reads the signals that it shows, and is drawn again
// only if one of these changes.

import { batch, computed, signal } from "../vendor/signals-core.js";
import { timeOf } from "../words/times.js";

/**
 * @typedef {import("./shapes.js").Dashboard} Dashboard
 * @typedef {import("./shapes.js").ServiceHealth} Service
 * @typedef {import("./shapes.js").Alert} Alert
 * @typedef {import("./shapes.js").Budget} Budget
 * @typedef {{
 *   dashboard: Dashboard, pool: import("./shapes.js").DatabaseMetrics | null,
 *   fleet: import("./shapes.js").FleetStatus | null, saved: Saved | null, session: SessionView | null,
 * }} Whole
 * @typedef {import("./shapes.js").Saved} Saved
 * @typedef {import("./shapes.js").SessionView} SessionView
 * @typedef {{at: string, step_s: number, series: Record<string, Record<string, any>>}} Point
 *
 * connecting: nothing has arrived yet; live; stale: the next event is late; lost: the last attempt failed; locked: a
 * token is needed. `cameAt`, `dueAt`: by this machine's clock.
 * @typedef {"connecting" | "live" | "stale" | "lost" | "locked"} LinkState
 * @typedef {{
 *   state: LinkState, failure: import("./api.js").Failure | null, cameAt: number, dueAt: number, asking: boolean,
 *   way: "stream" | "another tab" | "polling",
 * }} Link
 */

/** The overall health. @type {import("../vendor/signals-core.js").Signal<string | null>} */
export const health = signal(/** @type {string | null} */ (null));
export const database = signal(/** @type {import("./shapes.js").DatabaseHealth | null} */ (null));
export const pool = signal(/** @type {import("./shapes.js").DatabaseMetrics | null} */ (null));
export const alerts = signal(/** @type {Alert[]} */ ([]));
export const budgets = signal(/** @type {Budget[]} */ ([]));
export const fleet = signal(/** @type {import("./shapes.js").FleetStatus | null} */ (null));
export const saved = signal(/** @type {Saved | null} */ (null));
/** Who uses the page, and what they may do. */
export const session = signal(/** @type {SessionView | null} */ (null));
/** Names of all services, in the order of their declaration. */
export const names = signal(/** @type {string[]} */ ([]));
/** Samples from the stream, oldest first: they continue a requested history. */
export const points = signal(/** @type {Point[]} */ ([]));
/** Incremented with each mark and each ledger entry from the stream: what was requested is then out of date. */
export const marks = signal(0), requests = signal(0);
const POINTS_MAX = 720;

export const link = signal(/** @type {Link} */ (
  { state: "connecting", failure: null, cameAt: 0, dueAt: 0, asking: false, way: "polling" }));
/** The server's time for which the page is correct. It stops, together with all countdowns, when no events arrive. */
export const now = signal(Date.now());
/** How many milliseconds the server's clock is ahead of this machine's: countdowns to its times use its own clock. */
const aheadMs = signal(0);
/** Smaller differences are the time that the response took: each would draw all times again. */
const SAME_CLOCK_MS = 250;

/** @type {Map<string, import("../vendor/signals-core.js").Signal<Service | null>>} */
const services = new Map();

/**
 * The signal of one service, known or not.
 * @param {string} name
 */
export function service(name) {
  let one = services.get(name);
  if (one === undefined) services.set(name, (one = signal(/** @type {Service | null} */ (null))));
  return one;
}

/** All known services. */
export const all = computed(() => names.value.map((name) => service(name).value).filter((one) => one !== null));
export const configured = computed(() => all.value.filter((one) => one.configured));
/** Active alerts, and those that ended within the last minutes. */
export const lasting = computed(() => alerts.value.filter((one) => one.ended_at === null));
export const over = computed(() => alerts.value.filter((one) => one.ended_at !== null));
/** The severity of the worst alert; null if there is none, or only informational ones. */
export const severity = computed(() => {
  const kinds = lasting.value.filter((one) => one.phase !== "pending").map((one) => one.type);
  return kinds.includes("critical") ? "critical" : kinds.includes("warning") ? "warning" : null;
});
/** Acts are described but not offered, because the server would refuse them. */
export const mayOnlyLook = computed(() => session.value?.role === "read");
/** Whether there is something to show. */
export const known = computed(() => health.value !== null);

/** Keys that change with each response although nothing has happened: the time of the response. */
const MOMENTS = new Set(["timestamp", "last_updated", "beat_age", "seen_at"]);
/** @type {WeakMap<object, string>} */
const texts = new WeakMap();

/**
 * Store a value, unless it equals the last one. Objects from JSON are never identical, so without this comparison every
 * event would redraw every component.
 * @template T
 * @param {import("../vendor/signals-core.js").Signal<T>} to
 * @param {T} value
 */
function put(to, value) {
  const text = JSON.stringify(value, (key, one) => (MOMENTS.has(key) ? undefined : one));
  if (texts.get(to) === text) return;
  texts.set(to, text);
  to.value = value;
}

/**
 * Apply one event.
 * @param {string} kind "whole", "part", "mark", "point" or "request"
 * @param {any} data
 */
export function apply(kind, data) {
  batch(() => {
    if (kind === "whole") takeWhole(data);
    else if (kind === "part") takePart(data.key, data.value);
    else if (kind === "point") takePoint(data);
    else if (kind === "mark") marks.value += 1;
    else if (kind === "request" || kind === "requests") requests.value += 1;
  });
}

/** @param {{at: string, session: SessionView | null, parts: Record<string, any>}} whole */
function takeWhole({ at, session: who, parts }) {
  put(session, who ?? null);
  for (const name of names.value) if (!(SERVICE + name in parts)) takePart(SERVICE + name, null);
  for (const [key, value] of Object.entries(parts)) takePart(key, value);
  syncClock(at);
}

const SERVICE = "service/";

/**
 * @param {string} key
 * @param {any} value
 */
function takePart(key, value) {
  if (key === "status") health.value = value.overall_health;
  else if (key === "budgets") put(budgets, value);
  else if (key === "database") put(database, value);
  else if (key === "pool") put(pool, value);
  else if (key === "alerts") put(alerts, value);
  else if (key === "fleet") put(fleet, value);
  else if (key === "saved") put(saved, value);
  else if (key.startsWith(SERVICE)) takeService(key.slice(SERVICE.length), value);
}

/**
 * @param {string} name
 * @param {Service | null} value null: it no longer exists
 */
function takeService(name, value) {
  put(service(name), value);
  const others = names.value.filter((one) => one !== name);
  if (value === null) names.value = others;
  else if (others.length === names.value.length) names.value = [...others, name];
}

/** @param {Point} point */
function takePoint(point) {
  if (points.value.at(-1)?.at !== point.at) points.value = [...points.value.slice(1 - POINTS_MAX), point];
}

/** @param {string} iso the server's time when it sent this */
export function syncClock(iso) {
  const ahead = (timeOf(iso) ?? Date.now()) - Date.now();
  if (Math.abs(ahead - aheadMs.value) > SAME_CLOCK_MS) aheadMs.value = ahead;
}

/**
 * Convert polled responses to what the stream would have sent.
 * @param {Whole} whole
 */
export function wholeOf({ dashboard, pool, fleet, saved, session }) {
  const { summary, database, ai_services: ai, alerts, timestamp } = dashboard;
  const services = Object.entries(ai.services).map(([name, one]) => [SERVICE + name, one]);
  return { at: timestamp, session, parts: { status: summary, budgets: ai.budgets, database, pool, alerts, fleet, saved, ...Object.fromEntries(services) } };
}

/** Everything that is known, for another tab. */
export function whole() {
  const status = { overall_health: health.value };
  const services = names.value.map((name) => [SERVICE + name, service(name).value]);
  return {
    at: new Date(serverNow()).toISOString(),
    session: session.value,
    parts: { status, budgets: budgets.value, database: database.value, pool: pool.value, alerts: alerts.value, fleet: fleet.value, saved: saved.value,
      ...Object.fromEntries(services) },
  };
}

/** The server's time now. */
export const serverNow = () => Date.now() + aheadMs.value;

/** Called each second and when the link changes. */
export function tick() {
  now.value = link.value.state === "live" ? serverNow() : link.value.cameAt + aheadMs.value;
}

/** Forget everything, so that nothing is shown. */
export function forget() {
  batch(() => {
    health.value = database.value = pool.value = fleet.value = saved.value = session.value = null;
    alerts.value = [];
    budgets.value = [];
    names.value = [];
    points.value = [];
    for (const to of [database, pool, fleet, saved, session, alerts, budgets, names, ...services.values()]) texts.delete(to);
  });
}
