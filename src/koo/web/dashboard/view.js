// @ts-check
// The whole page from one look: the verdict, what needs attention, then every part, of services the worst first.

import { attention } from "./alerts.js";
import { budgetsCard } from "./budgets.js";
import { databaseCard, serviceCard, unconfigured } from "./cards.js";
import { h } from "./dom.js";
import { past } from "./past.js";
import { CONNECTING, DISCONNECTED, LOCKED, partLook, severityLook, shape, stateLook, trouble, UNREADABLE, verdictLook } from "./shapes.js";
import { capital, clock, counted, span, until } from "./words.js";

/**
 * @typedef {import("./data.js").Dashboard} Dashboard
 * @typedef {import("./feed.js").Feed} Feed
 */

// ── the verdict ──────────────────────────────────────────────────────────────────────────────────────────────────

/**
 * What the icon, the title and the banner say. A page without a connection does not know how things are, and says so.
 * @param {Feed} feed
 * @returns {import("./shapes.js").Look}
 */
export function verdictOf(feed) {
  if (feed.link === "lost") return feed.failure?.status ? UNREADABLE : DISCONNECTED;
  if (feed.link === "locked") return LOCKED;
  if (feed.snapshot === null) return CONNECTING;
  const { overall_health: health, severity } = feed.snapshot.dashboard.summary;
  const look = inColour(verdictLook(health), severity);
  return feed.link === "stale" ? { ...look, tone: "none", word: `${look.word} (stale)` } : look;
}

/**
 * The word says what works, the colour what is wrong: a yellow verdict over a red alert would contradict it.
 * @param {import("./shapes.js").Look} look
 * @param {"critical" | "warning" | null} severity of the worst alert
 * @returns {import("./shapes.js").Look}
 */
function inColour(look, severity) {
  return severity === null ? look : { ...severityLook(severity), word: look.word };
}

/** @param {Feed} feed */
export function verdict(feed) {
  const look = verdictOf(feed);
  return [
    shape(look, "large"),
    h("div", {}, h("h1", {}, capital(look.word)), h("p", {}, sentence(feed))),
  ];
}

/**
 * One sentence without numbers that change each second: it is read aloud whenever it changes.
 * @param {Feed} feed
 */
function sentence(feed) {
  const { snapshot, failure, link } = feed;
  if (link === "locked") return "The server shows its state to those who have a token.";
  if (link === "connecting" || (link !== "lost" && snapshot === null)) return "Waiting for the first answer.";
  if (link === "lost") {
    const why = capital(failure?.message ?? "no answer").replace(/\.$/, "");
    if (snapshot === null) return `${why}.`;
    const last = verdictLook(snapshot.dashboard.summary.overall_health).word;
    return `${why}. What is below was true at ${clock(feed.cameAt, Date.now())}; then it was ${last}.`;
  }
  if (link === "stale") return `So it was at ${clock(feed.cameAt, Date.now())}. The next answer is late.`;
  return stateSentence(/** @type {Dashboard} */ (snapshot?.dashboard));
}

/** @param {Dashboard} dashboard */
function stateSentence(dashboard) {
  const services = configured(dashboard);
  const ill = services.filter((one) => one.state !== "healthy");
  const { database } = dashboard;
  const works = database.state === "healthy" && database.healthy;
  if (works && ill.length === 0) {
    if (services.length === 0) return "The database works. No AI service has a key yet.";
    return `The database and ${allOf(services.length, false)} work.`;
  }
  const wrong = works ? [] : [databaseWords(database)];
  if (ill.length) wrong.push(ill.map((one) => `${one.service_name}: ${stateLook(one.state).word}`).join(", "));
  return [...wrong, ...whatWorks(works, services.length - ill.length, ill.length > 0)].join(". ") + ".";
}

/** @param {import("./data.js").DatabaseHealth} database */
function databaseWords(database) {
  if (database.state === "circuit_open") return "The database is refused: its circuit is open";
  if (database.state === "degraded") return "The database's recovery is being tested";
  return database.error ? "The database does not answer" : `The database is ${stateLook(database.state).word}`;
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

/**
 * Those in equal trouble stay in the order in which they were declared.
 * @param {import("./data.js").ServiceHealth[]} services
 */
function worstFirst(services) {
  return [...services].sort((one, other) => trouble(other.state) - trouble(one.state));
}

/** @param {Dashboard} dashboard */
function configured(dashboard) {
  return Object.values(dashboard.ai_services.services).filter((one) => one.configured);
}

// ── below the verdict ────────────────────────────────────────────────────────────────────────────────────────────

/** @param {Feed} feed */
export function below(feed) {
  if (feed.link === "lost") {
    const when = feed.asking ? "Trying now" : `Trying again ${until(feed.dueAt, Date.now())}`;
    return [h("p", { class: "row" }, h("span", {}, `${when}.`), h("button", { type: "button", "data-act": "again" }, "Try now"))];
  }
  if (feed.snapshot === null) return [];
  const { summary, database, ai_services: ai, alerts } = feed.snapshot.dashboard;
  const worst = alerts.find((one) => one.active);
  return [h("ul", { class: "facts", key: "facts" },
    h("li", {}, shape(partLook(database.state, database.circuit_breaker.state), "tiny"), "database ", stateLook(database.state).word),
    ai.total_services === 0 ? null :
      h("li", {}, shape(verdictLook(servicesHealth(ai)), "tiny"), `${summary.ai_services_healthy} AI services healthy`),
    h("li", {}, shape(worst ? severityLook(worst.type) : verdictLook("healthy"), "tiny"),
      counted(summary.active_alerts, "alert")),
    refusals(feed.snapshot.dashboard),
  )];
}

/**
 * What koo refuses: open breakers, and keys that the provider refused, whose service reads "circuit open" as well.
 * @param {Dashboard} dashboard
 */
function refusals(dashboard) {
  const open = dashboard.summary.circuit_breakers_open;
  const keys = configured(dashboard).filter((one) => Object.values(one.models).some((model) => model.key_refused !== "")).length;
  return h("li", {}, shape(open || keys ? severityLook("critical") : verdictLook("healthy"), "tiny"),
    counted(open, "open breaker"), keys ? `, ${counted(keys, "refused key")}` : "");
}

/** @param {Dashboard["ai_services"]} ai */
function servicesHealth(ai) {
  if (ai.healthy_services === ai.total_services) return "healthy";
  return ai.healthy_services === 0 ? "unhealthy" : "degraded";
}

/** @param {Feed} feed */
export function link(feed) {
  const age = span(Date.now() - feed.cameAt);
  const since = clock(feed.cameAt, Date.now());
  switch (feed.link) {
    case "live": return [h("span", { class: "pulse" }), `live · ${age} ago`];
    case "stale": return [`stale since ${since} · ${age}`];
    case "lost": return [feed.snapshot === null ? "disconnected" : `disconnected · numbers of ${since}`];
    case "locked": return ["locked"];
    default: return ["connecting"];
  }
}

// ── the rest ─────────────────────────────────────────────────────────────────────────────────────────────────────

/** @param {Feed} feed */
export function content(feed) {
  if (feed.snapshot === null) return [];
  const { dashboard, pool } = feed.snapshot;
  const services = Object.values(dashboard.ai_services.services);
  const now = feed.shownAt;
  return [
    attention(dashboard, now),
    databaseCard(dashboard.database, pool, now),
    h("section", { key: "services", "aria-labelledby": "services" },
      h("h2", { id: "services" }, "AI services"),
      configured(dashboard).length ? null : h("p", { key: "none" }, "None has a key yet. Put one into the file .env, as ",
        h("code", {}, "ANTHROPIC_API_KEY=…"), ", and start koo again."),
      h("div", { class: "parts" }, worstFirst(configured(dashboard)).map((one, place) => serviceCard(one, place, now)))),
    budgetsCard(dashboard.ai_services.budgets, now),
    unconfigured(services.filter((one) => !one.configured)),
    past(now),
  ];
}
