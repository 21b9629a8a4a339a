// Texts of models and of the server, as text nodes: they are never markup.

// Characters of a block of a text that grows, at which the next line begins another one; and if no line ends, the next
// word, and then the next character.
const BLOCK = 16_384;
const WORD = 4 * BLOCK;
const LIMIT = 8 * BLOCK;

// A text that grows, such as an answer that streams. What comes is shown once a frame, however small its pieces are. The
// browser lays out a block anew when text is added to it, so the text is in blocks: in a single one, 10 MB would take hours.
export class GrowingText {
  #element;
  #onFrame;
  #last = null; // the text node of the last block
  #waiting = [];
  #frame = 0;
  length = 0;

  // `onFrame` is called after text was shown.
  constructor(element, onFrame = () => {}) {
    this.#element = element;
    this.#onFrame = onFrame;
  }

  append(text) {
    if (!text) return;
    this.#waiting.push(text);
    this.length += text.length;
    this.#frame ||= requestAnimationFrame(() => {
      this.flush();
      this.#onFrame();
    });
  }

  // Shows now what waits for the next frame.
  flush() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const text = this.#waiting.join("");
    this.#waiting = [];
    if (this.#last?.length >= LIMIT) this.#last = null;
    for (let start = 0; start < text.length; ) {
      const end = this.#end(text, start);
      const part = text.slice(start, end);
      if (this.#last) this.#last.appendData(part);
      else this.#block(part);
      // What follows a block that is complete begins the next one.
      if (end < text.length) this.#last = null;
      start = end;
    }
  }

  get text() {
    this.flush();
    return this.#element.textContent;
  }

  set text(text) {
    cancelAnimationFrame(this.#frame);
    this.#element.replaceChildren();
    this.#last = null;
    this.#waiting = [];
    this.length = 0;
    this.append(text);
    this.flush();
  }

  #block(text) {
    const block = document.createElement("div");
    block.className = "text-block";
    block.append((this.#last = document.createTextNode(text)));
    this.#element.append(block);
  }

  // Where the text that belongs to the last block ends: after the first line end, or else space, that is far enough.
  #end(text, start) {
    const length = this.#last?.length ?? 0;
    const rest = text.slice(start, start + LIMIT - length);
    const after = (character, size) => rest.indexOf(character, Math.max(0, size - length - 1)) + 1 || rest.length;
    const end = start + Math.min(after("\n", BLOCK), after(" ", WORD));
    const splits = end < text.length && text.codePointAt(end - 1) > 0xffff; // a character of two units
    return splits ? end + 1 : end;
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
