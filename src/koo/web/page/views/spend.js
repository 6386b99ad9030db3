// @ts-check
// Money: by day, service, model or tag, the current rate, and what is left of budgets.

import { spend } from "../data/api.js";
import { bars, tone } from "../parts/bars.js";
import { useLoaded } from "../parts/loaded.js";
import { number, table } from "../parts/table.js";
import { h } from "../vendor/preact.js";
import { count, percent, usd } from "../words/numbers.js";
import { capital } from "../words/text.js";
import { Budgets } from "./money.js";
import { ask, route, to } from "./route.js";

/**
 * @typedef {import("../data/shapes.js").Spend} Spend
 * @typedef {import("../data/shapes.js").SpendRow} Row
 */

const BY = ["service", "model", "tag"], DAYS = ["7", "30", "90"];
const DAY_MS = 86_400_000;

export function SpendView() {
  const by = choice("by", BY, "service"), days = choice("days", DAYS, "30");
  const { content, failure } = useLoaded(`${by} ${days}`, () => spend(Number(days), ["day", by]), 30_000);
  return [
    h("header", { class: "view-head", key: "head" }, h("h1", null, "Spend"),
      h("div", { class: "row" }, choices("by", BY, by, (one) => `by ${one}`), choices("days", DAYS, days, (one) => `${one} days`))),
    h("section", { class: "panel", key: "days", "aria-label": "Spent by day" },
      content === null ? h("p", { class: "soft" }, failure ? `${capital(failure)}.` : "Loading…")
        : [failure ? h("p", { class: "why", key: "why" }, `${capital(failure)}.`) : null, h(Days, { content, by, key: "days" })]),
    content && h("section", { class: "panel", key: "groups", "aria-labelledby": "groups" }, h("h2", { id: "groups" }, `By ${by}`), groups(content, by)),
    h(Budgets, { key: "budgets" }),
    content && unsettled(content),
  ];
}

/**
 * @param {string} name
 * @param {string[]} values
 * @param {string} usual
 */
function choice(name, values, usual) {
  const asked = route.value.asked.get(name) ?? usual;
  return values.includes(asked) ? asked : usual;
}

/**
 * @param {string} name
 * @param {string[]} values
 * @param {string} chosen
 * @param {(value: string) => string} words
 */
function choices(name, values, chosen, words) {
  return h("div", { class: "ranges", role: "group", "aria-label": name }, values.map((value) =>
    h("button", { type: "button", key: value, class: "quiet", "aria-pressed": String(value === chosen), onClick: () => ask({ [name]: value }) }, words(value))));
}

/**
 * @param {Row} row
 * @param {string} by
 */
const nameOf = (row, by) => String(/** @type {Record<string, unknown>} */ (row)[by] ?? "(none)");

/**
 * What each name cost, most expensive first.
 * @param {Spend} content
 * @param {string} by
 */
function totals(content, by) {
  /** @type {Map<string, {amount: number, estimated: number, calls: number, input: number, output: number}>} */
  const all = new Map();
  for (const row of content.rows) {
    const one = all.get(nameOf(row, by)) ?? { amount: 0, estimated: 0, calls: 0, input: 0, output: 0 };
    one.amount += Number(row.amount);
    one.estimated += Number(row.estimated);
    one.calls += row.calls;
    one.input += row.input_tokens;
    one.output += row.output_tokens;
    all.set(nameOf(row, by), one);
  }
  return [...all].sort(([, one], [, other]) => other.amount - one.amount);
}

/** @param {{content: Spend, by: string}} props */
function Days({ content, by }) {
  const names = totals(content, by).map(([name]) => name);
  const first = Date.parse(content.first_day), last = Date.parse(content.last_day);
  const all = [];
  for (let at = first; at <= last; at += DAY_MS) {
    const day = new Date(at).toISOString().slice(0, 10);
    const parts = content.rows.filter((row) => row.day?.startsWith(day)).map((row) => ({ name: nameOf(row, by), value: Number(row.amount) }));
    const sum = parts.reduce((sum, one) => sum + one.value, 0);
    all.push({ key: day, label: day.slice(8), title: `${day}: ${money(sum)}`, sum, parts });
  }
  const week = all.slice(-8, -1), pace = week.length ? week.reduce((sum, one) => sum + one.sum, 0) / week.length : 0;
  // The average is of whole days. On the first day there is none, and a rate of $0.00 would contradict today's amount.
  const known = pace > 0 || Number(content.amount) === 0, ofPace = (/** @type {number} */ days) => (known ? money(pace * days) : "–");
  const month = new Date(last), length = new Date(Date.UTC(month.getUTCFullYear(), month.getUTCMonth() + 1, 0)).getUTCDate();
  return [
    h("dl", { class: "figures large", key: "figures" },
      figure("total", usd(content.amount)), figure("today", money(all.at(-1)?.sum ?? 0)), figure("daily average, last 7 days", ofPace(1)),
      figure("month at this rate", ofPace(length))),
    bars(`Spent by day from ${content.first_day} to ${content.last_day}`, all, names),
    h("p", { class: "legend", key: "legend" }, names.slice(0, 5).map((name, place) => h("span", { key: name },
      h("i", { class: `swatch series-${tone(names, name)}` }), place === 4 && names.length > 5 ? "all others" : name))),
    h("details", { key: "table", class: "as-table" }, h("summary", null, "As a table"), table("Spent by day", ["Day", number("Spent")],
      all.filter((one) => one.sum > 0).reverse().map((one) => ({ key: one.key, cells: [one.key, money(one.sum)] })))),
  ];
}

/** @param {number} amount */
const money = (amount) => usd(String(Number(amount.toFixed(6))));

/**
 * @param {string} name
 * @param {string} value
 */
const figure = (name, value) => h("div", { class: "figure" }, h("dt", null, name), h("dd", null, value));

/**
 * @param {Spend} content
 * @param {string} by
 */
function groups(content, by) {
  const all = totals(content, by), sum = Number(content.amount) || 1;
  if (all.length === 0) return h("p", { class: "soft" }, "Nothing was spent in this period.");
  return table(`Spent by ${by}`, [capital(by), number("Spent"), number("Share"), number("Calls"), number("Tokens in"), number("Tokens out"), number("Estimated")],
    all.map(([name, one]) => ({ key: name, cells: [
      by === "tag" && name === "(none)" ? h("span", { class: "soft" }, "without a tag") : h("a", { href: to("requests", "", { [by]: name }) }, name),
      money(one.amount), percent(one.amount / sum), count(one.calls), count(one.input), count(one.output), one.estimated ? money(one.estimated) : "–"] })));
}

/** @param {Spend} content */
function unsettled(content) {
  if (content.unsettled.length === 0 && content.written_off.length === 0) return null;
  return h("section", { class: "panel", key: "unsettled", "aria-labelledby": "unsettled" }, h("h2", { id: "unsettled" }, "Left by dead processes"),
    table("Unsettled", ["Process", "Last seen", "Budget", number("Amount"), "Written off"], [
      ...content.unsettled.flatMap((one) => one.amounts.map((part) => ({ key: `${one.process} ${part.budget} ${part.period}`,
        cells: [one.process, one.last_seen?.slice(0, 19).replace("T", " ") ?? "never", part.budget, usd(part.amount), "no"] }))),
      ...content.written_off.flatMap((one) => one.amounts.map((part) => ({ key: `${one.process} ${part.budget} ${part.period} off`,
        cells: [one.process, "", part.budget, usd(part.amount), `by ${one.by}: ${one.reason}`] }))),
    ]));
}
