// The state of the playground as a request, and a request as the state.

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const WORDS = ["reasoning_effort", "tool_choice"];
const CACHE_HEADERS = { refresh: { "Cache-Control": "no-cache" }, bypass: { "Cache-Control": "no-store" } };

export class InputError extends Error {
  constructor(param, message) {
    super(message);
    this.param = param;
  }
}

export const emptyState = (models) => ({
  system: "",
  turns: [{ role: "user", content: "" }],
  fields: {},
  sides: 1,
  models: [models[0], models[1] ?? models[0]],
  jobs: [null, null],
  language: "curl",
});

// The body of POST /v1/jobs for a model of the page's list, and its headers. Throws an InputError if a field cannot be read.
export function requestOf(state, model) {
  const { fields } = state;
  const messages = state.turns.map(messageOf);
  if (state.system) messages.unshift({ role: "system", content: state.system });
  const body = { model: model.name, messages, ...object("more", fields.more) };
  for (const name of NUMBERS) if (fields[name]?.trim()) body[name] = number(name, fields[name]);
  for (const name of WORDS) if (fields[name]) body[name] = fields[name];
  const stops = (fields.stop ?? "").split("\n").filter(Boolean);
  if (stops.length) body.stop = stops;
  if (fields.tools?.trim()) body.tools = json("tools", fields.tools);
  else delete body.tool_choice;
  if (!model.reasoning) delete body.reasoning_effort;
  if (fields.format === "json_object") body.response_format = { type: "json_object" };
  if (fields.format === "json_schema") {
    const schema = object("response_format", fields.schema, "Enter a JSON Schema.");
    body.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  }
  if (fields.cache === "use" || fields.cache === "refresh") body.cache = {};
  if (body.cache && fields.cache_ttl?.trim()) body.cache.ttl = number("cache.ttl", fields.cache_ttl);
  if (fields.priority) body.priority = Number(fields.priority);
  return { body, headers: CACHE_HEADERS[fields.cache] ?? {} };
}

// The body of POST playground/preview for the requests of the sides. Long prompts are sent once: the models share the body,
// and differ in few members. `shown`: the side whose code is shown.
export function previewOf(requests, shown) {
  const variants = new Map();
  for (const { body: { model, reasoning_effort: effort } } of requests) {
    variants.set(model, effort === undefined ? { model } : { model, reasoning_effort: effort });
  }
  const { body: { model, reasoning_effort: _, ...body }, headers } = requests[Math.min(shown, requests.length - 1)];
  return { body, variants: [...variants.values()], shown: [...variants.keys()].indexOf(model), headers };
}

// The characters that a person has typed.
export const sizeOf = ({ system, turns, fields }) =>
  [system, ...turns.map((turn) => turn.content), ...Object.values(fields)].reduce((sum, text) => sum + (text?.length ?? 0), 0);

// The state for a request that a job had. What the form has no field for is kept as further parameters.
export function stateOf(body, models) {
  const state = emptyState(models);
  const { model, messages = [], prompt, ...rest } = body;
  const isSystem = messages[0]?.role === "system" && typeof messages[0].content === "string" && Object.keys(messages[0]).length === 2;
  state.models[0] = models.includes(model) ? model : models[0];
  if (isSystem) state.system = messages[0].content;
  state.turns = messages.slice(isSystem ? 1 : 0).map(turnOf);
  if (prompt !== undefined) state.turns = [{ role: "user", content: typeof prompt === "string" ? prompt : JSON.stringify(prompt) }];
  const fields = state.fields;
  for (const name of NUMBERS) if (name in rest) fields[name] = String(take(rest, name));
  if ("reasoning_effort" in rest) fields.reasoning_effort = take(rest, "reasoning_effort");
  if (typeof rest.tool_choice === "string") fields.tool_choice = take(rest, "tool_choice").replace("auto", "");
  if (rest.stop?.every?.((text) => !text.includes("\n"))) fields.stop = take(rest, "stop").join("\n");
  if ("tools" in rest) fields.tools = JSON.stringify(take(rest, "tools"), null, 2);
  if (rest.response_format?.type === "json_schema") {
    fields.format = "json_schema";
    fields.schema = JSON.stringify(take(rest, "response_format").json_schema.schema, null, 2);
  } else if (rest.response_format?.type === "json_object") {
    fields.format = take(rest, "response_format").type;
  }
  if ("priority" in rest) fields.priority = String(take(rest, "priority"));
  if (Object.keys(rest).length) fields.more = JSON.stringify(rest, null, 2);
  return state;
}

// The field that an error about a parameter of the request is shown at: the name of its `data-param`, or a turn.
export function fieldOf(param, hasSystem) {
  const message = /^messages\[(\d+)\]/.exec(param ?? "");
  if (message) {
    const at = Number(message[1]) - (hasSystem ? 1 : 0);
    return at < 0 ? { name: "system" } : { turn: at };
  }
  const names = { structured_outputs: "response_format", "Cache-Control": "cache", messages: "turn" };
  if (names[param] === "turn") return { turn: 0 };
  const path = (names[param] ?? param ?? "").replace(/\[.*$/, "");
  return path ? { name: path } : null;
}

function messageOf({ role, content, extra }, index) {
  const parts = Array.isArray(extra?.parts);
  const { parts: _, ...members } = extra ?? {};
  if (!content && members.tool_calls) return { role, ...members };
  return { role, content: parts ? json(`messages[${index}]`, content) : content, ...members };
}

function turnOf({ role, content = "", ...members }) {
  if (!Array.isArray(content)) return { role, content, ...(Object.keys(members).length ? { extra: members } : {}) };
  return { role, content: JSON.stringify(content, null, 2), extra: { ...members, parts: [] } };
}

function take(object, name) {
  const value = object[name];
  delete object[name];
  return value;
}

function number(param, text) {
  const value = Number(text.trim());
  if (!Number.isFinite(value)) throw new InputError(param, "Enter a number.");
  return value;
}

function json(param, text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new InputError(param, `This is not JSON: ${error.message}`);
  }
}

function object(param, text, missing) {
  if (!text?.trim()) {
    if (missing) throw new InputError(param, missing);
    return {};
  }
  const value = json(param, text);
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new InputError(param, "Enter a JSON object.");
  return value;
}
