// Follows the events of a job. A connection that breaks is continued after the last event that arrived.
import { CallError, call } from "../calls.js";

const RETRY_MS = [250, 500, 1000, 2000, 4000];
// Events that have arrived together are handled for so long at a time: the browser draws in between.
const SLICE_MS = 8;
const END = /^job\.(completed|incomplete|failed|cancelled|expired)$/;

// Calls `onEvent(name, data)` for each event until the job has ended. `signal` stops following; the job goes on.
export async function followJob(id, onEvent, onState, signal) {
  let last = "";
  for (let attempts = 0; !signal.aborted; ) {
    try {
      const headers = { accept: "text/event-stream", ...(last ? { "last-event-id": last } : {}) };
      const response = await call(`v1/jobs/${id}/stream`, { method: "GET", headers, signal });
      if (response.status === 204) return;
      let began = performance.now();
      for await (const event of events(response.body)) {
        if (performance.now() - began > SLICE_MS && !document.hidden) {
          await new Promise((resolve) => setTimeout(resolve));
          began = performance.now();
        }
        attempts = 0;
        onState("connected");
        if (event.id) last = event.id;
        onEvent(event.name, JSON.parse(event.data));
        if (END.test(event.name)) return;
      }
    } catch (error) {
      if (signal.aborted) return;
      // A request that the server refuses stays refused; everything else is worth another attempt.
      if (error instanceof CallError && error.status >= 400 && error.status < 500 && error.status !== 429) throw error;
    }
    if (signal.aborted) return;
    onState("reconnecting");
    const wait = RETRY_MS[Math.min(attempts++, RETRY_MS.length - 1)];
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

// The events of a stream of bytes. Headrace writes each as lines that end with `\n`, and an empty line.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = []; // of a frame that is not complete; a long one comes in many pieces
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const isComplete = value.includes("\n\n") || (value.startsWith("\n") && rest.at(-1)?.endsWith("\n"));
      rest.push(value);
      if (!isComplete) continue;
      const frames = rest.join("").split("\n\n");
      rest = [frames.pop()];
      for (const frame of frames) {
        const event = { name: "", data: "", id: "" };
        for (const line of frame.split("\n")) {
          const at = line.indexOf(": ");
          const field = { event: "name", data: "data", id: "id" }[line.slice(0, at)];
          if (field) event[field] = line.slice(at + 2);
        }
        if (event.name) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
