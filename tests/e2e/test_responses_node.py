"""The Responses API, asked by OpenAI's JavaScript client under Node."""

from __future__ import annotations

from typing import Any

from tests.support.node_openai import run_script
from tests.support.stack import KEY, Stack

SCRIPT = """
import OpenAI from "openai";

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({baseURL, apiKey, maxRetries: 0});
const asked = {model: "sim", input: "the mill", max_output_tokens: 12};
const tools = [{type: "function", name: "look_up", strict: true, parameters: {
  type: "object", properties: {word: {type: "string"}}, required: ["word"], additionalProperties: false}}];

const whole = await client.responses.create(asked);

const events = [];
for await (const event of await client.responses.create({...asked, background: true, stream: true})) {
  events.push(event);
}
const again = [];
for await (const event of await client.responses.retrieve(
    events[0].response.id, {stream: true, starting_after: events[4].sequence_number})) {
  again.push(event);
}

const helper = client.responses.stream({...asked, reasoning: {effort: "low"}, max_output_tokens: 20, background: true});
let said = "";
helper.on("response.output_text.delta", (event) => { said += event.delta; });
await helper.done();

const called = await client.responses.create({model: "sim", input: "x", tools});
const call = called.output[0];
const answered = await client.responses.create({
  model: "sim", previous_response_id: called.id, max_output_tokens: 5,
  input: [{type: "function_call_output", call_id: call.call_id, output: "ok"}]});

const schema = {type: "object", properties: {wheels: {type: "integer"}}, required: ["wheels"]};
const parsed = await client.responses.parse({
  model: "sim", input: "x", text: {format: {type: "json_schema", name: "mill", strict: true, schema}}});

const cancelled = await client.responses.create({model: "orphan", input: "x", background: true})
  .then((made) => client.responses.cancel(made.id));
const items = [];
for await (const item of client.responses.inputItems.list(whole.id, {order: "asc"})) items.push(item);
await client.responses.delete(whole.id);

let refused = null;
try {
  await client.responses.create({...asked, tools: [{type: "web_search"}]});
} catch (error) {
  refused = {status: error.status, param: error.param, kind: error.constructor.name};
}
console.log(JSON.stringify({whole, events, again, said, call, answered, parsed, cancelled, items, refused}));
"""


def test_responses_under_node(sim_stack: Stack) -> None:
    told: Any = run_script(SCRIPT, f"{sim_stack.url}/v1", KEY)
    assert told["whole"]["output_text"] != ""
    assert [event["sequence_number"] for event in told["events"]] == list(range(len(told["events"])))
    assert told["again"] == told["events"][5:]
    assert told["events"][-1]["response"]["output"][0]["content"][0]["text"] == told["whole"]["output_text"]
    assert told["said"] != ""
    assert (told["call"]["type"], told["call"]["name"]) == ("function_call", "look_up")
    assert told["answered"]["output"][0]["type"] == "message"
    assert told["parsed"]["output_parsed"].keys() == {"wheels"}
    assert told["cancelled"]["status"] == "cancelled"
    assert [item["content"][0]["text"] for item in told["items"]] == ["the mill"]
    assert told["refused"] == {"status": 400, "param": "tools[0].type", "kind": "BadRequestError"}
