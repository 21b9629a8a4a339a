// The playground: keeps the state, runs it on one model or on two, and shows tokens and code as they are typed.
import { CallError, call, csrf } from "../calls.js";
import { announce, copyText } from "../console.js";
import { Editor } from "./editor.js";
import { InputError, emptyState, previewOf, requestOf, sizeOf, stateOf } from "./request.js";
import { Side } from "./side.js";

// What is typed is counted after a pause; a long prompt after a longer one, because all of it is sent each time.
const PAUSE_MS = 400;
const LONG_PAUSE_MS = 3000;
const LONG = 100_000;
// Characters of the code that the page shows; all of it can be copied.
const SHOWN = 20_000;
const KEY = "headrace-playground";
const EXAMPLE_TOOLS = [{
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather at a place, now.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
}];

const element = (id) => document.getElementById(id);
const phone = matchMedia("(max-width: 760px)");
const runPlace = element("run").parentElement;
const config = JSON.parse(element("playground").dataset.config);
const models = new Map(config.models.map((model) => [model.name, model]));
const names = [...models.keys()];
// The state belongs to a session: another one in this tab starts with an empty form.
const session = Object.values(csrf()).join().slice(0, 16);

let state = load();
let code = {};
let codeSide = 0;
let timer = 0;
let typing = new AbortController();
let previewed = ""; // the request whose tokens and code are shown, or will be
const editor = new Editor(state, changed);
const sides = [0, 1].map((index) => new Side(index, {
  onModel: (name) => {
    state.models[index] = name;
    changed();
  },
  onChange: () => {
    state.jobs[index] = sides[index].job;
    save();
    showRunning();
  },
  onContinue: (turns) => editor.append(turns),
}));

function load() {
  const [first, second] = config.loaded;
  if (first) {
    history.replaceState(null, "", new URL("playground", document.baseURI)); // a reload keeps what is typed from now on
    const found = stateOf(first.body, names);
    found.jobs = [first.id, second?.id ?? null];
    if (second) {
      found.sides = 2;
      found.models[1] = stateOf(second.body, names).models[0];
    }
    return found;
  }
  try {
    const stored = JSON.parse(sessionStorage.getItem(KEY));
    if (stored?.session === session) {
      stored.state.models = stored.state.models.map((name) => (models.has(name) ? name : names[0]));
      return stored.state;
    }
  } catch {
    // What cannot be read is left.
  }
  return emptyState(names);
}

function save() {
  try {
    sessionStorage.setItem(KEY, JSON.stringify({ session, state }));
  } catch {
    // A prompt beyond the browser's limit is not kept.
  }
}

function changed() {
  showCodeSides();
  editor.adapt(chosen());
  clearTimeout(timer);
  timer = setTimeout(rest, sizeOf(state) > LONG ? LONG_PAUSE_MS : PAUSE_MS);
}

function rest() {
  save();
  preview();
}

const chosen = () => state.models.slice(0, state.sides).map((name) => models.get(name));

// On a phone, Run is below the prompt, and the parameters are closed, so that the answer is near.
function adaptToWidth() {
  (phone.matches ? element("prompt-actions") : runPlace).append(element("run"));
  element("parameters").open = !phone.matches;
}

async function run() {
  if (sides.some((side) => side.running)) return;
  editor.clearErrors();
  const active = sides.slice(0, state.sides);
  let requests;
  try {
    requests = active.map((_, index) => requestOf(state, models.get(state.models[index])));
  } catch (error) {
    if (!(error instanceof InputError)) throw error;
    if (!editor.showError(error.param, error.message)) active[0].fail(error.message);
    return;
  }
  preview();
  if (phone.matches) active[0].element.scrollIntoView({ block: "nearest" });
  await Promise.all(active.map((side, index) => side.run(requests[index]).catch((error) => refused(side, error))));
}

function refused(side, error) {
  if (!(error instanceof CallError)) throw error;
  const prefix = `${error.param}: `;
  const text = error.message.startsWith(prefix) ? error.message.slice(prefix.length) : error.message;
  if (!editor.showError(error.param, text, side.element)) side.fail(error.message);
  announce(error.message);
}

// The tokens of the prompt, and the code. Nothing is asked again that is known.
async function preview() {
  clearTimeout(timer);
  let request;
  try {
    request = previewOf(chosen().map((model) => requestOf(state, model)), codeSide);
  } catch (error) {
    if (!(error instanceof InputError)) throw error;
    request = null; // what is being typed is not complete
  }
  const text = request && JSON.stringify(request);
  if (text === previewed) return;
  typing.abort();
  previewed = text;
  if (!request) return;
  typing = new AbortController();
  const { signal } = typing;
  const found = await answerTo("playground/preview", request, signal);
  if (signal.aborted) return;
  if (!found) previewed = "";
  element("count").textContent = found ? [...new Set(found.counts.map(tokensText))].join(" · ") : tokensText(null);
  if (found) {
    code = found.code;
    showCode();
  }
}

// The answer, or null: what is being typed may be refused, and an answer that is overtaken is cut off.
async function answerTo(path, body, signal) {
  try {
    return await (await call(path, { body, signal })).json();
  } catch {
    return null;
  }
}

function tokensText(count) {
  if (!count) return "– tokens";
  const number = `${count.estimated ? "≈ " : ""}${count.tokens.toLocaleString("en")}`;
  return `${number}${count.limit ? ` of ${count.limit.toLocaleString("en")}` : ""} tokens${count.estimated ? " (estimated)" : ""}`;
}

function showCode() {
  for (const tab of document.querySelectorAll("[data-language]")) {
    const selected = tab.dataset.language === state.language;
    tab.setAttribute("aria-selected", selected);
    tab.tabIndex = selected ? 0 : -1;
    if (selected) element("code").setAttribute("aria-labelledby", tab.id);
  }
  const text = code[state.language] ?? "";
  element("code").textContent = text.length > SHOWN ? `${text.slice(0, SHOWN)}…` : text;
  element("code-cut").hidden = text.length <= SHOWN;
}

function showCodeSides() {
  const choice = element("code-side");
  choice.hidden = state.sides === 1 || state.models[0] === state.models[1];
  choice.replaceChildren(...state.models.map((name, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.dataset.codeSide = index;
    button.setAttribute("aria-pressed", index === codeSide);
    return button;
  }));
}

function showSides() {
  element("sides").replaceChildren(...sides.slice(0, state.sides).map((side) => side.element));
  element("playground").classList.toggle("play-two", state.sides === 2);
  for (const button of document.querySelectorAll("[data-sides]")) {
    button.setAttribute("aria-pressed", Number(button.dataset.sides) === state.sides);
  }
  sides.forEach((side, index) => (side.model = state.models[index]));
}

function showRunning() {
  element("run").disabled = sides.some((side) => side.running);
}

adaptToWidth();
phone.addEventListener("change", adaptToWidth);
element("run").addEventListener("click", run);
addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  run();
});
element("reset").addEventListener("click", () => {
  sides.forEach((side) => side.reset());
  Object.assign(state, emptyState(names), { models: state.models, sides: state.sides, language: state.language });
  element("notice").hidden = true;
  editor.show();
  showRunning();
  changed();
});
for (const button of document.querySelectorAll("[data-sides]")) {
  button.addEventListener("click", () => {
    state.sides = Number(button.dataset.sides);
    if (state.sides === 1) {
      sides[1].reset();
      state.jobs[1] = null;
      codeSide = 0;
    }
    showSides();
    showRunning();
    changed();
  });
}
element("tools-example").addEventListener("click", () => {
  state.fields.tools = JSON.stringify(EXAMPLE_TOOLS, null, 2);
  editor.show();
  changed();
});
element("code-side").addEventListener("click", (event) => {
  if (event.target.dataset.codeSide === undefined) return;
  codeSide = Number(event.target.dataset.codeSide);
  showCodeSides();
  element("code-side").querySelector('[aria-pressed="true"]').focus(); // the buttons are new ones
  preview();
});
const tabs = [...document.querySelectorAll("[data-language]")];
for (const tab of tabs) {
  tab.addEventListener("click", () => selectTab(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) selectTab(tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length]).focus();
  });
}
function selectTab(tab) {
  state.language = tab.dataset.language;
  save();
  showCode();
  return tab;
}
element("copy-code").addEventListener("click", async (event) => {
  if (!(await copyText(code[state.language] ?? ""))) return;
  event.target.textContent = "Copied";
  setTimeout(() => (event.target.textContent = "Copy"), 1200);
});

addEventListener("pagehide", save);

showSides();
showCode();
changed();
if (config.loaded[0]?.body.prompt !== undefined) {
  element("notice").textContent = "This job had a prompt without a chat template. Here it is the message of a user.";
  element("notice").hidden = false;
}
sides.forEach((side, index) => {
  if (state.jobs[index] && index < state.sides) side.resume(state.jobs[index]);
});
