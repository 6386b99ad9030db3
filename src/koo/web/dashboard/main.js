// @ts-check
// Starts the page: one feed, one render, a few buttons. Everything shown comes out of `render`, each second and after
// each answer, so that no part of the page can be older than another.

import { keepToken, look, readToken } from "./api.js";
import { patch } from "./dom.js";
import { Feed } from "./feed.js";
import { ResetDialog } from "./reset.js";
import { favicon, glyph, UNREADABLE } from "./shapes.js";
import { below, content, link, verdict, verdictOf } from "./view.js";
import { capital } from "./words.js";

/** @param {string} id */
const part = (id) => /** @type {HTMLElement} */ (document.getElementById(id));
const icon = /** @type {HTMLLinkElement} */ (document.querySelector("link[rel=icon]"));
const tokenField = /** @type {HTMLInputElement} */ (part("token"));

const feed = new Feed(look, render);
const dialog = new ResetDialog(feed);

function render() {
  document.documentElement.dataset.link = feed.link;
  patch(part("link"), link(feed));
  try {
    show(verdictOf(feed), verdict(feed), below(feed), content(feed));
    dialog.render();
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
  const title = `${glyph(look)} ${capital(look.word)} · koo`;
  if (document.title !== title) document.title = title;
  if (icon.href !== favicon(look)) icon.href = favicon(look);
  part("verdict").className = look.tone;
  patch(part("verdict"), verdict);
  patch(part("below"), below);
  patch(part("content"), content);
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
  if (button?.dataset.reset === "database") dialog.open({ kind: "database" });
  if (button?.dataset.reset === "service") dialog.open({ kind: "service", name: button.dataset.name ?? "" });
});

part("host").textContent = location.host;
feed.start();
window.setInterval(render, 1000);
