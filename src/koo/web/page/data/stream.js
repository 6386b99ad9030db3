// @ts-check
// Delivers events to the store, and keeps track of their age and of the connection's state.
//
// One stream per browser: the tab that holds a web lock listens to the server and passes events to the other tabs. Without
// locks (a host name over plain HTTP), each tab listens while it is visible. Without a stream (an older server, a proxy
// that blocks it, too many listeners) the page polls: every two seconds while it is visible, every fifteen while it is
// hidden, so that its icon stays correct. After a failure the pauses double up to ten seconds; they end immediately when
// the tab becomes visible or the network returns. The last state is always kept: old numbers that show their age are more
// useful than none.

import { Failure, look } from "./api.js";
import { apply, forget, link, tick, whole, wholeOf } from "./store.js";

export const EVERY_MS = 2_000;
export const HIDDEN_MS = 15_000;
export const RETRY_MS_MAX = 10_000;
/**
 * How late a response may be before the state counts as stale. Longer than the five seconds that the server waits for a
 * database that does not respond: in that situation in particular, the page must not turn grey between two responses.
 */
export const GRACE_MS = 6_000;
/** If the stream is silent for this long, the page polls once to find out whether the server is alive. */
export const SILENT_MS = 10_000;
/** After two failed streams, the pause before the next attempt. */
export const STREAM_AGAIN_MS = 60_000;
const KINDS = ["whole", "part", "mark", "point", "request", "requests"];

/**
 * How long to wait after a response, or after this many failures.
 * @param {number} failures in a row
 * @param {boolean} hidden
 */
export function pauseMs(failures, hidden) {
  const retry = failures === 0 ? EVERY_MS : Math.min(EVERY_MS * 2 ** (failures - 1), RETRY_MS_MAX);
  return hidden ? Math.max(retry, HIDDEN_MS) : retry;
}

/**
 * @param {import("./store.js").Link} link
 * @param {boolean} known there is a state to show
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
  /** @param {string} address the stream's URL, also its name among the tabs; empty: the server has none */
  constructor(address) {
    this.address = address;
    this.failures = 0;
    this.asking = false;
    this.again = false;
    this.known = false;
    this.timer = 0;
    /** Incremented by `forget`: a response to a request of an earlier era is dropped, or it would bring back what was forgotten. */
    this.era = 0;
    this.refused = 0;
    /** No stream is opened before this time. */
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

  /** Join this browser's tabs. The one that gets the lock listens for all of them. */
  join() {
    if (this.address === "" || !("locks" in navigator) || !("BroadcastChannel" in window)) return;
    const tabs = (this.tabs = new BroadcastChannel(`koo ${this.address}`));
    tabs.addEventListener("message", ({ data: [kind, value] }) => {
      if (kind === "whole?") {
        if (this.leads && this.known && link.value.state === "live") tabs.postMessage(["whole", whole()]);
      } else if (!this.leads) this.take(kind, value, "another tab");
    });
    tabs.postMessage(["whole?", null]);
    // The tabs use a lock and not an election by messages: the browser passes it to the next tab even if this one
    // crashes, and two tabs can never both believe that they lead. The promise below never settles, so the lock is held
    // until the tab closes.
    void navigator.locks.request(`koo ${this.address}`, async () => {
      this.leads = true;
      this.listen();
      await new Promise(() => {});
    });
  }

  /** Open the stream, if that is this tab's task. */
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
    source.addEventListener("end", broken); // the server is shutting down, or the session has ended
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
    // A part without the whole state would show a page with one service and no database.
    if (kind !== "whole" && !this.known) return;
    apply(kind, data);
    this.known = true;
    this.failures = 0;
    this.say({ failure: null, cameAt: Date.now(), way });
    if (way !== "polling") this.plan();
  }

  /** @param {Partial<import("./store.js").Link>} [more] what has changed in the link */
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

  /** Poll without waiting for the next turn; if a request is running, right after it. */
  askNow() {
    if (this.asking) this.again = true;
    else void this.turn();
  }

  /** Forget the state and poll again, now without a session. */
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
      // A response of another shape: the server is alive, but its numbers cannot be trusted.
      const failure = error instanceof Failure ? error
        : new Failure(`this page cannot show the server's response (${error}); reload the page, or use koo status`, 200);
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
    if (link.value.failure?.status === 401 && !this.again) return; // a token must be entered first
    // A stream that is open but has sent nothing does not count: a proxy may hold its events back.
    const told = link.value.way !== "polling";
    const pause = this.again ? 0 : told && this.failures === 0 ? SILENT_MS : pauseMs(this.failures, document.hidden);
    link.value = { ...link.value, dueAt: Date.now() + pause };
    this.timer = window.setTimeout(() => this.askNow(), pause);
  }
}
