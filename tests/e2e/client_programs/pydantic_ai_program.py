"""PydanticAI: chat completions, responses and messages, each with a tool, a stream and a structured output."""

import asyncio
import json
import sys
from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.output import NativeOutput
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider


class Mill(BaseModel):
    wheels: int


def level(river: str) -> str:
    """The level of a river."""
    return f"{river}: 3 m"


async def main(url: str, key: str) -> dict[str, Any]:
    openai = OpenAIProvider(base_url=f"{url}/v1", api_key=key)
    models = {
        "chat": OpenAIChatModel("sim", provider=openai),
        "responses": OpenAIResponsesModel("sim", provider=openai),
        "anthropic": AnthropicModel("sim", provider=AnthropicProvider(base_url=url, api_key=key)),
    }
    seen: dict[str, Any] = {}
    for name, model in models.items():
        plain = await Agent(model).run("How high is the water?")
        async with Agent(model).run_stream("How high is the water?") as stream:
            streamed = "".join([text async for text in stream.stream_text(delta=True)])
        called = await Agent(model, tools=[level]).run("How high is the water?")
        structured = await Agent(model, output_type=Mill).run("How many wheels?")
        if name != "anthropic":  # it refuses native outputs for models that it does not know
            await Agent(model, output_type=NativeOutput(Mill)).run("How many wheels?")
        seen[name] = {
            "text": plain.output,
            "streamed": streamed,
            "tokens": plain.usage.output_tokens,
            "parts": [part.part_kind for message in called.all_messages() for part in message.parts],
            "structured": structured.output.wheels,
        }
    return seen


print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
