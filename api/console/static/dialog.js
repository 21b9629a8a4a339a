// Links with `data-ask` lead to a question, a page of its own; with this script, it is asked in a dialog.
import { localizeTimes } from "./times.js";

let dialog = null;

document.addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  const link = event.target.closest("a[data-ask], [data-close]");
  if (!link) return;
  if (link.matches("[data-ask]")) {
    event.preventDefault();
    ask(link);
  } else if (dialog?.contains(link)) {
    event.preventDefault();
    dialog.close();
  }
});

// A name that has to be typed before the button does what it says; the server checks it too.
document.addEventListener("input", (event) => check(event.target.closest("form")));

async function ask(link) {
  const response = await fetch(link.href, { headers: { "HX-Request": "true" } }).catch(() => null);
  if (!response || response.headers.has("HX-Redirect")) {
    location.assign(link.href); // the browser shows what is wrong, or the sign-in page
    return;
  }
  const text = await response.text().catch(() => null);
  if (text === null) return location.assign(link.href);
  dialog ??= create();
  dialog.innerHTML = text;
  if (!response.ok) dialog.append(closeButton());
  localizeTimes(dialog);
  for (const form of dialog.querySelectorAll("form")) check(form);
  if (!dialog.open) dialog.showModal(); // a second click may have come before it was shown
}

function create() {
  const element = document.createElement("dialog");
  element.className = "dialog dialog-wide";
  element.setAttribute("aria-labelledby", "question-title");
  document.body.append(element);
  return element;
}

function closeButton() {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "button";
  button.dataset.close = "";
  button.textContent = "Close";
  return button;
}

function check(form) {
  const button = form?.querySelector("[data-expects]");
  if (button) button.disabled = form.elements.confirm?.value.trim() !== button.dataset.expects;
}

for (const form of document.forms) check(form);
