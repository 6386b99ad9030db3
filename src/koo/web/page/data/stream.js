// @ts-check
// Brings the news into the store, and knows how old and how sure they are.
//
// One stream a browser: the tab that holds a web lock listens to the server and tells the other tabs. Where there are no
// locks (a plain-http name), a tab listens while it is looked at. Without a stream (an older server, a proxy that does not
// let it through, too many listeners) the page asks: every two seconds while somebody looks, every fifteen while the tab is
// hidden, since its icon stays true. After a failure the pauses double up to ten seconds, and end at once when the tab or
// the network comes back. What was seen last is kept through everything: old numbers that say how old they are help more
// than none.

import { Failure, look } from "./api.js";
import { apply, forget, link, tick, whole, wholeOf } from "./store.js";

export const EVERY_MS = 2_000;
export const HIDDEN_MS = 15_000;
export const RETRY_MS_MAX = 10_000;
/**
 * An answer is awaited for so long beyond its turn before its predecessor is called stale. More than the five seconds that
 * the server gives a database that is silent: in that trouble of all the page must not go grey between two answers.
 */
export const GRACE_MS = 6_000;
/** A stream that is silent for so long is asked whether it lives, by asking the server. */
export const SILENT_MS = 10_000;
/** After two streams that failed, the next one is tried so much later. */
export const STREAM_AGAIN_MS = 60_000;
const KINDS = ["whole", "part", "mark", "point", "request", "requests"];

/**
 * How long to wait after an answer or after so many failures.
 * @param {number} failures in a row
 * @param {boolean} hidden
 */
export function pauseMs(failures, hidden) {
  const retry = failures === 0 ? EVERY_MS : Math.min(EVERY_MS * 2 ** (failures - 1), RETRY_MS_MAX);
  return hidden ? Math.max(retry, HIDDEN_MS) : retry;
}

/**
 * @param {import("./store.js").Link} link
 * @param {boolean} known something was seen
 * @param {number} nowMs by this machine's clock
 * @param {boolean} hidden
 * @returns {import("./store.js").LinkState}
 */
export function stateOf(link, known, nowMs, hidden) {
  if (link.failure !== null) return link.failure.status === 401 ? "locked" : "lost";
  if (!known) return "connecting";
  const every = link.way !== "polling" ? SILENT_MS : hidden ? HIDDEN_MS : EVERY_MS;
  return nowMs > link.cameAt + every + GRACE_MS ? "stale" : "live";
}

export class Stream {
  /** @param {string} address of the stream, which also names it among the tabs; empty: the server has none */
  constructor(address) {
    this.address = address;
    this.failures = 0;
    this.asking = false;
    this.again = false;
    this.known = false;
    this.timer = 0;
    /** What was asked in an earlier one is not listened to any more. */
    this.era = 0;
    this.refused = 0;
    /** Streams are not tried before this time. */
    this.streamAt = 0;
    /** @type {EventSource | null} */
    this.source = null;
    /** @type {BroadcastChannel | null} */
    this.tabs = null;
    this.leads = false;
  }

  start() {
    document.addEventListener("visibilitychange", () => {
      if (!this.leads && this.tabs === null && document.hidden) this.hangUp();
      this.askNow();
    });
    window.addEventListener("online", () => this.askNow());
    this.join();
    this.askNow();
    window.setInterval(() => this.second(), 1000);
  }

  /** Become one of this browser's tabs; the one that gets the lock listens for all. */
  join() {
    if (this.address === "" || !("locks" in navigator) || !("BroadcastChannel" in window)) return;
    const tabs = (this.tabs = new BroadcastChannel(`koo ${this.address}`));
    tabs.addEventListener("message", ({ data: [kind, value] }) => {
      if (kind === "whole?") {
        if (this.leads && this.known && link.value.state === "live") tabs.postMessage(["whole", whole()]);
      } else if (!this.leads) this.take(kind, value, "another tab");
    });
    tabs.postMessage(["whole?", null]);
    void navigator.locks.request(`koo ${this.address}`, async () => {
      this.leads = true;
      this.listen();
      await new Promise(() => {}); // until the tab is closed
    });
  }

  /** Open the stream, if this tab is the one to do so. */
  listen() {
    const may = this.leads || (this.tabs === null && !document.hidden);
    if (!may || this.address === "" || this.source !== null || Date.now() < this.streamAt || !this.known) return;
    const source = (this.source = new EventSource(this.address));
    for (const kind of KINDS) {
      source.addEventListener(kind, (event) => {
        const data = JSON.parse(/** @type {MessageEvent} */ (event).data);
        this.refused = 0;
        this.take(kind, data, "stream");
        if (this.leads) this.tabs?.postMessage([kind, data]);
      });
    }
    const broken = () => {
      this.hangUp();
      this.refused += 1;
      if (this.refused >= 2) this.streamAt = Date.now() + STREAM_AGAIN_MS;
      this.say({ way: "polling" });
      this.askNow();
    };
    source.addEventListener("error", broken);
    source.addEventListener("end", broken); // the server ends, or the session does not hold any longer
  }

  hangUp() {
    this.source?.close();
    this.source = null;
  }

  /**
   * @param {string} kind
   * @param {any} data
   * @param {"stream" | "another tab" | "polling"} way
   */
  take(kind, data, way) {
    if (kind !== "whole" && !this.known) return;
    apply(kind, data);
    this.known = true;
    this.failures = 0;
    this.say({ failure: null, cameAt: Date.now(), way });
    if (way !== "polling") this.plan();
  }

  /** @param {Partial<import("./store.js").Link>} [more] what is new of the link */
  say(more = {}) {
    const one = { ...link.value, ...more, asking: this.asking };
    const state = stateOf(one, this.known, Date.now(), document.hidden);
    const before = link.value;
    if (Object.keys(more).length || state !== before.state || one.asking !== before.asking) link.value = { ...one, state };
    tick();
  }

  second() {
    this.say();
  }

  /** Without waiting for the next turn; while an answer is awaited, right after it. */
  askNow() {
    if (this.asking) this.again = true;
    else void this.turn();
  }

  /** Show nothing of what was seen, and ask as a stranger. */
  forget() {
    this.hangUp();
    this.known = false;
    this.era += 1;
    forget();
    this.say({ failure: null });
    this.askNow();
  }

  async turn() {
    window.clearTimeout(this.timer);
    this.asking = true;
    this.again = false;
    const era = this.era;
    this.say();
    try {
      const came = wholeOf(await look());
      if (era === this.era) {
        this.take("whole", came, "polling");
        if (this.leads) this.tabs?.postMessage(["whole", came]);
      }
    } catch (error) {
      this.failures += 1;
      // An answer of another shape is an answer, and not to be believed.
      const failure = error instanceof Failure ? error
        : new Failure(`this page cannot show the server's answer (${error}); reload it, koo status shows the same`, 200);
      if (failure.status === 401) this.hangUp();
      this.say({ failure });
    }
    this.asking = false;
    this.plan();
    this.listen();
    this.say({ dueAt: link.value.dueAt });
  }

  plan() {
    window.clearTimeout(this.timer);
    if (link.value.failure?.status === 401 && !this.again) return; // somebody has to type a token first
    const told = link.value.way !== "polling" || this.source !== null;
    const pause = this.again ? 0 : told && this.failures === 0 ? SILENT_MS : pauseMs(this.failures, document.hidden);
    link.value = { ...link.value, dueAt: Date.now() + pause };
    this.timer = window.setTimeout(() => this.askNow(), pause);
  }
}
