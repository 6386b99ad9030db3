// @ts-check
// What a person can do here: "Check now", a reset, and opening the dialog of an act.
//
// A reset lets calls run into an outage again; a check finds out whether it is over. So the check comes first on the card
// of a failing component, and the reset is in the card's menu.

import { checkDatabase, checkService, resetDatabase, resetService } from "../data/api.js";
import { database, mayOnlyLook, service } from "../data/store.js";
import { databaseReason } from "../data/verdict.js";
import { shape } from "../parts/badge.js";
import { badge } from "../parts/badge.js";
import { ActDialog } from "../parts/dialog.js";
import { h } from "../vendor/preact.js";
import { signal } from "../vendor/signals.js";
import { breakerLook, DISCONNECTED, partLook, severityLook, stateLook, verdictLook } from "../words/looks.js";
import { count, counted, latency } from "../words/numbers.js";
import { capital } from "../words/text.js";
import { Plain } from "./moments.js";

/**
 * @typedef {import("../parts/dialog.js").Act} Act
 * @typedef {{busy: boolean, look: import("../words/looks.js").Look, words: string}} Outcome
 */

/** The act whose dialog is open. */
export const open = signal(/** @type {Act | null} */ (null));
/** Set at startup: polls the server immediately. */
export const asking = { now: () => {} };

const ONLY_LOOK = "This session is read-only; log in with KOO_TOKEN to do this.";

export function OpenAct() {
  const act = open.value;
  const whyNot = mayOnlyLook.value ? ONLY_LOOK : "";
  return act && h(ActDialog, { act, key: act.title, onEnd: () => (open.value = null), onDone: asking.now, whyNot });
}

// ── checks ───────────────────────────────────────────────────────────────────────────────────────────────────────

/** The results by component, kept until the next check or reload. */
const outcomes = signal(/** @type {Record<string, Outcome>} */ ({}));

/** @param {string} component "database" or "ai:NAME" */
async function checkNow(component) {
  if (outcomes.value[component]?.busy) return;
  outcomes.value = { ...outcomes.value, [component]: { busy: true, look: DISCONNECTED, words: "Checking…" } };
  outcomes.value = { ...outcomes.value, [component]: { busy: false, ...(await found(component)) } };
  asking.now();
}

/** @param {string} component */
async function found(component) {
  try {
    const { error, response_time_ms: took } =
      component === "database" ? await checkDatabase() : await checkService(component.replace(/^ai:/, ""));
    if (error !== null) return { look: severityLook("critical"), words: `The check failed: ${error}` };
    return { look: verdictLook("healthy"), words: `It responded in ${latency((took ?? 0) / 1000)}` };
  } catch (error) {
    return { look: DISCONNECTED, words: `Not checked: ${error instanceof Error ? error.message : error}` };
  }
}

/**
 * The button, and the last check's result. `ill`: checking is the first thing to do.
 * @param {{component: string, ill: boolean}} props
 */
export function CheckNow({ component, ill }) {
  if (mayOnlyLook.value) return null;
  const outcome = outcomes.value[component];
  const whose = component === "database" ? "the database" : component.replace(/^ai:/, "");
  return h("div", { class: "check" },
    h("button", { type: "button", class: ill ? "" : "quiet", "data-check": component, "aria-disabled": String(outcome?.busy ?? false),
      "aria-label": `Check now: ${whose}, unbilled`, onClick: () => void checkNow(component) }, "Check now"),
    h("p", { class: "found", role: "status" }, outcome ? [shape(outcome.look, "tiny"), `${capital(outcome.words)}.`] : null));
}

// ── resets ───────────────────────────────────────────────────────────────────────────────────────────────────────

/**
 * The menu of a card, for acts that are seldom right.
 * @param {{component: string}} props
 */
export function Menu({ component }) {
  const name = component.replace(/^ai:/, "");
  const whose = component === "database" ? "the database's breaker" : name;
  return h("details", { class: "menu" },
    h("summary", { "aria-label": `More actions for ${whose}` }, "⋯"),
    h("div", null,
      h("button", { type: "button", class: "quiet", "data-reset": component, "aria-haspopup": "dialog",
        onClick: () => (open.value = component === "database" ? resetOfDatabase() : resetOfService(name)) }, `Reset ${whose}…`)));
}

const RESET = { go: "Reset", going: "Resetting…", fails: "Nothing was reset", unsure: "whether it was reset", logged: "for the log" };

/** @returns {Act} */
function resetOfDatabase() {
  return { ...RESET, title: "Reset the database's circuit breaker?", Effect: DatabaseEffect,
    send: (given) => resetDatabase(given).then(told) };
}

/**
 * @param {string} name
 * @returns {Act}
 */
function resetOfService(name) {
  return { ...RESET, title: `Reset ${name}?`, Effect: ({ done }) => h(ServiceEffect, { name, done }),
    send: (given) => resetService(name, given).then(told) };
}

/** @param {{message: string, new_state?: string}} answer */
function told({ message, new_state: state }) {
  return state ? `${message}; its state is ${stateLook(state).word}` : message;
}

/**
 * @param {import("../words/looks.js").Look} look
 * @param {string} why
 */
function nowLine(look, why) {
  return h("p", null, "Now: ", badge(look), why ? [" ", h(Plain, { text: why }), "."] : "");
}

/** @param {{done: boolean}} props */
function DatabaseEffect({ done }) {
  const one = database.value;
  if (one === null) return null;
  const { failure_threshold: most, refused_count: refused } = one.circuit_breaker;
  const now = nowLine(partLook(one.state, one.circuit_breaker.state), databaseReason(one));
  if (done) return now;
  return [now, h("ul", null,
    h("li", null, "Calls pass immediately, here and in every process on the same state store."),
    h("li", null, `It has refused ${counted(refused, "call")} since startup; these are not repeated.`),
    h("li", null, `If the database still fails, ${counted(most, "failure")} in a row open it again.`),
    h("li", null, "Connections and counts are not changed."))];
}

/** @param {{name: string, done: boolean}} props */
function ServiceEffect({ name, done }) {
  const one = service(name).value;
  if (one === null) return h("p", null, "It no longer exists.");
  const now = nowLine(partLook(one.state, one.health.circuit_breaker_state), one.reason);
  if (done) return now;
  const refused = Object.entries(one.models).filter(([, model]) => model.state !== "closed");
  const { requests_per_minute: minute } = one.rate_limits;
  return [now, h("ul", null,
    refused.map(([model, { state, failure_threshold: most }]) => h("li", { key: model },
      `The breaker of ${model} (${breakerLook(state).word}) is closed; ${counted(most, "failure")} in a row open it again.`)),
    h("li", null, "Failure streaks, pauses requested by the provider and a refused key are forgotten, for all its models, "
      + "here and in every process on the same state store."),
    h("li", null, `Calls pass immediately, and are billed; ${count(one.metrics.refused_requests)} were refused since startup.`),
    h("li", null, `Money spent, requests used (${count(minute.used)} this minute) and counts are not changed: a limit that is used up stays used up.`))];
}
