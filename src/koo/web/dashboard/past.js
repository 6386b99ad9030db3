// @ts-check
// What was: alerts of the last week, and the silences that hold.

import { h } from "./dom.js";
import { history } from "./api.js";
import { fold } from "./folds.js";
import { endButton } from "./hush.js";
import { badge, severityLook } from "./shapes.js";
import { alertWords, clock, span, timeOf } from "./words.js";

/**
 * @typedef {import("./data.js").Alert} Alert
 */

/** @param {number} now */
export function past(now) {
  return h("section", { key: "past", "aria-labelledby": "past" },
    h("h2", { id: "past" }, "History"),
    fold("history", "Alerts of the last 7 days", history, ({ episodes, silences }) => [
      silences.length === 0 ? null : h("ul", { class: "told", key: "silences" }, silences.map((one) => silence(one, now))),
      episodes.length === 0 ? h("p", {}, "None.") : table(episodes, now),
    ]));
}

/**
 * @param {import("./data.js").SilenceView} one
 * @param {number} now
 */
function silence(one, now) {
  const ends = timeOf(one.ends_at);
  const what = [one.kind === "*" ? "everything" : one.kind.replaceAll("_", " "), one.component === "*" ? "" : `of ${one.component}`];
  return h("li", { key: one.id }, `Silenced: ${what.filter(Boolean).join(" ")}, by ${one.by}`,
    ends === null ? "" : ` until ${clock(ends, now)}`, one.reason ? `: ${one.reason} ` : " ", endButton(one.id));
}

/**
 * @param {Alert[]} episodes
 * @param {number} now
 */
function table(episodes, now) {
  const heads = ["Began", "Lasted", "Severity", "Where", "What", "Notified"];
  return h("div", { class: "wide-table", tabindex: "0", role: "region", "aria-label": "Alerts of the last 7 days" }, h("table", {},
    h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))),
    h("tbody", {}, episodes.map((one) => row(one, now)))));
}

/**
 * @param {Alert} one
 * @param {number} now
 */
function row(one, now) {
  const began = timeOf(one.timestamp) ?? now, ended = timeOf(one.ended_at), noticed = timeOf(one.notified.at);
  return h("tr", { key: one.id },
    h("td", { class: "when" }, clock(began, now)),
    h("td", { class: "when" }, ended === null ? "lasts" : span(ended - began)),
    h("td", {}, badge(severityLook(one.type))),
    h("td", {}, one.component),
    h("td", {}, alertWords(one, now).said),
    h("td", {}, noticed === null ? one.notified.reason || one.notified.state.replaceAll("_", " ") : clock(noticed, now)));
}
