"""instructor: structured outputs by tools, JSON Schema and JSON mode, and a stream of partial objects."""

import json
import sys
from typing import Any

import anthropic
import instructor
import openai
from pydantic import BaseModel


class Mill(BaseModel):
    wheels: int


def main(url: str, key: str) -> dict[str, Any]:
    sdk = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    clients = {
        "tools": instructor.from_openai(sdk, mode=instructor.Mode.TOOLS),
        "json_schema": instructor.from_openai(sdk, mode=instructor.Mode.JSON_SCHEMA),
        "responses": instructor.from_openai(sdk, mode=instructor.Mode.RESPONSES_TOOLS),
        "anthropic": instructor.from_anthropic(
            anthropic.Anthropic(base_url=url, api_key=key, max_retries=0), mode=instructor.Mode.ANTHROPIC_TOOLS
        ),
    }
    seen: dict[str, Any] = {}
    for name, client in clients.items():
        options: Any = {"model": "sim", "messages": [{"role": "user", "content": "How many wheels?"}]}
        if name == "anthropic":
            options["max_tokens"] = 200
        seen[name] = client.chat.completions.create(response_model=Mill, max_retries=0, **options).wheels
        if name in ("tools", "json_schema"):
            partial = client.chat.completions.create_partial(response_model=Mill, max_retries=0, **options)
            seen[f"{name}, streamed"] = [item.wheels for item in partial][-1]
    return seen


print(json.dumps(main(*sys.argv[1:])))
