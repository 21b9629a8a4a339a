"""Rules on tokens decide as the exact number of tokens, however few of them are counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import hypothesis.strategies as some
import pytest

from api.context.count_memo import counting_once
from api.context.window import ContextWindow
from shared.domain.content import ImagePart
from shared.domain.request import ChatOptions, Function, GenerateRequest, Message, Tool
from shared.prompts import token_counter
from tests.support.examples import example_count
from tests.support.routing import OWNER, Routing
from tests.support.tokenizers import TEMPLATE, tokenizer_folder

FILE = """\
models:
  - {{name: short, engine: vllm, model: {folder}, options: {{max_model_len: 100000}}}}
  - {{name: middle, engine: vllm, model: {folder}, options: {{max_model_len: 100000}}}}
  - {{name: long, engine: vllm, model: {folder}, options: {{max_model_len: 100000}}}}
routes:
  - name: auto
    otherwise: middle
    sticky_s: 0
    rules:
      - {{name: long, if: {{input_tokens_over: 2000}}, model: long}}
      - {{name: short, if: {{input_tokens_under: 900}}, model: short}}
"""
PREAMBLE = "{{ 'You are helpful. ' * 300 }}" + TEMPLATE
WORDS = some.sampled_from(["the", "river ", "pack my box ", "水车", "\u0958", "====", "1234 ", "\n\n", "😀", "<|end|>"])
SENTENCES = some.lists(WORDS, max_size=5).map("".join)
CONTENTS = some.builds(lambda words, times: words * times, SENTENCES, some.integers(0, 400))
MESSAGES = some.lists(some.builds(Message, role=some.sampled_from(["user", "assistant"]), content=CONTENTS), min_size=1)
TOOLS = some.integers(0, 80).map(lambda count: [Tool(function=Function(name=f"tool_{at}")) for at in range(count)])
REQUESTS = some.builds(
    lambda messages, tools: GenerateRequest(messages=messages, chat=ChatOptions(tools=tools) if tools else None),
    MESSAGES,
    TOOLS,
) | some.builds(GenerateRequest, prompt=CONTENTS)


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Routing]:
    made: dict[tuple[str, str], Routing] = {}

    def route(kind: str, template: str) -> Routing:
        if (kind, template) not in made:
            folder = tokenizer_folder(tmp_path_factory.mktemp("model"), kind, template)
            made[kind, template] = Routing(folder, FILE.format(folder=folder))
        return made[kind, template]

    return route


@pytest.mark.parametrize("template", [TEMPLATE, PREAMBLE], ids=["chatml", "long preamble"])
@pytest.mark.parametrize("kind", ["words", "sentences", "normalized"])
@example_count(25, long=2000)
@hypothesis.given(request=REQUESTS)
async def test_a_rule_decides_as_the_exact_number(
    routes: Callable[[str, str], Routing], kind: str, template: str, request: GenerateRequest
) -> None:
    routing = routes(kind, template)
    tokens = await ContextWindow.count(routing.window, "short", request)
    assert tokens is not None
    most = routing.window.most_tokens("short", request)
    assert most is None or tokens <= most
    expected = "long" if tokens > 2000 else "short" if tokens < 900 else "middle"
    with counting_once(OWNER.project_id):
        assert await routing.choose(request) == expected
    counted = routing.job.decisions.route
    assert counted is not None
    assert counted.input_tokens is None or min(tokens, 2001) <= counted.input_tokens <= tokens


async def test_many_small_tools_count(routes: Callable[[str, str], Routing]) -> None:
    """Their names and the template's indentation are most of the prompt."""
    tools = [Tool(function=Function(name=f"tool_{at}")) for at in range(100)]
    request = GenerateRequest(messages=[Message(role="user", content="x")], chat=ChatOptions(tools=tools))
    assert await routes("words", TEMPLATE).choose(request) == "long"


async def test_an_image_counts_although_its_address_is_short(tmp_path: Path) -> None:
    file = """\
models:
  - {name: a, engine: simulated, modalities: [image]}
  - {name: b, engine: simulated, modalities: [image]}
routes:
  - {name: auto, models: [a, b], rules: [{name: long, if: {input_tokens_over: 1000}, model: b}], otherwise: a}
"""
    image = ImagePart(type="image", url="https://example.com/a.png")
    request = GenerateRequest(messages=[Message(role="user", content=[image])])
    assert await Routing(tmp_path, file).choose(request) == "b"


async def test_a_longer_limit_continues_the_count(
    routes: Callable[[str, str], Routing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the context of the model that a rule has chosen."""
    window = routes("words", TEMPLATE).window
    text = "thequick the " * 8000
    request = GenerateRequest(messages=[Message(role="user", content=text)])
    exact = await window.count("short", request)
    assert exact is not None
    encoded = 0
    pieces = token_counter._pieces

    def noted(text: str, size: int | None = None) -> Iterator[str]:
        nonlocal encoded
        for piece in pieces(text, size):
            encoded += len(piece)
            yield piece

    monkeypatch.setattr(token_counter, "_pieces", noted)
    with counting_once():
        for limit in (exact // 2, exact * 3 // 4, exact + 1):
            measured = await window.measure("short", request, limit)
            assert measured.at_least == (limit < exact)
            assert min(limit, exact) <= measured.number <= exact
    assert 0.9 * len(text) < encoded < 1.1 * len(text)
