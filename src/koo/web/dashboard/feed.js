// @ts-check
// Feed: asks again and again, and knows how old and how sure the numbers are.
//
// Every two seconds while somebody looks, every fifteen while the tab is hidden (its icon stays true). After a failure
// the pauses double up to ten seconds, and end at once when the tab or the network comes back. The last answer is kept
// through everything: old numbers that say how old they are help more than none.

import { Failure } from "./api.js";
import { timeOf } from "./words.js";

export const EVERY_MS = 2_000;
export const HIDDEN_MS = 15_000;
export const RETRY_MS_MAX = 10_000;
/**
 * An answer is awaited for so long beyond its turn before its predecessor is called stale. More than the five seconds that
 * the server gives a database that is silent: in that trouble of all the page must not go grey between two answers.
 */
export const GRACE_MS = 6_000;

/**
 * connecting: nothing came yet; live; stale: the next answer is late; lost: the last attempt failed; locked: a token is
 * needed.
 * @typedef {"connecting" | "live" | "stale" | "lost" | "locked"} Link
 * @typedef {Awaited<ReturnType<typeof import("./api.js").look>>} Snapshot
 */

/**
 * How long to wait after an answer or after so many failures.
 * @param {number} failures in a row
 * @param {boolean} hidden
 */
export function pauseMs(failures, hidden) {
  const retry = failures === 0 ? EVERY_MS : Math.min(EVERY_MS * 2 ** (failures - 1), RETRY_MS_MAX);
  return hidden ? Math.max(retry, HIDDEN_MS) : retry;
}

export class Feed {
  /**
   * @param {() => Promise<Snapshot>} look
   * @param {() => void} onChange
   */
  constructor(look, onChange) {
    this.look = look;
    this.onChange = onChange;
    /** @type {Snapshot | null} */
    this.snapshot = null;
    /** @type {Failure | null} */
    this.failure = null;
    this.failures = 0;
    this.asking = false;
    /** When the snapshot came and when the next is due, by this machine's clock. */
    this.cameAt = 0;
    this.dueAt = 0;
    /** Milliseconds that the server's clock is ahead of ours: its times are counted down by its own clock. */
    this.aheadMs = 0;
    this.timer = 0;
    /** What was asked in an earlier one is not listened to any more. */
    this.era = 0;
    this.again = false;
  }

  /** @returns {Link} */
  get link() {
    if (this.failure !== null) return this.failure.status === 401 ? "locked" : "lost";
    if (this.snapshot === null) return "connecting";
    return Date.now() > this.cameAt + (document.hidden ? HIDDEN_MS : EVERY_MS) + GRACE_MS ? "stale" : "live";
  }

  /** The server's time now. */
  get now() {
    return Date.now() + this.aheadMs;
  }

  /** The server's time for which the page is true: it stops where the news stop, and with it all countdowns. */
  get shownAt() {
    return this.link === "live" ? this.now : this.cameAt + this.aheadMs;
  }

  start() {
    document.addEventListener("visibilitychange", () => this.askNow());
    window.addEventListener("online", () => this.askNow());
    this.askNow();
  }

  /** Without waiting for the next turn; while an answer is awaited, right after it. */
  askNow() {
    if (this.asking) this.again = true;
    else void this.turn();
  }

  /** Show nothing of what was seen, and ask as a stranger. */
  forget() {
    this.snapshot = null;
    this.era += 1;
    this.onChange();
    this.askNow();
  }

  async turn() {
    window.clearTimeout(this.timer);
    this.asking = true;
    this.again = false;
    const era = this.era;
    try {
      const snapshot = await this.look();
      if (era === this.era) this.take(snapshot);
    } catch (error) {
      this.failures += 1;
      this.failure = error instanceof Failure ? error : new Failure(String(error));
    }
    this.asking = false;
    this.plan();
    this.onChange();
  }

  /** @param {Snapshot} snapshot */
  take(snapshot) {
    this.snapshot = snapshot;
    this.failure = null;
    this.failures = 0;
    this.cameAt = Date.now();
    this.aheadMs = (timeOf(snapshot.dashboard.timestamp) ?? this.cameAt) - this.cameAt;
  }

  plan() {
    if (this.link === "locked" && !this.again) return; // somebody has to type a token first
    const pause = this.again ? 0 : pauseMs(this.failures, document.hidden);
    this.dueAt = Date.now() + pause;
    this.timer = window.setTimeout(() => void this.turn(), pause);
  }
}
