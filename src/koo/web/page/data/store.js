// @ts-check
// The only state of what the server said: a signal for each part. `apply` is the only way in, whether the news came over
// the stream, from another tab, or by asking. A component reads the signals that it shows, and is drawn again for no other.

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
 * connecting: nothing came yet; live; stale: the next news is late; lost: the last attempt failed; locked: a token is
 * needed. `cameAt`, `dueAt`: by this machine's clock.
 * @typedef {"connecting" | "live" | "stale" | "lost" | "locked"} LinkState
 * @typedef {{
 *   state: LinkState, failure: import("./api.js").Failure | null, cameAt: number, dueAt: number, asking: boolean,
 *   way: "stream" | "another tab" | "polling",
 * }} Link
 */

/** How overall health is called. @type {import("../vendor/signals-core.js").Signal<string | null>} */
export const health = signal(/** @type {string | null} */ (null));
export const database = signal(/** @type {import("./shapes.js").DatabaseHealth | null} */ (null));
export const pool = signal(/** @type {import("./shapes.js").DatabaseMetrics | null} */ (null));
export const alerts = signal(/** @type {Alert[]} */ ([]));
export const budgets = signal(/** @type {Budget[]} */ ([]));
export const fleet = signal(/** @type {import("./shapes.js").FleetStatus | null} */ (null));
export const saved = signal(/** @type {Saved | null} */ (null));
/** Who looks, and what they may do. */
export const session = signal(/** @type {SessionView | null} */ (null));
/** Names of all services, in the order in which they were declared. */
export const names = signal(/** @type {string[]} */ ([]));
/** Samples that the stream brought, the oldest first: what goes on where an asked-for history ends. */
export const points = signal(/** @type {Point[]} */ ([]));
/** Grow with each mark and each line of the ledger that the stream brought: what was asked for is out of date. */
export const marks = signal(0), requests = signal(0);
const POINTS_MAX = 720;

export const link = signal(/** @type {Link} */ (
  { state: "connecting", failure: null, cameAt: 0, dueAt: 0, asking: false, way: "polling" }));
/** The server's time for which the page is true: it stops where the news stop, and with it all countdowns. */
export const now = signal(Date.now());
/** Milliseconds that the server's clock is ahead of ours: its times are counted down by its own clock. */
let aheadMs = 0;

/** @type {Map<string, import("../vendor/signals-core.js").Signal<Service | null>>} */
const services = new Map();

/**
 * One service, whether it is known yet or not.
 * @param {string} name
 */
export function service(name) {
  let one = services.get(name);
  if (one === undefined) services.set(name, (one = signal(/** @type {Service | null} */ (null))));
  return one;
}

/** All services that are known. */
export const all = computed(() => names.value.map((name) => service(name).value).filter((one) => one !== null));
export const configured = computed(() => all.value.filter((one) => one.configured));
/** Alerts that hold, and those that ended within the last minutes. */
export const lasting = computed(() => alerts.value.filter((one) => one.ended_at === null));
export const over = computed(() => alerts.value.filter((one) => one.ended_at !== null));
/** The severity of the worst alert; null: there is none, or only news. */
export const severity = computed(() => {
  const kinds = lasting.value.filter((one) => one.phase !== "pending").map((one) => one.type);
  return kinds.includes("critical") ? "critical" : kinds.includes("warning") ? "warning" : null;
});
/** Acts are described but not offered: the server would refuse them. */
export const mayOnlyLook = computed(() => session.value?.role === "read");
/** Something to show has come. */
export const known = computed(() => health.value !== null);

/** What changes with each answer although nothing has: the moment it was made at. */
const MOMENTS = new Set(["timestamp", "last_updated", "beat_age", "seen_at"]);
/** @type {WeakMap<object, string>} */
const texts = new WeakMap();

/**
 * Take a value in, unless it says what the last one said.
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
 * One piece of news.
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
 * @param {Service | null} value null: it is not there any more
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

/** @param {string} iso the server's time when it said so */
export function syncClock(iso) {
  aheadMs = (timeOf(iso) ?? Date.now()) - Date.now();
}

/**
 * What was asked for, as the stream would have sent it.
 * @param {Whole} whole
 */
export function wholeOf({ dashboard, pool, fleet, saved, session }) {
  const { summary, database, ai_services: ai, alerts, timestamp } = dashboard;
  const services = Object.entries(ai.services).map(([name, one]) => [SERVICE + name, one]);
  return { at: timestamp, session, parts: { status: summary, budgets: ai.budgets, database, pool, alerts, fleet, saved, ...Object.fromEntries(services) } };
}

/** Everything that is known, to tell another tab. */
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
export const serverNow = () => Date.now() + aheadMs;

/** A second has passed, or the link has changed. */
export function tick() {
  now.value = link.value.state === "live" ? serverNow() : link.value.cameAt + aheadMs;
}

/** Show nothing of what was seen. */
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
