// Shared by both parts of the page: elements, calls to the service, errors.
//
// Texts come from data and from a language model: they enter the page as text, never as markup.
// Tokens are only kept in their fields; nothing is stored.

const SHOWN_CALLS = 10;

// lists: what to compare, each with a name, an arm and the keys of a request that select it; without
// keys it is what the service answers by default.
export const state = { served: null, lists: [], titles: new Map() };

export const byId = (id) => document.getElementById(id);

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children); // strings become text nodes
  return made;
}

export function say(id, text) { byId(id).textContent = text; }

export class Failure extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export function named(version) { return `v${version}`; }

function versionOf(body) {
  return body?.store_version ?? (body?.current ? named(body.current) : "");
}

function note(label, status, milliseconds, body, requestId) {
  const row = element("tr", {},
    element("th", { scope: "row" }, label),
    element("td", {}, String(status)),
    element("td", { class: "number" }, milliseconds.toFixed(1)),
    element("td", {}, versionOf(body)),
    element("td", { class: "id" }, requestId ?? ""));
  byId("calls").prepend(row);
  while (byId("calls").children.length > SHOWN_CALLS) byId("calls").lastElementChild.remove();
}

export async function call(method, path, label, { body, tokenField = "token" } = {}) {
  const headers = {};
  const token = byId(tokenField).value.trim();
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const started = performance.now();
  let response;
  try {
    response = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  } catch {
    note(label, "none", performance.now() - started, null, "");
    throw new Failure(0, "unreachable", "The service cannot be reached.");
  }
  const answer = await response.json().catch(() => null);
  const milliseconds = performance.now() - started;
  // Ray Serve adds the header again.
  const [requestId] = (response.headers.get("X-Request-ID") ?? "").split(",");
  note(label, response.status, milliseconds, answer, requestId);
  if (!response.ok) {
    const error = answer?.error ?? {};
    throw new Failure(response.status, error.code ?? "", error.message ?? `The service answered ${response.status}.`);
  }
  return { answer, milliseconds };
}

export function problem(target, error) {
  const id = target === "problem" ? "token" : "admin-token";
  say(target, error.code ? `${error.message} (${error.code})` : error.message);
  if (error.status !== 401) return;
  if (target === "problem") byId("access").open = true;
  byId(id).focus();
}

export function showServed(version) {
  state.served = version;
  say("served", `Served now: ${named(version)}.`);
}
