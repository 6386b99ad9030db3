// @ts-check
// What an operator says of alerts: acknowledged, silenced, and the end of both; and who was told of one, or why not.

import { acknowledge, deliveries, endSilence, silence, unacknowledge } from "./api.js";
import { h } from "./dom.js";
import { fold } from "./folds.js";
import { badge, severityLook } from "./shapes.js";
import { alertWords, capital, clock, plainly, timeOf } from "./words.js";

/**
 * @typedef {import("./data.js").Alert} Alert
 * @typedef {import("./dialog.js").Act} Act
 * @typedef {"acknowledge" | "unacknowledge" | "silence"} Name
 */

/** @type {[string, string][]} seconds, and how people say it */
const LASTS = [["3600", "1 hour"], ["7200", "2 hours"], ["28800", "8 hours"], ["86400", "1 day"], ["604800", "7 days"]];

const FAILS = { fails: "Nothing was changed", unsure: "whether it was done" };

/**
 * @param {Name} name
 * @param {Alert} alert
 * @returns {Act}
 */
export function hushOf(name, alert) {
  const whose = alert.component.replace(/^ai:/, "");
  const common = { ...FAILS, effect: effectOf(EFFECTS[name], alert) };
  switch (name) {
    case "acknowledge": return { ...common, title: `Acknowledge the alert of ${whose}?`, go: "Acknowledge", going: "Acknowledging…",
      needs: ["by"], lasts: [["", "until it ends"], ...LASTS], send: (given, token) => acknowledge(alert.id, given, token) };
    case "silence": return { ...common, title: `Silence ${spaced(alert.kind)} of ${whose}?`, go: "Silence", going: "Silencing…",
      needs: ["by", "reason"], lasts: LASTS, send: (given, token) => silence(alert.kind, alert.component, given, token) };
    default: return { ...common, title: "Take the acknowledgement back?", go: "Take back", going: "Taking back…",
      send: (given, token) => unacknowledge(alert.id, given, token) };
  }
}

/**
 * The end of a silence, which may hold for what is not wrong now.
 * @param {string} id
 * @returns {Act}
 */
export function endOf(id) {
  return { ...FAILS, title: "End the silence?", go: "End it", going: "Ending…",
    effect: effectOf(["What fires now and was not notified, is."], null), send: (given, token) => endSilence(id, given, token) };
}

/** @type {Record<Name, string[]>} */
const EFFECTS = {
  acknowledge: ["Whoever looks sees that you are at work on it.", "No reminders are sent; its end still is."],
  silence: ["Nobody is notified of this kind of alert of this part while it lasts.",
    "It is still listed. What fires when the silence ends is notified then."],
  unacknowledge: ["Reminders are sent again."],
};

/**
 * @param {string[]} effects
 * @param {Alert | null} alert
 * @returns {Act["effect"]}
 */
function effectOf(effects, alert) {
  return (feed, done) => [
    alert === null ? null : nowLine(alert, feed.now),
    done ? null : h("ul", {}, effects.map((one) => h("li", {}, one))),
  ];
}

/**
 * @param {Alert} alert
 * @param {number} now
 */
function nowLine(alert, now) {
  const { whose, said } = alertWords(alert, now);
  return h("p", {}, badge(severityLook(alert.type)), " ", h("b", {}, whose), ` ${said}`);
}

/** @param {string} kind */
const spaced = (kind) => kind.replaceAll("_", " ");

// ── on an alert ──────────────────────────────────────────────────────────────────────────────────────────────────

/** @type {Record<string, string>} what is to be known of an alert that does not simply fire */
const PHASES = {
  pending: "It does not fire yet: it has to hold a little longer.",
  recovering: "It is gone, and ends if it does not come back.",
};

/**
 * What was said of it, and the buttons to say more.
 * @param {Alert} alert
 * @param {number} now
 */
export function hushing(alert, now) {
  const { acknowledged, silenced } = alert;
  return h("div", { class: "hush", key: "hush" },
    PHASES[alert.phase] ? h("p", { class: "soft", key: "phase" }, PHASES[alert.phase]) : null,
    acknowledged && h("p", { key: "acknowledged" }, `Acknowledged by ${acknowledged.by}${untilWords(acknowledged.until, now)}`,
      acknowledged.note ? `: ${acknowledged.note}` : ""),
    silenced && h("p", { key: "silenced" }, `Silenced by ${silenced.by}${untilWords(silenced.ends_at, now)}`,
      silenced.reason ? `: ${silenced.reason}` : ""),
    h("p", { class: "row", key: "acts" },
      acknowledged ? button("unacknowledge", "Take back…", alert) : button("acknowledge", "Acknowledge…", alert),
      silenced ? endButton(silenced.id) : button("silence", "Silence…", alert)));
}

/**
 * @param {string | null} iso
 * @param {number} now
 */
function untilWords(iso, now) {
  const at = timeOf(iso);
  return at === null ? "" : ` until ${clock(at, now)}`;
}

/**
 * @param {Name} name
 * @param {string} words
 * @param {Alert} alert
 */
function button(name, words, alert) {
  const label = `${words.replace("…", "")}: ${spaced(alert.kind)} of ${alert.component.replace(/^ai:/, "")}`;
  return h("button", { type: "button", class: "quiet", key: name, "data-hush": name, "data-id": alert.id,
    "aria-haspopup": "dialog", "aria-label": `${label}…` }, words);
}

/** @param {string} id */
export function endButton(id) {
  return h("button", { type: "button", class: "quiet", key: "unsilence", "data-hush": "unsilence", "data-id": id,
    "aria-haspopup": "dialog" }, "End the silence…");
}

// ── who was told ─────────────────────────────────────────────────────────────────────────────────────────────────

/**
 * @param {Alert} alert
 * @param {number} now
 */
export function whoWasTold(alert, now) {
  const { at, reason, state } = alert.notified;
  const noticed = timeOf(at);
  const words = noticed !== null ? `A notice was written at ${clock(noticed, now)}` : `Nobody is notified: ${plainly(reason || state, now)}`;
  return fold(`told ${alert.id}`, "Who was told", deliveries, (told) => [
    h("p", {}, `${words}.`, told.note ? ` ${capital(told.note)}.` : "", told.store ? ` ${capital(told.store)}.` : ""),
    h("ul", { class: "told" }, told.deliveries.filter((one) => one.key.startsWith(`${alert.id}:`)).map((one) => delivery(one, now))),
  ]);
}

/**
 * @param {import("./data.js").AlertDelivery} one
 * @param {number} now
 */
function delivery(one, now) {
  const sent = timeOf(one.sent_at), next = timeOf(one.next_attempt);
  const when = sent !== null ? ` at ${clock(sent, now)}` : next !== null ? `, next attempt at ${clock(next, now)}` : "";
  return h("li", { key: `${one.key} ${one.channel}` },
    `${capital(one.channel)}: ${one.what}, ${spaced(one.state)}${when}`, one.reason ? `. ${capital(one.reason)}` : "", ".");
}
