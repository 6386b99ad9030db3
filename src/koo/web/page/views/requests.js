// @ts-check
// The last calls that cost something, from the ledger; never a prompt.

import { requests } from "../data/api.js";
import { configured, requests as newer, serverNow } from "../data/store.js";
import { useLoaded } from "../parts/loaded.js";
import { number, table } from "../parts/table.js";
import { useState } from "../vendor/hooks.js";
import { h } from "../vendor/preact.js";
import { count, latency, usd } from "../words/numbers.js";
import { capital, spaced } from "../words/text.js";
import { clock, timeOf } from "../words/times.js";
import { ask, route, to } from "./route.js";

/** @typedef {import("../data/shapes.js").BookedCall} BookedCall */

const FILTERS = ["service", "model", "tag"];

export function RequestsView() {
  const { asked } = route.value;
  const filter = Object.fromEntries(FILTERS.map((name) => [name, asked.get(name) ?? ""]).filter(([, value]) => value));
  const key = JSON.stringify(filter);
  return [
    h("header", { class: "view-head", key: "head" }, h("h1", null, "Requests"), h(Filter, { filter, key })),
    h(Pages, { filter, key: `pages ${key}` }),
  ];
}

/** @param {{filter: Record<string, string>}} props */
function Filter({ filter }) {
  const names = configured.value.map((one) => one.service_name);
  /** @param {string} name */
  const set = (name) => (/** @type {Event} */ event) => ask({ [name]: /** @type {HTMLInputElement} */ (event.target).value.trim() });
  return h("form", { class: "filter row", role: "search", onSubmit: (/** @type {Event} */ event) => event.preventDefault() },
    h("label", null, "Service ", h("select", { onChange: set("service"), value: filter.service ?? "" }, h("option", { value: "" }, "all"),
      [...new Set([...names, ...(filter.service ? [filter.service] : [])])].map((name) => h("option", { value: name, key: name }, name)))),
    h("label", null, "Model ", h("input", { onChange: set("model"), defaultValue: filter.model ?? "", maxLength: 200, autocomplete: "off" })),
    h("label", null, "Tag ", h("input", { onChange: set("tag"), defaultValue: filter.tag ?? "", maxLength: 200, autocomplete: "off" })),
    Object.keys(filter).length ? h("a", { href: to("requests") }, "All") : null);
}

/** The first page is updated; older pages are not. @param {{filter: Record<string, string>}} props */
function Pages({ filter }) {
  const load = (/** @type {string} */ cursor) => requests(new URLSearchParams({ ...filter, ...(cursor && { cursor }) }));
  const first = useLoaded(JSON.stringify(filter), () => load(""), 5_000, newer.value);
  const [older, setOlder] = useState({ rows: /** @type {BookedCall[]} */ ([]), cursor: "", failure: "" });
  if (first.content === null) return h("section", { class: "panel" }, h("p", { class: "soft" }, first.failure ? `${capital(first.failure)}.` : "Loading…"));
  const known = new Set(older.rows.map((one) => one.id));
  const rows = [...first.content.requests.filter((one) => !known.has(one.id)), ...older.rows];
  const cursor = older.rows.length ? older.cursor : first.content.next_cursor ?? "";
  const more = async () => {
    try {
      const page = await load(cursor);
      // Keep the rows shown now. Otherwise rows that have left the first page in the meantime, but come before this page,
      // would be missing.
      setOlder({ rows: [...rows, ...page.requests], cursor: page.next_cursor ?? "", failure: "" });
    } catch (error) {
      setOlder({ ...older, failure: error instanceof Error ? error.message : String(error) });
    }
  };
  return h("section", { class: "panel", "aria-label": "Requests" },
    rows.length ? tableOf(rows) : h("p", { class: "soft" }, "No calls that cost anything."),
    older.failure || first.failure ? h("p", null, `${capital(older.failure || first.failure)}.`) : null,
    cursor ? h("p", { class: "row" }, h("button", { type: "button", class: "quiet", onClick: () => void more() }, "Show older")) : null);
}

/** @param {BookedCall[]} rows */
function tableOf(rows) {
  const nowMs = serverNow();
  return table("Requests, newest first", ["Ended", "Service", "Model", "Outcome", number("Attempt"), number("Took"), "Tag", number("In"), number("Cached"), number("Out"), number("Cost"), "Request"],
    rows.map((one) => ({ key: one.id, cells: [
      h("span", { class: "when" }, clock(timeOf(one.at) ?? 0, nowMs)), h("a", { href: to("service", one.service) }, one.service), one.model, spaced(one.outcome), one.attempt === null ? "–" : count(one.attempt),
      one.latency === null ? "–" : latency(one.latency), one.tag === null ? "" : h("a", { href: to("requests", "", { tag: one.tag }) }, one.tag),
      count(one.input_tokens + one.cache_read_tokens + one.cache_write_tokens), one.cache_read_tokens ? count(one.cache_read_tokens) : "–", count(one.output_tokens),
      h("span", { title: `${one.cost} USD, price from: ${spaced(one.cost_source)}` }, usd(one.cost), one.estimated ? h("span", { class: "soft" }, " at most") : null),
      h("span", { class: "soft id", title: one.request_id }, one.request_id.slice(0, 12))] })));
}
