// The answer of a job, as text nodes: what a model writes is never markup.
import { GrowingText } from "../text.js";

// A reader who is within this many pixels of the end follows it as it grows.
const NEAR_END = 24;

export class Answer {
  constructor(element) {
    this.element = element;
    this.hint = element.querySelector(".answer-hint");
    // Asked once after each scroll, not with each piece of the text: that would lay out the page each time.
    element.addEventListener("scroll", () => {
      this.follows = element.scrollHeight - element.scrollTop - element.clientHeight < NEAR_END;
    });
    this.clear();
  }

  clear() {
    this.choices = [];
    this.follows = true;
    this.element.replaceChildren(this.hint);
    this.hint.hidden = false;
  }

  get characters() {
    return this.choices.reduce((sum, choice) => sum + choice.text.length + choice.reasoning.length + choice.argumentsLength, 0);
  }

  // Adds the data of a `job.delta`.
  add({ index, text, reasoning, tool_calls: calls = [] }) {
    const choice = (this.choices[index] ??= this.#choice(index));
    if (reasoning) {
      choice.reasoning.append(reasoning);
      choice.reasoningBox.hidden = false;
    }
    if (text) {
      if (!choice.text.length && choice.reasoning.length) choice.reasoningBox.open = false;
      choice.text.append(text);
    }
    for (const call of calls) this.#call(choice, call);
  }

  // Shows all of it, and makes JSON readable now that it is complete.
  finish(isJson) {
    for (const choice of this.choices.filter(Boolean)) {
      choice.text.flush();
      choice.reasoning.flush();
      for (const call of choice.calls.values()) call.arguments.text = pretty(call.arguments.text);
      if (isJson) choice.text.text = pretty(choice.text.text);
    }
    this.#follow();
  }

  // The first choice as turns of a conversation: the model's, and one for the result of each of its calls.
  turns() {
    const choice = this.choices[0];
    if (!choice) return [];
    const calls = [...choice.calls.values()];
    const toolCalls = calls.map((call) => ({ id: call.id, type: "function", function: { name: call.name, arguments: call.arguments.text } }));
    const turn = { role: "assistant", content: choice.text.text, ...(calls.length ? { extra: { tool_calls: toolCalls } } : {}) };
    const results = calls.map((call) => ({ role: "tool", content: "", extra: { tool_call_id: call.id } }));
    return [turn, ...(results.length ? results : [{ role: "user", content: "" }])];
  }

  #choice(index) {
    this.hint.hidden = true;
    const text = make("div", "text");
    const reasoning = make("div", "text");
    const choice = { text: this.#growing(text), reasoning: this.#growing(reasoning), calls: new Map(), argumentsLength: 0, box: make("div", "choice") };
    if (index) choice.box.append(make("h3", "choice-title", `Choice ${index + 1}`));
    choice.reasoningBox = make("details", "reasoning");
    choice.reasoningBox.open = true;
    choice.reasoningBox.hidden = true;
    choice.reasoningBox.append(make("summary", "", "Reasoning"), reasoning);
    choice.box.append(choice.reasoningBox, text);
    this.element.append(choice.box);
    return choice;
  }

  #call(choice, { index, id, name, arguments: fragment = "" }) {
    let call = choice.calls.get(index);
    if (!call) {
      const code = make("pre");
      call = { id: "", name: "", arguments: this.#growing(code), title: make("h3", "mono") };
      const box = make("div", "tool-call");
      box.append(call.title, code);
      choice.box.append(box);
      choice.calls.set(index, call);
    }
    call.id ||= id ?? "";
    call.name ||= name ?? "";
    call.arguments.append(fragment);
    choice.argumentsLength += fragment.length;
    if (name) call.title.textContent = `${call.name}()`;
  }

  #growing(element) {
    return new GrowingText(element, () => this.#follow());
  }

  #follow() {
    if (this.follows) this.element.scrollTop = this.element.scrollHeight;
  }
}

function make(tag, className, text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
