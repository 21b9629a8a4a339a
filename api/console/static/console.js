// What all pages need: times in the viewer's zone, the keyboard, copying, dialogs.
import { localizeTimes } from "./times.js";
import { startKeyboard } from "./keyboard.js";

localizeTimes(document);
startKeyboard();
showCurrent();

// Parts that htmx has replaced.
document.addEventListener("htmx:after:swap", (event) => localizeTimes(event.target?.ownerDocument ? event.target : document));

document.addEventListener("click", async (event) => {
  if (event.target.closest(".skip")) {
    event.preventDefault(); // its address is relative to the base, and would load the page again
    document.getElementById("main").focus();
    return;
  }
  const button = event.target.closest("[data-copy], [data-dialog]");
  if (!button) return;
  if (button.dataset.dialog) {
    document.getElementById(button.dataset.dialog).showModal();
    return;
  }
  if (!(await copyText(button.dataset.copy))) return;
  button.classList.add("copied");
  setTimeout(() => button.classList.remove("copied"), 1200);
});

// A form that is sent twice, by a double click or while the server is slow, does twice what it says. Who has stopped it
// can send it again a little later. (The forms of htmx prevent this event.)
const AGAIN_MS = 10_000;
let sent = { form: null, at: 0 };
document.addEventListener("submit", (event) => {
  const { target: form, timeStamp: at } = event;
  if (event.defaultPrevented || form.method !== "post") return;
  if (sent.form === form && at - sent.at < AGAIN_MS) event.preventDefault();
  else sent = { form, at };
});
addEventListener("pageshow", () => (sent.form = null));

// On a phone, the pages are one line that scrolls: the current one is in sight.
function showCurrent() {
  const pages = document.querySelector(".side-pages");
  const current = pages?.querySelector("[aria-current]");
  if (current) pages.scrollLeft += current.getBoundingClientRect().left - pages.getBoundingClientRect().left - (pages.clientWidth - current.clientWidth) / 2;
}

// Copies a text, and says so. Returns whether that was possible: browsers refuse it to pages without the focus.
export async function copyText(text) {
  const copied = (await write(text)) || select(text);
  announce(copied ? "Copied" : "The browser does not allow to copy this.");
  return copied;
}

// `navigator.clipboard` exists on HTTPS and on the loopback interface only.
const write = (text) => navigator.clipboard?.writeText(text).then(() => true, () => false);

function select(text) {
  const field = document.createElement("textarea");
  field.value = text;
  field.className = "sr-only";
  document.body.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  return copied;
}

// Says something to screen readers without moving the focus.
export function announce(text) {
  document.getElementById("announcer").textContent = text;
}
