// @ts-check
// Starts the page: the events, the route and the component tree. Nothing else.

import { runbook as read } from "./data/api.js";
import { link, tick } from "./data/store.js";
import { Stream } from "./data/stream.js";
import { h, render } from "./vendor/preact.js";
import { effect } from "./vendor/signals.js";
import { asking } from "./views/acts.js";
import { runbook } from "./views/alerts.js";
import { verdict } from "./views/now.js";
import { follow } from "./views/route.js";
import { Shell } from "./views/shell.js";
import { favicon, glyph } from "./words/looks.js";
import { capital } from "./words/text.js";

const { application = "", environment = "", docs = "", live = "", login = "", logout = "" } = document.documentElement.dataset;
const icon = /** @type {HTMLLinkElement} */ (document.querySelector("link[rel=icon]"));
const stream = new Stream(live && new URL(live, document.baseURI).href);
asking.now = () => stream.askNow();

effect(() => {
  const look = verdict.value;
  document.title = [`${glyph(look)} ${capital(look.word)}`, application, environment, "koo"].filter(Boolean).join(" · ");
  icon.href = favicon(look);
});

// Numbers that may be outdated are grey, wherever they are.
effect(() => {
  const { state } = link.value, old = state === "stale" || state === "lost" || state === "locked";
  document.documentElement.className = old ? `old ${state}` : "";
});

follow();
tick();
const app = /** @type {HTMLElement} */ (document.getElementById("app"));
app.replaceChildren(); // what was shown before the scripts were loaded
render(h(Shell, { application, environment, docs, login, logout, stream }), app);
stream.start();
read().then((all) => (runbook.value = all), () => {}); // optional: the page is complete without it
