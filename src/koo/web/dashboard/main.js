// @ts-check
// Starts the page: one feed, one render, a few buttons. Everything shown comes out of `render`, each second and after
// each answer, so that no part of the page can be older than another.

import { keepToken, look, readToken } from "./api.js";
import { checkNow } from "./checks.js";
import { ActDialog } from "./dialog.js";
import { patch } from "./dom.js";
import { Feed } from "./feed.js";
import { refreshFolds } from "./folds.js";
import { endOf, hushOf } from "./hush.js";
import { goToPlace } from "./places.js";
import { resetOf } from "./reset.js";
import { loadRunbook } from "./runbook.js";
import { favicon, glyph, UNREADABLE } from "./shapes.js";
import { below, content, link, verdict, verdictOf } from "./view.js";
import { capital } from "./words.js";

/** @param {string} id */
const part = (id) => /** @type {HTMLElement} */ (document.getElementById(id));
const icon = /** @type {HTMLLinkElement} */ (document.querySelector("link[rel=icon]"));
const tokenField = /** @type {HTMLInputElement} */ (part("token"));
/** In whose application koo is mounted; empty: in none, or it has no name. */
const application = document.documentElement.dataset.application ?? "";

const feed = new Feed(look, render);
const resets = new ActDialog("reset", feed);
const hushes = new ActDialog("hush", feed);

function render() {
  document.documentElement.dataset.link = feed.link;
  patch(part("link"), link(feed));
  try {
    show(verdictOf(feed), verdict(feed), below(feed), content(feed));
    resets.render();
    hushes.render();
  } catch (error) {
    // An answer of another shape: numbers that are half new and half old would be believed.
    const words = `This page cannot show the server's answer (${error}). Reload it; koo status shows the same.`;
    show(UNREADABLE, [words], [], []);
  }
  renderToken();
}

/**
 * @param {import("./shapes.js").Look} look
 * @param {import("./dom.js").Child[]} verdict
 * @param {import("./dom.js").Child[]} below
 * @param {import("./dom.js").Child[]} content
 */
function show(look, verdict, below, content) {
  const title = [`${glyph(look)} ${capital(look.word)}`, application, "koo"].filter(Boolean).join(" · ");
  if (document.title !== title) document.title = title;
  if (icon.href !== favicon(look)) icon.href = favicon(look);
  part("verdict").className = look.tone;
  patch(part("verdict"), verdict);
  patch(part("below"), below);
  showContent(content);
}

/** @param {import("./dom.js").Child[]} content */
function showContent(content) {
  const isFirst = part("content").childElementCount === 0 && content.length > 0;
  const focused = document.activeElement;
  patch(part("content"), content);
  // A card that moves up because it is the worst now takes its focused button along; the browser forgets the focus.
  if (focused instanceof HTMLElement && focused.isConnected) focused.focus({ preventScroll: true });
  if (isFirst && feed.snapshot) goToPlace(feed.snapshot.dashboard);
}

function renderToken() {
  const locked = feed.link === "locked", form = part("sign-in");
  if (locked && form.hidden) {
    part("sign-in-why").textContent = readToken() ? capital(`${feed.failure?.message}.`) : "";
    keepToken("");
  }
  if (form.hidden === locked) {
    form.hidden = !locked;
    if (locked) tokenField.focus();
  }
  part("forget").hidden = readToken() === "";
}

part("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken(tokenField.value.trim());
  tokenField.value = "";
  part("sign-in").hidden = true;
  feed.askNow();
});

part("forget").addEventListener("click", () => {
  keepToken("");
  feed.forget();
});

document.addEventListener("click", (event) => {
  const button = event.target instanceof Element ? event.target.closest("button") : null;
  if (button?.dataset.act === "again") feed.askNow();
  if (button?.dataset.check) void checkNow(button.dataset.check, feed);
  if (button?.dataset.reset === "database") resets.open(resetOf({ kind: "database" }));
  if (button?.dataset.reset === "service") resets.open(resetOf({ kind: "service", name: button.dataset.name ?? "" }));
  if (button?.dataset.hush) hush(button.dataset.hush, button.dataset.id ?? "");
});

/**
 * @param {string} name
 * @param {string} id of the alert, or of the silence that is to end
 */
function hush(name, id) {
  const alert = feed.snapshot?.dashboard.alerts.find((one) => one.id === id);
  if (name === "unsilence") hushes.open(endOf(id));
  else if (alert) hushes.open(hushOf(/** @type {import("./hush.js").Name} */ (name), alert));
}

// It does not bubble, but can be heard on its way down.
document.addEventListener("toggle", () => refreshFolds(render), true);
window.addEventListener("hashchange", () => feed.snapshot && goToPlace(feed.snapshot.dashboard));

part("application").textContent = application || "koo";
part("host").textContent = application ? `koo · ${location.host}` : location.host;
feed.start();
void loadRunbook(render);
window.setInterval(() => (render(), refreshFolds(render)), 1000);
