"""Requests that are sent to vLLM's own server and to this project, and what differs on purpose.

All are greedy or seeded, so that both give the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"

ASK: list[dict[str, Any]] = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
STORY: list[dict[str, Any]] = [
    {"role": "system", "content": "You are a miller."},
    {"role": "user", "content": "Tell me about your mill."},
]
PREFILL: list[dict[str, Any]] = [*ASK, {"role": "assistant", "content": "The capital of France is"}]
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
NAMED: dict[str, Any] = {"type": "function", "function": {"name": "get_weather"}}
CALLED: list[dict[str, Any]] = [
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


@dataclass(frozen=True)
class Case:
    """A request. `differs` is how our answer differs on purpose, and `why`; see `test_parity.py` for the kinds.

    With `only`, that is so of the answer in one piece alone, or of the streamed one.
    """

    name: str
    path: str
    body: dict[str, Any] = field(hash=False)
    differs: str = ""
    why: str = ""
    only: Literal["whole", "streamed", ""] = ""


def chat(name: str, differs: str = "", why: str = "", only: Literal["whole", "streamed", ""] = "", **body: Any) -> Case:
    given = {"messages": ASK, "max_tokens": 10, "temperature": 0, **body}
    return Case(f"chat: {name}", CHAT, given, differs, why, only)


def text(name: str, differs: str = "", why: str = "", only: Literal["whole", "streamed", ""] = "", **body: Any) -> Case:
    given = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0, **body}
    return Case(f"completion: {name}", COMPLETIONS, given, differs, why, only)


# Why a request that vLLM takes is refused here, or the other way round.
REFUSED, TAKEN = "refused here", "taken here"
UNKNOWN = "a parameter that is not known or not supported is refused by its name; vLLM ignores it in silence"
IN_STREAM = "refused in the stream"
# Refused before a stream begins, or as the client's fault, where vLLM's stream begins, or its server fails.
SOONER = "refused sooner here"
EARLY = "bounds are checked before the job is taken; vLLM's stream begins, and ends with the error"
OTHERWISE = "answered otherwise"
LATE = "only the worker can find out, and a stream has begun by then: the refusal is an error frame"

CASES = [
    chat("plain"),
    chat("a system message", messages=STORY),
    chat("to its own end", max_tokens=None),
    chat("max_completion_tokens", max_completion_tokens=4),
    chat("max_completion_tokens goes before max_tokens", max_tokens=9, max_completion_tokens=3),
    chat("content in parts", messages=[{"role": "user", "content": [{"type": "text", "text": part} for part in "ab"]}]),
    chat("several turns", messages=[*PREFILL, {"role": "user", "content": "And of Spain?"}]),
    chat("a stop string", messages=STORY, max_tokens=30, stop="mill"),
    chat("stop strings", messages=STORY, max_tokens=30, stop=["wheel", ".", "!"]),
    chat("a stop string that is kept", messages=STORY, max_tokens=30, stop=["."], include_stop_str_in_output=True),
    chat("stop tokens", messages=STORY, max_tokens=30, stop_token_ids=[30, 28]),
    chat("logprobs", logprobs=True),
    chat("top_logprobs", logprobs=True, top_logprobs=3),
    chat("no top_logprobs", logprobs=True, top_logprobs=0),
    chat("logprobs beside stop strings", messages=STORY, max_tokens=30, logprobs=True, top_logprobs=1, stop=["mill"]),
    chat("prompt_logprobs", prompt_logprobs=2),
    chat("prompt_logprobs of the drawn alone", prompt_logprobs=0),
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
    chat("special tokens are shown", ignore_eos=True, max_tokens=16, skip_special_tokens=False),
    chat("a message to go on with", messages=PREFILL, add_generation_prompt=False, continue_final_message=True),
    chat("and with echo", OTHERWISE, "vLLM adds prompt_logprobs that nobody asked for", only="whole",
         messages=PREFILL, add_generation_prompt=False, continue_final_message=True, echo=True),
    chat("no generation prompt", add_generation_prompt=False),
    chat("special tokens of its own", add_special_tokens=True),
    chat("template variables", chat_template_kwargs={"enable_thinking": False}),
    chat("documents", documents=[{"title": "Mills", "text": "They have wheels."}]),
    chat("reasoning_effort", reasoning_effort="low"),
    chat("include_reasoning", include_reasoning=False),
    chat("a user", user="somebody"),
    chat("tools", tools=[WEATHER]),
    chat("tools, auto", tools=[WEATHER, LEVEL], tool_choice="auto"),
    chat("tools, none", tools=[WEATHER], tool_choice="none"),
    chat("tools, required", tools=[WEATHER], tool_choice="required", max_tokens=80),
    chat("tools, one at a time", tools=[WEATHER, LEVEL], tool_choice="required", max_tokens=80,
         parallel_tool_calls=False),
    chat("tools, named", OTHERWISE, "a whole answer is parsed as a stream is; vLLM parses it again in another way, and "
         "leaves a call that was cut at max_tokens in the text", only="whole",
         tools=[WEATHER, LEVEL], tool_choice=NAMED, max_tokens=40),
    chat("a tool's answer", messages=CALLED, tools=[WEATHER], tool_choice="none"),
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
    # Refused by both
    chat("no messages", messages=[]),
    chat("messages that are none", messages="hello"),
    chat("too hot", temperature=3),
    chat("top_p of nothing", top_p=0),
    chat("no choices", n=0),
    chat("two greedy choices", n=2),
    chat("no tokens", max_tokens=0),
    chat("an impossible minimum", min_tokens=11),
    chat("top_logprobs alone", top_logprobs=2),
    chat("too many top_logprobs", SOONER, EARLY, only="streamed", logprobs=True, top_logprobs=21),
    chat("an empty stop", stop=[""]),
    chat("no tools", tools=[]),
    chat("a tool_choice without tools", tool_choice="auto"),
    chat("a tool that is not there", tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "x"}}),
    chat("a tool_choice that is none", tools=[WEATHER], tool_choice="maybe"),
    chat("a format that is none", response_format={"type": "xml"}),
    chat("a json_schema without one", response_format={"type": "json_schema"}),
    chat("two structures", structured_outputs={"regex": "a", "choice": ["b"]}),
    chat("no structure", structured_outputs={}),
    chat("a broken regex", structured_outputs={"regex": "("}),
    chat("a broken schema", structured_outputs={"json": {"type": "nothing"}}),
    chat("a broken grammar", SOONER, "it is the client's fault; vLLM's server answers 500", only="whole",
         structured_outputs={"grammar": "root ::="}),
    chat("to go on with, and to begin", messages=PREFILL, add_generation_prompt=True, continue_final_message=True),
    chat("a template of its own", chat_template="{{ messages }}"),
    chat("a prompt beyond the context", messages=[{"role": "user", "content": LONG}]),
    chat("more tokens than the context", max_tokens=5000),
    chat("an unknown model", model="nope"),
    chat("a bias of an unknown token", logit_bias={"49999999": 5}),
    # Completions
    text("plain"),
    text("by default", max_tokens=None),
    text("token ids", prompt=[504, 3575, 282, 4649, 314]),
    text("one text in a list", prompt=["The capital of France is"]),
    text("several texts", prompt=["The capital of France is", "Water flows", "1, 2, 3,"]),
    text("several lists of token ids", prompt=[[504, 3575], [282, 4649, 314]]),
    text("several texts with choices", prompt=["Water", "Stone"], n=2, temperature=1.0, seed=5),
    text("echo", echo=True),
    text("echo of token ids", echo=True, prompt=[504, 3575, 282]),
    text("echo with logprobs", echo=True, logprobs=2),
    text("echo alone", OTHERWISE, "the token that vLLM makes and hides is not counted", echo=True, max_tokens=0,
         logprobs=1),
    text("several texts with echo and logprobs", prompt=["The mill", "A river"], echo=True, logprobs=1),
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
    text("no prompts", prompt=[]),
    text("an unknown token", prompt=[49999999]),
    text("a prompt beyond the context", prompt=LONG),
    text("no tokens", max_tokens=0),
    text("too many logprobs", SOONER, EARLY, only="streamed", logprobs=21),
    text("a suffix", suffix="!"),
    # Different on purpose
    chat("an unknown parameter", REFUSED, UNKNOWN, colour="blue"),
    text("best_of", REFUSED, UNKNOWN, best_of=3),
    chat("a turn without content", REFUSED, "as OpenAI's API; only an assistant's turn may be calls alone",
         messages=[{"role": "user"}]),
    chat("five stop strings", TAKEN, "vLLM takes four, unless VLLM_MAX_STOP_STRINGS says more; it does here",
         stop=list("abcde")),
]  # fmt: skip
