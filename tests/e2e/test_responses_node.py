"""The Responses API, called by OpenAI's JavaScript client on Node.js."""

from __future__ import annotations

from typing import Any

from tests.support.node_openai import run_script
from tests.support.stack import KEY, Stack

SCRIPT = """
import OpenAI from "openai";

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({baseURL, apiKey, maxRetries: 0});
const params = {model: "sim", input: "the mill", max_output_tokens: 12};
const tools = [{type: "function", name: "look_up", strict: true, parameters: {
  type: "object", properties: {word: {type: "string"}}, required: ["word"], additionalProperties: false}}];

const complete = await client.responses.create(params);

const events = [];
for await (const event of await client.responses.create({...params, background: true, stream: true})) {
  events.push(event);
}
const resumed = [];
for await (const event of await client.responses.retrieve(
    events[0].response.id, {stream: true, starting_after: events[4].sequence_number})) {
  resumed.push(event);
}

const helper = client.responses.stream(
  {...params, reasoning: {effort: "low"}, max_output_tokens: 20, background: true});
let text = "";
helper.on("response.output_text.delta", (event) => { text += event.delta; });
await helper.done();

const calling = await client.responses.create({model: "sim", input: "x", tools});
const call = calling.output[0];
const answered = await client.responses.create({
  model: "sim", previous_response_id: calling.id, max_output_tokens: 5,
  input: [{type: "function_call_output", call_id: call.call_id, output: "ok"}]});

const schema = {type: "object", properties: {wheels: {type: "integer"}}, required: ["wheels"]};
const parsed = await client.responses.parse({
  model: "sim", input: "x", text: {format: {type: "json_schema", name: "mill", strict: true, schema}}});

const cancelled = await client.responses.create({model: "orphan", input: "x", background: true})
  .then((created) => client.responses.cancel(created.id));
const items = [];
for await (const item of client.responses.inputItems.list(complete.id, {order: "asc"})) items.push(item);
await client.responses.delete(complete.id);

let rejected = null;
try {
  await client.responses.create({...params, tools: [{type: "web_search"}]});
} catch (error) {
  rejected = {status: error.status, param: error.param, kind: error.constructor.name};
}
console.log(JSON.stringify({complete, events, resumed, text, call, answered, parsed, cancelled, items, rejected}));
"""


def test_responses_on_node(sim_stack: Stack) -> None:
    output: Any = run_script(SCRIPT, f"{sim_stack.url}/v1", KEY)
    assert output["complete"]["output_text"] != ""
    assert [event["sequence_number"] for event in output["events"]] == list(range(len(output["events"])))
    assert output["resumed"] == output["events"][5:]
    assert output["events"][-1]["response"]["output"][0]["content"][0]["text"] == output["complete"]["output_text"]
    assert output["text"] != ""
    assert (output["call"]["type"], output["call"]["name"]) == ("function_call", "look_up")
    assert output["answered"]["output"][0]["type"] == "message"
    assert output["parsed"]["output_parsed"].keys() == {"wheels"}
    assert output["cancelled"]["status"] == "cancelled"
    assert [item["content"][0]["text"] for item in output["items"]] == ["the mill"]
    assert output["rejected"] == {"status": 400, "param": "tools[0].type", "kind": "BadRequestError"}
