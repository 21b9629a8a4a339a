"""Logged requests in the shape of OpenAI's chat completions: the messages, of which the last one is the answer.

It reads the JSON that the log has, not the classes of requests: redaction may have changed any text in it, so that it
need not be valid as a request any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What a stored message has besides its role and its content, and clients may send again.
_MEMBERS = ("name", "tool_calls", "tool_call_id")


def chat_messages(request: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The messages of a request. A prompt without a conversation is a user's message; None for one of token ids."""
    if (messages := request.get("messages")) is not None:
        return [_message(message) for message in messages]
    prompt = request.get("prompt")
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else None


def chat_tools(request: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The tools of a request."""
    tools = (request.get("chat") or {}).get("tools")
    return [{"type": "function", **tool} for tool in tools] if tools else None


def with_answer(
    messages: list[dict[str, Any]], request: Mapping[str, Any], output: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The messages, and after them the first choice of the answer; without one, if there is none.

    An answer that continues the last message replaces it, with its text.
    """
    if not output:
        return messages
    choice = output[0]
    answer: dict[str, Any] = {"role": "assistant", "content": choice.get("text")}
    if calls := choice.get("tool_calls"):
        answer["content"] = choice.get("text") or None
        answer["tool_calls"] = [
            {
                "id": call.get("id"),
                "type": "function",
                "function": {"name": call.get("name"), "arguments": call.get("arguments")},
            }
            for call in calls
        ]
    last = messages[-1] if messages else {}
    continues = (request.get("chat") or {}).get("continue_final_message") and isinstance(last.get("content"), str)
    if not continues:
        return [*messages, answer]
    return [*messages[:-1], {**last, **answer, "content": last["content"] + (answer["content"] or "")}]


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, list):
        content = [_part(part) for part in content]
    found = {"role": message.get("role"), "content": content}
    return found | {name: message[name] for name in _MEMBERS if message.get(name) is not None}


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    """A part of a content, as clients send it: as `api.console.message_body` has it for those of jobs."""
    if part.get("type") == "text":
        return {"type": "text", "text": part.get("text")}
    data = part.get("data")
    url = f"data:{part.get('media_type')};base64,{data}" if data is not None else part.get("url")
    if part.get("type") == "image":
        detail = {"detail": part["detail"]} if part.get("detail") else {}
        return {"type": "image_url", "image_url": {"url": url, **detail}}
    named = {"filename": part["filename"]} if part.get("filename") is not None else {}
    source = {"file_id": part["file_id"]} if part.get("file_id") is not None else {"file_data": url}
    return {"type": "file", "file": {**source, **named}}
