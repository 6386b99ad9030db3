// @ts-check
// Numbers and times as people read them. All pure: the time is an argument, in milliseconds since 1970.
// The terminal writes numbers by the same rules (koo/cli/words.py); tests/words.json has examples for both.

const COUNT = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const ISO = /\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)/g;

/**
 * A time of the server's as milliseconds; null for none.
 * @param {string | null | undefined} iso
 * @returns {number | null}
 */
export function timeOf(iso) {
  if (!iso) return null;
  const ms = Date.parse(iso.replace(/(\.\d{3})\d+/, "$1")); // not every browser reads microseconds
  return Number.isNaN(ms) ? null : ms;
}

/**
 * "14:02:11" here; with its date if that is another day than `now`.
 * @param {number} ms
 * @param {number} now
 */
export function clock(ms, now) {
  const then = new Date(ms);
  const time = [then.getHours(), then.getMinutes(), then.getSeconds()].map(two).join(":");
  if (then.toDateString() === new Date(now).toDateString()) return time;
  return `${then.getFullYear()}-${two(then.getMonth() + 1)}-${two(then.getDate())} ${time}`;
}

/** @param {number} number */
function two(number) {
  return String(number).padStart(2, "0");
}

/**
 * How long, in the two largest units: "42 s", "6 min", "3 h 5 min", "2 d 4 h".
 * @param {number} ms
 */
export function span(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 100) return `${s} s`;
  const min = Math.round(s / 60);
  if (min < 60) return `${min} min`;
  if (min < 24 * 60) return join(Math.floor(min / 60), "h", min % 60, "min");
  const hours = Math.round(min / 60);
  return join(Math.floor(hours / 24), "d", hours % 24, "h");
}

/**
 * @param {number} large
 * @param {string} largeUnit
 * @param {number} small
 * @param {string} smallUnit
 */
function join(large, largeUnit, small, smallUnit) {
  return small ? `${large} ${largeUnit} ${small} ${smallUnit}` : `${large} ${largeUnit}`;
}

/**
 * "in 42 s"; "now" once it has come. Rounded up, so that it never says 0 while one has to wait.
 * @param {number} ms
 * @param {number} now
 */
export function until(ms, now) {
  return ms <= now ? "now" : `in ${span(Math.ceil((ms - now) / 1000) * 1000)}`;
}

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
 * Money for the eye, what is too small for six digits is said to be more than nothing; the exact amount belongs beside it
 * (`title`).
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
 * A sentence of the server's with its times as people read them.
 * @param {string} text
 * @param {number} now
 */
export function plainly(text, now) {
  return text.replace(ISO, (iso) => {
    const ms = timeOf(iso);
    return ms === null ? iso : `${clock(ms, now)} (${until(ms, now)})`;
  });
}

/**
 * The first time that a sentence names.
 * @param {string} text
 */
export function timeIn(text) {
  return timeOf(text.match(ISO)?.[0]);
}

/** @param {string} text */
export function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/**
 * Whose alert it is, and what it says without saying so again.
 * @param {{component: string, message: string}} alert
 * @param {number} now
 */
export function alertWords({ component, message }, now) {
  const whose = component.replace(/^ai:/, "");
  const said = message.startsWith(`${whose} `) ? message.slice(whose.length + 1) : message;
  return { whose, said: `${capital(plainly(said, now))}.` };
}
