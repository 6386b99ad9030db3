// @ts-check
// One service: its state, its history, and its remaining limits and money.

import { configured, known, lasting, service } from "../data/store.js";
import { isOf } from "../data/verdict.js";
import { badge } from "../parts/badge.js";
import { bar, nearness } from "../parts/meter.js";
import { h } from "../vendor/preact.js";
import { partLook } from "../words/looks.js";
import { count } from "../words/numbers.js";
import { capital, spaced } from "../words/text.js";
import { timeOf } from "../words/times.js";
import { CheckNow, Menu } from "./acts.js";
import { AlertRow } from "./alerts.js";
import { Breakers, serviceFigures, ServiceWhy } from "./cards.js";
import { Until } from "./moments.js";
import { MoneyOf } from "./money.js";
import { Charts, RangePicker, useHistory } from "./past.js";
import { to } from "./route.js";

/** @typedef {import("../data/shapes.js").ServiceHealth} Service */

/** @param {{name: string}} props */
export function ServiceView({ name }) {
  const one = service(name).value, { content, failure } = useHistory(`ai:${name}`);
  if (one === null || !one.configured) return known.value ? h(Unknown, { name, reason: one?.reason ?? "" }) : null;
  const look = partLook(one.state, one.health.circuit_breaker_state), component = `ai:${name}`;
  const { model, kind, base_url: url } = one.configuration;
  const own = lasting.value.filter((alert) => isOf(alert.component, component));
  return [
    h("header", { class: "view-head", key: "head" }, h("div", null, h("h1", null, name, badge(look)),
      h("p", { class: "soft" }, [model, kind, url].filter(Boolean).join(" · "))), h("div", { class: "row" }, h(CheckNow, { component, ill: look.tone !== "ok" }), h(Menu, { component }))),
    own.length ? h("ul", { class: "rows", key: "alerts" }, own.map((alert) => h(AlertRow, { alert, key: alert.kind + alert.component }))) : null,
    h("div", { class: "split", key: "split" },
      h("section", { class: "panel", "aria-labelledby": "over-time" },
        h("div", { class: "panel-head" }, h("h2", { id: "over-time" }, "Over time"), h(RangePicker, null)),
        h(Past, { content, failure, component })),
      h("div", { class: "side" },
        h("section", { class: "panel", "aria-labelledby": "now" }, h("h2", { id: "now" }, "Now"),
          h(ServiceWhy, { one }), h("dl", { class: "figures" }, serviceFigures(one)), h(Breakers, { named: Object.entries(one.models), said: one.reason }), refusals(one)),
        h("section", { class: "panel", "aria-labelledby": "money" }, h("h2", { id: "money" }, h("a", { href: to("spend") }, "Money today")),
          h(MoneyOf, { budget: one.rate_limits.daily_budget })),
        h("section", { class: "panel", "aria-labelledby": "limits" }, h("h2", { id: "limits" }, "Limits"), h(Limits, { one })),
        h("p", { class: "row" }, h("a", { href: to("requests", "", { service: name }) }, "Its last requests"),
          h("a", { href: to("incidents", "", { component }) }, "Its incidents")))),
  ];
}

/** @param {{content: import("../data/shapes.js").History | null, failure: string, component: string}} props */
export function Past({ content, failure, component }) {
  if (content === null) return h("p", { class: "soft" }, failure ? `${capital(failure)}.` : "Loading…");
  const trouble = failure || content.trouble;
  return [trouble ? h("p", { class: "why", key: "trouble" }, `${capital(trouble)}.`) : null, h(Charts, { history: content, component, key: "charts" })];
}

/** @param {{name: string, reason: string}} props */
function Unknown({ name, reason }) {
  const others = configured.value.map((one) => one.service_name);
  return h("section", { class: "panel" }, h("h1", null, name), h("p", null, reason ? `Not in use: ${reason}.` : "No service has this name."),
    others.length ? h("p", null, "Configured services: ", others.map((one, place) => [place ? ", " : "", h("a", { href: to("service", one), key: one }, one)]), ".") : null);
}

/** @param {Service} one */
function refusals(one) {
  const all = Object.entries(one.metrics.refusals).filter(([, times]) => times > 0);
  const failed = Object.entries(one.metrics.error_counts).filter(([, times]) => times > 0);
  /** @param {[string, number][]} entries */
  const words = (entries) => entries.map(([what, times]) => `${spaced(what)} ${count(times)}`).join(" · ");
  return h("dl", { class: "facts" },
    all.length ? [h("dt", null, "Refused by koo"), h("dd", null, words(all))] : null,
    failed.length ? [h("dt", null, "Failed, by kind"), h("dd", null, words(failed))] : null);
}

/** @param {{one: Service}} props */
function Limits({ one }) {
  const limits = one.rate_limits, { concurrency } = one.configuration;
  return h("ul", { class: "limits" },
    limit("requests a minute", limits.requests_per_minute), limit("requests an hour", limits.requests_per_hour),
    limit("requests a day", limits.requests_per_day), limit("tokens a minute", limits.tokens_per_minute),
    concurrency == null ? null : h("li", null, h("span", { class: "soft" }, "concurrent calls"), h("span", null, count(concurrency))),
    limits.notice ? h("li", { class: "soft small" }, capital(limits.notice)) : null);
}

/**
 * @param {string} name
 * @param {import("../data/shapes.js").RateLimit} one
 */
function limit(name, one) {
  if (one.limit === null) return h("li", { key: name }, h("span", { class: "soft" }, name), h("span", null, "no limit"));
  const words = `${count(one.used)} of ${count(one.limit)}`, ratio = one.limit ? one.used / one.limit : 1, end = timeOf(one.resets_at);
  return h("li", { key: name },
    h("span", { class: "soft" }, name), h("span", null, nearness(ratio), words, end !== null && one.used ? h("span", { class: "soft" }, " · resets ", h(Until, { at: end })) : null),
    bar(`${words} ${name}`, [ratio]));
}
