// @ts-check
// What an operator says of alerts: acknowledged, silenced, and the end of both.

import { acknowledge, endSilence, silence, unacknowledge } from "../data/api.js";
import { badge } from "../parts/badge.js";
import { h } from "../vendor/preact.js";
import { severityLook } from "../words/looks.js";
import { spaced } from "../words/text.js";
import { timeOf } from "../words/times.js";
import { open } from "./acts.js";
import { Clock, Said } from "./moments.js";

/**
 * @typedef {import("../data/shapes.js").Alert} Alert
 * @typedef {import("../parts/dialog.js").Act} Act
 * @typedef {"acknowledge" | "unacknowledge" | "silence"} Name
 */

/** @type {[string, string][]} seconds, and how people say it */
const LASTS = [["3600", "1 hour"], ["7200", "2 hours"], ["28800", "8 hours"], ["86400", "1 day"], ["604800", "7 days"]];
const COMMON = { fails: "Nothing was changed", unsure: "whether it was done", logged: "shown beside the alert" };

/** @type {Record<Name, string[]>} */
const EFFECTS = {
  acknowledge: ["Others see that you are working on it.", "No reminders are sent; its end still is."],
  silence: ["No notice is sent of this kind of alert of this part while the silence lasts.",
    "The alert is still listed. What fires when the silence ends is notified then."],
  unacknowledge: ["Reminders are sent again."],
};

/**
 * @param {Name} name
 * @param {Alert} alert
 * @returns {Act}
 */
function hushOf(name, alert) {
  const whose = alert.component.replace(/^ai:/, "");
  const common = { ...COMMON, Effect: effectOf(EFFECTS[name], alert) };
  switch (name) {
    case "acknowledge": return { ...common, title: `Acknowledge the alert of ${whose}?`, go: "Acknowledge", going: "Acknowledging…",
      needs: ["by"], lasts: [["", "until it ends"], ...LASTS], send: (given) => acknowledge(alert.id, given) };
    case "silence": return { ...common, title: `Silence ${spaced(alert.kind)} of ${whose}?`, go: "Silence", going: "Silencing…",
      needs: ["by", "reason"], lasts: LASTS, send: (given) => silence(alert.kind, alert.component, given) };
    default: return { ...common, title: "Take the acknowledgement back?", go: "Take back", going: "Taking back…",
      send: (given) => unacknowledge(alert.id, given) };
  }
}

/**
 * The end of a silence, which may hold for what is not wrong now.
 * @param {string} id
 * @returns {Act}
 */
function endOf(id) {
  return { ...COMMON, title: "End the silence?", go: "End it", going: "Ending…",
    Effect: effectOf(["What fires now and was not notified, is."], null), send: (given) => endSilence(id, given) };
}

/**
 * @param {string[]} effects
 * @param {Alert | null} alert
 * @returns {Act["Effect"]}
 */
function effectOf(effects, alert) {
  return ({ done }) => [
    alert && h("p", null, badge(severityLook(alert.type)), " ", h("b", null, alert.component.replace(/^ai:/, "")), " ", h(Said, { alert })),
    done ? null : h("ul", null, effects.map((one) => h("li", { key: one }, one))),
  ];
}

/** @type {Record<string, string>} what is to be known of an alert that does not simply fire */
const PHASES = {
  pending: "It does not fire yet: it has to hold a little longer.",
  recovering: "It is gone, and ends if it does not come back.",
};

/**
 * What was said of it.
 * @param {Alert} alert
 */
export function hushed({ acknowledged, silenced, phase }) {
  return [
    PHASES[phase] ? h("p", { class: "soft", key: "phase" }, PHASES[phase]) : null,
    acknowledged && h("p", { key: "acknowledged" }, `Acknowledged by ${acknowledged.by}`, untilWords(acknowledged.until),
      acknowledged.note ? `: ${acknowledged.note}` : ""),
    silenced && h("p", { key: "silenced" }, `Silenced by ${silenced.by}`, untilWords(silenced.ends_at),
      silenced.reason ? `: ${silenced.reason}` : ""),
  ];
}

/** @param {string | null} iso */
export function untilWords(iso) {
  const at = timeOf(iso);
  return at === null ? "" : [" until ", h(Clock, { at })];
}

/**
 * The buttons to say more.
 * @param {Alert} alert
 */
export function hushButtons(alert) {
  return [
    alert.acknowledged ? button("unacknowledge", "Take back…", alert) : button("acknowledge", "Acknowledge…", alert),
    alert.silenced ? endButton(alert.silenced.id) : button("silence", "Silence…", alert),
  ];
}

/**
 * @param {Name} name
 * @param {string} words
 * @param {Alert} alert
 */
function button(name, words, alert) {
  const label = `${words.replace("…", "")}: ${spaced(alert.kind)} of ${alert.component.replace(/^ai:/, "")}…`;
  return h("button", { type: "button", class: "quiet", key: name, "data-hush": name, "aria-haspopup": "dialog", "aria-label": label,
    onClick: () => (open.value = hushOf(name, alert)) }, words);
}

/** @param {string} id */
export function endButton(id) {
  return h("button", { type: "button", class: "quiet", key: "unsilence", "data-hush": "unsilence", "aria-haspopup": "dialog",
    onClick: () => (open.value = endOf(id)) }, "End the silence…");
}
