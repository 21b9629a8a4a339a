"""One choice of the real engine without a model: its parsers, fed with what a better model would write."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.bundled import bundled_model_path
from shared.events import Delta, Transcript
from shared.job import Choice as Answer

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

CALLS = (
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich 🌊", "days": [1, 2]}}\n</tool_call>\n'
    '<tool_call>\n{"name": "tide", "arguments": {}}\n</tool_call>'
)
THOUGHT = "The user asks for the weather in Zürich. I should look it up."
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("weather", "tide")
]
WRITTEN = {
    "calls": CALLS,
    "words and calls": f"I will look. {CALLS}",
    "reasoning and words": f"<think>{THOUGHT}</think>It rains in Zürich 🌊.",
    "reasoning and calls": f"<think>{THOUGHT}</think>{CALLS}",
    "words": "It rains < 3 times a week in Zürich 🌊.",
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The small model's, with the words for reasoning that larger models know."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bundled_model_path("SmolLM2-135M-Instruct"))
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


class Model:
    """Writes what it is told to, one token after the other."""

    def __init__(self, tokenizer: Any, written: str, **fields: Any) -> None:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.parser import ParserManager
        from vllm.sampling_params import SamplingParams

        import workers.engines.vllm.choice as choices
        from workers.engines.vllm.parsing import Parsing

        self._tokenizer = tokenizer
        self._prompt = tokenizer.encode("What is the weather?")
        self._params = SamplingParams()
        self.tokens = [*tokenizer.encode(written), tokenizer.eos_token_id]
        reasons = written.startswith("<think>")
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

    def write(self, choice: Any, after: int = 0, at_once: int = 1) -> list[Delta]:
        """What a choice makes of the tokens after so many, so many at once."""
        from vllm.outputs import CompletionOutput

        decoding = self._choices._Decoding(self._tokenizer, [*self._prompt, *self.tokens[:after]], self._params)
        made = []
        for begin in range(after, len(self.tokens), at_once):
            tokens = self.tokens[begin : begin + at_once]
            text = "".join(decoding.text_of(token) for token in tokens)
            reason = "stop" if begin + at_once >= len(self.tokens) else None
            made.append(choice.take(CompletionOutput(0, text, tokens, None, None, finish_reason=reason)))
        return made


def whole(made: list[Delta]) -> Answer:
    transcript = Transcript(1)
    for delta in made:
        transcript.add(delta)
    return transcript.choices()[0]


def told(answer: Answer) -> Any:
    """All but the calls' ids, which are drawn."""
    calls = [(call.name, call.arguments) for call in answer.tool_calls]
    return answer.text, answer.reasoning, calls, answer.finish_reason


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_is_parsed(tokenizer: Any, name: str) -> None:
    model = Model(tokenizer, WRITTEN[name])
    answer = whole(model.write(model.choice()))
    assert (answer.reasoning or "") == (THOUGHT if "reasoning" in name else "")
    if "calls" in name:
        assert answer.finish_reason == "tool_calls"
        assert [call.name for call in answer.tool_calls] == ["weather", "tide"]
        assert json.loads(answer.tool_calls[0].arguments) == {"city": "Zürich 🌊", "days": [1, 2]}
        assert answer.text.strip() == ("I will look." if "words" in name else "")
    else:
        assert (answer.finish_reason, answer.tool_calls) == ("stop", ())
        assert answer.text == WRITTEN[name].rpartition("</think>")[2]


@pytest.mark.parametrize("name", WRITTEN)
def test_how_many_tokens_come_at_once_changes_nothing(tokenizer: Any, name: str) -> None:
    model = Model(tokenizer, WRITTEN[name])
    one_by_one = told(whole(model.write(model.choice())))
    for at_once in (2, 7, 1000):
        assert told(whole(model.write(model.choice(), at_once=at_once))) == one_by_one


@pytest.mark.parametrize("name", WRITTEN)
def test_the_next_worker_goes_on_where_it_was_cut(tokenizer: Any, name: str) -> None:
    """In the middle of a call, a thought, or a word: the same ids, no fragment twice."""
    model = Model(tokenizer, WRITTEN[name])
    made = model.write(model.choice())
    expected = whole(made)
    for cut in range(1, len(made)):
        so_far = made[:cut]
        tokens = [token for delta in so_far for token in delta.token_ids]
        choice = model.choice()
        choice.go_on(tokens)
        answer = whole([*so_far, *model.write(choice, after=len(tokens))])
        assert told(answer) == told(expected), f"cut after {cut}"
        shown = [call.id for call in whole(so_far).tool_calls if call.id]
        assert [call.id for call in answer.tool_calls][: len(shown)] == shown


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_made_again_is_told_once(tokenizer: Any, name: str) -> None:
    model = Model(tokenizer, WRITTEN[name])
    made = model.write(model.choice())
    for cut in range(1, len(made)):
        so_far = made[:cut]
        choice = model.choice()
        choice.repeat([token for delta in so_far for token in delta.token_ids], finished=False)
        rest = model.write(choice, at_once=3)
        assert (choice.repeated, choice.diverged) == (True, False)
        assert told(whole([*so_far, *rest])) == told(whole(made)), f"cut after {cut}"


def test_what_is_made_otherwise_is_noticed(tokenizer: Any) -> None:
    model = Model(tokenizer, WRITTEN["words"])
    choice = model.choice()
    choice.repeat([*model.tokens[:4], 7], finished=False)
    model.write(choice)
    assert choice.diverged
    assert told(choice_whole := whole([choice.forget()])) == told(whole(model.write(model.choice())))
    assert choice_whole.finish_reason == "stop"
    longer, ended = model.choice(), model.choice()
    longer.repeat([*model.tokens, 7], finished=False)
    ended.repeat(model.tokens[:4], finished=True)
    for choice in (longer, ended):
        model.write(choice)
        assert choice.diverged


def test_one_call_where_no_more_are_wanted(tokenizer: Any) -> None:
    model = Model(tokenizer, WRITTEN["calls"], parallel_tool_calls=False)
    assert [call.name for call in whole(model.write(model.choice())).tool_calls] == ["weather"]


def test_reasoning_that_is_not_asked_for_is_not_told(tokenizer: Any) -> None:
    model = Model(tokenizer, WRITTEN["reasoning and words"], include_reasoning=False)
    answer = whole(model.write(model.choice()))
    assert answer.reasoning is None
    assert answer.text == "It rains in Zürich 🌊."
