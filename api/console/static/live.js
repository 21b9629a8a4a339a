// Keeps the parts of a page up to date over server-sent events, while the page is visible.
import { localizeTimes } from "./times.js";

const RETRY_MS = [1000, 2000, 5000, 10000];

// `indicator` has the address of the stream in `data-live`, and shows the state. `onPart` is called with each new part.
export function connectLive(indicator, onPart = () => {}) {
  let source = null;
  let attempts = 0;
  let timer = 0;
  const text = indicator.querySelector(".live-text");

  const show = (state, label) => {
    if (indicator.dataset.state === state) return;
    indicator.dataset.state = state;
    text.textContent = label;
  };

  const open = () => {
    clearTimeout(timer);
    if (source || document.hidden) return;
    source = new EventSource(new URL(indicator.dataset.live, document.baseURI));
    source.addEventListener("part", (event) => {
      const { name, html } = JSON.parse(event.data);
      replace(name, html, onPart);
    });
    source.addEventListener("state", (event) => {
      attempts = 0;
      if (event.data === "live") show("live", "Live");
      else show("stale", "Stale");
    });
    source.addEventListener("error", () => {
      show("lost", "Reconnecting");
      close();
      timer = setTimeout(retry, RETRY_MS[Math.min(attempts++, RETRY_MS.length - 1)]);
    });
  };

  const close = () => {
    source?.close();
    source = null;
    clearTimeout(timer);
  };

  // A session that has ended redirects the page to the sign-in; anything else is worth another attempt.
  const retry = async () => {
    const answer = await fetch(location.href, { redirect: "manual" }).catch(() => null);
    if (answer?.type === "opaqueredirect") location.reload();
    else open();
  };

  // A browser opens few connections to one server: a tab that nobody sees must not hold one.
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", open);
  open();
}

async function replace(name, html, onPart) {
  const part = document.querySelector(`[data-part="${CSS.escape(name)}"]`);
  if (!part) return;
  const template = document.createElement("template");
  template.innerHTML = html;
  localizeTimes(template.content);
  await htmx.swap({ sourceElement: part, target: part, text: template.innerHTML, swap: "innerMorph" });
  onPart(part);
}

// For pages with a stream of their own: what `connectLive` does with each part.
export function replacePart(name, html) {
  return replace(name, html, () => {});
}
