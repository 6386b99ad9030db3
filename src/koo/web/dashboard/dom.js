// @ts-check
// The page as a function of the data: `h` describes an element, `patch` makes the document so and touches nothing that is
// right already. So a focused button stays focused, a selected text stays selected, and a screen reader hears only changes.
// Strings become text nodes, never markup: a model may be called `<img onerror=…>`.

/**
 * @typedef {{tag: string, key: string | null, attributes: Record<string, unknown>, children: Child[]}} Wanted
 * @typedef {Wanted | string | number | null | false | undefined} Piece
 * @typedef {Piece | Child[]} Child
 */

const SVG = "http://www.w3.org/2000/svg";

/** @type {WeakMap<Element, Wanted>} what an element was made from */
const made = new WeakMap();

/**
 * An element. `attributes.key` names it among its siblings, so that it stays itself when others come and go;
 * `attributes.style` is an object of CSS properties (an attribute would be refused by the content security policy).
 * @param {string} tag
 * @param {Record<string, unknown>} [attributes]
 * @param {...Child} children
 * @returns {Wanted}
 */
export function h(tag, attributes = {}, ...children) {
  const { key = null, ...rest } = attributes;
  return { tag, key: /** @type {string | null} */ (key), attributes: rest, children };
}

/**
 * Make the children of `parent` these.
 * @param {Element} parent
 * @param {Child[]} wanted
 */
export function patch(parent, wanted) {
  const keyed = keyedChildren(parent);
  /** @type {ChildNode | null} */
  let at = parent.firstChild;
  for (const piece of flatten(wanted)) {
    const found = typeof piece === "string" ? textAt(at) : elementFor(piece, at, keyed);
    const node = found ?? create(piece, parent);
    if (node === at) at = at.nextSibling;
    else parent.insertBefore(node, at);
    if (typeof piece !== "string") update(/** @type {Element} */ (node), piece);
    else if (node.nodeValue !== piece) node.nodeValue = piece;
  }
  while (at !== null) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

/** @param {Element} parent */
function keyedChildren(parent) {
  /** @type {Map<string, Element>} */
  const keyed = new Map();
  for (const child of parent.children) {
    const key = made.get(child)?.key;
    if (key != null) keyed.set(key, child);
  }
  return keyed;
}

/** @param {ChildNode | null} at */
function textAt(at) {
  return at !== null && at.nodeType === Node.TEXT_NODE ? at : null;
}

/**
 * The element that is there already for `piece`, if there is one.
 * @param {Wanted} piece
 * @param {ChildNode | null} at
 * @param {Map<string, Element>} keyed
 * @returns {Element | null}
 */
function elementFor(piece, at, keyed) {
  const found = piece.key !== null ? keyed.get(piece.key) : at;
  if (!(found instanceof Element)) return null;
  const before = made.get(found);
  if (before === undefined || before.tag !== piece.tag || before.key !== piece.key) return null;
  if (piece.key !== null) keyed.delete(piece.key);
  return found;
}

/**
 * @param {Wanted | string} piece
 * @param {Element} parent
 * @returns {ChildNode}
 */
function create(piece, parent) {
  if (typeof piece === "string") return document.createTextNode(piece);
  return document.createElementNS(piece.tag === "svg" ? SVG : parent.namespaceURI, piece.tag);
}

/**
 * @param {Element} element
 * @param {Wanted} piece
 */
function update(element, piece) {
  const before = made.get(element)?.attributes ?? {};
  for (const name of Object.keys(before)) {
    if (!(name in piece.attributes)) element.removeAttribute(name);
  }
  for (const [name, value] of Object.entries(piece.attributes)) {
    if (name === "style") setStyle(/** @type {HTMLElement} */ (element), value);
    else if (value === null || value === undefined || value === false) element.removeAttribute(name);
    else if (value !== before[name]) element.setAttribute(name, value === true ? "" : String(value));
  }
  made.set(element, piece);
  patch(element, piece.children);
}

/**
 * @param {HTMLElement} element
 * @param {unknown} properties
 */
function setStyle(element, properties) {
  for (const [name, value] of Object.entries(/** @type {Record<string, string>} */ (properties))) {
    if (element.style.getPropertyValue(name) !== value) element.style.setProperty(name, value);
  }
}

/**
 * @param {Child[]} children
 * @returns {(Wanted | string)[]}
 */
function flatten(children) {
  /** @type {(Wanted | string)[]} */
  const flat = [];
  for (const child of children) {
    if (Array.isArray(child)) flat.push(...flatten(child));
    else if (typeof child === "number") flat.push(String(child));
    else if (child) flat.push(child);
  }
  return flat;
}
