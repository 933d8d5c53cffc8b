// Recommendations of a user, with and without knowledge, and the knowledge behind them.

import { byId, call, element, named, problem, say, showServed, state } from "./base.js";

const WITHOUT_KNOWLEDGE = ["base", "fair_base"]; // arms of the method's report
const WITH_KNOWLEDGE = /^(reki|imported)/;

const turns = { asked: 0, opened: 0 }; // an answer that another question overtook is dropped
let opener = null; // the button of the item that is shown

function hasKnowledge(list) { return WITH_KNOWLEDGE.test(list.arm ?? list.name); }

function isWithout(list) { return WITHOUT_KNOWLEDGE.includes(list.arm ?? list.name); }

function withKnowledge(list) {
  if (hasKnowledge(list)) return "with knowledge";
  return isWithout(list) ? "without knowledge" : "";
}

function labelOf(list) {
  const arm = list.arm && list.arm !== list.name ? list.arm : "";
  const label = [arm, withKnowledge(list)].filter(Boolean).join(", ");
  return label ? `${list.name}: ${label}` : list.name;
}

function titled(entry) { return entry.title ?? state.titles.get(entry.item_id) ?? entry.item_id; }

function row(entry, index, list, other) {
  const name = titled(entry);
  // Without knowledge there is no vector, and so no source.
  const notes = [name === entry.item_id ? "" : entry.item_id, isWithout(list) ? "" : entry.source];
  const there = other ? other.findIndex((item) => item.item_id === entry.item_id) : index;
  if (there < 0) notes.push("only here");
  else if (there !== index) notes.push(`rank ${there + 1} there`);
  const button = element("button", { type: "button" },
    element("span", { class: "rank" }, String(index + 1)),
    element("span", { class: "name" }, name),
    element("span", { class: "score" }, entry.score.toFixed(4)),
    element("span", { class: "note" }, notes.filter(Boolean).join(" · ")));
  button.addEventListener("click", () => openItem(entry.item_id, button));
  return element("li", { class: there < 0 ? "only" : there !== index ? "moved" : "" }, button);
}

function card(list, outcome, other) {
  const made = element("article", { class: "card" }, element("h3", {}, labelOf(list)));
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
  const source = isWithout(list) ? "" : ` · user ${answer.user.source}`;
  made.append(
    element("p", { class: "facts" },
      `store ${answer.store_version} · model ${answer.model_version}${source} · ` +
      `${milliseconds.toFixed(0)} ms${degraded}`),
    element("ol", { class: "list" }, ...answer.items.map((entry, index) => row(entry, index, list, other))));
  if (!answer.items.length) made.append(element("p", {}, "There are no items left to recommend."));
  return made;
}

async function ask(endpoint, body, list) {
  const label = state.lists.length > 1 ? `${endpoint}, ${list.name}` : endpoint;
  return call("POST", `v1/${endpoint}`, label, { body: { ...body, ...list.keys } });
}

async function outcomeOf(user, count, list) {
  try {
    return await ask("recommend", { user_id: user, k: count }, list);
  } catch (error) {
    if (error.code !== "no_retrieval" || !state.titles.size) return { error };
  }
  try { // without a retriever: score some items and take the best
    const candidates = [...state.titles.keys()];
    const outcome = await ask("score", { user_id: user, candidates }, list);
    const best = [...outcome.answer.scores].sort((a, b) => b.score - a.score).slice(0, count);
    return { ...outcome, answer: { ...outcome.answer, items: best }, scored: candidates.length };
  } catch (error) {
    return { error };
  }
}

async function recommend(user, count) {
  const turn = ++turns.asked;
  say("problem", "");
  say("status", "Loading…");
  byId("lists").setAttribute("aria-busy", "true");
  byId("scored").hidden = true;
  try {
    await loadVersions(); // another version or experiment may have started
  } catch (error) {
    byId("lists").removeAttribute("aria-busy");
    say("status", "");
    problem("problem", error);
    return;
  }
  const asked = state.lists;
  const outcomes = [];
  // Sequentially, so that their times can be compared.
  for (const list of asked) outcomes.push(await outcomeOf(user, count, list));
  if (turn !== turns.asked) return; // replaced by a later request
  const items = outcomes.map((outcome) => outcome.answer?.items);
  byId("lists").replaceChildren(...outcomes.map((outcome, index) => {
    const shown = { ...asked[index], name: asked[index].name ?? outcome.answer?.variant ?? "served version" };
    return card(shown, outcome, items.length === 2 ? items[1 - index] : null);
  }));
  byId("lists").removeAttribute("aria-busy");
  say("compared", state.compared);
  const failed = outcomes.find((outcome) => outcome.error);
  const sum = items.reduce((count, some) => count + (some?.length ?? 0), 0);
  say("status", failed ? "" : `${sum} recommendations in ${outcomes.length} ${outcomes.length > 1 ? "lists" : "list"}.`);
  if (failed) problem("problem", failed.error);
  if (!failed && asked.length === 2) await scoreBoth(user, asked, items, turn);
  if (!failed || sum) await openUser(user);
}

// ---- The same items, scored by both ----

async function scoreBoth(user, lists, items, turn) {
  const candidates = [...new Set(items.flat().map((entry) => entry.item_id))];
  if (!candidates.length) return;
  const titles = new Map(items.flat().map((entry) => [entry.item_id, titled(entry)]));
  const scores = [];
  try {
    for (const list of lists) {
      const { answer } = await ask("score", { user_id: user, candidates }, list);
      scores.push(answer.scores);
    }
  } catch (error) {
    if (turn === turns.asked) problem("problem", error);
    return;
  }
  if (turn !== turns.asked) return;
  const rows = candidates.map((item, place) => {
    const [first, second] = scores.map((of) => of[place].score);
    return { item, first, second, difference: second - first };
  }).sort((a, b) => b.difference - a.difference);
  byId("scored-names").replaceChildren(
    element("th", { scope: "col" }, "Item"),
    ...lists.map((list) => element("th", { scope: "col", class: "number" }, list.name)),
    element("th", { scope: "col", class: "number" }, "Difference"));
  byId("scored-rows").replaceChildren(...rows.map(({ item, first, second, difference }) =>
    element("tr", {},
      element("th", { scope: "row" }, titles.get(item)),
      element("td", { class: "number" }, first.toFixed(4)),
      element("td", { class: "number" }, second.toFixed(4)),
      element("td", { class: difference < 0 ? "number down" : "number up" }, signed(difference)))));
  byId("scored").hidden = false;
}

function signed(difference) {
  const text = Math.abs(difference).toFixed(4);
  return Number(text) === 0 ? text : `${difference < 0 ? "−" : "+"}${text}`;
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

async function explain(side, id) {
  const list = state.lists.length > 1 ? state.lists.find(hasKnowledge) : undefined;
  const version = list ? `?store_version=${named(list.version)}` : "";
  const path = `v1/${side}/${encodeURIComponent(id)}/knowledge${version}`;
  try {
    const { answer } = await call("GET", path, `knowledge of ${side === "users" ? "a user" : "an item"}`);
    return [answer.title ?? null, knowledge(answer)];
  } catch (error) {
    return [null, [element("p", {}, error.message)]];
  }
}

async function openUser(user) {
  const turn = turns.asked;
  const [, children] = await explain("users", user);
  if (turn !== turns.asked) return;
  say("user-title", `User ${user}`);
  byId("user-text").replaceChildren(...children);
  byId("behind").hidden = false;
}

async function openItem(item, button) {
  const turn = ++turns.opened;
  const [title, children] = await explain("items", item);
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

const NOTHING_TO_COMPARE = "There is nothing to compare with: only the served version is open. Set publish.compare to an arm " +
  "without knowledge, such as fair_base, publish and restart the service; or start an experiment.";

async function loadVersions() {
  const { answer } = await call("GET", "v1/versions", "served version");
  showServed(answer.current);
  const served = { name: answer.arm ?? named(answer.current), version: answer.current, arm: answer.arm };
  if (answer.variants.length > 1) {
    state.lists = answer.variants.map((variant) => ({ ...variant, keys: { variant: variant.name } }));
    state.compared = "The same user, with every variant of the running experiment.";
  } else if (answer.compared) {
    const pair = [answer.compared, served].map((version) =>
      ({ ...version, keys: { store_version: named(version.version) } }));
    state.lists = pair.sort((a, b) => hasKnowledge(a) - hasKnowledge(b));
    state.compared = `The same user, with ${pair.map(({ name, version }) => `${name} (${named(version)})`).join(" and ")}. ` +
      `Callers get ${named(answer.current)}.`;
  } else {
    state.lists = [{ ...served, keys: {} }];
    state.compared = NOTHING_TO_COMPARE;
  }
}

async function load() {
  try {
    await loadVersions();
    const { answer: sample } = await call("GET", "v1/sample?users=50&items=200", "sample");
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
  if (state.served === null) await load(); // the token may be new
  if (state.served !== null) await recommend(byId("user").value, Number(byId("count").value));
});
byId("sample").addEventListener("change", () => { byId("user").value = byId("sample").value || byId("user").value; });
byId("token").addEventListener("change", load);
byId("back").addEventListener("click", () => opener?.focus());
load();
