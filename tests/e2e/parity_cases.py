"""Requests that are sent to vLLM's server and to this project, with the intended differences.

All are greedy or seeded, so that both generate the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"

QUESTION: list[dict[str, Any]] = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
STORY: list[dict[str, Any]] = [
    {"role": "system", "content": "You are a miller."},
    {"role": "user", "content": "Tell me about your mill."},
]
PREFILL: list[dict[str, Any]] = [*QUESTION, {"role": "assistant", "content": "The capital of France is"}]
UNIT: dict[str, Any] = {
    "type": "object",
    "properties": {"unit": {"enum": ["celsius", "kelvin"]}},
    "required": ["unit"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather.", "parameters": UNIT},
}
LEVEL: dict[str, Any] = {"type": "function", "function": {"name": "water_level", "parameters": UNIT}}
NAMED_TOOL: dict[str, Any] = {"type": "function", "function": {"name": "get_weather"}}
TOOL_RESULT: list[dict[str, Any]] = [
    {"role": "user", "content": "How is the weather?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"unit": "kelvin"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "290"},
]
TAG: dict[str, Any] = {
    "type": "structural_tag",
    "structures": [{"begin": "<unit>", "schema": UNIT, "end": "</unit>"}],
    "triggers": ["<unit>"],
}
GRAMMAR = 'root ::= "the " ("mill" | "river")'
LONG = "mill " * 1100
Form = Literal["complete", "streamed", ""]


@dataclass(frozen=True)
class Case:
    """A request. `differs` is the kind of the intended difference, if any, and `why` its reason; see `test_parity.py`.

    `only` limits the difference to the complete or to the streamed answer.
    """

    name: str
    path: str
    body: dict[str, Any] = field(hash=False)
    differs: str = ""
    why: str = ""
    only: Form = ""


def chat(name: str, differs: str = "", why: str = "", only: Form = "", **body: Any) -> Case:
    request = {"messages": QUESTION, "max_tokens": 10, "temperature": 0, **body}
    return Case(f"chat: {name}", CHAT, request, differs, why, only)


def text(name: str, differs: str = "", why: str = "", only: Form = "", **body: Any) -> Case:
    request = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0, **body}
    return Case(f"completion: {name}", COMPLETIONS, request, differs, why, only)


# vLLM accepts the request and this project rejects it, or the reverse.
REJECTED, ACCEPTED = "rejected here", "accepted here"
UNSUPPORTED = "a parameter that changes the answer and is not supported is rejected by name; vLLM silently ignores it"
EMPTY = "an empty value of an optional parameter means the same as its absence"
IN_STREAM = "rejected in the stream"
# Rejected before the stream starts, or with a 4xx status; vLLM starts a stream, or answers 500.
EARLIER = "rejected earlier here"
EARLY = "bounds are checked before the job is accepted; vLLM starts a stream that ends with the error"
DIFFERENT = "different answer"
LATE = "only the worker can detect it, after the stream has started, so the error is a frame of the stream"

CASES = [
    chat("plain"),
    chat("a system message", messages=STORY),
    chat("no max_tokens", max_tokens=None),
    chat("max_completion_tokens", max_completion_tokens=4),
    chat("max_completion_tokens takes precedence over max_tokens", max_tokens=9, max_completion_tokens=3),
    chat("content parts", messages=[{"role": "user", "content": [{"type": "text", "text": part} for part in "ab"]}]),
    chat("several turns", messages=[*PREFILL, {"role": "user", "content": "And of Spain?"}]),
    chat("a stop string", messages=STORY, max_tokens=30, stop="mill"),
    chat("stop strings", messages=STORY, max_tokens=30, stop=["wheel", ".", "!"]),
    chat("an included stop string", messages=STORY, max_tokens=30, stop=["."], include_stop_str_in_output=True),
    chat("stop tokens", messages=STORY, max_tokens=30, stop_token_ids=[30, 28]),
    chat("logprobs", logprobs=True),
    chat("top_logprobs", logprobs=True, top_logprobs=3),
    chat("zero top_logprobs", logprobs=True, top_logprobs=0),
    chat("logprobs with stop strings", messages=STORY, max_tokens=30, logprobs=True, top_logprobs=1, stop=["mill"]),
    chat("prompt_logprobs", prompt_logprobs=2),
    chat("prompt_logprobs without alternatives", prompt_logprobs=0),
    chat("a seed", temperature=1.0, seed=7),
    chat("two choices", temperature=1.0, seed=7, n=2),
    chat("two choices with logprobs", temperature=1.0, seed=7, n=2, logprobs=True, top_logprobs=2),
    chat("sampling", temperature=0.7, seed=3, top_p=0.9, top_k=20, min_p=0.05),
    chat("penalties", messages=STORY, presence_penalty=1.5, frequency_penalty=0.5, repetition_penalty=1.3),
    chat("a bias", logit_bias={"7042": -100, "28": 5.5}),
    chat("min_tokens", min_tokens=9),
    chat("ignore_eos", ignore_eos=True, max_tokens=20),
    chat("allowed tokens", allowed_token_ids=[28, 30, 7042]),
    chat("bad words", bad_words=["Paris"]),
    chat("special tokens in the text", ignore_eos=True, max_tokens=16, skip_special_tokens=False),
    chat("continue_final_message", messages=PREFILL, add_generation_prompt=False, continue_final_message=True),
    chat("continue_final_message with echo", DIFFERENT, "vLLM adds prompt_logprobs that were not requested",
         only="complete", messages=PREFILL, add_generation_prompt=False, continue_final_message=True, echo=True),
    chat("no generation prompt", add_generation_prompt=False),
    chat("add_special_tokens", add_special_tokens=True),
    chat("template variables", chat_template_kwargs={"enable_thinking": False}),
    chat("documents", documents=[{"title": "Mills", "text": "They have wheels."}]),
    chat("reasoning_effort", reasoning_effort="low"),
    chat("include_reasoning", include_reasoning=False),
    chat("a user", user="somebody"),
    chat("tools", tools=[WEATHER]),
    chat("tools, auto", tools=[WEATHER, LEVEL], tool_choice="auto"),
    chat("tools, none", tools=[WEATHER], tool_choice="none"),
    chat("tools, required", tools=[WEATHER], tool_choice="required", max_tokens=80),
    chat("tools, no parallel calls", tools=[WEATHER, LEVEL], tool_choice="required", max_tokens=80,
         parallel_tool_calls=False),
    chat("tools, named", DIFFERENT, "a complete answer is parsed like a stream; vLLM uses another parser for it, which "
         "leaves a call that was truncated at max_tokens in the text", only="complete",
         tools=[WEATHER, LEVEL], tool_choice=NAMED_TOOL, max_tokens=40),
    chat("a tool result", messages=TOOL_RESULT, tools=[WEATHER], tool_choice="none"),
    chat("json_object", response_format={"type": "json_object"}, max_tokens=16),
    chat("json_schema", response_format={"type": "json_schema", "json_schema": {"name": "unit", "schema": UNIT}},
         max_tokens=40),
    chat("text", response_format={"type": "text"}),
    chat("structural_tag", response_format=TAG),
    chat("a choice", structured_outputs={"choice": ["Paris", "Rome"]}),
    chat("a regex", structured_outputs={"regex": "[a-z]{3,5}"}),
    chat("a schema", structured_outputs={"json": UNIT}, max_tokens=40),
    chat("a grammar", structured_outputs={"grammar": GRAMMAR}),
    chat("any JSON", structured_outputs={"json_object": True}, max_tokens=16),
    chat("nulls", logprobs=None, top_logprobs=None, stop=None, tools=None, n=None, response_format=None),
    # Rejected by both
    chat("no messages", messages=[]),
    chat("messages that are a string", messages="hello"),
    chat("temperature above 2", temperature=3),
    chat("zero top_p", top_p=0),
    chat("zero choices", n=0),
    chat("two greedy choices", n=2),
    chat("zero max_tokens", max_tokens=0),
    chat("min_tokens above max_tokens", min_tokens=11),
    chat("top_logprobs without logprobs", top_logprobs=2),
    chat("too many top_logprobs", EARLIER, EARLY, only="streamed", logprobs=True, top_logprobs=21),
    chat("an empty stop", stop=[""]),
    chat("an unknown named tool", tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "x"}}),
    chat("an unknown tool_choice", tools=[WEATHER], tool_choice="maybe"),
    chat("an unknown response_format", response_format={"type": "xml"}),
    chat("response_format json_schema without a schema", response_format={"type": "json_schema"}),
    chat("two structured outputs", structured_outputs={"regex": "a", "choice": ["b"]}),
    chat("an invalid regex", structured_outputs={"regex": "("}),
    chat("an invalid schema", structured_outputs={"json": {"type": "nothing"}}),
    chat("an invalid grammar", EARLIER, "it is a client error; vLLM's server answers 500", only="complete",
         structured_outputs={"grammar": "root ::="}),
    chat("continue_final_message with add_generation_prompt", messages=PREFILL, add_generation_prompt=True,
         continue_final_message=True),
    chat("chat_template", chat_template="{{ messages }}"),
    chat("a prompt beyond the context", messages=[{"role": "user", "content": LONG}]),
    chat("more tokens than the context", max_tokens=5000),
    chat("an unknown model", model="nope"),
    chat("a bias of an unknown token", logit_bias={"49999999": 5}),
    # Completions
    text("plain"),
    text("no max_tokens", max_tokens=None),
    text("token ids", prompt=[504, 3575, 282, 4649, 314]),
    text("one prompt in a list", prompt=["The capital of France is"]),
    text("several prompts", prompt=["The capital of France is", "Water flows", "1, 2, 3,"]),
    text("several lists of token ids", prompt=[[504, 3575], [282, 4649, 314]]),
    text("several prompts with choices", prompt=["Water", "Stone"], n=2, temperature=1.0, seed=5),
    text("echo", echo=True),
    text("echo of token ids", echo=True, prompt=[504, 3575, 282]),
    text("echo with logprobs", echo=True, logprobs=2),
    text("echo without tokens", DIFFERENT, "the token that vLLM generates and hides is not counted here",
         echo=True, max_tokens=0, logprobs=1),
    text("several prompts with echo and logprobs", prompt=["The mill", "A river"], echo=True, logprobs=1),
    text("logprobs", logprobs=0),
    text("top logprobs", logprobs=3),
    text("prompt_logprobs", prompt_logprobs=1),
    text("two choices", n=2, temperature=1.0, seed=11, logprobs=1),
    text("stop", stop=["."], max_tokens=30),
    text("stop tokens", stop_token_ids=[28], max_tokens=30),
    text("a choice", structured_outputs={"choice": [" Paris", " Rome"]}),
    text("a json_schema", response_format={"type": "json_schema", "json_schema": {"name": "unit", "schema": UNIT}},
         max_tokens=40),
    text("an empty prompt", prompt=""),
    text("no prompt", prompt=None),
    text("an empty list of prompts", prompt=[]),
    text("an unknown token", prompt=[49999999]),
    text("a prompt beyond the context", prompt=LONG),
    text("zero max_tokens", max_tokens=0),
    text("too many logprobs", EARLIER, EARLY, only="streamed", logprobs=21),
    text("a suffix", suffix="!"),
    # Intended differences
    chat("an unknown parameter", colour="blue"),
    text("best_of", REJECTED, UNSUPPORTED, best_of=3),
    chat("an empty list of tools", ACCEPTED, EMPTY, tools=[]),
    chat("tool_choice auto without tools", ACCEPTED, "there is nothing to choose from, so it has no effect",
         tool_choice="auto"),
    chat("empty structured_outputs", ACCEPTED, EMPTY, structured_outputs={}),
    chat("a message without content", REJECTED, "as in OpenAI's API; only an assistant message may have no content",
         messages=[{"role": "user"}]),
    chat("five stop strings", ACCEPTED, "vLLM accepts four, unless VLLM_MAX_STOP_STRINGS is higher, as it is here",
         stop=list("abcde")),
]  # fmt: skip
