// Texts of models and of the server, as text nodes: they are never markup.

const CHUNK = 4096;

// A text that grows, such as an answer that streams. Appending to one text node copies all of it each time: 10 MB would
// take hours, so the text is in nodes of about 4 KiB.
export class GrowingText {
  #element;
  #last = null;
  length = 0;

  constructor(element) {
    this.#element = element;
  }

  append(text) {
    if (!text) return;
    if (!this.#last || this.#last.length >= CHUNK) this.#element.append((this.#last = document.createTextNode(text)));
    else this.#last.appendData(text);
    this.length += text.length;
  }

  get text() {
    return this.#element.textContent;
  }

  set text(text) {
    this.#element.replaceChildren();
    this.#last = null;
    this.length = 0;
    this.append(text);
  }
}

// Shows a message of the API, whose `names` in backticks are code, as the server's pages do.
export function showMessage(element, message) {
  const parts = message.split(/`([^`]+)`/);
  element.replaceChildren(...parts.map((part, index) => (index % 2 ? code(part) : part)));
}

function code(text) {
  const element = document.createElement("code");
  element.textContent = text;
  return element;
}
