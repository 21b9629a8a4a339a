// Calls of the API with the session's key: `v1/...` below the console's root.

const headers = JSON.parse(document.body.getAttribute("hx-headers:inherited"));

// An error response: `param` is the parameter that it is about.
export class CallError extends Error {
  constructor(status, error) {
    super(error?.message ?? `The server answered with status ${status}.`);
    this.status = status;
    this.param = error?.param ?? null;
  }
}

export const csrf = () => ({ ...headers });

// Sends a request; `body` becomes JSON. Returns the response if it is no error.
export async function call(path, { method = "POST", body, headers: more = {}, signal } = {}) {
  const json = body === undefined ? {} : { "content-type": "application/json" };
  const response = await fetch(new URL(path, document.baseURI), {
    method,
    headers: { ...json, ...more, ...csrf() },
    body: body === undefined ? undefined : JSON.stringify(body),
    redirect: "manual",
    signal,
  }).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new CallError(0, { message: "The server cannot be reached." });
  });
  if (response.ok) return response;
  if (response.status === 401 || response.type === "opaqueredirect") {
    location.reload(); // the session has ended: the server leads to the sign-in page, and back
    return new Promise(() => {});
  }
  const answer = await response.json().catch(() => ({}));
  throw new CallError(response.status, answer.error);
}
