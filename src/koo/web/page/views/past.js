// @ts-check
// The history of a component as charts with one time range, one cursor and one set of marks.

import { past } from "../data/api.js";
import { inStretches, mean, most, stride, sum, withPoints } from "../data/past.js";
import { link, marks, points } from "../data/store.js";
import { Chart } from "../parts/chart.js";
import { useLoaded } from "../parts/loaded.js";
import { useMemo } from "../vendor/hooks.js";
import { h } from "../vendor/preact.js";
import { computed } from "../vendor/signals.js";
import { latency, percent, rate, usd } from "../words/numbers.js";
import { timeOf } from "../words/times.js";
import { ask, range, RANGES } from "./route.js";

/**
 * @typedef {import("../data/shapes.js").History} History
 * @typedef {import("../data/shapes.js").Series} Series
 * @typedef {import("../parts/chart.js").Line} Line
 */

/** How often each range is requested again. @type {Record<string, number>} */
const EVERY_MS = { "15m": 5_000, "1h": 10_000, "24h": 60_000, "30d": 300_000 };

/** The range of all charts. */
export function RangePicker() {
  return h("div", { class: "ranges", role: "group", "aria-label": "Time range" }, RANGES.map(([value, words]) =>
    h("button", { type: "button", key: value, class: "quiet", "aria-pressed": String(range.value === value), onClick: () => ask({ range: value }) }, words)));
}

/** While the stream delivers each new sample, the rest is requested less often. */
const STREAMED_MS = 120_000;
const streamed = computed(() => link.value.way !== "polling");

/**
 * The history of one component, or of all, in the range of all charts.
 * @param {string} component empty: all
 * @param {string} [wanted] another range
 */
export function useHistory(component, wanted) {
  const one = wanted ?? range.value, short = one === "15m" || one === "1h";
  const every = streamed.value && short ? STREAMED_MS : EVERY_MS[one] ?? 10_000;
  const { content, failure } = useLoaded(`${component} ${one}`, () => past(one, component ? [component] : []), every, marks.value);
  const newer = short ? points.value : [];
  return { content: useMemo(() => content && withPoints(content, newer), [content, newer]), failure };
}

/** @type {Record<string, string>} */
const TONES = { alert: "critical", circuit: "critical", act: "info", deploy: "ok" };

/**
 * Rate, errors and latency; for the database also the pool, for a service also the money.
 * @param {{history: History, component: string}} props
 */
export function Charts({ history, component }) {
  const series = history.series[component];
  const plots = useMemo(() => (series === undefined ? [] : plotsOf(history, series)), [history]);
  if (series === undefined) return h("p", { class: "soft" }, "There is no data for this period.");
  const marks = history.marks.filter((one) => one.kind === "deploy" || one.component === component || one.component.startsWith(`${component}/`))
    .map((one) => ({ at: (timeOf(one.at) ?? 0) / 1000, words: one.text, tone: TONES[one.kind] ?? "muted" }));
  return h("div", { class: "charts" }, plots.map((plot) => h(Chart, { ...plot, marks, key: plot.title })));
}

/** A line with more points than this looks like noise, so finer samples are grouped. */
const POINTS = 180;

/**
 * @param {History} history
 * @param {Series} series
 */
function plotsOf(history, series) {
  const since = (timeOf(history.since) ?? 0) / 1000, until = (timeOf(history.until) ?? 0) / 1000;
  const size = history.step_s < 60 ? Math.max(3, stride(series.calls.length, POINTS)) : stride(series.calls.length, 2 * POINTS), step = size * history.step_s;
  const calls = inStretches(series.calls, size, sum), failed = inStretches(series.failed, size, sum);
  const times = calls.map((_, place) => until - (calls.length - place) * step);
  /** @param {(number | null)[]} values */
  const perSecond = (values) => values.map((one) => (one === null ? null : one / step));
  /** Without calls there is no latency; undefined bridges the line instead of breaking it. @param {(number | null)[]} values */
  const timed = (values) => values.map((one, at) => (one === null && calls[at] === 0 ? undefined : one));
  /** @type {{title: string, lines: Line[], write: (value: number) => string, most?: number}[]} */
  const plots = [
    { title: "Rate", write: rate, lines: [
      { name: "calls", values: perSecond(calls), tone: "info", fill: true },
      { name: "refused", values: perSecond(inStretches(series.refused, size, sum)), tone: "muted", dash: true }] },
    { title: "Errors", write: percent, most: 0.1, lines: [
      { name: "failed", values: failed.map((one, at) => shareOf(one, calls[at])), tone: "critical", fill: true }] },
    { title: "Latency", write: latency, lines: [
      { name: "p50", values: timed(inStretches(series.p50, size, mean)), tone: "info" },
      { name: "p95", values: timed(inStretches(series.p95, size, most)), tone: "warning" }] },
  ];
  if (series.spent) {
    let all = 0;
    const spent = inStretches(series.spent.map((one) => (one === null ? null : Number(one))), size, sum);
    const grown = spent.map((one) => (one === null ? null : (all += one)));
    plots.push({ title: "Spent in this period", write: (one) => usd(String(Number(one.toFixed(6)))), lines: [{ name: "total", values: grown, tone: "ok", fill: true }] });
  }
  if (series.used) {
    plots.push({ title: "Pool", write: (one) => String(Math.round(one)), lines: [
      { name: "in use", values: inStretches(series.used, size, most), tone: "info", fill: true },
      { name: "waiting", values: inStretches(series.waiting ?? [], size, most), tone: "warning" },
      { name: "limit", values: inStretches(series.places ?? [], size, most), tone: "muted", dash: true }] });
  }
  return plots.map((plot) => ({ ...plot, times, span: /** @type {[number, number]} */ ([since, until]) }));
}

/**
 * @param {number | null} part
 * @param {number | null} whole
 */
const shareOf = (part, whole) => (part === null || whole === null ? null : whole > 0 ? part / whole : 0);
