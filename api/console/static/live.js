// Keeps the parts of a page up to date over server-sent events, while the page is visible.
import { announce } from "./console.js";
import { clock, localizeTimes } from "./times.js";

const RETRY_MS = [1000, 2000, 5000, 10000];
// States in which the page is not asked for again, and why.
const ENDED = {
  gone: ["No longer exists", "What this page shows no longer exists."],
  closed: ["Paused", "This session has too many live pages. Reload this one to go on."],
};

// A stream of server-sent events that is open while the page is visible, and opened again when it breaks. `address` is
// called for each connection, `listeners` has a function for each type of event, and `show` gets the state and its name.
export class LiveStream {
  #address;
  #listeners;
  #show;
  #source = null;
  #attempts = 0;
  #timer = 0;
  #ended = false;
  #state = "";
  #freshAt = new Date(); // when what the page shows was last up to date

  constructor(address, listeners, show) {
    this.#address = address;
    this.#listeners = { ...listeners, state: (event) => this.#onState(event.data) };
    this.#show = show;
    // A browser opens few connections to one server: a tab that nobody sees must not hold one.
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#close() : this.#open()));
    addEventListener("pagehide", () => this.#close());
    addEventListener("pageshow", () => this.#open());
    this.#open();
  }

  // Nothing more will come.
  end() {
    this.#ended = true;
    this.#close();
  }

  #open() {
    clearTimeout(this.#timer);
    if (this.#source || this.#ended || document.hidden) return;
    this.#source = new EventSource(new URL(this.#address(), document.baseURI));
    for (const [type, listener] of Object.entries(this.#listeners)) {
      this.#source.addEventListener(type, (event) => {
        this.#attempts = 0;
        listener(event);
      });
    }
    this.#source.addEventListener("error", () => {
      if (this.#ended) return;
      this.#report("lost", "Reconnecting", `There is no connection to the server. ${this.#old()}`);
      this.#close();
      this.#timer = setTimeout(() => this.#retry(), RETRY_MS[Math.min(this.#attempts++, RETRY_MS.length - 1)]);
    });
  }

  #close() {
    this.#source?.close();
    this.#source = null;
    clearTimeout(this.#timer);
  }

  // A session that has ended redirects the page to the sign-in, and what was deleted has no page; anything else is worth
  // another attempt.
  async #retry() {
    const answer = await fetch(location.href, { redirect: "manual" }).catch(() => null);
    if (answer?.type === "opaqueredirect") location.reload();
    else if (answer?.status === 404) this.#onState("gone");
    else this.#open();
  }

  #onState(state) {
    if (state in ENDED) {
      this.end();
      this.#report(state, ...ENDED[state]);
    } else if (state === "live") {
      this.#freshAt = new Date();
      this.#report("live", "Live");
    } else {
      const why = `The server cannot read the present state, and tries again by itself. ${this.#old()}`;
      this.#report("stale", `Not updated since ${clock.format(this.#freshAt)}`, why);
    }
  }

  #old() {
    return `What this page shows is from ${clock.format(this.#freshAt)}.`;
  }

  // Shows a state when it begins. `why` is said to screen readers too: numbers that stand still look like all others.
  #report(state, name, why = "") {
    if (state === this.#state) return;
    const wasOld = this.#state === "lost" || this.#state === "stale";
    this.#state = state;
    this.#show(state, name, why);
    if (why) announce(why);
    else if (wasOld) announce("This page is up to date again.");
  }
}

// `indicator` has the address of the stream in `data-live`, and shows the state. `onPart` is called with each new part.
export function connectLive(indicator, onPart = () => {}) {
  const text = indicator.querySelector(".live-text");
  const show = (state, name, why) => {
    indicator.dataset.state = state;
    indicator.title = why;
    text.textContent = name;
  };
  const onEvent = (event) => {
    const { name, html } = JSON.parse(event.data);
    replacePart(name, html, { onPart });
  };
  new LiveStream(() => indicator.dataset.live, { part: onEvent }, show);
}

export async function replacePart(name, html, { swap = "innerMorph", onPart = () => {} } = {}) {
  const part = document.querySelector(`[data-part="${CSS.escape(name)}"]`);
  if (!part) return;
  const template = document.createElement("template");
  template.innerHTML = html;
  localizeTimes(template.content);
  await htmx.swap({ sourceElement: part, target: part, text: template.innerHTML, swap });
  onPart(part);
}
