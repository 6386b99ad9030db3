// @ts-check
// Budgets: what is spent, held, idle and unsettled of each, and when it runs out.

import { budgets } from "../data/store.js";
import { bar, nearness } from "../parts/meter.js";
import { h } from "../vendor/preact.js";
import { usd } from "../words/numbers.js";
import { timeOf } from "../words/times.js";
import { Until, Within } from "./moments.js";

/**
 * @typedef {import("../data/shapes.js").Budget} Budget
 * @typedef {import("../data/shapes.js").DailyBudget | Budget} Money
 */

/** Budgets set by an operator, in addition to the services' daily ones; nothing if there are none. */
export function Budgets() {
  if (budgets.value.length === 0) return null;
  return h("section", { "aria-labelledby": "budgets", class: "panel budgets" },
    h("h2", { id: "budgets" }, "Budgets"),
    h("ul", { class: "grid" }, budgets.value.map((one) => h("li", { key: one.title, id: `budget-${encodeURIComponent(one.title)}` }, h(BudgetOf, { budget: one })))));
}

/** @param {{budget: Budget}} props */
function BudgetOf({ budget }) {
  const then = budget.on_exhausted === "refuse" ? "calls are refused" : `${budget.on_exhausted} is used instead`;
  return h("div", { class: "budget" },
    h("h3", null, budget.title, " ", h("span", { class: "soft" }, `each ${budget.period}`)),
    h(MoneyOf, { budget }),
    h("p", { class: "soft small" }, `${whatItCounts(budget)}; when it is used up, ${then}`));
}

/** @param {Budget} budget */
function whatItCounts(budget) {
  const { service, model, tag } = budget;
  const parts = [service, model, tag === null ? null : `tag ${tag}`].filter((one) => one !== null);
  return parts.length ? `Counts ${parts.join(", ")}` : "Counts all services together";
}

/**
 * A budget's bar with its numbers, and below it facts that apply to few budgets.
 * @param {{budget: Money}} props
 */
export function MoneyOf({ budget }) {
  const spent = Number(budget.spent), held = Number(budget.reserved);
  const exact = `${budget.spent} spent and ${budget.reserved} reserved of ${budget.limit ?? "no limit"}, in ${budget.currency}`;
  const words = [h("b", null, usd(budget.spent)), " spent", held ? ` + ${usd(budget.reserved)} reserved` : "",
    budget.limit === null ? "" : ` of ${usd(budget.limit)}`];
  const resets = timeOf(budget.resets_at);
  const most = budget.limit === null ? null : Number(budget.limit);
  const ratio = most === null ? 0 : most > 0 ? (spent + held) / most : 1;
  const facts = factsOf(budget, ratio);
  return h("div", { class: "money" },
    most === null ? null : bar(exact, most > 0 ? [spent / most, held / most] : [1, 0]),
    h("p", { class: "beside", title: exact }, h("span", null, nearness(ratio), words),
      h("span", { class: "soft" }, budget.limit === null ? "no limit" : resets === null ? "" : ["resets ", h(Until, { at: resets })])),
    facts.length ? h("ul", { class: "small soft" }, facts.map((one, place) => h("li", { key: place }, one))) : null);
}

/** Shares of a limit at which an alert starts, the highest first. */
const THRESHOLDS = [0.95, 0.9, 0.8];

/**
 * @param {Money} budget
 * @param {number} ratio
 */
function factsOf(budget, ratio) {
  const facts = [];
  const passed = THRESHOLDS.find((one) => budget.limit !== null && ratio >= one);
  if (passed !== undefined) facts.push(ratio >= 1 ? "Used up" : `Above ${passed * 100} % of the limit`);
  if (budget.runs_out !== null && ratio < 1) facts.push(h(RunsOut, { out: budget.runs_out }));
  if (Number(budget.idle)) facts.push(`${usd(budget.idle)} idle in processes, recalled when needed`);
  if (Number(budget.unsettled)) facts.push(`${usd(budget.unsettled)} unsettled: granted to processes that no longer report`);
  if (Number(budget.above_hold)) facts.push(`${usd(budget.above_hold)} billed above what was held`);
  if (budget.scope !== "shared") facts.push(`Counts ${budget.scope} only: the state store is unreachable`);
  return facts;
}

/**
 * Estimated from two rates: that of the last hour and that of the period so far.
 * @param {{out: import("../data/shapes.js").RunOut}} props
 */
export function RunsOut({ out }) {
  const earliest = timeOf(out.earliest), latest = timeOf(out.latest);
  if (earliest === null) return null;
  const slowest = latest === null ? " or not before it resets" : latest === earliest ? "" : [" to ", h(Within, { at: latest })];
  return h("span", { class: "runs-out" }, "Runs out ", h(Until, { at: earliest }), slowest, `; then ${out.then}`);
}
