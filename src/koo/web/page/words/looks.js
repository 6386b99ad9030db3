// @ts-check
// How a state looks: always a shape, a word and a colour, so that none of them is the only sign.

/**
 * @typedef {"ok" | "warning" | "critical" | "info" | "none"} Tone
 * @typedef {"circle" | "triangle" | "square" | "diamond" | "half" | "ring"} Shape
 * @typedef {{shape: Shape, tone: Tone, word: string}} Look
 */

/** @type {Record<Shape, {glyph: string, path: string}>} */
export const SHAPES = {
  circle: { glyph: "●", path: "M8 1.5a6.5 6.5 0 1 0 0 13a6.5 6.5 0 1 0 0-13z" },
  triangle: { glyph: "▲", path: "M8 1L15.5 14.5H.5z" },
  square: { glyph: "■", path: "M1.5 1.5h13v13h-13z" },
  diamond: { glyph: "◆", path: "M8 .5L15.5 8L8 15.5L.5 8z" },
  // The outline of a circle with its left half filled: neither closed nor open.
  half: { glyph: "◐", path: "M8 1a7 7 0 1 0 0 14a7 7 0 1 0 0-14zM8 3a5 5 0 0 1 0 10z" },
  ring: { glyph: "○", path: "M8 1a7 7 0 1 0 0 14a7 7 0 1 0 0-14zM8 3.4a4.6 4.6 0 1 1 0 9.2a4.6 4.6 0 1 1 0-9.2z" },
};

/** @type {Record<string, Look>} */
const STATES = {
  healthy: { shape: "circle", tone: "ok", word: "healthy" },
  degraded: { shape: "triangle", tone: "warning", word: "degraded" },
  unhealthy: { shape: "triangle", tone: "warning", word: "unhealthy" },
  circuit_open: { shape: "square", tone: "critical", word: "circuit open" },
  rate_limited: { shape: "triangle", tone: "warning", word: "rate limited" },
};

/** @type {Record<string, Look>} */
const VERDICTS = {
  healthy: { shape: "circle", tone: "ok", word: "healthy" },
  degraded: { shape: "triangle", tone: "warning", word: "degraded" },
  unhealthy: { shape: "square", tone: "critical", word: "unhealthy" },
};

/** @type {Record<string, Look>} */
const BREAKERS = {
  closed: { shape: "circle", tone: "ok", word: "closed" },
  open: { shape: "square", tone: "critical", word: "open" },
  half_open: { shape: "half", tone: "warning", word: "half open" },
  forced_open: { shape: "square", tone: "critical", word: "forced open" },
  disabled: { shape: "ring", tone: "none", word: "disabled" },
};

/** @type {Record<string, Look>} */
const SEVERITIES = {
  critical: { shape: "square", tone: "critical", word: "critical" },
  warning: { shape: "triangle", tone: "warning", word: "warning" },
  info: { shape: "diamond", tone: "info", word: "info" },
};

/** @type {Record<string, Look>} */
const INCIDENTS = {
  open: { shape: "square", tone: "critical", word: "open" },
  recovering: { shape: "half", tone: "warning", word: "recovering" },
  closed: { shape: "circle", tone: "ok", word: "closed" },
  lost: { shape: "ring", tone: "none", word: "lost" },
};

/** @type {Look} */
export const DISCONNECTED = { shape: "ring", tone: "none", word: "disconnected" };
/** @type {Look} */
export const CONNECTING = { shape: "ring", tone: "none", word: "connecting" };
/** @type {Look} */
export const UNREADABLE = { shape: "ring", tone: "none", word: "unknown" };
/** @type {Look} */
export const LOCKED = { shape: "ring", tone: "none", word: "locked" };

/**
 * A word that this page does not have yet is shown unchanged.
 * @param {Record<string, Look>} looks
 * @param {unknown} word
 * @returns {Look}
 */
function find(looks, word) {
  const known = Object.hasOwn(looks, String(word)) ? looks[String(word)] : undefined;
  return known ?? { ...UNREADABLE, word: String(word ?? UNREADABLE.word).replaceAll("_", " ") };
}

/** Service states by severity, the mildest first. A word that this page does not have counts as worse than healthy. */
const TROUBLE = ["healthy", "degraded", "unhealthy", "rate_limited", "circuit_open"];
/** @param {string} state */
export const trouble = (state) => (TROUBLE.includes(state) ? TROUBLE.indexOf(state) : 1);

/** @param {unknown} state */
export const stateLook = (state) => find(STATES, state);
/** @param {unknown} health */
export const verdictLook = (health) => find(VERDICTS, health);
/** @param {unknown} phase */
export const breakerLook = (phase) => find(BREAKERS, phase);
/** @param {unknown} state */
export const incidentLook = (state) => find(INCIDENTS, state);
/** @param {unknown} severity */
export const severityLook = (severity) => find(SEVERITIES, severity);

/**
 * A service or database whose breaker tests its recovery gets the half-filled shape.
 * @param {unknown} state
 * @param {unknown} phase
 */
export function partLook(state, phase) {
  const look = stateLook(state);
  return state === "degraded" && phase === "half_open" ? { ...look, shape: /** @type {Shape} */ ("half") } : look;
}

/** @param {Look} look */
export function glyph(look) {
  return SHAPES[look.shape].glyph;
}

/** A favicon must be visible on light and on dark tabs, so its colours are of medium brightness. @type {Record<Tone, string>} */
const ICON_COLOURS = { ok: "#18a06f", warning: "#e0a100", critical: "#e0402a", info: "#4d83e8", none: "#8a93a0" };

/** @param {Look} look */
export function favicon(look) {
  const path = `<path fill="${ICON_COLOURS[look.tone]}" fill-rule="evenodd" d="${SHAPES[look.shape].path}"/>`;
  return `data:image/svg+xml,${encodeURIComponent(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">${path}</svg>`)}`;
}
