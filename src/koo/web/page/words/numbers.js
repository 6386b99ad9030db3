// @ts-check
// Numbers formatted for people. The terminal uses the same rules (koo/cli/words.py); tests/words.json has examples for
// both.

import { span } from "./times.js";

const COUNT = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/**
 * A latency: "1.8 ms", "240 ms", "2.4 s".
 * @param {number} seconds
 */
export function latency(seconds) {
  if (seconds >= 99.95) return span(seconds * 1000);
  if (seconds >= 0.9995) return `${seconds.toFixed(1)} s`;
  const ms = seconds * 1000;
  return ms >= 9.95 ? `${Math.round(ms)} ms` : `${ms.toFixed(1)} ms`;
}

/**
 * "98.4 %". Never rounded up: 100 % means that nothing failed.
 * @param {number} ratio
 */
export function percent(ratio) {
  const tenths = Math.floor(ratio * 1000 + 1e-9) / 10;
  return `${Number.isInteger(tenths) ? tenths : tenths.toFixed(1)} %`;
}

/** @param {number} number */
export function count(number) {
  return COUNT.format(number);
}

/**
 * "1 alert", "2 alerts".
 * @param {number} number
 * @param {string} one
 * @param {string} [many]
 */
export function counted(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

/**
 * Money, rounded for people. An amount too small for six digits is shown as more than zero; the exact amount belongs next
 * to it (`title`).
 * @param {string} exact a decimal number
 */
export function usd(exact) {
  const amount = Number(exact);
  if (!Number.isFinite(amount)) return exact;
  const size = Math.abs(amount), sign = amount < 0 ? "-" : "";
  if (size > 0 && size < 0.000001) return `${sign}<$0.000001`;
  const [whole, cents = ""] = size.toFixed(size > 0 && size < 0.01 ? 6 : 4).split(".");
  return `${sign}$${COUNT.format(Number(whole))}.${cents.replace(/0+$/, "").padEnd(2, "0")}`;
}

/**
 * A rate per second, minute or hour, whichever is easiest to read: "12 /s", "3.4 /min", "0 /min".
 * @param {number} per_s
 */
export function rate(per_s) {
  if (per_s >= 1) return `${per_s >= 9.95 ? count(per_s) : per_s.toFixed(1)} /s`;
  const per_min = per_s * 60;
  if (per_min === 0 || per_min >= 0.95) return `${per_min >= 9.95 || per_min === 0 ? count(per_min) : per_min.toFixed(1)} /min`;
  return `${Math.max(0.1, per_min * 60).toFixed(1)} /h`;
}
