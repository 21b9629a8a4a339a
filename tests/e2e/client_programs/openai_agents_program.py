"""OpenAI Agents SDK: runs with a tool, streams, and structured outputs, with chat completions and responses."""

import asyncio
import json
import sys
from typing import Any

import openai
from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from pydantic import BaseModel


class Mill(BaseModel):
    wheels: int


@function_tool
def level(river: str) -> str:
    """The level of a river."""
    return f"{river}: 3 m"


async def main(url: str, key: str) -> dict[str, Any]:
    set_tracing_disabled(True)
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    models = {
        "chat": OpenAIChatCompletionsModel("sim", client),
        "responses": OpenAIResponsesModel("sim", client),
    }
    seen: dict[str, Any] = {}
    for name, model in models.items():
        agent = Agent(name="miller", instructions="Be brief.", model=model, tools=[level])
        called = await Runner.run(agent, "How high is the water?")
        stream = Runner.run_streamed(agent, "How high is the water?")
        text = ""
        async for event in stream.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                text += event.data.delta
        typed = await Runner.run(Agent(name="counter", model=model, output_type=Mill), "How many wheels?")
        more = [*called.to_input_list(), {"role": "user", "content": "And now?"}]
        seen[name] = {
            "items": [item.type for item in called.new_items],
            "text": called.final_output,
            "streamed": text,
            "streamed_items": [item.type for item in stream.new_items],
            "structured": typed.final_output.wheels,
            "second": (await Runner.run(agent, more)).final_output,
        }
    return seen


print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
