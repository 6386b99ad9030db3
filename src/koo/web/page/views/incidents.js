// @ts-check
// Why breakers opened: all incidents, newest first.

import { incidents } from "../data/api.js";
import { configured, marks, serverNow } from "../data/store.js";
import { badge } from "../parts/badge.js";
import { useLoaded } from "../parts/loaded.js";
import { number, table } from "../parts/table.js";
import { h } from "../vendor/preact.js";
import { incidentLook } from "../words/looks.js";
import { count } from "../words/numbers.js";
import { capital } from "../words/text.js";
import { clock, span, timeOf } from "../words/times.js";
import { Plain, Since } from "./moments.js";
import { ask, route, to } from "./route.js";

/** @typedef {import("../data/shapes.js").IncidentSummary} IncidentSummary */

export function IncidentsView() {
  const component = route.value.asked.get("component") ?? "";
  const { content, failure } = useLoaded(component, () => incidents(component), 15_000, marks.value);
  const trouble = failure || content?.trouble;
  return [
    h("header", { class: "view-head", key: "head" }, h("h1", null, "Incidents"), h(Filter, { component })),
    h("section", { class: "panel", key: "list", "aria-label": "Incidents" },
      trouble ? h("p", { class: "why" }, `${capital(trouble)}.`) : null,
      content === null ? h("p", { class: "soft" }, failure ? "" : "Loading…")
        : content.incidents.length ? list(content.incidents) : h("p", { class: "soft" }, "No breaker opened in the last 30 days.")),
  ];
}

/** @param {{component: string}} props */
function Filter({ component }) {
  const known = ["database", ...configured.value.map((one) => `ai:${one.service_name}`)];
  const all = component && !known.includes(component) ? [...known, component] : known;
  return h("div", { class: "filter row" }, h("label", null, "Component ", h("select", { value: component,
    onChange: (/** @type {Event} */ event) => ask({ component: /** @type {HTMLSelectElement} */ (event.target).value }) },
  h("option", { value: "" }, "all"), all.map((one) => h("option", { value: one, key: one }, one.replace(/^ai:/, ""))))));
}

/** @param {IncidentSummary[]} all */
function list(all) {
  const nowMs = serverNow();
  return table("Incidents, newest first", ["Opened", "Breaker", "State", "Why", "Lasted", number("Refused"), number("Processes")], all.map((one) => ({
    key: one.id, cells: [
      h("a", { href: to("incident", one.id), class: "when" }, clock(timeOf(one.opened_at) ?? 0, nowMs)), one.guard,
      [badge(incidentLook(one.state)), one.shadow ? h("span", { class: "soft" }, " shadow") : null],
      h(Plain, { text: one.reason }), h(Lasted, { one }), count(one.refused), count(one.processes)] })));
}

/** @param {{one: IncidentSummary}} props */
export function Lasted({ one }) {
  const lasts = one.closed_at === null && one.state !== "lost";
  return h("span", { class: "when" }, lasts ? h(Since, { at: timeOf(one.opened_at) ?? 0 }) : span(one.lasted_s * 1000));
}
