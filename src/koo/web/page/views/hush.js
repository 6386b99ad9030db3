// @ts-check
// An operator's acts on alerts: acknowledging, silencing, and ending both.

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

/** @type {[string, string][]} seconds, and the same for people */
const LASTS = [["3600", "1 hour"], ["7200", "2 hours"], ["28800", "8 hours"], ["86400", "1 day"], ["604800", "7 days"]];
const COMMON = { fails: "Nothing was changed", unsure: "whether it was done", logged: "shown with the alert" };

/** @type {Record<Name, string[]>} */
const EFFECTS = {
  acknowledge: ["Others see that you are working on it.", "No reminders are sent; a notice of its end still is."],
  silence: ["No notices of this kind of alert are sent for this component while the silence lasts.",
    "The alert is still listed. If it fires when the silence ends, a notice is sent then."],
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
    default: return { ...common, title: "Withdraw the acknowledgement?", go: "Withdraw", going: "Withdrawing…",
      send: (given) => unacknowledge(alert.id, given) };
  }
}

/**
 * Ending a silence, whether or not an alert matches it now.
 * @param {string} id
 * @returns {Act}
 */
function endOf(id) {
  return { ...COMMON, title: "End the silence?", go: "End it", going: "Ending…",
    Effect: effectOf(["Notices are sent for alerts that are still firing."], null), send: (given) => endSilence(id, given) };
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

/** @type {Record<string, string>} what an alert that is not simply firing shows */
const PHASES = {
  pending: "Not firing yet: the condition must last a little longer.",
  recovering: "The condition has cleared; the alert ends if it does not return.",
};

/**
 * What operators did about an alert.
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
 * The buttons for these acts.
 * @param {Alert} alert
 */
export function hushButtons(alert) {
  return [
    alert.acknowledged ? button("unacknowledge", "Withdraw…", alert) : button("acknowledge", "Acknowledge…", alert),
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
