// The page of an open job: its answer as it is generated, and the parts that change. Texts of the model become text
// nodes, never markup. At the end, the server sends the answer once more, as the page shows that of an ended job.
import { replacePart } from "./live.js";

const live = document.querySelector("[data-job-live]");
const answer = document.getElementById("answer");
const RETRY_MS = [1000, 2000, 5000, 10000];
let source = null;
let cursor = 0;
let ended = false;
let attempts = 0;
let timer = 0;
let choices = new Map();

// While all is well, the page itself shows that it is live.
function show(state, label = "") {
  live.dataset.state = state;
  live.hidden = !label;
  live.querySelector(".live-text").textContent = label;
}

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

class Choice {
  constructor(index) {
    this.root = element("article", "answer");
    this.texts = {};
    this.calls = new Map();
    if (index > 0 || choices.size > 0) this.titled(index);
  }

  titled(index) {
    if (!this.root.querySelector("h3")) this.root.prepend(element("h3", "", `Answer ${index + 1}`));
  }

  // The text of one kind grows; its element is made when the first of it comes.
  grow(kind, text, make) {
    if (!text) return;
    this.texts[kind] ??= make();
    this.texts[kind].appendData(text);
  }

  add(delta) {
    this.grow("reasoning", delta.reasoning, () => {
      const text = document.createTextNode("");
      const box = element("details", "reasoning", element("summary", "", "Reasoning"), element("div", "prose", text));
      box.open = true;
      this.root.append(box);
      return text;
    });
    this.grow("text", delta.text, () => {
      const text = document.createTextNode("");
      this.root.append(element("div", "prose streaming", text));
      return text;
    });
    for (const call of delta.tool_calls ?? []) {
      if (!this.calls.has(call.index)) {
        const name = element("code", "");
        const text = document.createTextNode("");
        const head = element("p", "", element("span", "badge badge-batch", "tool call"), " ", name);
        this.root.append(element("div", "tool-call", head, element("pre", "code", text)));
        this.calls.set(call.index, { name, text });
      }
      const shown = this.calls.get(call.index);
      if (call.name) shown.name.textContent = call.name;
      shown.text.appendData(call.arguments ?? "");
    }
  }
}

function onDelta(event) {
  seen(event);
  if (!answer) return;
  const delta = JSON.parse(event.data);
  if (!choices.size) answer.replaceChildren();
  if (!choices.has(delta.index)) {
    const choice = new Choice(delta.index);
    choices.set(delta.index, choice);
    if (choices.size > 1) for (const [index, one] of choices) one.titled(index);
    answer.append(choice.root);
  }
  choices.get(delta.index).add(delta);
}

function startAgain(event) {
  seen(event);
  choices = new Map();
  answer?.replaceChildren(element("p", "soft", "What was generated before was discarded; the answer starts again."));
}

function seen(event) {
  attempts = 0;
  if (event.lastEventId) cursor = Number(event.lastEventId);
}

function onPosition(event) {
  const { position } = JSON.parse(event.data);
  const waits = document.getElementById("answer-waits");
  if (waits && Number.isInteger(position)) waits.textContent = position ? `${position} ${position === 1 ? "job is" : "jobs are"} served before this one.` : "This job is served next.";
}

async function onPart(event) {
  const { name, html } = JSON.parse(event.data);
  await replacePart(name, html);
  if (name === "status") {
    const cancel = document.getElementById("cancel");
    if (cancel) cancel.hidden = !document.querySelector("[data-can-cancel]");
  }
}

function open() {
  clearTimeout(timer);
  if (source || ended || document.hidden) return;
  const address = new URL(live.dataset.jobLive, document.baseURI);
  if (cursor) address.searchParams.set("starting_after", cursor);
  source = new EventSource(address);
  source.addEventListener("job.delta", onDelta);
  source.addEventListener("job.restarted", startAgain);
  source.addEventListener("job.queued", onPosition);
  source.addEventListener("job.started", seen);
  source.addEventListener("part", onPart);
  source.addEventListener("end", () => {
    ended = true;
    show("ended");
    close();
  });
  source.addEventListener("state", (event) => (event.data === "live" ? show("live") : show("stale", "Stale")));
  source.addEventListener("error", () => {
    if (ended) return;
    show("lost", "Reconnecting");
    close();
    timer = setTimeout(retry, RETRY_MS[Math.min(attempts++, RETRY_MS.length - 1)]);
  });
}

function close() {
  source?.close();
  source = null;
  clearTimeout(timer);
}

// A session that has ended redirects the page to the sign-in; anything else is worth another attempt.
async function retry() {
  const response = await fetch(location.href, { redirect: "manual" }).catch(() => null);
  if (response?.type === "opaqueredirect") location.reload();
  else open();
}

if (live) {
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", open);
  open();
}
