// @ts-check
// Budgets of every kind: what is spent and held of each, what lies idle or unsettled, and when it runs out.

import { h } from "./dom.js";
import { bar, nearness } from "./meters.js";
import { placeOf } from "./places.js";
import { timeOf, until, usd } from "./words.js";

/**
 * @typedef {import("./data.js").Budget} Budget
 * @typedef {import("./data.js").DailyBudget | import("./data.js").Budget} Money
 */

/**
 * The budgets that an operator set, beside the daily ones on the services' cards; null where there are none.
 * @param {Budget[]} budgets
 * @param {number} now
 */
export function budgetsCard(budgets, now) {
  if (budgets.length === 0) return null;
  return h("section", { key: "budgets", "aria-labelledby": "budgets" },
    h("h2", { id: "budgets" }, "Budgets"),
    h("div", { class: "parts" }, budgets.map((one, place) => budgetCard(one, place, now))));
}

/**
 * @param {Budget} budget
 * @param {number} place
 * @param {number} now
 */
function budgetCard(budget, place, now) {
  const id = `budget-${place}`;
  const then = budget.on_exhausted === "refuse" ? "calls are refused" : `${budget.on_exhausted} is asked instead`;
  return h("article", { class: "card part", key: `budget ${budget.title}`, id: placeOf(`budget:${budget.title}`), "aria-labelledby": id },
    h("header", {}, h("h3", { id }, budget.title), h("span", { class: "soft" }, `each ${budget.period}`)),
    h("p", { class: "soft" }, `${whatItCounts(budget)}; used up, ${then}`),
    h("div", { class: "money" }, moneyOf(budget, now)));
}

/** @param {Budget} budget */
function whatItCounts(budget) {
  const { service, model, tag } = budget;
  const parts = [service, model, tag === null ? null : `tag ${tag}`].filter((one) => one !== null);
  return parts.length ? `Counts ${parts.join(", ")}` : "Counts all services together";
}

/**
 * A budget's bar with its numbers, and below it what is true of few of them.
 * @param {Money} budget
 * @param {number} now
 */
export function moneyOf(budget, now) {
  const spent = Number(budget.spent), held = Number(budget.reserved);
  const exact = `${budget.spent} spent and ${budget.reserved} reserved of ${budget.limit ?? "no limit"}, in ${budget.currency}`;
  const words = [h("b", {}, usd(budget.spent)), " spent", held ? ` + ${usd(budget.reserved)} reserved` : "",
    budget.limit === null ? "" : ` of ${usd(budget.limit)}`];
  const resets = timeOf(budget.resets_at);
  const most = budget.limit === null ? null : Number(budget.limit);
  const ratio = most === null ? 0 : most > 0 ? (spent + held) / most : 1;
  const facts = factsOf(budget, ratio, now);
  return [
    most === null ? null : bar(exact, most > 0 ? [spent / most, held / most] : [1, 0]),
    h("p", { class: "beside", title: exact }, h("span", {}, nearness(ratio), words),
      h("span", { class: "soft" }, budget.limit === null ? "no limit" : resets === null ? "" : `resets ${until(resets, now)}`)),
    facts.length ? h("ul", { class: "facts-of-money soft" }, facts.map((one) => h("li", { key: one }, one))) : null,
  ];
}

/** Shares of a limit at which an alert begins, the highest first. */
const THRESHOLDS = [0.95, 0.9, 0.8];

/**
 * @param {Money} budget
 * @param {number} ratio
 * @param {number} now
 */
function factsOf(budget, ratio, now) {
  const facts = [];
  const passed = THRESHOLDS.find((one) => budget.limit !== null && ratio >= one);
  if (passed !== undefined) facts.push(ratio >= 1 ? "Used up" : `Above ${passed * 100} % of the limit`);
  if (budget.runs_out !== null) facts.push(forecast(budget.runs_out, now));
  if (Number(budget.idle)) facts.push(`${usd(budget.idle)} idle in processes, and recalled when it is needed`);
  if (Number(budget.unsettled)) facts.push(`${usd(budget.unsettled)} unsettled: granted to processes that no longer report`);
  if (Number(budget.above_hold)) facts.push(`${usd(budget.above_hold)} billed above what was held`);
  if (budget.scope !== "shared") facts.push(`Counts ${budget.scope} alone: the state store is away`);
  return facts;
}

/**
 * By two paces, that of the last hour and that of the period so far.
 * @param {import("./data.js").RunOut} out
 * @param {number} now
 */
function forecast(out, now) {
  const earliest = timeOf(out.earliest), latest = timeOf(out.latest);
  const soonest = earliest === null ? "" : until(earliest, now);
  const slowest = latest === null ? "" : until(latest, now).replace(/^in /, "");
  const range = latest === null ? `${soonest} or not before it resets`
    : soonest.endsWith(slowest) ? soonest : `${soonest} to ${slowest}`;
  return `Runs out ${range}; then ${out.then}`;
}
