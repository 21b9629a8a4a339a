"""The tokens of messages, one by one, add up to those of the conversation."""

from __future__ import annotations

import random
from pathlib import Path

import hypothesis
import hypothesis.strategies as some
import pytest

from api.context.message_counts import (
    EstimatedCounts,
    MessageCounts,
    TemplateCounts,
    WordCounts,
    most_tokens,
)
from shared.domain.content import FilePart, ImagePart
from shared.domain.request import ChatOptions, Function, GenerateRequest, Message, Tool
from shared.prompts.token_counter import TokenCounter, count_words
from tests.support.real_engine import SMOLLM2
from tests.unit.api.context.histories import history
from tests.unit.api.jobs.test_token_counter import TEMPLATE, model_folder

WORDS = ("hello", "the", "quick\nbrown", "fox,", "42", "über", "日本語", "{}", "\t", "")


def total(counts: MessageCounts, request: GenerateRequest) -> int:
    return counts.rest(request) + sum(map(counts.message, request.messages or ()))


@pytest.fixture(scope="module")
def smollm2() -> TokenCounter:
    tokenizer = SMOLLM2.prompt_tokenizer
    assert tokenizer is not None
    return TokenCounter(tokenizer.folder)  # type: ignore[union-attr]


@hypothesis.given(seed=some.integers(0, 2**32))
def test_words(seed: int) -> None:
    request = GenerateRequest.model_construct(messages=history(seed, usual=False).messages, prompt=None, chat=None)
    assert total(WordCounts(), request) == count_words(request)


@hypothesis.given(seed=some.integers(0, 2**32))
def test_a_real_template(smollm2: TokenCounter, seed: int) -> None:
    chance = random.Random(seed)
    roles = ["system"] * chance.randint(0, 1) + ["user", "assistant"] * chance.randint(1, 5)
    texts = [" ".join(chance.choices(WORDS, k=chance.randint(0, 12))) for _ in roles]
    messages = [Message.model_validate({"role": r, "content": t}) for r, t in zip(roles, texts, strict=True)]
    request = GenerateRequest(messages=messages)
    counts = TemplateCounts(smollm2)
    counted = smollm2.count(request)
    assert counts.is_counted(request)
    assert counted is not None
    # The line break that the template puts before a text may be joined with the text's own.
    assert counted <= total(counts, request) <= counted + sum(text[:1].isspace() for text in texts)
    assert counted <= most_tokens(request)


def test_an_unusual_template(tmp_path: Path) -> None:
    counter = TokenCounter(model_folder(tmp_path, TEMPLATE))
    messages = [Message(role="user", content="one two"), Message(role="assistant", content="three")]
    request = GenerateRequest(messages=messages)
    assert total(TemplateCounts(counter), request) == counter.count(request)


@pytest.mark.parametrize("template", [None, "{{ raise_exception('no') }}", "{{ messages | length }}"])
def test_a_template_that_cannot_be_measured_is_estimated(tmp_path: Path, template: str | None) -> None:
    counts = TemplateCounts(TokenCounter(model_folder(tmp_path, template)))
    request = GenerateRequest(messages=[Message(role="user", content="one two")])
    assert total(counts, request) > 2


def test_what_only_engines_can_count_is_estimated(smollm2: TokenCounter) -> None:
    plain = GenerateRequest(messages=[Message(role="user", content="x")])
    tool = Tool(function=Function(name="f", description="a long description " * 50))
    tools = plain.model_copy(update={"chat": ChatOptions(tools=[tool])})
    image = ImagePart(type="image", data="A" * 100_000, media_type="image/png")
    document = FilePart(type="file", data="A" * 400_000, media_type="application/pdf")
    text = FilePart(type="file", data="A" * 400_000, media_type="text/plain")
    counts: list[MessageCounts] = [TemplateCounts(smollm2), EstimatedCounts(0.25)]
    for count in counts:
        assert total(count, tools) > total(count, plain) + 100
        assert not count.is_counted(tools)
        few, many, most = (count.message(Message(role="user", content=[part])) for part in (image, document, text))
        assert 500 < few < many < most < 150_000
