// One model's side: submits, follows the job's events, measures, and stops.
import { call } from "../calls.js";
import { announce } from "../console.js";
import { showMessage } from "../text.js";
import { Answer } from "./answer.js";
import { followJob } from "./stream.js";

const CHARACTERS_PER_TOKEN = 4; // until the end tells the number
const STATES = {
  queued: ["info", "Queued"],
  running: ["info", "Running"],
  reconnecting: ["near", "Reconnecting"],
  stopping: ["near", "Stopping"],
  completed: ["good", "Completed"],
  incomplete: ["near", "Cut at the limit"],
  cancelled: ["near", "Stopped"],
  failed: ["bad", "Failed"],
  expired: ["bad", "Expired"],
};

export class Side {
  constructor(index, { onModel, onChange, onContinue }) {
    this.element = document.getElementById("side-template").content.firstElementChild.cloneNode(true);
    this.part = (name) => this.element.querySelector(`[data-side="${name}"]`);
    const select = this.part("model");
    select.id = `model-${index}`;
    this.element.querySelector("label").htmlFor = select.id;
    this.element.querySelector("label").textContent = `Model ${index + 1}`;
    select.addEventListener("change", () => onModel(select.value));
    this.element.querySelector(".answer").setAttribute("aria-label", `Answer of model ${index + 1}`);
    this.part("stop").addEventListener("click", () => this.stop());
    this.part("continue").addEventListener("click", () => onContinue(this.answer.turns()));
    this.answer = new Answer(this.part("answer"));
    this.onChange = onChange;
    this.job = null;
    this.running = false;
    this.following = new AbortController();
    this.measuring = 0;
  }

  set model(name) {
    this.part("model").value = name;
  }

  get model() {
    return this.part("model").value;
  }

  // Runs a request. Throws a CallError if the API refuses it.
  async run({ body, headers }) {
    this.reset();
    this.#begin("queued");
    this.isJson = Boolean(body.response_format);
    this.submittedAt = performance.now();
    try {
      const response = await call("v1/jobs", { body, headers });
      const job = await response.json();
      this.job = job.id;
      this.#facts(job, body.model);
    } catch (error) {
      this.#finish("failed");
      this.#state("plain", "Not sent");
      throw error;
    }
    this.onChange();
    await this.#follow();
  }

  // Shows a job that was started before the page was loaded.
  async resume(id) {
    this.reset();
    this.job = id;
    this.#begin("running");
    this.#show("job", `jobs/${id}`);
    await this.#follow();
  }

  async stop() {
    this.#named("stopping");
    await call(`v1/jobs/${this.job}/cancel`).catch((error) => {
      this.fail(error.message);
      if (this.running) this.#named("running");
    });
  }

  fail(message) {
    const box = this.part("error");
    showMessage(box, message);
    box.hidden = false;
  }

  // Stops following; the job goes on.
  leave() {
    this.following.abort();
    this.running = false;
  }

  reset() {
    this.leave();
    this.following = new AbortController();
    this.job = null;
    this.isJson = false;
    this.submittedAt = this.firstAt = null;
    this.answer.clear();
    for (const name of ["ttft", "rate", "prompt", "output", "finish"]) this.part(name).textContent = "–";
    for (const name of ["error", "job", "continue", "stop", "thumbs"]) this.part(name).hidden = true;
    this.part("thumbs").replaceChildren();
    this.part("facts").textContent = "";
    this.#state("plain", "Ready");
  }

  #begin(state) {
    this.running = true;
    this.#named(state);
    this.onChange();
  }

  async #follow() {
    const { signal } = this.following;
    this.part("stop").hidden = false;
    try {
      await followJob(this.job, (name, data) => this.#on(name, data), (state) => this.#connection(state), signal);
    } catch (error) {
      this.fail(error.message);
      this.#finish("failed");
    }
  }

  #connection(state) {
    if (state === "reconnecting") this.#named("reconnecting");
    else if (this.element.dataset.state === "reconnecting") this.#named("running");
  }

  #on(name, data) {
    const kind = name.slice("job.".length);
    if (kind === "queued") {
      this.#named("queued");
      if (data.position) this.part("finish").textContent = `${data.position} before it`;
    } else if (kind === "started") {
      if (this.element.dataset.state !== "stopping") this.#named("running");
      this.part("finish").textContent = "–";
      if (data.attempt > 1) this.part("facts").textContent = `continued by ${data.worker}, attempt ${data.attempt}`;
    } else if (kind === "restarted") this.answer.clear();
    else if (kind === "delta") this.#delta(data);
    else if (kind in STATES) this.#end(kind, data);
  }

  #delta(data) {
    if (this.firstAt === null && (data.text || data.reasoning || data.tool_calls)) {
      this.firstAt = performance.now();
      if (this.submittedAt !== null) this.part("ttft").textContent = duration(this.firstAt - this.submittedAt);
    }
    if (data.finish_reason) this.part("finish").textContent = data.finish_reason.replaceAll("_", " ");
    this.answer.add(data);
    this.measuring ||= requestAnimationFrame(() => this.#measure());
  }

  // What is known of a running answer, once a frame: its pieces are many and small.
  #measure() {
    this.measuring = 0;
    if (!this.running || this.firstAt === null) return;
    const tokens = Math.round(this.answer.characters / CHARACTERS_PER_TOKEN);
    this.part("output").textContent = `≈ ${count(tokens)}`;
    const seconds = (performance.now() - this.firstAt) / 1000;
    if (this.submittedAt !== null && seconds > 0.5) this.part("rate").textContent = `≈ ${count(tokens / seconds)}/s`;
  }

  #end(kind, { usage, timings, error }) {
    if (timings?.ttft_ms != null) this.part("ttft").textContent = duration(timings.ttft_ms);
    if (usage) {
      this.part("prompt").textContent = count(usage.prompt_tokens);
      this.part("output").textContent = count(usage.completion_tokens);
      const seconds = (timings.total_ms - timings.ttft_ms) / 1000;
      this.part("rate").textContent = usage.completion_tokens && seconds > 0 ? `${count(usage.completion_tokens / seconds)}/s` : "–";
    }
    if (kind === "cancelled" || kind === "expired") this.part("finish").textContent = kind;
    if (error) this.fail(error.message);
    this.answer.finish(this.isJson);
    this.#finish(kind);
    this.part("continue").hidden = this.answer.choices.length === 0;
    if (this.answer.choices.length) this.#showThumbs();
  }

  // What the viewer thinks of the answer, as on the page of its job.
  async #showThumbs() {
    const { signal } = this.following;
    const part = this.part("thumbs");
    try {
      const headers = { "HX-Request": "true" };
      const html = await (await call(`jobs/${this.job}/feedback`, { method: "GET", headers, signal })).text();
      if (signal.aborted) return;
      await htmx.swap({ sourceElement: part, target: part, text: html, swap: "innerHTML" });
      part.hidden = false;
    } catch {
      // An answer can be read without its thumbs.
    }
  }

  #finish(kind) {
    this.running = false;
    this.part("stop").hidden = true;
    this.#named(kind);
    announce(`${this.model}: ${STATES[kind][1]}`);
    this.onChange();
  }

  #facts(job, requested) {
    this.#show("job", `jobs/${job.id}`);
    const facts = [];
    if (job.model !== requested) facts.push(`served by ${job.model}`);
    const cache = { hit: "from the response cache", coalesced: "shares the answer of an equal request" }[job.cache?.outcome?.toLowerCase()];
    if (cache) facts.push(cache);
    this.part("facts").textContent = facts.join(" · ");
  }

  #show(name, address) {
    this.part(name).href = address;
    this.part(name).hidden = false;
  }

  #named(state) {
    this.element.dataset.state = state;
    this.#state(...STATES[state]);
  }

  #state(kind, text) {
    this.part("state").className = `badge badge-${kind}`;
    this.part("state-text").textContent = text;
    if (text === "Ready" || text === "Not sent") this.element.dataset.state = "idle";
  }
}

const count = (value) => {
  const rounded = value < 10 ? Math.round(value * 10) / 10 : Math.round(value);
  return `${rounded.toLocaleString("en")} ${rounded === 1 ? "token" : "tokens"}`;
};

function duration(ms) {
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  const seconds = ms / 1000;
  return seconds < 99.5 ? `${seconds.toFixed(seconds < 9.95 ? 1 : 0)} s` : `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}
