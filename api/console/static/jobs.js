// The list of jobs: live rows, and a selection that survives them. `x` selects the row that has the focus.
import { announce } from "./console.js";
import { connectLive } from "./live.js";

const form = document.getElementById("selection");
const count = document.getElementById("selection-count");
const kept = document.getElementById("selection-kept");
const clear = document.getElementById("selection-clear");
const most = Number(form.dataset.most);
const idle = count?.textContent;
const selected = new Set();

const boxes = () => [...form.querySelectorAll('input[type="checkbox"][name="job"]')];

// Jobs stay selected when newer ones push them off the page: the form sends them as hidden fields.
function show() {
  const present = boxes();
  for (const box of present) {
    box.checked = selected.has(box.value);
    box.closest("tr").toggleAttribute("data-selected", box.checked);
  }
  const here = present.filter((box) => box.checked).length;
  const all = form.querySelector("[data-pick-all]");
  if (all) {
    all.checked = here > 0 && here === present.length;
    all.indeterminate = here > 0 && here < present.length;
  }
  if (!count) return;
  const shown = new Set(present.map((box) => box.value));
  const away = [...selected].filter((id) => !shown.has(id));
  kept.replaceChildren(...away.map(hidden));
  count.textContent = selected.size ? describe(away.length) : idle;
  clear.hidden = selected.size === 0;
  for (const button of form.querySelectorAll("[data-needs-selection]")) {
    button.disabled = selected.size === 0 || selected.size > most;
  }
}

function describe(away) {
  const parts = [`${selected.size} selected`];
  if (away) parts.push(`${away} no longer on this page`);
  if (selected.size > most) parts.push(`at most ${most} at once`);
  return parts.join(", ");
}

function hidden(id) {
  const field = document.createElement("input");
  field.type = "hidden";
  field.name = "job";
  field.value = id;
  return field;
}

form.addEventListener("change", (event) => {
  if (event.target.matches("[data-pick-all]")) {
    for (const box of boxes()) pick(box.value, event.target.checked);
  } else if (event.target.matches('input[name="job"]')) {
    pick(event.target.value, event.target.checked);
  } else return;
  show();
});

clear?.addEventListener("click", () => {
  selected.clear();
  show();
  announce(idle);
  form.querySelector("[data-pick-all]")?.focus(); // the button is gone
});

// After a click, the keyboard goes on from the row.
form.addEventListener("click", (event) => {
  if (event.detail > 0 && event.target.matches('input[name="job"]')) event.target.closest("tr").querySelector("a").focus();
});

function pick(id, on) {
  if (on) selected.add(id);
  else selected.delete(id);
}

document.addEventListener("keydown", (event) => {
  if (event.key !== "x" || event.ctrlKey || event.metaKey || event.altKey) return;
  const row = document.activeElement?.closest?.("[data-row]");
  const box = row?.querySelector('input[name="job"]');
  if (!box || /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName)) return;
  event.preventDefault();
  pick(box.value, !selected.has(box.value));
  show();
  announce(`${selected.size} selected`);
});

// What was done is shown above the list; the selection has served its purpose.
document.addEventListener("htmx:after:swap", () => {
  const results = document.querySelector("#results .results:not([data-seen])");
  if (!results) return;
  results.dataset.seen = "";
  selected.clear();
  show();
});

// An open menu closes when something else is clicked, or by Escape.
for (const menu of document.querySelectorAll("details.menu, details.filters")) {
  document.addEventListener("click", (event) => {
    if (!menu.contains(event.target)) menu.open = false;
  });
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    menu.open = false;
    menu.querySelector("summary").focus();
  });
}

for (const box of boxes()) if (box.checked) selected.add(box.value); // what the browser has restored
show();
const live = document.getElementById("live");
if (live) connectLive(live, show);
