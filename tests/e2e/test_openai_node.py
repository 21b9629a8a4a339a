"""OpenAI's JavaScript client on Node.js with the simulated engine."""

from __future__ import annotations

from typing import Any

from tests.support.node_openai import run_script
from tests.support.stack import KEY, Stack

SCRIPT = """
import OpenAI from "openai";

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({baseURL, apiKey, maxRetries: 0});
const messages = [{role: "user", content: "the mill"}];
const params = {model: "sim", messages, max_tokens: 12};
const tools = [{type: "function", function: {name: "look_up", parameters: {
  type: "object", properties: {word: {type: "string"}}, required: ["word"]}}}];

const complete = await client.chat.completions.create(params);

let text = "";
let usage = null;
const stream = await client.chat.completions.create({...params, stream: true, stream_options: {include_usage: true}});
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}

const helper = client.chat.completions.stream({model: "sim", messages, tools, tool_choice: "required"});
const calling = await helper.finalChatCompletion();

const schema = {type: "object", properties: {wheels: {type: "integer"}}, required: ["wheels"]};
const parsed = await client.chat.completions.parse({
  model: "sim", messages, response_format: {type: "json_schema", json_schema: {name: "mill", strict: true, schema}}});

const plain = await client.completions.create({model: "sim", prompt: ["the mill", "a river"], max_tokens: 3});

let rejected = null;
try {
  await client.chat.completions.create({...params, best_of: 2});
} catch (error) {
  rejected = {status: error.status, param: error.param, kind: error.constructor.name};
}
console.log(JSON.stringify({complete, text, usage, calling, parsed, plain, rejected}));
"""


def test_chat_streams_tools_and_errors(sim_stack: Stack) -> None:
    output: Any = run_script(SCRIPT, f"{sim_stack.url}/v1", KEY)
    assert output["text"] == output["complete"]["choices"][0]["message"]["content"] != ""
    assert output["usage"] == output["complete"]["usage"]
    (call,) = output["calling"]["choices"][0]["message"]["tool_calls"]
    assert (call["function"]["name"], output["calling"]["choices"][0]["finish_reason"]) == ("look_up", "tool_calls")
    assert output["parsed"]["choices"][0]["message"]["parsed"].keys() == {"wheels"}
    assert [choice["index"] for choice in output["plain"]["choices"]] == [0, 1]
    assert output["rejected"] == {"status": 400, "param": "best_of", "kind": "BadRequestError"}
