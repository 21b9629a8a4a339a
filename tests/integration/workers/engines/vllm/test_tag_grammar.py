"""Tool calls whose strings have lengths are constrained by llguidance, in the form in which the model calls tools."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from shared.domain.errors import InvalidRequest
from shared.domain.request import ChatOptions, Function, GenerateRequest, Tool
from tests.support.compilation import compile_
from tests.support.real_engine import SMOLLM2

pytestmark = [
    pytest.mark.vllm,
    # torch and vLLM warn about themselves at import.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

CALL = '<tool_call>\n{"name": "note", "arguments": {"text": "abcdef"}}\n</tool_call>'
OTHER = '<tool_call>{"name": "other", "arguments": {"text": "abc def ghi"}}</tool_call>'
TEXTS = {
    "call": CALL,
    "other tool": OTHER,
    "two calls": CALL + OTHER,
    "text around calls": f"Well, {CALL} and {OTHER}.",
    "text": "Hello there.",
    "too short": CALL.replace("abcdef", "abc"),
    "too long": CALL.replace("abcdef", "abcdefabcdef"),
    "another member": CALL.replace('"text"', '"other"'),
    "unknown tool": CALL.replace("note", "none"),
}


def tag(choice: str, parser: str = "hermes", **length: int) -> dict[str, Any]:
    """The structural tag that vLLM makes of two strict tools."""
    from vllm.entrypoints.openai.chat_completion.protocol import (
        ChatCompletionNamedToolChoiceParam,
        ChatCompletionToolsParam,
    )
    from vllm.tool_parsers.structural_tag_registry import get_model_structural_tag

    def tool(name: str, **bounds: int) -> Any:
        schema = {"type": "object", "properties": {"text": {"type": "string", **bounds}}, "required": ["text"]}
        function = {"name": name, "strict": True, "parameters": schema}
        return ChatCompletionToolsParam(type="function", function=function)

    chosen: Any = choice
    if choice == "named":
        chosen = ChatCompletionNamedToolChoiceParam(type="function", function={"name": "note"})
    tools = [tool("note", **(length or {"minLength": 5, "maxLength": 9})), tool("other", maxLength=255)]
    made = get_model_structural_tag(model=parser, tools=tools, tool_choice=chosen, reasoning=False)
    assert made is not None
    parsed: dict[str, Any] = orjson.loads(made.model_dump_json())
    return parsed


@pytest.mark.parametrize(
    ("choice", "accepted"),
    [
        ("auto", {"call", "other tool", "two calls", "text around calls", "text"}),
        ("required", {"call", "other tool", "two calls"}),
        ("named", {"call"}),
    ],
)
def test_calls_are_constrained(choice: str, accepted: set[str]) -> None:
    import llguidance
    import llguidance.hf
    from transformers import AutoTokenizer
    from vllm.v1.structured_output.backend_guidance import process_for_additional_properties

    from workers.engines.vllm.tag_grammar import special_tokens, to_llguidance

    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2.source)
    tables = llguidance.hf.from_tokenizer(tokenizer)
    grammar = to_llguidance(tag(choice), special_tokens(tokenizer), process_for_additional_properties)
    assert llguidance.LLMatcher.validate_grammar(grammar, tables) == ""

    def accepts(text: str) -> bool:
        matcher, tokens = llguidance.LLMatcher(tables, grammar), tokenizer.encode(text)
        return bool(matcher.consume_tokens(tokens) and matcher.is_accepting())

    assert {name for name, text in TEXTS.items() if accepts(text)} == accepted


@pytest.mark.parametrize("choice", ["auto", "required", "named"])
def test_lengths_of_strict_tools_are_compiled_by_llguidance(manager: Any, choice: str) -> None:
    compiled = compile_(manager, {"structural_tag": orjson.dumps(tag(choice, minLength=200)).decode()})
    assert type(compiled).__name__ == "GuidanceGrammar"


def test_calls_that_llguidance_cannot_express_are_compiled_by_xgrammar(manager: Any) -> None:
    """Such as calls in XML: a client cannot choose another form."""
    made = tag("named", "qwen_3_coder", minLength=40)
    assert type(compile_(manager, {"structural_tag": orjson.dumps(made).decode()})).__name__ == "XgrammarGrammar"


def test_a_special_token_has_no_equivalent() -> None:
    from workers.engines.vllm.tag_grammar import Untranslatable, to_llguidance

    with pytest.raises(Untranslatable, match="special token"):
        to_llguidance(tag("named"), {"<tool_call>"}, dict)


def test_tools_that_cannot_be_compiled_are_the_clients_fault() -> None:
    from workers.engines.vllm.engine import _check

    output: Any = SimpleNamespace(outputs=[SimpleNamespace(finish_reason="error")])
    request = GenerateRequest(messages=[], chat=ChatOptions(tools=[Tool(function=Function(name="f"))]))
    with pytest.raises(InvalidRequest) as caught:
        _check(output, request)
    assert caught.value.param == "tools"
