// Batches and files: upload with progress, and actions that are confirmed first.
import { CallError, call, csrf } from "./calls.js";
import { announce } from "./console.js";
import { connectLive } from "./live.js";
import { showMessage } from "./text.js";

const element = (id) => document.getElementById(id);
const UNITS = ["B", "KiB", "MiB", "GiB"];

connectLive(element("live"));
startActions();
if (element("new-batch")) startUpload();

function startUpload() {
  const form = element("new-batch");
  let upload = null;

  form.addEventListener("input", () => clearErrors(form));
  element("abort").addEventListener("click", () => upload?.abort());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    clearErrors(form);
    const file = form.elements.file.files[0];
    if (!file) return showError("file", "Choose a file first.");
    busy(true);
    try {
      const data = new FormData();
      data.append("purpose", "batch");
      data.append("file", file);
      upload = new XMLHttpRequest();
      const stored = await send(upload, data);
      element("upload-text").textContent = "Creating the batch";
      const body = {
        input_file_id: stored.id,
        endpoint: form.elements.endpoint.value,
        completion_window: form.elements.completion_window.value,
      };
      const batch = await (await call("v1/batches", { body })).json();
      location.href = new URL(`batches/${batch.id}`, document.baseURI);
    } catch (error) {
      busy(false);
      if (error instanceof CallError) showError(error.param, error.message);
      else if (error.name !== "AbortError") throw error;
    }
  });

  // fetch cannot tell how much of a body was sent.
  function send(request, data) {
    return new Promise((resolve, reject) => {
      request.open("POST", new URL("v1/files", document.baseURI));
      for (const [name, value] of Object.entries(csrf())) request.setRequestHeader(name, value);
      request.responseType = "json";
      request.upload.addEventListener("progress", ({ loaded, total }) => {
        element("upload-bar").value = total ? loaded / total : 0;
        element("upload-text").textContent = `${size(loaded)} of ${size(total)}`;
      });
      request.addEventListener("load", () => {
        if (request.status === 401) location.reload();
        else if (request.status === 200) resolve(request.response);
        else reject(new CallError(request.status, request.response?.error));
      });
      request.addEventListener("error", () => reject(new CallError(0, { message: "The connection was lost during the upload." })));
      request.addEventListener("abort", () => reject(new DOMException("", "AbortError")));
      request.send(data);
    });
  }

  function busy(is) {
    element("create").disabled = is;
    element("abort").hidden = !is;
    element("upload").hidden = !is;
    element("upload-bar").value = 0;
    element("upload-text").textContent = is ? "Starting the upload" : "";
  }
}

// An error of the API is shown at the field that it is about.
function showError(param, message) {
  const name = { input_file_id: "file", purpose: "file" }[param] ?? param;
  const holder = name && document.querySelector(`[data-param="${CSS.escape(name)}"]`);
  const text = holder?.querySelector(".field-error") ?? element("new-error");
  showMessage(text, message.replace(/^[a-z_]+: /, ""));
  text.hidden = false;
  const field = holder?.querySelector("input, select");
  field?.setAttribute("aria-invalid", "true");
  field?.focus();
  announce(message);
}

function clearErrors(form) {
  for (const text of form.parentElement.querySelectorAll(".field-error, #new-error")) text.hidden = true;
  for (const field of form.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
}

function startActions() {
  const dialog = element("confirm");
  const actions = {
    "delete-file": ({ id, name }) => ({
      title: "Delete the file?",
      text: `${name} is deleted at once, and cannot be restored.`,
      yes: "Delete",
      run: () => call(`v1/files/${id}`, { method: "DELETE" }),
    }),
    "cancel-batch": ({ id }) => ({
      title: "Cancel the batch?",
      text: "Requests that wait end at once. Those that run have ten minutes to finish. The results so far are kept.",
      yes: "Cancel the batch",
      run: () => call(`v1/batches/${id}/cancel`),
    }),
  };
  let action = null;
  let button = null;
  document.addEventListener("click", (event) => {
    const pressed = event.target.closest("[data-act]");
    if (!pressed) return;
    button = pressed;
    action = actions[button.dataset.act](button.dataset);
    element("confirm-title").textContent = action.title;
    element("confirm-text").textContent = action.text;
    element("confirm-yes").textContent = action.yes;
    element("confirm-error").hidden = true;
    dialog.showModal();
  });
  element("confirm-yes").addEventListener("click", async (event) => {
    const { currentTarget: yes } = event;
    yes.disabled = true; // a second click would fail, because the first has already done it
    try {
      await action.run();
    } catch (error) {
      showMessage(element("confirm-error"), error.message);
      element("confirm-error").hidden = false;
      return;
    } finally {
      yes.disabled = false;
    }
    dialog.close();
    announce("Done");
    // The next state of the page shows it; until then the row is only marked.
    button?.closest("tr")?.classList.add("leaving");
  });
}

function size(bytes) {
  let unit = 0;
  while (bytes >= 1023.5 && unit < UNITS.length - 1) {
    bytes /= 1024;
    unit++;
  }
  return `${bytes.toFixed(bytes < 9.95 && unit ? 1 : 0)} ${UNITS[unit]}`;
}
