"""Reasoning, tool calls, structured outputs and logprobs of the simulated engine.

An answer is a script with one delta per token that depends on the request alone, so an interrupted answer can resume at
any token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from shared.domain.errors import InvalidRequest
from shared.domain.events import CallDelta, Delta
from shared.domain.logprobs import Candidate, candidate, encode_entry
from shared.domain.request import ChatOptions, GenerateRequest, StructuredOutputs, Tool
from workers.engines.simulated.json_sample import json_sample

REASONING = ("The", " wheel", " asks", " for", " water", ".")
# Characters per token.
FRAGMENT = 6
# The token ids of scripts are above those of the free text.
FIRST_ID = 1000


@dataclass(frozen=True, slots=True)
class Script:
    """Deltas of one token each. With a finish `reason` they are the whole answer; otherwise free text follows."""

    deltas: tuple[Delta, ...]
    reason: str | None

    def step(self, position: int) -> Delta:
        """The delta at a position, with the finish reason if it is the last."""
        delta = self.deltas[position]
        last = position == len(self.deltas) - 1
        return Delta(
            delta.index,
            delta.text,
            (FIRST_ID + position,),
            self.reason if last else None,
            reasoning=delta.reasoning,
            tool_calls=delta.tool_calls,
        )

    def text_of(self, token_id: int) -> bytes:
        """The text of one of its tokens, as it appears in logprobs."""
        delta = self.deltas[token_id - FIRST_ID]
        calls = "".join((call.name or "") + call.arguments for call in delta.tool_calls)
        return (delta.text + delta.reasoning + calls).encode()


def script_of(request: GenerateRequest, index: int, seed: str) -> Script:
    """The script of choice `index`.

    Raises:
        InvalidRequest: the simulated engine does not support the request.
    """
    chat = request.chat or ChatOptions()
    deltas: list[Delta] = []
    budget = request.sampling.thinking_token_budget
    if (chat.reasoning_effort not in (None, "none") or budget) and chat.include_reasoning:
        deltas += [Delta(index, reasoning=word) for word in REASONING[:budget]]
    if tools := _called_tools(request, chat):
        for number, tool in enumerate(tools):
            deltas += _call(index, number, tool, seed)
        return Script(tuple(deltas), "tool_calls")
    if request.structured_outputs is not None:
        text = _structured_text(request.structured_outputs)
        deltas += [Delta(index, piece) for piece in _pieces(text)]
        return Script(tuple(deltas), "stop")
    return Script(tuple(deltas), None)


def _called_tools(request: GenerateRequest, chat: ChatOptions) -> list[Tool]:
    """The tools to call. By default the first one, unless the last message is a tool's result."""
    tools = chat.tools or []
    match chat.tool_choice:
        case {"name": name}:
            named = [tool for tool in tools if tool.function.name == name]
            if not named:
                raise InvalidRequest(f"tool_choice names {name!r}, which is not in tools.", param="tool_choice")
            return named[:1]
        case "required":
            return tools[: 2 if chat.parallel_tool_calls else 1]
        case "none":
            return []
        case _:
            has_result = request.messages is not None and request.messages[-1:] and request.messages[-1].role == "tool"
            return [] if has_result else tools[:1]


def _call(index: int, number: int, tool: Tool, seed: str) -> Iterator[Delta]:
    """The fragments of a call: its id and name, then its arguments."""
    name = tool.function.name
    digest = hashlib.sha256(f"{seed}/{number}/{name}".encode("utf-8", "surrogatepass")).hexdigest()
    yield Delta(index, tool_calls=(CallDelta(number, f"call_{digest[:24]}", name),))
    try:
        arguments = _json(json_sample(tool.function.parameters or {}))
    except ValueError as error:
        raise InvalidRequest(f"The parameters of the function {name!r}: {error}.", param="tools") from error
    for piece in _pieces(arguments):
        yield Delta(index, tool_calls=(CallDelta(number, arguments=piece),))


def _structured_text(output: StructuredOutputs) -> str:
    """A text that satisfies the constraint."""
    if output.choice is not None:
        return output.choice[0]
    if output.json_schema is not None:
        try:
            return _json(json_sample(output.json_schema))
        except ValueError as error:
            raise InvalidRequest(f"The schema: {error}.", param="structured_outputs") from error
    if output.json_object:
        return "{}"
    raise InvalidRequest(
        "The simulated engine supports only json_schema, json_object and choice.", param="structured_outputs"
    )


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _pieces(text: str) -> list[str]:
    """A text as tokens; an empty text is one token, because its end is generated too."""
    return [text[at : at + FRAGMENT] for at in range(0, len(text), FRAGMENT)] or [""]


def logprob_entries(texts: list[bytes], first: int, top: int) -> list[bytes]:
    """Invented but deterministic logprobs: an entry for each token, of which the first is at position `first`."""
    return [_entry(text, position, top) for position, text in enumerate(texts, first)]


def _entry(text: bytes, position: int, top: int) -> bytes:
    logprob = -(1 + position % 7) / 8
    sampled = sampled_candidate(text, logprob)
    others = [Candidate(f" drop{rank}", logprob - rank) for rank in range(1, top)]
    return encode_entry(sampled, [sampled, *others][:top])


def sampled_candidate(text: bytes, logprob: float | None) -> Candidate:
    """The candidate of a token with this text, which may be part of a character."""
    return candidate(text.decode(errors="replace"), logprob, text)
