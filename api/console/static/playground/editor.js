// The form: turns that can be edited, added and removed, the other fields, and errors where they belong.
import { showMessage } from "../text.js";
import { fieldOf } from "./request.js";

export class Editor {
  constructor(state, onChange) {
    this.state = state;
    this.onChange = onChange;
    this.form = document.getElementById("form");
    this.turns = document.getElementById("turns");
    this.template = document.getElementById("turn-template");
    this.form.addEventListener("input", (event) => this.#read(event.target));
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("click", (event) => {
      if (event.target.dataset.turn === "remove") this.#remove([...this.turns.children].indexOf(event.target.closest(".turn")));
    });
    document.getElementById("add-turn").addEventListener("click", () => this.#add());
    this.show();
  }

  // Shows the state in all fields.
  show() {
    for (const field of this.form.querySelectorAll("[data-field]")) {
      const name = field.dataset.field;
      field.value = name === "system" ? this.state.system : (this.state.fields[name] ?? "");
      grow(field);
    }
    this.#showTurns();
    this.clearErrors();
    for (const section of this.form.querySelectorAll("[data-section]")) section.open = this.#isUsed(section.dataset.section);
    this.#showNotes();
  }

  append(turns) {
    const last = this.state.turns.at(-1);
    if (last?.role === "user" && !last.content.trim()) this.state.turns.pop();
    this.state.turns.push(...turns);
    this.#showTurns();
    this.turns.lastElementChild.querySelector("textarea").focus();
    this.onChange();
  }

  clearErrors() {
    for (const error of document.querySelectorAll(".play .field-error:not([hidden])")) hide(error);
  }

  // Shows an error at the field of a parameter. Returns whether there is one.
  showError(param, message, root = this.form) {
    const place = fieldOf(param, Boolean(this.state.system));
    if (!place) return false;
    let holder = place.turn === undefined ? null : (this.turns.children[place.turn] ?? null);
    // An error about a part of a parameter is shown at the parameter: `response_format.json_schema.schema`.
    for (let name = place.name ?? ""; name && !holder; name = name.includes(".") ? name.slice(0, name.lastIndexOf(".")) : "") {
      holder = [root, this.form].map((one) => one.querySelector(`[data-param="${CSS.escape(name)}"]`)).find(Boolean) ?? null;
    }
    if (!holder && place.name) holder = this.#mentions(place.name.split(".")[0]);
    if (!holder) return false;
    const text = holder.querySelector(".field-error");
    const field = holder.querySelector("textarea, input, select:not([data-turn])");
    showMessage(text, message);
    text.hidden = false;
    field.setAttribute("aria-invalid", "true");
    const section = holder.closest("details");
    if (section) section.open = true;
    field.focus();
    return true;
  }

  // Hides what the chosen models have no use for.
  adapt(models) {
    this.form.querySelector('[data-param="reasoning_effort"]').hidden = !models.some((model) => model.reasoning);
    this.models = models;
    this.#showNotes();
  }

  #mentions(name) {
    return (this.state.fields.more ?? "").includes(`"${name}"`) ? this.form.querySelector('[data-param="more"]') : null;
  }

  #read(field) {
    const { state } = this;
    const turn = field.closest("#turns .turn");
    if (turn) {
      const at = [...this.turns.children].indexOf(turn);
      if (field.dataset.turn) state.turns[at][field.dataset.turn] = field.value;
    } else if (field.dataset.field === "system") state.system = field.value;
    else if (field.dataset.field) state.fields[field.dataset.field] = field.value;
    const error = field.closest(".field, .turn")?.querySelector(".field-error");
    if (error) hide(error);
    grow(field);
    this.#showNotes();
    this.onChange();
  }

  #add() {
    const last = this.state.turns.at(-1)?.role;
    this.append([{ role: last === "user" ? "assistant" : "user", content: "" }]);
  }

  #remove(at) {
    this.state.turns.splice(at, 1);
    if (!this.state.turns.length) this.state.turns.push({ role: "user", content: "" });
    this.#showTurns();
    this.turns.children[Math.min(at, this.turns.children.length - 1)].querySelector("textarea").focus();
    this.onChange();
  }

  #showTurns() {
    this.turns.replaceChildren(
      ...this.state.turns.map((turn, index) => {
        const element = this.template.content.firstElementChild.cloneNode(true);
        const role = element.querySelector('[data-turn="role"]');
        const content = element.querySelector('[data-turn="content"]');
        role.value = turn.role;
        role.setAttribute("aria-label", `Role of turn ${index + 1}`);
        content.value = turn.content ?? "";
        content.setAttribute("aria-label", `Turn ${index + 1}`);
        const error = element.querySelector(".field-error");
        error.id = `turn-${index}-error`;
        content.setAttribute("aria-describedby", error.id);
        content.classList.toggle("mono", Array.isArray(turn.extra?.parts));
        element.querySelector(".turn-extra").textContent = describe(turn.extra);
        element.querySelector('[data-turn="remove"]').setAttribute("aria-label", `Remove turn ${index + 1}`);
        return element;
      }),
    );
    for (const field of this.turns.querySelectorAll("textarea")) grow(field);
  }

  #isUsed(section) {
    const { fields } = this.state;
    if (section === "tools") return Boolean(fields.tools);
    if (section === "format") return Boolean(fields.format);
    return Boolean(fields.cache || fields.more);
  }

  #showNotes() {
    const { fields } = this.state;
    this.form.querySelector('[data-param="response_format"]').hidden = fields.format !== "json_schema";
    this.form.querySelector('[data-param="cache.ttl"]').hidden = fields.cache !== "use" && fields.cache !== "refresh";
    const cannot = (ability, text) => (this.models?.length && !this.models.some((model) => model[ability]) ? text : "");
    const notes = {
      tools: cannot("tools", "not by this model") || countOf(fields.tools),
      format: cannot("structure", "not by this model") || { json_object: "JSON", json_schema: "schema" }[fields.format],
      delivery: [fields.cache && { use: "cached", refresh: "run again", bypass: "not cached" }[fields.cache],
        fields.priority && `priority ${fields.priority}`, fields.more?.trim() && "more"].filter(Boolean).join(" · "),
    };
    for (const note of this.form.querySelectorAll("[data-note]")) note.textContent = notes[note.dataset.note] ?? "";
  }
}

function hide(error) {
  error.hidden = true;
  error.parentElement.querySelector("[aria-invalid]")?.removeAttribute("aria-invalid");
}

function describe(extra) {
  if (!extra) return "";
  const calls = (extra.tool_calls ?? []).map((call) => `calls ${call.function.name}`);
  return [...calls, extra.tool_call_id && `result of ${extra.tool_call_id}`, extra.parts && "parts, as JSON"].filter(Boolean).join(" · ");
}

function countOf(text) {
  try {
    const count = JSON.parse(text).length;
    return count ? `${count} ${count === 1 ? "function" : "functions"}` : "";
  } catch {
    return "";
  }
}

// Fits a text field to its text, within bounds: `rows`, because the policy allows no style attributes.
function grow(field) {
  if (field.tagName !== "TEXTAREA") return;
  field.dataset.rows ??= field.rows;
  const width = field.classList.contains("mono") ? 60 : 64;
  const lines = field.value.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / width)), 0);
  field.rows = Math.min(Math.max(lines, Number(field.dataset.rows)), 18);
}
