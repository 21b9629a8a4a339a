// The list of jobs: live rows, and a selection that survives them. `x` selects the row that has the focus.
import { announce } from "./console.js";
import { connectLive } from "./live.js";

const form = document.getElementById("selection");
const count = document.getElementById("selection-count");
const idle = count?.textContent;
const selected = new Set();

const boxes = () => [...form.querySelectorAll('input[name="job"]')];

function show() {
  const present = boxes();
  const ids = new Set(present.map((box) => box.value));
  for (const id of selected) if (!ids.has(id)) selected.delete(id);
  for (const box of present) {
    box.checked = selected.has(box.value);
    box.closest("tr").toggleAttribute("data-selected", box.checked);
  }
  const all = form.querySelector("[data-pick-all]");
  if (all) {
    all.checked = selected.size > 0 && selected.size === present.length;
    all.indeterminate = selected.size > 0 && selected.size < present.length;
  }
  for (const button of form.querySelectorAll("[data-needs-selection]")) button.disabled = selected.size === 0;
  if (count) count.textContent = selected.size ? `${selected.size} selected` : idle;
}

form.addEventListener("change", (event) => {
  if (event.target.matches("[data-pick-all]")) {
    for (const box of boxes()) pick(box.value, event.target.checked);
  } else if (event.target.matches('input[name="job"]')) {
    pick(event.target.value, event.target.checked);
  } else return;
  show();
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
