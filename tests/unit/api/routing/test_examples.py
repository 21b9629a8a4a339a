"""Reading labelled requests: errors name the line, the field and the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from api.routing.examples import Example, ExamplesError, read_examples

LEVELS = ("simple", "middle", "complex")


def read(tmp_path: Path, content: str | bytes, levels: tuple[str, ...] = LEVELS) -> list[Example]:
    path = tmp_path / "examples.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_examples(path, levels)


def test_prompts_and_conversations(tmp_path: Path) -> None:
    conversation = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "x"}}],
        },
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "a cat"},
    ]
    lines = [
        {"prompt": "Hi", "label": "simple"},
        {"messages": conversation, "label": "Complex", "max_tokens": 100, "reasoning_effort": "high"},
        {"prompt": "Hi", "label": 0.3, "id": "ignored"},
        {"prompt": "Hi", "label": 1},
    ]
    text = "\ufeff" + "\r\n\n".join(map(json.dumps, lines))
    first, second, third, fourth = read(tmp_path, text)
    assert (first.request.prompt, first.label) == ("Hi", 0)
    assert second.label == 1
    assert second.request.messages is not None
    assert [message.text for message in second.request.messages] == ["Be brief.", "What is this?", "", "a cat"]
    assert second.request.sampling.max_tokens == 100
    assert (third.label, fourth.label) == (0.3, 1)


def test_labels_may_be_the_models_of_a_route(tmp_path: Path) -> None:
    text = "".join(json.dumps({"prompt": "Hi", "label": name}) + "\n" for name in ("small", "middle", "large"))
    assert [item.label for item in read(tmp_path, text, ("small", "middle", "large"))] == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "Hi"', "must be a JSON object"),
        ("[]", "must be a JSON object"),
        ('"text"', "must be a JSON object"),
        ("[" * 100_000, "must be a JSON object"),
        (b'{"prompt": "\xff", "label": 1}', "must be UTF-8"),
        ('{"prompt": "Hi"}', "label: must be simple, middle, complex, or a number from 0 to 1; got nothing"),
        ('{"prompt": "Hi", "label": "hard"}', 'got "hard"'),
        ('{"prompt": "Hi", "label": true}', "got true"),
        ('{"prompt": "Hi", "label": 2}', "got 2"),
        ('{"prompt": "Hi", "label": NaN}', "got NaN"),
        ('{"prompt": "Hi", "label": ["simple"]}', 'got ["simple"]'),
        ('{"label": 1}', "exactly one of prompt and messages is required"),
        ('{"prompt": "Hi", "messages": [], "label": 1}', "exactly one of prompt and messages is required"),
        ('{"prompt": 7, "label": 1}', "prompt: must be a string"),
        ('{"prompt": " ", "label": 1}', "prompt: must not be empty"),
        ('{"messages": [], "label": 1}', "messages: must be a list with at least one message"),
        ('{"messages": ["Hi"], "label": 1}', "messages: each message must be an object"),
        ('{"messages": [{"role": "bot", "content": "Hi"}], "label": 1}', "role: Input should be"),
        ('{"messages": [{"role": "user"}], "label": 1}', "content is required"),
        ('{"prompt": "Hi", "label": 1, "max_tokens": "many"}', "max_tokens: Input should be"),
    ],
)
def test_a_line_that_cannot_be_used(tmp_path: Path, line: str | bytes, words: str) -> None:
    content = b'{"prompt": "Hi", "label": 0}\n\n' + (line if isinstance(line, bytes) else line.encode()) + b"\n"
    with pytest.raises(ExamplesError) as caught:
        read(tmp_path, content)
    (message,) = str(caught.value).splitlines()
    assert message.startswith(f"{tmp_path / 'examples.jsonl'}:3: ")
    assert words in message


def test_ten_errors_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ExamplesError) as caught:
        read(tmp_path, '{"prompt": "Hi"}\n' * 100)
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == [str(at) for at in range(1, 11)]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ExamplesError, match=r"none\.jsonl: No such file or directory"):
        read_examples(tmp_path / "none.jsonl", LEVELS)
    with pytest.raises(ExamplesError, match="Is a directory"):
        read_examples(tmp_path, LEVELS)
