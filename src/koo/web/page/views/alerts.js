// @ts-check
// Alerts, one line each, with a link to the component. An open line shows what to do, what operators did about the alert
// and who was notified.

import { deliveries } from "../data/api.js";
import { database, lasting, over, service } from "../data/store.js";
import { adviceFor, isForced, isOfKey, nextAttemptAt, worstAlerts } from "../data/verdict.js";
import { badge } from "../parts/badge.js";
import { useLoaded } from "../parts/loaded.js";
import { useState } from "../vendor/hooks.js";
import { h } from "../vendor/preact.js";
import { signal } from "../vendor/signals.js";
import { severityLook } from "../words/looks.js";
import { span, timeOf } from "../words/times.js";
import { capital, spaced } from "../words/text.js";
import { hushButtons, hushed } from "./hush.js";
import { Clock, Plain, Said, Since, Until } from "./moments.js";
import { to, toComponent } from "./route.js";

/**
 * @typedef {import("../data/shapes.js").Alert} Alert
 * @typedef {import("../data/api.js").Advice} Advice
 */

/** What to do about each kind of alert, read once: it never changes while the server runs. */
export const runbook = signal(/** @type {Record<string, Advice>} */ ({}));
/** Kinds of alerts that start when a breaker opens; the incident shows why. */
const OPENINGS = new Set(["service_down", "circuit_open", "circuit_recovering", "database_unavailable"]);
/** The incident of that opening, or all of the component's if its id is unknown. @param {Alert} alert */
const incidentOf = (alert) => alert.data.incident ? to("incident", alert.data.incident)
  : to("incidents", "", { component: alert.component.split("/")[0] });
/** A longer list of ended alerts is folded: after a storm it would push the first card out of sight. */
const NEWS_MAX = 3;

export function Alerts() {
  const active = worstAlerts(lasting.value);
  if (active.length === 0) return null;
  return h("section", { "aria-labelledby": "alerts", class: "alerts" },
    h("h2", { id: "alerts" }, "Alerts", h("span", { class: "count" }, String(active.length))),
    h("ul", { class: "rows" }, active.map((alert) => h(AlertRow, { alert, key: `${alert.kind} ${alert.component}` }))));
}

export function News() {
  const ended = over.value;
  if (ended.length === 0) return null;
  const title = h("h2", { id: "over" }, "Ended in the last 15 minutes", h("span", { class: "count" }, String(ended.length)));
  const list = h("ul", { class: "rows over" }, ended.map((alert) => h(AlertRow, { alert, key: alert.id || `${alert.kind} ${alert.timestamp}` })));
  return h("section", { "aria-labelledby": "over", class: "alerts" }, ended.length <= NEWS_MAX
    ? [title, list] : h("details", { class: "news" }, h("summary", null, title), list));
}

/** @param {{alert: Alert}} props */
export function AlertRow({ alert }) {
  const [open, setOpen] = useState(false);
  const look = severityLook(alert.type);
  const ended = alert.ended_at !== null;
  const whose = alert.component.replace(/^ai:/, "");
  const href = toComponent(alert.component);
  const more = `${alert.kind} ${alert.component}`.replace(/[^\w-]/g, "-");
  return h("li", { class: `alert ${look.tone}${open ? " open" : ""}`, "data-component": alert.component, id: `alert-${more}` },
    h("div", { class: "line" },
      badge(look),
      h("p", { class: "said" }, href === null ? h("b", null, whose) : h("a", { href }, h("b", null, whose)), " ",
        h(Said, { alert }), ended ? null : h(ComesBack, { alert })),
      h("p", { class: "soft when" }, times(alert), OPENINGS.has(alert.kind)
        ? [" · ", h("a", { href: incidentOf(alert) }, "incident")] : null),
      ended ? null : h("button", { type: "button", class: "quiet toggle", "aria-expanded": String(open), "aria-controls": `more-${more}`,
        "aria-label": `${open ? "Less" : "What to do"} about ${spaced(alert.kind)} of ${whose}`, onClick: () => setOpen(!open) }, open ? "Less" : "What to do")),
    hushed(alert).some(Boolean) ? h("div", { class: "hushed" }, hushed(alert)) : null,
    h("div", { id: `more-${more}`, class: "more", hidden: !open }, open ? h(More, { alert }) : null));
}

/** @param {{alert: Alert}} props */
function ComesBack({ alert }) {
  const next = timeOf(alert.data.next_attempt), resets = timeOf(alert.data.resets_at);
  const whole = alert.component.startsWith("ai:") ? service(alert.component.slice(3).split("/")[0]).value : null;
  if (isForced(alert.component, whole, database.value)) return next === null ? " Ends with a reset." : [" Ends ", h(Until, { at: next }), "."];
  if (next !== null) return [isOfKey(alert) ? " Checks the key " : " Tests recovery ", h(Until, { at: next }), "."];
  if (resets !== null) return [" Resets ", h(Until, { at: resets }), "."];
  const at = whole && alert.kind === "service_down" ? nextAttemptAt(whole) : null;
  return at === null ? null : [" Next attempt ", h(Until, { at }), "."];
}

/** @param {Alert} alert */
function times(alert) {
  const began = timeOf(alert.timestamp), ended = timeOf(alert.ended_at), { lasted_s: lasted } = alert.data;
  if (ended !== null) return [h(Since, { at: ended }), " ago", lasted === undefined ? "" : ` · lasted ${span(lasted * 1000)}`];
  return began === null ? null : ["for ", h(Since, { at: began }), " · since ", h(Clock, { at: began })];
}

/** @param {{alert: Alert}} props */
function More({ alert }) {
  const book = Object.hasOwn(runbook.value, alert.kind) ? runbook.value[alert.kind] : null;
  return [
    book && h("div", { class: "runbook" },
      adviceFor(book, alert.component).split("\n\n").map((paragraph) => h("p", { key: paragraph }, paragraph)),
      book.refuses ? h("p", { class: "soft" }, `Refused: ${book.refuses}`) : null,
      h("p", { class: "soft" }, `Ends ${book.ends} `, h("a", { href: alert.runbook }, "Open the runbook"))),
    h("p", { class: "row" }, hushButtons(alert)),
    h(Told, { alert })];
}

/** Who was notified. @param {{alert: Alert}} props */
function Told({ alert }) {
  const { content, failure } = useLoaded(alert.id, deliveries, 10_000);
  const { at, reason, state } = alert.notified;
  const noticed = timeOf(at);
  const words = noticed !== null ? ["A notice was written at ", h(Clock, { at: noticed })]
    : ["No notice is sent: ", h(Plain, { text: reason || spaced(state) })];
  return h("div", { class: "told soft" },
    h("p", null, words, ".", content?.note ? ` ${capital(content.note)}.` : "", content?.store ? ` ${capital(content.store)}.` : "",
      failure ? ` ${failure}.` : ""),
    h("ul", null, (content?.deliveries ?? []).filter((one) => one.key.startsWith(`${alert.id}:`)).map(delivery)));
}

/** @param {import("../data/shapes.js").AlertDelivery} one */
function delivery(one) {
  const sent = timeOf(one.sent_at), next = timeOf(one.next_attempt);
  const when = sent !== null ? [" at ", h(Clock, { at: sent })] : next !== null ? [", next attempt at ", h(Clock, { at: next })] : "";
  return h("li", { key: `${one.key} ${one.channel}` },
    `${capital(one.channel)}: ${one.what}, ${spaced(one.state)}`, when, one.reason ? `. ${capital(one.reason)}` : "", ".");
}
