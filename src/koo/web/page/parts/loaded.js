// @ts-check
// What a view requests itself: history, ledger, incidents. It is requested again while it is shown. After a failure the
// last content is kept, with the failure shown next to it.

import { useEffect, useRef, useState } from "../vendor/hooks.js";

/**
 * @template T
 * @typedef {{content: T | null, failure: string}} Loaded
 */

/**
 * @template T
 * @param {string} key what is requested; when it changes, earlier content is dropped
 * @param {() => Promise<T>} load
 * @param {number} everyMs 0: once
 * @param {unknown} [news] when it changes, the content is requested immediately
 * @returns {Loaded<T> & {again: () => void}}
 */
export function useLoaded(key, load, everyMs, news = 0) {
  const [one, set] = useState({ key: "", content: /** @type {T | null} */ (null), failure: "" });
  const latest = useRef({ key, load });
  latest.current = { key, load };
  const ask = async () => {
    // The key may change while a request runs. A late response for the earlier key must not replace the current content.
    const { key, load } = latest.current;
    try {
      const content = await load();
      if (latest.current.key === key) set({ key, content, failure: "" });
    } catch (error) {
      const failure = error instanceof Error ? error.message : String(error);
      if (latest.current.key === key) set((before) => ({ key, content: before.key === key ? before.content : null, failure }));
    }
  };
  useEffect(() => {
    void ask();
    if (everyMs === 0) return undefined;
    const timer = window.setInterval(() => document.hidden || void ask(), everyMs);
    return () => window.clearInterval(timer);
  }, [key, everyMs, news]);
  const own = one.key === key ? one : { content: null, failure: "" };
  return { content: own.content, failure: own.failure, again: () => void ask() };
}
