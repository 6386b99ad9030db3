// @ts-check
// What the page shows first. All pure: the verdict and its sentence, the order from the most severe, the cause, what koo
// does about it and what a person can do.

import { CONNECTING, DISCONNECTED, LOCKED, severityLook, stateLook, trouble, UNREADABLE, verdictLook } from "../words/looks.js";
import { counted } from "../words/numbers.js";
import { capital, opening } from "../words/text.js";
import { timeIn, timeOf } from "../words/times.js";

/**
 * @typedef {import("./shapes.js").ServiceHealth} Service
 * @typedef {import("./shapes.js").DatabaseHealth} Database
 * @typedef {import("./shapes.js").Alert} Alert
 * @typedef {import("./store.js").Link} Link
 * @typedef {import("./api.js").Advice} Advice
 */

/**
 * The look of the icon, the title and the banner. A page without a connection does not know the state, and shows that.
 * The word shows what works, the colour what is wrong: a yellow verdict above a red alert would contradict it.
 * @param {Link} link
 * @param {string | null} health
 * @param {"critical" | "warning" | null} severity of the worst alert
 * @returns {import("../words/looks.js").Look}
 */
export function verdictOf(link, health, severity) {
  if (link.state === "lost") return link.failure?.status ? UNREADABLE : DISCONNECTED;
  if (link.state === "locked") return LOCKED;
  if (health === null) return CONNECTING;
  const word = verdictLook(health);
  const look = severity === null ? word : { ...severityLook(severity), word: word.word };
  return link.state === "stale" ? { ...look, tone: "none", word: `${look.word} (stale)` } : look;
}

/**
 * What works and what does not, without numbers that change each second: screen readers read it aloud on each change.
 * @param {Database} database
 * @param {Service[]} services the configured ones
 */
export function stateSentence(database, services) {
  const ill = services.filter((one) => one.state !== "healthy");
  const works = database.state === "healthy" && database.healthy && shutBy(database) === "";
  if (works && ill.length === 0) {
    if (services.length === 0) return "The database works. No AI service has a key yet.";
    return `The database and ${allOf(services.length, false)} work.`;
  }
  const wrong = works ? [] : [databaseWords(database)];
  if (ill.length) wrong.push(illWords(worstFirst(ill)));
  return [...wrong, ...whatWorks(works, services.length - ill.length, ill.length > 0)].join(". ") + ".";
}

/** A sentence with more names than this is not read to its end, and the cards below have the others. */
const NAMED_MAX = 4;

/** @param {Service[]} ill the most severe first */
function illWords(ill) {
  const named = ill.length > NAMED_MAX + 1 ? ill.slice(0, NAMED_MAX) : ill, more = ill.length - named.length;
  return named.map((one) => `${one.service_name}: ${stateLook(one.state).word}`).join(", ") + (more ? ` and ${more} more` : "");
}

/** "paused" or "draining", if an operator has shut the gate for new scopes; otherwise empty. @param {Database} database */
const shutBy = ({ conditions }) => ["paused", "draining"].find((one) => conditions.includes(one)) ?? "";

/** @param {Database} database */
function databaseWords(database) {
  if (database.state === "circuit_open") return "Calls to the database are refused: its circuit is open";
  if (database.state === "degraded") return "The database's recovery is being tested";
  if (database.error) return "The database does not answer";
  return `The database is ${database.state === "healthy" ? shutBy(database) : stateLook(database.state).word}`;
}

/**
 * @param {boolean} database
 * @param {number} services
 * @param {boolean} others some services do not work
 */
function whatWorks(database, services, others) {
  const names = database ? ["the database"] : [];
  if (services) names.push(allOf(services, others));
  const one = names.length === 1 && (database || services === 1);
  return names.length ? [`${capital(names.join(" and "))} ${one ? "works" : "work"}`] : [];
}

/**
 * @param {number} services
 * @param {boolean} others
 */
function allOf(services, others) {
  if (others) return counted(services, "other AI service");
  if (services === 2) return "both AI services";
  return services === 1 ? "the AI service" : `all ${services} AI services`;
}

// ── order ────────────────────────────────────────────────────────────────────────────────────────────────────────

const SEVERITIES = { critical: 8, warning: 4, info: 0 };

/** Firing alerts come before pending ones, and those that refuse calls before others. @param {Alert} alert */
const gravity = (alert) => SEVERITIES[alert.type] + (alert.phase === "pending" ? 0 : 2) + (alert.data.refuses ? 1 : 0);

/**
 * Active alerts, most severe first; equally severe ones keep their order.
 * @param {Alert[]} alerts
 */
export function worstAlerts(alerts) {
  return [...alerts].sort((one, other) => gravity(other) - gravity(one));
}

/**
 * Services, most severe state first; equal ones keep the order of their declaration.
 * @param {Service[]} services
 */
export function worstFirst(services) {
  return [...services].sort((one, other) => trouble(other.state) - trouble(one.state));
}

/**
 * Whether a component's card is open: it is not healthy, or has a firing alert.
 * @param {string} component
 * @param {boolean} healthy
 * @param {Alert[]} alerts
 */
export function isIll(component, healthy, alerts) {
  const own = alerts.some((one) => one.type !== "info" && one.phase !== "pending" && isOf(one.component, component));
  return !healthy || own;
}

/**
 * Whether `component` is `whole` or a part of it, as "ai:claude/claude-opus-5" is of "ai:claude".
 * @param {string} component
 * @param {string} whole
 */
export function isOf(component, whole) {
  return component === whole || component.startsWith(`${whole}/`);
}

// ── why, and what then ───────────────────────────────────────────────────────────────────────────────────────────

/**
 * When a service is tried again; null if it is in use.
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
  const ends = full.map((one) => timeOf(one.resets_at));
  if (daily_budget.limit !== null && Number(daily_budget.remaining) <= 0) ends.push(timeOf(daily_budget.resets_at));
  const known = ends.filter((end) => end !== null);
  return known.length ? Math.max(...known) : null;
}

/**
 * Whether an operator forced the breaker of `component` open. It closes when that ends or at a reset; no check closes it.
 * @param {string} component
 * @param {Service | null | undefined} service
 * @param {Database | null} database
 */
export function isForced(component, service, database) {
  if (isOf(component, "database")) return database?.circuit_breaker.state === "forced_open";
  const models = service?.models ?? {}, model = component.slice(component.indexOf("/") + 1);
  const one = Object.hasOwn(models, model) ? models[model] : Object.values(models)[0];
  return one?.state === "forced_open";
}

/** Whether a refused key is the cause: koo then checks the key, not the service. @param {Alert} alert */
export const isOfKey = ({ kind, data }) => [kind, ...data.also ?? []].some((one) => one.endsWith("key_refused"));

/**
 * Why the database is not healthy; empty if it is.
 * @param {Database} database
 */
export function databaseReason(database) {
  return database.reason || database.error || "";
}

/**
 * The advice for one component: a command names its service, so that it can be pasted.
 * @param {Advice} book
 * @param {string} component
 */
export function adviceFor({ advice }, component) {
  return component.startsWith("ai:") ? advice.replaceAll("koo reset SERVICE", `koo reset ${component.slice(3).split("/")[0]}`) : advice;
}

/**
 * The first sentences of the advice. For a service that is down, the runbook's first paragraph is about a refused key, the
 * second about all other causes.
 * @param {Advice} book
 * @param {Alert} alert
 */
function adviceOf(book, alert) {
  const [first, second = first] = adviceFor(book, alert.component).split("\n\n");
  return opening(alert.kind === "service_down" && !isOfKey(alert) ? second : first, ADVICE_LETTERS);
}

/** The advice must fit next to the rest; the complete text is below the alert. */
const ADVICE_LETTERS = 190;

/**
 * The three things that an operator needs to know about the worst alert: why, what koo does about it, what to do. `at`: a
 * time that belongs to `does`. `canCheck`: an unbilled check can find out whether it is over.
 * @typedef {{alert: Alert, cause: string, does: string, at: number | null, atWords: string, advice: string, canCheck: boolean}} Lead
 */

/**
 * @param {Alert[]} lasting active alerts
 * @param {Service[]} services
 * @param {Database | null} database
 * @param {Record<string, Advice>} runbook
 * @returns {Lead | null} null: nothing is wrong
 */
export function leadOf(lasting, services, database, runbook) {
  const alert = worstAlerts(lasting.filter((one) => one.type !== "info"))[0];
  if (alert === undefined) return null;
  const service = services.find((one) => isOf(alert.component, `ai:${one.service_name}`));
  const book = Object.hasOwn(runbook, alert.kind) ? runbook[alert.kind] : null;
  const error = alert.data.last_error ?? null;
  const next = timeOf(alert.data.next_attempt), resets = timeOf(alert.data.resets_at);
  const refuses = alert.data.refuses ?? book?.refuses ?? "";
  const forced = isForced(alert.component, service, database);
  return {
    alert,
    // Most messages already contain the last error.
    cause: error === null || forced || /the last:/.test(alert.message) || alert.message.includes(error.sentence)
      ? alert.message : `${alert.message}. The last error: ${error.sentence}`,
    does: refuses ? `Refuses ${refuses.replace(/\.$/, "")}` : "Lets every call pass and keeps watching",
    at: next ?? resets,
    atWords: forced || next === null && refuses ? "that ends" : next === null ? "resets" : isOfKey(alert) ? "checks the key" : "tests recovery",
    advice: forced ? "Reset the breaker when calls may pass again." : book ? adviceOf(book, alert) : "",
    canCheck: !forced && (service ? service.state !== "rate_limited" : isOf(alert.component, "database")),
  };
}
