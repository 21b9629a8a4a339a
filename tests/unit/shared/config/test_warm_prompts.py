"""`warm_prompts` of a model's entry: what they mean, and errors with line and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from shared.config.models.base import RegistryError
from shared.config.models.loader import load_registry
from shared.config.models.vllm import VllmModel
from shared.config.models.warm_prompts import WarmPrompt
from workers.execution.warm_check import check_warm_prompts

FILE = """\
models:
  - name: other
    engine: simulated
  - name: m
    engine: vllm
    model: {folder}
    options: {{max_model_len: 8}}
    warm_prompts:
      - text: Be brief.
        as: system
      - {entry}
"""
FIRST_PROMPT = "models[1].warm_prompts[1]"


def load(folder: Path, entry: str) -> tuple[Path, VllmModel]:
    file = folder / "models.yaml"
    file.write_text(FILE.format(folder=folder, entry=entry))
    model = load_registry(file)["m"]
    assert isinstance(model, VllmModel)
    return file, model


@pytest.mark.parametrize(
    ("entry", "field", "words"),
    [
        ("{}", "", "give exactly one of text, file, messages, top"),
        ("{text: a, top: 3}", "", "give exactly one of text, file, messages, top"),
        ("{text: ''}", ".text", "at least 1 character"),
        ("{txt: a}", ".txt", "unknown field"),
        ("{top: 0}", ".top", "greater than or equal to 1"),
        ("{top: 3, hours: 0}", ".hours", "greater than 0"),
        ("{text: a, hours: 1}", ".hours", "has no effect with text"),
        ("{top: 3, tools: [{function: {name: f}}]}", ".tools", "has no effect with top"),
        ("{messages: [{role: user, content: a}], as: prompt}", ".as", "has no effect with messages"),
        ("{text: a, as: prompt, tools: [{function: {name: f}}]}", ".tools", "raw prompts have no tools"),
        ("{messages: []}", ".messages", "at least 1 item"),
        ("{messages: [{role: nobody, content: a}]}", ".messages[0].role", "Input should be"),
        ("{text: a, projects: []}", ".projects", "at least 1 item"),
        ("a text", "", "must be a mapping"),
    ],
)
def test_errors_name_the_line_and_the_field(tmp_path: Path, entry: str, field: str, words: str) -> None:
    with pytest.raises(RegistryError) as caught:
        load(tmp_path, entry)
    assert f"{tmp_path}/models.yaml, line 11: {FIRST_PROMPT}{field}: " in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            "options: {enable_prefix_caching: false}\n    warm_prompts: [{top: 1}]",
            "line 6: models[0].warm_prompts: has no effect with options.enable_prefix_caching: false",
        ),
        ("warm_prompts_timeout_s: 5", "line 5: models[0].warm_prompts_timeout_s: has no effect without warm_prompts"),
    ],
)
def test_fields_without_effect(tmp_path: Path, fields: str, words: str) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(f"models:\n  - name: m\n    engine: vllm\n    model: x\n    {fields}\n")
    with pytest.raises(RegistryError) as caught:
        load_registry(file)
    assert words in str(caught.value)


def test_a_text_is_a_system_message_up_to_the_users_first_word() -> None:
    first, second = WarmPrompt(text="Be brief.").requests()
    assert first.messages is not None
    assert second.messages is not None
    assert first.messages[:-1] == second.messages[:-1]
    assert [message.role for message in first.messages] == ["system", "user"]
    assert first.messages[-1].text[0] != second.messages[-1].text[0]


def test_a_conversation_that_a_user_ends_is_computed_as_a_whole() -> None:
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    (request,) = WarmPrompt.model_validate({"messages": messages}).requests()
    assert [message.text for message in request.messages or ()] == ["a", "b"]


@pytest.mark.parametrize("given", [{"text": "Once upon"}, {"file": "start.txt"}])
def test_the_start_of_raw_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "start.txt").write_text("Once upon")
    (request,) = WarmPrompt.model_validate({**given, "as": "prompt"}).requests()
    assert (request.prompt, request.messages) == ("Once upon", None)


def test_the_prefixes_that_saved_most_are_no_requests() -> None:
    assert WarmPrompt.model_validate({"top": 5, "hours": 2}).requests() == ()


def test_no_label_quotes_a_text() -> None:
    prompts: list[dict[str, Any]] = [{"text": "secret"}, {"messages": [{"role": "user", "content": "secret"}]}]
    assert not any("secret" in WarmPrompt.model_validate(prompt).label for prompt in prompts)


def with_tokenizer(folder: Path) -> None:
    """A tokenizer whose tokens are words."""
    tokenizer = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({}))


@pytest.mark.parametrize(
    ("entry", "field", "words"),
    [
        ("{file: missing.txt}", "file", "missing.txt cannot be read (No such file or directory)"),
        ("{file: empty.txt}", "file", "empty.txt is empty"),
        ("{file: latin.txt}", "file", "latin.txt is not UTF-8"),
        ("{text: 1 2 3 4 5 6 7 8}", "text", "has at least 8 tokens, but the context of the model is 8"),
        ("{file: long.txt}", "file", "has at least 9 tokens, but the context of the model is 8"),
        ("{messages: [{role: user, content: 1 2 3 4 5 6 7 8}]}", "messages", "has at least 8 tokens"),
    ],
)
def test_files_and_lengths_are_checked_before_the_engine_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, field: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with_tokenizer(tmp_path)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin.txt").write_bytes("né".encode("latin-1"))
    (tmp_path / "long.txt").write_text("1 2 3\n4 5 6\n7 8 9")
    file, model = load(tmp_path, entry)
    with pytest.raises(RegistryError) as caught:
        check_warm_prompts(file, model)
    assert str(caught.value).startswith(f"{file}, line 11: {FIRST_PROMPT}.{field}: {words}")


def test_prompts_that_fit_pass(tmp_path: Path) -> None:
    with_tokenizer(tmp_path)
    check_warm_prompts(*load(tmp_path, "{text: 1 2 3 4 5 6 7}"))
