// Recommendations of a user, with and without knowledge, and the knowledge behind them.

import { byId, call, element, problem, say, showServed, state } from "./base.js";

const WITHOUT_KNOWLEDGE = ["base", "fair_base"]; // arms of the method's report

const turns = { asked: 0, opened: 0 }; // an answer that another question overtook is dropped
let opener = null; // the button of the item that is shown

function withKnowledge(variant) {
  const arm = variant.arm ?? variant.name;
  if (WITHOUT_KNOWLEDGE.includes(arm)) return "without knowledge";
  return arm.startsWith("reki") ? "with knowledge" : "";
}

function titled(entry) { return entry.title ?? state.titles.get(entry.item_id) ?? entry.item_id; }

function row(entry, index, other) {
  const name = titled(entry);
  const notes = [name === entry.item_id ? "" : entry.item_id, entry.source];
  if (other) {
    const there = other.findIndex((item) => item.item_id === entry.item_id);
    notes.push(there < 0 ? "only here" : `rank ${there + 1} there`);
  }
  const button = element("button", { type: "button" },
    element("span", { class: "rank" }, String(index + 1)),
    element("span", { class: "name" }, name),
    element("span", { class: "score" }, entry.score.toFixed(4)),
    element("span", { class: "note" }, notes.filter(Boolean).join(" · ")));
  button.addEventListener("click", () => openItem(entry.item_id, button));
  return element("li", {}, button);
}

function card(variant, outcome, other) {
  const arm = variant.arm && variant.arm !== variant.name ? variant.arm : "";
  const label = [arm, withKnowledge(variant)].filter(Boolean).join(", ");
  const made = element("article", { class: "card" },
    element("h3", {}, label ? `${variant.name}: ${label}` : variant.name));
  if (outcome.error) {
    made.append(element("p", { class: "problem" }, outcome.error.message));
    return made;
  }
  const { answer, milliseconds, scored } = outcome;
  if (scored) {
    made.append(element("p", { class: "hint" },
      `This graph retrieves no candidates: these are the best of ${scored} sample items.`));
  }
  const degraded = answer.degraded ? " · degraded: the user's data could not be used" : "";
  made.append(
    element("p", { class: "facts" },
      `store ${answer.store_version} · model ${answer.model_version} · user ${answer.user.source} · ` +
      `${milliseconds.toFixed(0)} ms${degraded}`),
    element("ol", { class: "list" }, ...answer.items.map((entry, index) => row(entry, index, other))));
  if (!answer.items.length) made.append(element("p", {}, "No item is left to recommend."));
  return made;
}

async function ask(endpoint, label, body, variant) {
  if (variant) body.variant = variant.name;
  return call("POST", `v1/${endpoint}`, variant ? `${label}, ${variant.name}` : label, { body });
}

async function outcomeOf(user, count, variant) {
  try {
    return await ask("recommend", "recommend", { user_id: user, k: count }, variant);
  } catch (error) {
    if (error.code !== "no_retrieval" || !state.titles.size) return { error };
  }
  try { // the graph retrieves nothing by itself: the best of some items, which it scores
    const candidates = [...state.titles.keys()];
    const outcome = await ask("score", "score", { user_id: user, candidates }, variant);
    const best = [...outcome.answer.scores].sort((a, b) => b.score - a.score).slice(0, count);
    return { ...outcome, answer: { ...outcome.answer, items: best }, scored: candidates.length };
  } catch (error) {
    return { error };
  }
}

async function recommend(user, count) {
  const turn = ++turns.asked;
  say("problem", "");
  say("status", "Asking…");
  byId("lists").setAttribute("aria-busy", "true");
  const compared = state.variants.length > 1;
  const asked = compared ? state.variants : [null];
  const outcomes = [];
  // One after the other: their times are compared, so they must not wait for each other.
  for (const variant of asked) outcomes.push(await outcomeOf(user, count, variant));
  if (turn !== turns.asked) return; // a later question has taken the place
  const lists = outcomes.map((outcome) => outcome.answer?.items);
  byId("lists").replaceChildren(...outcomes.map((outcome, index) => {
    const shown = asked[index] ?? { name: outcome.answer?.variant ?? "served version" };
    return card(shown, outcome, lists.length === 2 ? lists[1 - index] : null);
  }));
  byId("lists").removeAttribute("aria-busy");
  say("compared", compared
    ? "The same user, asked of every variant of the running experiment."
    : "No experiment is running, so there is nothing to compare with: this is the list of the served version alone.");
  const failed = outcomes.find((outcome) => outcome.error);
  const items = outcomes.reduce((sum, outcome) => sum + (outcome.answer?.items.length ?? 0), 0);
  say("status", failed ? "" : `${items} recommendations in ${outcomes.length} ${outcomes.length > 1 ? "lists" : "list"}.`);
  if (failed) problem("problem", failed.error);
  if (!failed || items) await openUser(user);
}

// ---- Knowledge ----

function facts(found) {
  const parts = [`source ${found.source}`];
  if (found.cluster_id) parts.push(`cluster ${found.cluster_id}`);
  parts.push(`store ${found.store_version}`);
  return element("p", { class: "facts" }, parts.join(" · "));
}

function attributes(found) {
  const made = element("dl");
  for (const [key, values] of Object.entries(found.attributes ?? {})) {
    made.append(element("dt", {}, key), element("dd", {}, values.join(", ")));
  }
  return made;
}

function knowledge(found) {
  const children = [facts(found), attributes(found)];
  if (!found.knowledge.length) children.push(element("p", {}, "No knowledge text is stored."));
  for (const entry of found.knowledge) {
    const written = new Date(entry.created_at * 1000).toISOString().slice(0, 10);
    const of = entry.subject_kind.endsWith("cluster") ? `of cluster ${entry.subject_id}, ` : "";
    children.push(
      element("h4", {}, entry.factor === "*" ? "Whole answer" : `Factor: ${entry.factor}`),
      element("blockquote", {}, entry.text),
      element("p", { class: "hint" }, `${of}written by ${entry.model} on ${written}`));
  }
  return children;
}

async function behind(side, id) {
  const path = `v1/${side}/${encodeURIComponent(id)}/knowledge`;
  try {
    const { answer } = await call("GET", path, `knowledge of ${side === "users" ? "a user" : "an item"}`);
    return [answer.title ?? null, knowledge(answer)];
  } catch (error) {
    return [null, [element("p", {}, error.message)]];
  }
}

async function openUser(user) {
  const turn = turns.asked;
  const [, children] = await behind("users", user);
  if (turn !== turns.asked) return;
  say("user-title", `User ${user}`);
  byId("user-text").replaceChildren(...children);
  byId("behind").hidden = false;
}

async function openItem(item, button) {
  const turn = ++turns.opened;
  const [title, children] = await behind("items", item);
  if (turn !== turns.opened) return;
  for (const marked of document.querySelectorAll(".list [aria-current]")) marked.removeAttribute("aria-current");
  button.setAttribute("aria-current", "true");
  opener = button;
  say("item-title", title ? `${title} (${item})` : `Item ${item}`);
  byId("item-text").replaceChildren(...children);
  byId("back").hidden = false;
  byId("behind").hidden = false;
  byId("item-title").focus();
}

// ---- Start ----

async function load() {
  try {
    const { answer: versions } = await call("GET", "v1/versions", "served version");
    const { answer: sample } = await call("GET", "v1/sample?users=50&items=200", "sample");
    showServed(versions.current);
    state.variants = versions.variants;
    state.titles = new Map(sample.items.map((item) => [item.item_id, item.title]));
    const options = sample.users.map((id) => element("option", { value: id }, id));
    byId("sample").replaceChildren(element("option", { value: "" }, "Choose…"), ...options);
    say("problem", "");
    say("status", "Ready.");
  } catch (error) {
    problem("problem", error);
  }
}

byId("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (state.served === null) await load(); // the token may have come since
  if (state.served !== null) await recommend(byId("user").value, Number(byId("count").value));
});
byId("sample").addEventListener("change", () => { byId("user").value = byId("sample").value || byId("user").value; });
byId("token").addEventListener("change", load);
byId("back").addEventListener("click", () => opener?.focus());
load();
