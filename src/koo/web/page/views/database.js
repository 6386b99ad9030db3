// @ts-check
// The database: its state, its history, and who holds its connections.

import { database, lasting, pool } from "../data/store.js";
import { databaseReason, isOf } from "../data/verdict.js";
import { badge } from "../parts/badge.js";
import { table, number } from "../parts/table.js";
import { h } from "../vendor/preact.js";
import { partLook } from "../words/looks.js";
import { count, latency } from "../words/numbers.js";
import { spaced } from "../words/text.js";
import { CheckNow, Menu } from "./acts.js";
import { AlertRow } from "./alerts.js";
import { Breakers, databaseFigures, DatabaseWhy, Pool, serverWords } from "./cards.js";
import { RangePicker, useHistory } from "./past.js";
import { to } from "./route.js";
import { Past } from "./service.js";

export function DatabaseView() {
  const one = database.value, { content, failure } = useHistory("database");
  if (one === null) return null;
  const look = partLook(one.state, one.circuit_breaker.state);
  const own = lasting.value.filter((alert) => isOf(alert.component, "database"));
  return [
    h("header", { class: "view-head", key: "head" }, h("div", null, h("h1", null, "Database", badge(look)), h("p", { class: "soft" }, serverWords(one.server))),
      h("div", { class: "row" }, h(CheckNow, { component: "database", ill: look.tone !== "ok" }), h(Menu, { component: "database" }))),
    own.length ? h("ul", { class: "rows", key: "alerts" }, own.map((alert) => h(AlertRow, { alert, key: alert.kind + alert.component }))) : null,
    h("div", { class: "split", key: "split" },
      h("section", { class: "panel", "aria-labelledby": "over-time" },
        h("div", { class: "panel-head" }, h("h2", { id: "over-time" }, "Over time"), h(RangePicker, null)),
        h(Past, { content, failure, component: "database" })),
      h("div", { class: "side" },
        h("section", { class: "panel", "aria-labelledby": "now" }, h("h2", { id: "now" }, "Now"), h(DatabaseWhy, { one }),
          h("dl", { class: "figures" }, databaseFigures(one, pool.value)), h(Pool, { pool: one.pool_status }), holders(one.pool_status),
          h(Breakers, { named: [["", one.circuit_breaker]], said: databaseReason(one) })),
        h("section", { class: "panel", "aria-labelledby": "phases" }, h("h2", { id: "phases" }, "Where the time goes"), h(Phases, null)),
        h("section", { class: "panel", "aria-labelledby": "errors" }, h("h2", { id: "errors" }, "Since startup"), h(Errors, null)),
        h("p", null, h("a", { href: to("incidents", "", { component: "database" }) }, "Its incidents")))),
  ];
}

/** @param {import("../data/shapes.js").PoolStatus} pool */
function holders(pool) {
  if (pool.active_connections === 0) return h("p", { class: "soft small" }, "No scope is open.");
  return pool.held_by.length ? null : h("p", { class: "soft small" }, "The holders are listed when the pool is full, or a scope stays open too long.");
}

/** The time of scopes, by phase. */
function Phases() {
  const phases = pool.value?.response_times.phases;
  if (phases === undefined) return h("p", { class: "soft" }, "Nothing has been measured yet.");
  return table("Where the time of scopes goes", ["Part", number("p50"), number("p95"), number("Times")], Object.entries(phases).map(([name, one]) => ({
    key: name, cells: [spaced(name), one.count ? latency(one.p50) : "–", one.count ? latency(one.p95) : "–", count(one.count)] })));
}

function Errors() {
  const metrics = pool.value;
  if (metrics === null) return null;
  const { errors, retries, connection_metrics: connections } = metrics;
  const kinds = Object.entries(errors.by_kind).filter(([, times]) => times > 0).map(([kind, times]) => `${spaced(kind)} ${count(times)}`);
  return h("dl", { class: "facts" },
    h("dt", null, "Errors"), h("dd", null, kinds.join(" · ") || "none"),
    h("dt", null, "Retried"), h("dd", null, `${count(retries.connects)} connects · ${count(retries.transactions)} transactions · ${count(retries.first_statements)} first statements`),
    h("dt", null, "Connections"), h("dd", null, `${count(connections.created)} opened · ${count(connections.closed)} closed · ${count(connections.broken)} broken`));
}
