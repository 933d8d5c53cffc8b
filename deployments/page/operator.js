// The operator's panel: published versions, promotion and rollback.

import { Failure, byId, call, element, named, problem, say, showServed, state } from "./base.js";

function confirmed(text, action) {
  const dialog = byId("confirm");
  say("confirm-text", text);
  say("confirm-yes", action);
  dialog.returnValue = "";
  dialog.showModal();
  byId("confirm-no").focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

function versionRow(entry) {
  const name = named(entry.version);
  const written = new Date(entry.created_at * 1000).toISOString().slice(0, 16).replace("T", " ");
  const marks = [entry.current && "promoted", entry.served && "served"].filter(Boolean);
  const action = element("td");
  if (!entry.current) {
    const button = element("button", { type: "button", "aria-label": `Promote ${name}` }, "Promote");
    button.addEventListener("click", () => promote(entry.version));
    action.append(button);
  }
  return element("tr", entry.current ? { "aria-current": "true" } : {},
    element("th", { scope: "row" }, name),
    action,
    element("td", {}, marks.join(", ")),
    element("td", {}, entry.arm),
    element("td", {}, entry.backbone),
    element("td", { class: "id" }, entry.model_version),
    element("td", { class: "number" }, String(entry.users)),
    element("td", { class: "number" }, String(entry.items)),
    element("td", {}, written));
}

async function operate(action) {
  say("admin-problem", "");
  say("admin-status", "");
  byId("versions").setAttribute("aria-busy", "true");
  try {
    await action();
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    problem("admin-problem", error);
  } finally {
    byId("versions").removeAttribute("aria-busy");
  }
}

async function showVersions() {
  const { answer } = await call("GET", "v1/admin/versions", "versions", { tokenField: "admin-token" });
  byId("version-rows").replaceChildren(...answer.versions.map(versionRow));
  byId("versions").hidden = false;
  const served = answer.versions.find((entry) => entry.served);
  if (served) showServed(served.version);
}

async function promote(version) {
  const question = `Promote ${named(version)}? Callers will get it instead of ${named(state.served)}.`;
  if (!await confirmed(question, "Promote")) return;
  await operate(async () => {
    const body = { version };
    const { answer } = await call("POST", "v1/admin/promote", "promote", { body, tokenField: "admin-token" });
    await showVersions();
    say("admin-status", moved(`${named(answer.current)} is promoted`, answer));
    byId("rollback").focus(); // the button that was pressed is gone
  });
}

async function rollback() {
  const question = `Roll back from ${named(state.served)} to the version promoted before it?`;
  if (!await confirmed(question, "Roll back")) return;
  await operate(async () => {
    const { answer } = await call("POST", "v1/admin/rollback", "rollback", { tokenField: "admin-token" });
    await showVersions();
    say("admin-status", moved(`Rolled back to ${named(answer.current)}`, answer));
  });
}

function moved(what, answer) {
  if (answer.served === answer.current) return `${what} and served.`;
  return `${what}, but this replica could not load it and still serves ${named(answer.served)}; see its log.`;
}

byId("operator").addEventListener("submit", (event) => {
  event.preventDefault();
  operate(async () => {
    await showVersions();
    say("admin-status", "Versions loaded.");
  });
});
byId("rollback").addEventListener("click", rollback);
for (const [id, value] of [["confirm-yes", "yes"], ["confirm-no", ""]]) {
  byId(id).addEventListener("click", () => byId("confirm").close(value));
}
