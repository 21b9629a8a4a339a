// The answer of a job, as text nodes: what a model writes is never markup.

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
      choice.reasoning.appendData(reasoning);
      choice.reasoningBox.hidden = false;
    }
    if (text) {
      if (!choice.text.length && choice.reasoning.length) choice.reasoningBox.open = false;
      choice.text.appendData(text);
    }
    for (const call of calls) this.#call(choice, call);
    if (follows) this.element.scrollTop = this.element.scrollHeight;
  }

  // Makes JSON readable once it is complete.
  finish(isJson) {
    for (const choice of this.choices.filter(Boolean)) {
      for (const call of choice.calls.values()) call.code.textContent = pretty(call.arguments);
      if (isJson) choice.text.data = pretty(choice.text.data);
    }
  }

  // The first choice as turns of a conversation: the model's, and one for the result of each of its calls.
  turns() {
    const choice = this.choices[0];
    if (!choice) return [];
    const calls = [...choice.calls.values()];
    const toolCalls = calls.map((call) => ({ id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } }));
    const turn = { role: "assistant", content: choice.text.data, ...(calls.length ? { extra: { tool_calls: toolCalls } } : {}) };
    const results = calls.map((call) => ({ role: "tool", content: "", extra: { tool_call_id: call.id } }));
    return [turn, ...(results.length ? results : [{ role: "user", content: "" }])];
  }

  #choice(index) {
    this.hint.hidden = true;
    const choice = { text: new Text(), reasoning: new Text(), calls: new Map(), argumentsLength: 0, box: make("div", "choice") };
    if (index) choice.box.append(make("h3", "choice-title", `Choice ${index + 1}`));
    choice.reasoningBox = make("details", "reasoning");
    choice.reasoningBox.open = true;
    choice.reasoningBox.hidden = true;
    const reasoning = make("div", "text");
    reasoning.append(choice.reasoning);
    choice.reasoningBox.append(make("summary", "", "Reasoning"), reasoning);
    const text = make("div", "text");
    text.append(choice.text);
    choice.box.append(choice.reasoningBox, text);
    this.element.append(choice.box);
    return choice;
  }

  #call(choice, { index, id, name, arguments: fragment = "" }) {
    let call = choice.calls.get(index);
    if (!call) {
      call = { id: "", name: "", arguments: "", title: make("h3", "mono"), code: make("pre") };
      const box = make("div", "tool-call");
      box.append(call.title, call.code);
      choice.box.append(box);
      choice.calls.set(index, call);
    }
    call.id ||= id ?? "";
    call.name ||= name ?? "";
    call.arguments += fragment;
    choice.argumentsLength += fragment.length;
    call.title.textContent = `${call.name}()`;
    call.code.textContent = call.arguments;
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
