// The API description as a page. Reads openapi.json and writes text nodes only; nothing is ever parsed as HTML.
// @ts-check

const METHODS = ["get", "post", "put", "patch", "delete"];

/** An element with attributes and children; strings become text. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Text with `code` marked, in paragraphs. */
function prose(text) {
  return (text || "").split(/\n\s*\n/).filter(Boolean).map((paragraph) => {
    const pieces = paragraph.replace(/\s*\n\s*/g, " ").split("`");
    return make("p", {}, ...pieces.map((piece, place) => (place % 2 ? make("code", {}, piece) : piece)));
  });
}

function resolve(api, schema) {
  return schema && schema.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema || {};
}

function typeOf(api, schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map((one) => typeOf(api, one)).join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${typeOf(api, schema.items) || "anything"}`;
  return schema.type || "";
}

function boundsOf(schema) {
  const words = { minimum: "at least", exclusiveMinimum: "above", maximum: "at most", maxLength: "length at most",
    minLength: "length at least", maxItems: "at most", minItems: "at least" };
  const all = [schema, ...(schema.anyOf || [])];
  return all.flatMap((one) => Object.keys(words).filter((key) => key in one).map((key) => `${words[key]} ${one[key]}`)).join(", ");
}

function table(heads, rows) {
  return make("table", {},
    make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", {}, cell))))));
}

function fieldsOf(api, schema) {
  const { properties = {}, required = [] } = resolve(api, schema);
  const rows = Object.entries(properties).map(([name, field]) => [
    make("code", {}, name),
    typeOf(api, field) + (required.includes(name) ? ", required" : ""),
    [field.description, boundsOf(field)].filter(Boolean).join("; "),
  ]);
  return rows.length ? table(["field", "type", "meaning"], rows) : null;
}

function exampleOf(api, content) {
  const example = content.example ?? resolve(api, content.schema).example;
  if (example === undefined) return null;
  return make("pre", { tabindex: "0" }, typeof example === "string" ? example : JSON.stringify(example, null, 2));
}

/** A command to paste. It contains the token's variable if the server requires one, and formats the response. */
function curlOf(api, method, path, operation) {
  const url = new URL(`.${path}`, document.baseURI).href;
  const lines = [["curl", ...(method === "get" ? [] : ["-X", method.toUpperCase()]), url, "-sS"].join(" ")];
  if (operation.security?.length) lines.push('-H "Authorization: Bearer $KOO_TOKEN"');
  const body = operation.requestBody?.content?.["application/json"];
  const example = body && (body.example ?? resolve(api, body.schema).example);
  if (example && operation.requestBody.required) {
    lines.push("-H 'Content-Type: application/json'", `-d '${JSON.stringify(example).replaceAll("'", "'\\''")}'`);
  }
  const readable = operation.responses["200"]?.content?.["application/json"] ? " | python3 -m json.tool" : "";
  return lines.join(" \\\n  ") + readable;
}

/** The command, and a button that copies it. */
function lineToCopy(line) {
  const code = make("pre", { tabindex: "0" }, line);
  const button = make("button", { type: "button", class: "copy" }, "Copy");
  button.addEventListener("click", async () => {
    button.textContent = (await copy(line, code)) ? "Copied" : "Press Ctrl-C";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  return make("div", { class: "line" }, code, button);
}

/** Browsers allow the clipboard only on loopback and over TLS; elsewhere the command is at least selected. */
async function copy(line, shown) {
  try {
    await navigator.clipboard.writeText(line);
    return true;
  } catch {
    getSelection().selectAllChildren(shown);
    return document.execCommand("copy");
  }
}

function section(title, ...children) {
  const shown = children.filter((child) => child !== null);
  return shown.length ? [make("h3", {}, title), ...shown] : [];
}

function responsesOf(api, responses) {
  const rows = Object.entries(responses).map(([status, one]) => [
    make("code", {}, status), one.description || "", Object.keys(one.content || {}).join(", ")]);
  return table(["status", "meaning", "as"], rows);
}

function operationOf(api, method, path, operation) {
  const parameters = (operation.parameters || []).map((one) => [
    make("code", {}, one.name), `${typeOf(api, one.schema)}, in the ${one.in}${one.required ? ", required" : ""}`,
    one.description || ""]);
  const body = operation.requestBody?.content?.["application/json"];
  const answer = Object.values(operation.responses["200"]?.content || {})[0];
  return make("details", { id: operation.operationId },
    make("summary", {}, make("span", { class: `method ${method}` }, method.toUpperCase()), make("code", {}, path),
      make("span", {}, operation.summary || "")),
    make("div", { class: "body" },
      ...prose(operation.description),
      ...section("Try it", lineToCopy(curlOf(api, method, path, operation))),
      ...section("Parameters", parameters.length ? table(["name", "type", "meaning"], parameters) : null),
      ...section("Body", body ? fieldsOf(api, body.schema) : null),
      ...section("Answer", answer ? exampleOf(api, answer) : null, answer ? fieldsOf(api, answer.schema) : null),
      ...section("Status", responsesOf(api, operation.responses))));
}

function operationsOf(api) {
  return Object.entries(api.paths).flatMap(([path, one]) =>
    METHODS.filter((method) => method in one).map((method) => ({ method, path, operation: one[method] })));
}

function show(api) {
  const about = document.getElementById("about");
  about.replaceWith(...prose(api.info.description),
    make("p", {}, `Version ${api.info.version}. As data: `, make("a", { href: "openapi.json" }, "openapi.json")));
  const main = document.getElementById("operations");
  const list = make("ul");
  for (const tag of api.tags || []) {
    main.append(make("h2", {}, tag.name), ...prose(tag.description));
    for (const { method, path, operation } of operationsOf(api)) {
      if (!operation.tags?.includes(tag.name)) continue;
      main.append(operationOf(api, method, path, operation));
      list.append(make("li", {}, make("a", { href: `#${operation.operationId}` }, operation.summary || path)));
    }
  }
  document.getElementById("contents").append(list);
  open();
}

/** Open the operation named in the URL. */
function open() {
  const named = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (named instanceof HTMLDetailsElement) {
    named.open = true;
    named.scrollIntoView();
  }
}

addEventListener("hashchange", open);
try {
  const answer = await fetch("openapi.json");
  if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  show(await answer.json());
} catch (error) {
  document.getElementById("about").textContent = `The API description could not be read: ${error.message}`;
}
