// The keyboard: `/` search, `j` and `k` rows, `g` and a letter for a page, `?` help.
const SEQUENCE_MS = 1200;

export function startKeyboard() {
  let wentAt = -Infinity;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target) || document.querySelector("dialog[open]")) return;
    if (event.timeStamp - wentAt < SEQUENCE_MS) {
      wentAt = -Infinity;
      const link = document.querySelector(`[data-go="${CSS.escape(event.key)}"]`);
      if (link) {
        event.preventDefault();
        link.click();
        return;
      }
    }
    const action = { "/": focusSearch, j: () => moveRow(1), k: () => moveRow(-1), "?": showKeys }[event.key];
    if (event.key === "g") wentAt = event.timeStamp;
    else if (action?.() !== undefined) event.preventDefault();
  });
}

function isTyping(element) {
  return element.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(element.tagName);
}

function focusSearch() {
  const search = document.querySelector("[data-search]");
  search?.focus();
  search?.select?.();
  return search ?? undefined;
}

// Rows are links or have one: the link of the row gets the focus, so that Enter opens it.
function moveRow(step) {
  const rows = [...document.querySelectorAll("[data-rows] [data-row]")].filter((row) => row.offsetParent !== null);
  if (!rows.length) return undefined;
  const at = rows.findIndex((row) => row === document.activeElement || row.contains(document.activeElement));
  const row = rows[Math.min(Math.max(at + step, 0), rows.length - 1)];
  (row.matches("a, button") ? row : row.querySelector("a, button") ?? row).focus();
  row.scrollIntoView({ block: "nearest" });
  return row;
}

function showKeys() {
  const dialog = document.getElementById("keys");
  dialog.showModal();
  return dialog;
}
