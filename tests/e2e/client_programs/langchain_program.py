"""LangChain's integrations of OpenAI and Anthropic."""

import json
import sys
from typing import Any

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Mill(BaseModel):
    """A mill."""

    wheels: int


@tool
def level(river: str) -> str:
    """The level of a river."""
    return f"{river}: 3 m"


def main(url: str, key: str) -> dict[str, Any]:
    openai: dict[str, Any] = {"model": "sim", "base_url": f"{url}/v1", "api_key": key, "max_retries": 0}
    models = {
        "chat": ChatOpenAI(**openai, stream_usage=True),
        "responses": ChatOpenAI(**openai, use_responses_api=True),
        "anthropic": ChatAnthropic(model="sim", base_url=url, api_key=key, max_tokens=200, max_retries=0),
    }
    seen: dict[str, Any] = {}
    for name, model in models.items():
        question = HumanMessage("How high is the water?")
        plain = model.invoke([question])
        streamed, usage = "", 0
        for chunk in model.stream([question]):
            streamed += str(chunk.text)
            usage += (chunk.usage_metadata or {}).get("output_tokens", 0)
        bound = model.bind_tools([level])
        call = bound.invoke([question])
        result = level.invoke(call.tool_calls[0])
        assert isinstance(result, ToolMessage)
        seen[name] = {
            "text": str(plain.text),
            "streamed": streamed,
            "tokens": plain.usage_metadata["output_tokens"],
            "streamed_tokens": usage,
            "result": result.content,
            "after": str(bound.invoke([question, call, result]).text),
            "structured": model.with_structured_output(Mill).invoke([question]).wheels,
        }
    return seen


print(json.dumps(main(*sys.argv[1:])))
