// What all pages need: times in the viewer's zone, the keyboard, copying, dialogs.
import { localizeTimes } from "./times.js";
import { startKeyboard } from "./keyboard.js";

localizeTimes(document);
startKeyboard();

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
  // `navigator.clipboard` exists on HTTPS and on the loopback interface only.
  await copyText(button.dataset.copy);
  button.classList.add("copied");
  announce("Copied");
  setTimeout(() => button.classList.remove("copied"), 1200);
});

export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = document.createElement("textarea");
  field.value = text;
  field.className = "sr-only";
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}

// Says something to screen readers without moving the focus.
export function announce(text) {
  document.getElementById("announcer").textContent = text;
}
