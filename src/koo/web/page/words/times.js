// @ts-check
// Times formatted for people. All pure: the time is an argument, in milliseconds since 1970.

const ISO = /\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)/g;

/**
 * A time of the server as milliseconds; null for none.
 * @param {string | null | undefined} iso
 * @returns {number | null}
 */
export function timeOf(iso) {
  if (!iso) return null;
  const ms = Date.parse(iso.replace(/(\.\d{3})\d+/, "$1")); // not every browser parses microseconds
  return Number.isNaN(ms) ? null : ms;
}

/**
 * "14:02:11" in the browser's time zone; with the date if the day is not that of `now`.
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
 * A duration in its two largest units: "42 s", "6 min", "3 h 5 min", "2 d 4 h".
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
 * "in 42 s", or "now" once it has passed. Rounded up, so that it never shows 0 while there is time left.
 * @param {number} ms
 * @param {number} now
 */
export function until(ms, now) {
  return ms <= now ? "now" : `in ${span(Math.ceil((ms - now) / 1000) * 1000)}`;
}

/**
 * A sentence of the server with its times formatted for people; a time that is over has no distance.
 * @param {string} text
 * @param {number} now
 */
export function plainly(text, now) {
  return text.replace(ISO, (iso) => {
    const ms = timeOf(iso);
    if (ms === null) return iso;
    return ms > now ? `${clock(ms, now)} (${until(ms, now)})` : clock(ms, now);
  });
}

/**
 * The first time in a sentence.
 * @param {string} text
 */
export function timeIn(text) {
  return timeOf(text.match(ISO)?.[0]);
}
