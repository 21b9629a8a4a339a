// The answer of a job, as text nodes: what a model writes is never markup.
import { GrowingText } from "../text.js";

export class Answer {
  constructor(element) {
    this.element = element;
    this.hint = element.querySelector(".answer-hint");
    this.clear();
  }

  clear() {
    this.choices = [];
    this.element.replaceChildren(this.hint);
    this.hint.hidden = false;
  }

  get characters() {
    return this.choices.reduce((sum, choice) => sum + choice.text.length + choice.reasoning.length + choice.argumentsLength, 0);
  }

  // Adds the data of a `job.delta`.
  add({ index, text, reasoning, tool_calls: calls = [] }) {
    const follows = this.element.scrollHeight - this.element.scrollTop - this.element.clientHeight < 24;
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
    if (follows) this.element.scrollTop = this.element.scrollHeight;
  }

  // Makes JSON readable once it is complete.
  finish(isJson) {
    for (const choice of this.choices.filter(Boolean)) {
      for (const call of choice.calls.values()) call.arguments.text = pretty(call.arguments.text);
      if (isJson) choice.text.text = pretty(choice.text.text);
    }
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
    const choice = { text: new GrowingText(text), reasoning: new GrowingText(reasoning), calls: new Map(), argumentsLength: 0, box: make("div", "choice") };
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
      call = { id: "", name: "", arguments: new GrowingText(code), title: make("h3", "mono") };
      const box = make("div", "tool-call");
      box.append(call.title, code);
      choice.box.append(box);
      choice.calls.set(index, call);
    }
    call.id ||= id ?? "";
    call.name ||= name ?? "";
    call.arguments.append(fragment);
    choice.argumentsLength += fragment.length;
    call.title.textContent = `${call.name}()`;
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
