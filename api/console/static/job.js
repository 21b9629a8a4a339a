// The page of an open job: its answer as it is generated, and the parts that change. Texts of the model become text
// nodes, never markup. At the end, the server sends the answer once more, as the page shows that of an ended job.
import { LiveStream, replacePart } from "./live.js";
import { GrowingText } from "./text.js";

const live = document.querySelector("[data-job-live]");
const answer = document.getElementById("answer");
let cursor = 0;
let choices = new Map();

// While all is well, the page itself shows that it is live.
function show(state, name, why) {
  live.dataset.state = state;
  live.hidden = state === "live" || state === "ended";
  live.title = why;
  live.querySelector(".live-text").textContent = name;
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

  // The text of one kind grows; `make` makes its element when the first of it comes.
  grow(kind, text, make) {
    if (!text) return;
    this.texts[kind] ??= new GrowingText(make());
    this.texts[kind].append(text);
  }

  add(delta) {
    this.grow("reasoning", delta.reasoning, () => {
      const text = element("div", "prose");
      const box = element("details", "reasoning", element("summary", "", "Reasoning"), text);
      box.open = true;
      this.root.append(box);
      return text;
    });
    this.grow("text", delta.text, () => {
      const text = element("div", "prose streaming");
      this.root.append(text);
      return text;
    });
    for (const call of delta.tool_calls ?? []) {
      if (!this.calls.has(call.index)) {
        const name = element("code", "");
        const code = element("pre", "code");
        const head = element("p", "", element("span", "badge badge-batch", "tool call"), " ", name);
        this.root.append(element("div", "tool-call", head, code));
        this.calls.set(call.index, { name, text: new GrowingText(code) });
      }
      const shown = this.calls.get(call.index);
      if (call.name) shown.name.textContent = call.name;
      shown.text.append(call.arguments);
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
  if (event.lastEventId) cursor = Number(event.lastEventId);
}

function onPosition(event) {
  const { position, paused } = JSON.parse(event.data);
  const waits = document.getElementById("answer-waits");
  if (!waits) return;
  const ahead = Number.isInteger(position) ? (position ? `${position} ${position === 1 ? "job is" : "jobs are"} served before this one.` : "This job is served next.") : "";
  if (paused) waits.textContent = `The queue of the model is paused; the job waits until it is resumed. ${ahead}`;
  else if (ahead) waits.textContent = ahead;
}

async function onPart(event) {
  const { name, html } = JSON.parse(event.data);
  // The whole answer takes the place of the one that has grown: comparing a long one part by part would take seconds.
  await replacePart(name, html, { swap: name === "answer" ? "innerHTML" : "innerMorph" });
  if (name === "status") {
    const cancel = document.getElementById("cancel");
    if (cancel) cancel.hidden = !document.querySelector("[data-can-cancel]");
  }
}

if (live) {
  const address = () => live.dataset.jobLive + (cursor ? `?starting_after=${cursor}` : "");
  const listeners = {
    "job.delta": onDelta,
    "job.restarted": startAgain,
    "job.queued": onPosition,
    "job.started": seen,
    part: onPart,
    end: () => {
      stream.end();
      show("ended", "", "");
    },
  };
  const stream = new LiveStream(address, listeners, show);
}
