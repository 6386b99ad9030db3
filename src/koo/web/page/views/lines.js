// @ts-check
// Healthy components, one line each: name, the last minutes, rate, latency and money.

import { sum } from "../data/past.js";
import { database, pool, service } from "../data/store.js";
import { shape } from "../parts/badge.js";
import { h } from "../vendor/preact.js";
import { partLook } from "../words/looks.js";
import { count, latency, percent, rate } from "../words/numbers.js";
import { serverWords, spentToday } from "./cards.js";
import { curve } from "./curve.js";
import { to } from "./route.js";

/** @typedef {import("../data/shapes.js").History} History */

/** Column heads, if there is room. For screen readers, each number has its name next to it. */
export function LineHeads() {
  return h("li", { class: "line heads", "aria-hidden": "true" },
    ["", "last 15 min", "rate", "success", "p95", "today"].map((words, place) => h("span", { key: place }, words)));
}

/** @param {{history: History | null}} props */
export function DatabaseLine({ history }) {
  const one = database.value, times = pool.value?.response_times;
  if (one === null) return null;
  const look = partLook(one.state, one.circuit_breaker.state);
  const { active_connections: used, max_connections: most } = one.pool_status;
  return line(look, to("database"), "Database", serverWords(one.server), curve(history, "database", "scopes"), [
    ["rate", rateOf(history, "database")],
    ["success", times && times.p95 > 0 ? percent(times.success_rate) : "–"],
    ["p95", times && times.p95 > 0 ? latency(times.p95) : "–"],
    ["pool", `${count(used)} of ${count(most)} used`],
  ]);
}

/** @param {{name: string, history: History | null}} props */
export function ServiceLine({ name, history }) {
  const one = service(name).value;
  if (one === null) return null;
  const { recent, success_rate: success, p95 } = one.metrics;
  return line(partLook(one.state, one.health.circuit_breaker_state), to("service", name), name, one.configuration.model ?? "",
    curve(history, `ai:${name}`, "calls"), [
      ["rate", rate(recent.calls / recent.window_s)],
      ["success", recent.calls > 0 ? percent(success) : "–"],
      ["p95", p95 > 0 ? latency(p95) : "–"],
      ["today", spentToday(one)],
    ]);
}

/**
 * @param {import("../words/looks.js").Look} look
 * @param {string} href
 * @param {string} name
 * @param {string} about
 * @param {import("../vendor/preact.js").ComponentChildren} curve
 * @param {[string, string][]} numbers
 */
function line(look, href, name, about, curve, numbers) {
  return h("li", { class: "line", "data-line": name },
    h("span", { class: "who" }, shape(look, "tiny"), h("a", { href }, name), h("span", { class: "unseen" }, look.word), h("span", { class: "soft about" }, about)),
    h("span", { class: "curve" }, curve),
    numbers.map(([what, words]) => h("span", { class: "number", key: what }, h("span", { class: "what" }, what, " "), words)));
}

/**
 * The rate over the last five minutes of the history.
 * @param {History | null} history
 * @param {string} component
 */
function rateOf(history, component) {
  const series = history?.series[component];
  if (!history || series === undefined) return "–";
  const last = series.calls.slice(-Math.ceil(300 / history.step_s)).filter((one) => one !== null);
  return last.length ? rate(sum(last) / (last.length * history.step_s)) : "–";
}
