"""Prompts are counted as by the engine, with the chat template in a sandbox."""

from __future__ import annotations

import json
from pathlib import Path

import hypothesis
import hypothesis.strategies as some
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, WhitespaceSplit
from tokenizers.trainers import BpeTrainer

from api.context.window import ContextWindow
from shared.config.models.loader import Registry
from shared.config.models.openai import OpenAIModel, OpenAIOptions
from shared.config.models.simulated import SimulatedModel, SimulatedOptions
from shared.config.models.vllm import ChatSettings, VllmModel
from shared.domain.errors import InvalidRequest
from shared.domain.request import (
    ChatOptions,
    Function,
    FunctionCall,
    GenerateRequest,
    Message,
    MessageToolCall,
    Sampling,
    Tool,
)
from shared.prompts import token_counter
from shared.prompts.token_counter import TokenCounter, count_words
from tests.support.examples import example_count
from workers.engines.base import PromptInfo
from workers.engines.simulated.engine import SimulatedEngine

TEMPLATE = """\
{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}
{% if add_generation_prompt %}<assistant>{% endif %}
"""
TEXTS = some.text(max_size=60)


def model_folder(folder: Path, template: str | None) -> Path:
    """Write the model files that the API reads. A token is a word."""
    tokenizer = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": {"content": "<s>"}} | ({"chat_template": template} if template else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def chat(*contents: str, max_tokens: int | None = None) -> GenerateRequest:
    messages = [Message(role="user", content=content) for content in contents]
    return GenerateRequest(messages=messages, sampling=Sampling(max_tokens=max_tokens))


@example_count(50, long=1000)
@hypothesis.given(
    request=some.builds(chat, TEXTS, TEXTS) | some.builds(lambda text: GenerateRequest(prompt=text), TEXTS)
)
async def test_words_are_counted_as_by_the_simulated_engine(request: GenerateRequest) -> None:
    options = SimulatedOptions(ttft_ms=0, itl_ms=0, default_tokens=1)
    engine = SimulatedEngine(SimulatedModel(name="sim", engine="simulated", options=options))
    info = [item async for item in engine.generate("x", request) if isinstance(item, PromptInfo)]
    assert [item.prompt_tokens for item in info] == [count_words(request)]


def test_a_conversation_is_counted_with_its_template(tmp_path: Path) -> None:
    counter = TokenCounter(model_folder(tmp_path, TEMPLATE))
    assert counter.count(chat("one two")) == 4  # <user> one two <assistant>
    assert counter.count(chat("one", "two")) == 5  # <user> one <user> two <assistant>
    assert counter.count(GenerateRequest(prompt="one two three")) == 3


def test_a_template_file_takes_precedence_over_the_config(tmp_path: Path) -> None:
    model_folder(tmp_path, TEMPLATE)
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }} fixed")
    assert TokenCounter(tmp_path).count(chat("one two three")) == 2


def test_without_a_template_a_conversation_is_not_counted(tmp_path: Path) -> None:
    assert TokenCounter(model_folder(tmp_path, None)).count(chat("one")) is None


@pytest.mark.parametrize(
    ("messages", "chat_options"),
    [
        ([Message(role="user", content="one")], ChatOptions(continue_final_message=True)),
        ([Message(role="user", content="one")], ChatOptions(documents=[{"text": "long"}])),
        ([Message(role="user", content="one")], ChatOptions(reasoning_effort="low")),
        ([Message(role="developer", content="one"), Message(role="user", content="one")], None),
    ],
)
def test_conversations_that_only_the_engine_renders_are_not_counted(
    tmp_path: Path, messages: list[Message], chat_options: ChatOptions | None
) -> None:
    request = GenerateRequest(messages=messages, chat=chat_options)
    assert TokenCounter(model_folder(tmp_path, TEMPLATE)).count(request) is None


async def test_tools_and_calls_are_counted_but_not_at_submit(tmp_path: Path) -> None:
    template = (
        "{% for tool in tools %}<tool> {{ tool.function.name }} {{ tool | tojson(indent=1) }} {% endfor %}"
        "{% for m in messages %}<{{ m.role }}> {{ m.content }}"
        "{% for call in m.tool_calls %} {{ call.function.name }} {{ call.function.arguments.items() | length }}"
        "{% endfor %}{% if m.reasoning_content %} {{ m.reasoning }}{% endif %} {% endfor %}"
    )
    folder = model_folder(tmp_path, template)
    call = MessageToolCall(id="c", function=FunctionCall(name="f", arguments='{"a": "one two", "b": 1}'))
    broken = MessageToolCall(id="d", function=FunctionCall(name="f", arguments='{"a'))
    request = GenerateRequest(
        messages=[
            Message(role="user", content="one two"),
            Message(role="assistant", tool_calls=[call, broken], reasoning="three words here"),
            Message(role="tool", content="1", tool_call_id="c"),
        ],
        chat=ChatOptions(tools=[Tool(function=Function(name="f", description="d"))], tool_choice="auto"),
    )
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": None}}
    expected = f"<tool> f {json.dumps(tool, indent=1)} <user> one two <assistant>  f 2 f 0 three words here <tool> 1"
    assert TokenCounter(folder).count(request) == len(expected.split())
    window = ContextWindow(Registry({"m": VllmModel(name="m", engine="vllm", model=str(folder))}))
    assert await window.count("m", request) == len(expected.split())
    assert await window.tokens("m", request) is None, "rendering tools takes long"


def test_a_template_with_an_extension_of_the_engine_is_not_counted(tmp_path: Path) -> None:
    template = "{% generation %}one{% endgeneration %}"
    assert TokenCounter(model_folder(tmp_path, template)).count(chat("one")) is None


def test_a_template_that_needs_the_engine_is_not_counted(tmp_path: Path) -> None:
    assert TokenCounter(model_folder(tmp_path, "{{ strftime_now('%d') }}")).count(chat("one")) is None


def test_a_conversation_that_the_template_rejects_is_an_error(tmp_path: Path) -> None:
    counter = TokenCounter(model_folder(tmp_path, "{{ raise_exception('roles must alternate') }}"))
    with pytest.raises(InvalidRequest, match="chat template rejects the conversation: roles must alternate") as caught:
        counter.count(chat("one"))
    assert caught.value.param == "messages"


def test_a_template_cannot_escape_the_sandbox(tmp_path: Path) -> None:
    counter = TokenCounter(model_folder(tmp_path, "{{ ''.__class__.__mro__[1].__subclasses__() }}"))
    with pytest.raises(InvalidRequest, match="chat template rejects the conversation"):
        counter.count(chat("one"))


@pytest.mark.parametrize(
    ("words", "max_tokens", "param"),
    [(297, 300, None), (298, 1, "messages"), (298, None, "messages"), (297, None, None), (1, 301, "max_tokens")],
)
async def test_prompt_and_output_share_the_context(
    tmp_path: Path, words: int, max_tokens: int | None, param: str | None
) -> None:
    model_folder(tmp_path, TEMPLATE)
    model = VllmModel(name="m", engine="vllm", model=str(tmp_path), options={"max_model_len": 300})
    check = ContextWindow(Registry({"m": model}))
    request = chat("word " * words, max_tokens=max_tokens)
    if param is None:
        await check.check("m", request)
        return
    with pytest.raises(InvalidRequest, match="context is 300 tokens") as caught:
        await check.check("m", request)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "settings",
    [ChatSettings(chat_template="other.jinja"), ChatSettings(default_chat_template_kwargs={"a": 1})],
    ids=str,
)
async def test_a_conversation_with_a_configured_template_is_not_counted(tmp_path: Path, settings: ChatSettings) -> None:
    model = VllmModel(
        name="m",
        engine="vllm",
        model=str(model_folder(tmp_path, TEMPLATE)),
        options={"max_model_len": 300},
        chat=settings,
    )
    check = ContextWindow(Registry({"m": model}))
    await check.check("m", chat("word " * 1000))
    with pytest.raises(InvalidRequest, match="the prompt has 1000"):
        await check.check("m", GenerateRequest(prompt="word " * 1000))


async def test_prompts_of_a_model_without_local_files_are_not_counted() -> None:
    model = VllmModel(name="m", engine="vllm", model="org/on-the-hub", options={"max_model_len": 10})
    await ContextWindow(Registry({"m": model})).check("m", chat("word " * 1000))


async def test_only_max_tokens_is_checked_for_upstream_models() -> None:
    url = "http://127.0.0.1:1/v1"
    models = {
        "limited": OpenAIOptions(base_url=url, max_model_len=10),
        "free": OpenAIOptions(base_url=url),
    }
    check = ContextWindow(
        Registry(
            {name: OpenAIModel(name=name, engine="openai", model="x", options=one) for name, one in models.items()}
        )
    )
    await check.check("limited", chat("word " * 1000))
    await check.check("limited", chat("word", max_tokens=10))
    await check.check("free", chat("word", max_tokens=11))
    with pytest.raises(InvalidRequest, match="context is 10 tokens") as caught:
        await check.check("limited", chat("word", max_tokens=11))
    assert caught.value.param == "max_tokens"


def byte_level(folder: Path) -> Path:
    """Write the files of a byte-level tokenizer, as most models have one. Its longest token has 5 bytes."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(initial_alphabet=ByteLevel.alphabet(), vocab_size=400, show_progress=False)
    tokenizer.train_from_iterator(["the river mill wheel"] * 5, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder


@example_count(50, long=1000)
@hypothesis.given(some.text(some.sampled_from("the river mill,\n.水车。 'x1_😀"), max_size=300))
def test_a_long_text_has_as_many_tokens_in_pieces(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = byte_level(tmp_path_factory.mktemp("model"))
    whole = len(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_counter, "PIECE", 64)
        pieces = len(list(token_counter._pieces(text)))
        counted = TokenCounter(folder).count(GenerateRequest(prompt=text))
        words = count_words(GenerateRequest(prompt=text))
    assert counted is not None
    assert whole <= counted <= whole + 5 * (pieces - 1)  # a word longer than a piece is counted inexactly
    assert words == len(text.split()) + 1


def test_a_text_that_is_cut_after_words_is_counted_exactly(tmp_path: Path) -> None:
    folder = byte_level(tmp_path)
    text = "the river, the mill wheel. " * 20_000
    assert len(list(token_counter._pieces(text))) > 5
    whole = len(Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch_fast([text])[0])
    assert TokenCounter(folder).count(GenerateRequest(prompt=text)) == whole


@pytest.mark.parametrize(
    "text", ["the river, the mill wheel. " * 3000, "the水车mill" * 3000, "mill" * 12_000 + " the" * 3000]
)
def test_a_text_is_counted_exactly_up_to_a_limit(tmp_path: Path, text: str) -> None:
    """In pieces that are about as long as the limit, unless a word is longer."""
    folder = byte_level(tmp_path)
    whole = len(Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch_fast([text])[0])
    counter = TokenCounter(folder)
    assert counter.count_text(text, whole) == whole
    counted = counter.count_text(text, whole + 1)
    assert (counted, type(counted)) == (whole, int), "it is not cut before its end"
    assert 5000 <= counter.count_text(text, 5000) < whole
    pieces = list(token_counter._pieces(text, token_counter.SHORT_PIECE))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= (token_counter.SHORT_PIECE if text.startswith("the river") else len(text))


@pytest.mark.parametrize("request_", [chat("the mill " * 200_000), GenerateRequest(prompt="the mill " * 200_000)])
async def test_a_prompt_with_too_many_bytes_is_rejected_without_being_encoded(
    tmp_path: Path, request_: GenerateRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = VllmModel(name="m", engine="vllm", model=str(byte_level(tmp_path)), options={"max_model_len": 300})
    check = ContextWindow(Registry({"m": model}))
    monkeypatch.setattr(token_counter, "_pieces", None)
    with pytest.raises(InvalidRequest, match=r"the prompt has at least [0-9]{6}"):
        await check.check("m", request_)


async def test_a_prompt_is_encoded_only_until_it_exceeds_the_context(tmp_path: Path) -> None:
    model = VllmModel(name="m", engine="vllm", model=str(byte_level(tmp_path)), options={"max_model_len": 30_000})
    check = ContextWindow(Registry({"m": model}))
    with pytest.raises(InvalidRequest, match=r"the prompt has at least 3[0-2]\d{3}$"):
        await check.check("m", chat("mill" * 35_000))
