// @ts-check
// Alerts: what is wrong, since when, what to do about it; and what has ended.

import { nextAttemptAt } from "./cards.js";
import { h } from "./dom.js";
import { hushing, whoWasTold } from "./hush.js";
import { leadTo, placeOf } from "./places.js";
import { whatToDo } from "./runbook.js";
import { badge, severityLook, shape, verdictLook } from "./shapes.js";
import { alertWords, clock, span, timeOf, until } from "./words.js";

/**
 * @typedef {import("./data.js").Dashboard} Dashboard
 * @typedef {import("./data.js").Alert} Alert
 */

/** More news than these are folded: after a storm they would push the first card out of sight. */
const NEWS_MAX = 3;

/**
 * @param {Dashboard} dashboard
 * @param {number} now
 */
export function attention(dashboard, now) {
  const lasting = dashboard.alerts.filter((one) => one.ended_at === null);
  const over = dashboard.alerts.filter((one) => one.ended_at !== null);
  return h("section", { key: "attention", "aria-labelledby": "attention" },
    h("h2", { id: "attention" }, "Needs attention"),
    lasting.length === 0
      ? h("p", { class: "calm", key: "calm" }, shape(verdictLook("healthy")), "Nothing. No alert is active.")
      : h("ul", { class: "alerts", key: "active" }, lasting.map((one) => alertLine(one, dashboard, now))),
    over.length === 0 ? null : news(over, dashboard, now));
}

/**
 * @param {Alert[]} over
 * @param {Dashboard} dashboard
 * @param {number} now
 */
function news(over, dashboard, now) {
  const title = h("h2", {}, "Over within the last 15 minutes");
  const list = h("ul", { class: "alerts over" }, over.map((one) => alertLine(one, dashboard, now)));
  return over.length <= NEWS_MAX
    ? h("div", { key: "over" }, title, list)
    : h("details", { key: "folded", class: "news" }, h("summary", {}, title, h("span", {}, String(over.length))), list);
}

/**
 * @param {Alert} alert
 * @param {Dashboard} dashboard
 * @param {number} now
 */
function alertLine(alert, dashboard, now) {
  const look = severityLook(alert.type);
  const { whose, said } = alertWords(alert, now);
  const id = placeOf(`alert ${alert.kind} ${alert.component}`);
  return h("li", { key: `${alert.kind} ${alert.component} ${alert.timestamp}`, id, "data-component": alert.component, class: look.tone },
    badge(look),
    h("p", {}, leadTo(dashboard, alert.component, whose), " ", said, comesBack(alert, dashboard, now)),
    h("p", { class: "soft when" }, alertTimes(alert, now)),
    alert.ended_at !== null ? null : [hushing(alert, now), whatToDo(alert.kind, alert.runbook), whoWasTold(alert, now)]);
}

/**
 * @param {Alert} alert
 * @param {Dashboard} dashboard
 * @param {number} now
 */
function comesBack(alert, dashboard, now) {
  if (alert.ended_at !== null) return null;
  const next = timeOf(alert.data.next_attempt);
  if (next !== null) return ` Tests recovery ${until(next, now)}.`;
  const resets = timeOf(alert.data.resets_at);
  if (resets !== null) return ` Resets ${until(resets, now)}.`;
  const service = dashboard.ai_services.services[alert.component.replace(/^ai:/, "")];
  const at = service && alert.kind === "service_down" ? nextAttemptAt(service) : null;
  return at === null ? null : ` Asked again ${until(at, now)}.`;
}

/**
 * @param {Alert} alert
 * @param {number} now
 */
function alertTimes(alert, now) {
  const began = timeOf(alert.timestamp), ended = timeOf(alert.ended_at);
  if (ended !== null) {
    const lasted = alert.data.lasted_s;
    return [`${span(now - ended)} ago`, lasted !== undefined ? ` · lasted ${span(lasted * 1000)}` : ""];
  }
  return began === null ? [] : [`for ${span(now - began)} · since ${clock(began, now)}`];
}
