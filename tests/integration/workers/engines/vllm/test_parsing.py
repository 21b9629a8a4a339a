"""A choice of the vLLM engine without a model: its parsers, fed with the output of a better model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.config.bundled_model import bundled_model_path
from shared.domain.events import Delta
from shared.domain.job import Choice as Answer
from shared.domain.transcript import Transcript

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

CALLS = (
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich 🌊", "days": [1, 2]}}\n</tool_call>\n'
    '<tool_call>\n{"name": "tide", "arguments": {}}\n</tool_call>'
)
REASONING = "The user asks for the weather in Zürich. I should look it up."
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("weather", "tide")
]
OUTPUTS = {
    "calls": CALLS,
    "text and calls": f"I will look. {CALLS}",
    "reasoning and text": f"<think>{REASONING}</think>It rains in Zürich 🌊.",
    "reasoning and calls": f"<think>{REASONING}</think>{CALLS}",
    "text": "It rains < 3 times a week in Zürich 🌊.",
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The small model's tokenizer with the reasoning tokens of larger models."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bundled_model_path("SmolLM2-135M-Instruct"))
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


class Model:
    """A model with a fixed output."""

    def __init__(self, tokenizer: Any, output: str, **fields: Any) -> None:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.parser import ParserManager
        from vllm.sampling_params import SamplingParams

        import workers.engines.vllm.choice as choices
        from workers.engines.vllm.parsing import Parsing

        self._tokenizer = tokenizer
        self._prompt = tokenizer.encode("What is the weather?")
        self._params = SamplingParams()
        self.tokens = [*tokenizer.encode(output), tokenizer.eos_token_id]
        reasons = output.startswith("<think>")
        parser = ParserManager.get_parser(
            tool_parser_name="hermes",
            reasoning_parser_name="deepseek_r1" if reasons else None,
            enable_auto_tools=True,
        )
        messages: Any = [{"role": "user", "content": "What is the weather?"}]
        request = ChatCompletionRequest(messages=messages, tools=TOOLS, **fields)
        self._choices = choices
        self._parsing: Any = lambda: Parsing(parser(tokenizer, request.tools), request, self._prompt)

    def choice(self) -> Any:
        return self._choices.Choice(0, self._tokenizer, self._params, self._prompt, parsing=self._parsing(), top=None)

    def generate(self, choice: Any, after: int = 0, at_once: int = 1) -> list[Delta]:
        """The deltas for the tokens from position `after` on, with `at_once` tokens per output."""
        from vllm.outputs import CompletionOutput

        decoder = self._choices._Decoder(self._tokenizer, [*self._prompt, *self.tokens[:after]], self._params)
        deltas = []
        for begin in range(after, len(self.tokens), at_once):
            tokens = self.tokens[begin : begin + at_once]
            text = "".join(decoder.text_of(token) for token in tokens)
            reason = "stop" if begin + at_once >= len(self.tokens) else None
            deltas.append(choice.take(CompletionOutput(0, text, tokens, None, None, finish_reason=reason)))
        return deltas


def answer_of(deltas: list[Delta]) -> Answer:
    transcript = Transcript(1)
    for delta in deltas:
        transcript.add(delta)
    return transcript.choices()[0]


def without_ids(answer: Answer) -> Any:
    """An answer without the ids of its calls, which are random."""
    calls = [(call.name, call.arguments) for call in answer.tool_calls]
    return answer.text, answer.reasoning, calls, answer.finish_reason


@pytest.mark.parametrize("name", OUTPUTS)
def test_output_is_parsed(tokenizer: Any, name: str) -> None:
    model = Model(tokenizer, OUTPUTS[name])
    answer = answer_of(model.generate(model.choice()))
    assert (answer.reasoning or "") == (REASONING if "reasoning" in name else "")
    if "calls" in name:
        assert answer.finish_reason == "tool_calls"
        assert [call.name for call in answer.tool_calls] == ["weather", "tide"]
        assert json.loads(answer.tool_calls[0].arguments) == {"city": "Zürich 🌊", "days": [1, 2]}
        assert answer.text.strip() == ("I will look." if "text" in name else "")
    else:
        assert (answer.finish_reason, answer.tool_calls) == ("stop", ())
        assert answer.text == OUTPUTS[name].rpartition("</think>")[2]


@pytest.mark.parametrize("name", OUTPUTS)
def test_result_does_not_depend_on_the_tokens_per_output(tokenizer: Any, name: str) -> None:
    model = Model(tokenizer, OUTPUTS[name])
    one_by_one = without_ids(answer_of(model.generate(model.choice())))
    for at_once in (2, 7, 1000):
        assert without_ids(answer_of(model.generate(model.choice(), at_once=at_once))) == one_by_one


@pytest.mark.parametrize("name", OUTPUTS)
def test_resume(tokenizer: Any, name: str) -> None:
    """Within a call, reasoning or a word: the same ids, no fragment twice."""
    model = Model(tokenizer, OUTPUTS[name])
    deltas = model.generate(model.choice())
    expected = answer_of(deltas)
    for cut in range(1, len(deltas)):
        prior = deltas[:cut]
        tokens = [token for delta in prior for token in delta.token_ids]
        choice = model.choice()
        choice.resume(tokens)
        answer = answer_of([*prior, *model.generate(choice, after=len(tokens))])
        assert without_ids(answer) == without_ids(expected), f"interrupted after {cut} deltas"
        emitted = [call.id for call in answer_of(prior).tool_calls if call.id]
        assert [call.id for call in answer.tool_calls][: len(emitted)] == emitted


@pytest.mark.parametrize("name", OUTPUTS)
def test_regenerated_tokens_are_emitted_once(tokenizer: Any, name: str) -> None:
    model = Model(tokenizer, OUTPUTS[name])
    deltas = model.generate(model.choice())
    for cut in range(1, len(deltas)):
        prior = deltas[:cut]
        choice = model.choice()
        choice.regenerate([token for delta in prior for token in delta.token_ids], finished=False)
        rest = model.generate(choice, at_once=3)
        assert (choice.caught_up, choice.diverged) == (True, False)
        assert without_ids(answer_of([*prior, *rest])) == without_ids(answer_of(deltas)), (
            f"interrupted after {cut} deltas"
        )


def test_a_different_answer_is_detected(tokenizer: Any) -> None:
    model = Model(tokenizer, OUTPUTS["text"])
    choice = model.choice()
    choice.regenerate([*model.tokens[:4], 7], finished=False)
    model.generate(choice)
    assert choice.diverged
    assert without_ids(regenerated := answer_of([choice.end_regeneration()])) == without_ids(
        answer_of(model.generate(model.choice()))
    )
    assert regenerated.finish_reason == "stop"
    longer, ended = model.choice(), model.choice()
    longer.regenerate([*model.tokens, 7], finished=False)
    ended.regenerate(model.tokens[:4], finished=True)
    for choice in (longer, ended):
        model.generate(choice)
        assert choice.diverged


def test_no_parallel_tool_calls(tokenizer: Any) -> None:
    model = Model(tokenizer, OUTPUTS["calls"], parallel_tool_calls=False)
    assert [call.name for call in answer_of(model.generate(model.choice())).tool_calls] == ["weather"]


def test_excluded_reasoning(tokenizer: Any) -> None:
    model = Model(tokenizer, OUTPUTS["reasoning and text"], include_reasoning=False)
    answer = answer_of(model.generate(model.choice()))
    assert answer.reasoning is None
    assert answer.text == "It rains in Zürich 🌊."
