// @ts-check
// The acts of a reset: of the database's breaker, or of a service.

import { resetDatabase, resetService } from "./api.js";
import { databaseReason } from "./cards.js";
import { h } from "./dom.js";
import { badge, breakerLook, partLook, stateLook } from "./shapes.js";
import { capital, counted, plainly } from "./words.js";

/**
 * @typedef {import("./feed.js").Feed} Feed
 * @typedef {{kind: "database"} | {kind: "service", name: string}} Target
 */

/**
 * @param {Target} target
 * @returns {import("./dialog.js").Act}
 */
export function resetOf(target) {
  return {
    title: target.kind === "database" ? "Reset the database's circuit breaker?" : `Reset ${target.name}?`,
    go: "Reset",
    going: "Resetting…",
    fails: "Nothing was reset",
    unsure: "whether it was reset",
    effect: (feed, done) => effect(target, feed, done),
    send: (given, token) => send(target, given, token),
  };
}

/**
 * @param {Target} target
 * @param {import("./dialog.js").Given} given
 * @param {string} token
 */
async function send(target, given, token) {
  const answer = await (target.kind === "database" ? resetDatabase(given, token) : resetService(target.name, given, token));
  const state = answer.new_state ? `; its state is ${stateLook(answer.new_state).word}` : "";
  return `${answer.message}${state}`;
}

/**
 * @param {Target} target
 * @param {Feed} feed
 * @param {boolean} done
 */
function effect(target, feed, done) {
  const dashboard = feed.snapshot?.dashboard;
  if (!dashboard) return [];
  const service = target.kind === "service" ? dashboard.ai_services.services[target.name] : undefined;
  if (target.kind === "service" && service === undefined) return [h("p", {}, "It is not there any more.")];
  const now = service
    ? nowLine(partLook(service.state, service.health.circuit_breaker_state), service.reason, feed.now)
    : nowLine(
        partLook(dashboard.database.state, dashboard.database.circuit_breaker.state),
        databaseReason(dashboard.database),
        feed.now,
      );
  return done ? [now] : [now, service ? serviceEffect(service) : databaseEffect(dashboard.database)];
}

/**
 * @param {import("./shapes.js").Look} look
 * @param {string} why
 * @param {number} now
 */
function nowLine(look, why, now) {
  return h("p", {}, "Now: ", badge(look), why ? ` ${capital(plainly(why, now))}.` : "");
}

/** @param {import("./data.js").DatabaseHealth} database */
function databaseEffect(database) {
  const failures = counted(database.circuit_breaker.failure_threshold, "failure");
  return h("ul", {},
    h("li", {}, "Calls pass at once, here and in every process on the same state store."),
    h("li", {}, `If the database still fails, ${failures} in a row open it again.`),
    h("li", {}, "Connections and counts stay as they are."));
}

/** @param {import("./data.js").ServiceHealth} service */
function serviceEffect(service) {
  const refused = Object.entries(service.models).filter(([, one]) => one.state !== "closed");
  return h("ul", {},
    refused.map(([name, one]) => h("li", { key: `model ${name}` }, `The breaker of ${name} (${breakerLook(one.state).word}) is closed.`)),
    h("li", {}, "Streaks of failures, pauses that the provider asked for and a refused key are forgotten, for all its models, "
      + "here and in every process on the same state store."),
    h("li", {}, "Calls pass at once, and cost what they cost."),
    h("li", {}, "Money spent, requests used and counts stay: a limit that is reached stays reached."));
}
