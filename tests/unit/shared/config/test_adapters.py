"""LoRA adapters in models.yaml: models of their own name on the queue of their base."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from shared.config.models.base import RegistryError, TokenizerFiles
from shared.config.models.loader import Registry, load_registry
from shared.config.models.reload import ModelChanges, needs_restart
from shared.config.models.vllm import VllmModel

BASE = """\
models:
  - name: base
    engine: vllm
    model: {model}
    description: The base
    options: {{max_model_len: 512, max_num_seqs: 7}}
    chat: {{tool_call_parser: hermes}}
    warm_prompts: [{{text: Hello}}]
"""
ADAPTER = """\
  - name: tone
    adapter_of: base
    adapter: {adapter}
    description: Friendly
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter's files."""
    folder = tmp_path / "tone"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8}))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    return folder


def write(tmp_path: Path, text: str, **names: object) -> Path:
    file = tmp_path / "models.yaml"
    file.write_text(text.format(**names))
    return file


@pytest.fixture
def registry(tmp_path: Path, folder: Path, base_folder: Path) -> Registry:
    return load_registry(write(tmp_path, BASE + ADAPTER, model=base_folder, adapter=folder))


def test_an_adapter_is_a_model_with_what_its_base_has(registry: Registry) -> None:
    base, tone = registry["base"], registry["tone"]
    assert isinstance(tone, VllmModel)
    assert (tone.name, tone.description, tone.slots, tone.max_model_len) == ("tone", "Friendly", 7, 512)
    assert tone.capabilities == base.capabilities
    assert tone.prompt_tokenizer == base.prompt_tokenizer
    assert tone.warm_prompts == []
    assert list(registry.models) == ["base", "tone"]


def test_messages_name_the_file_that_has_the_entry(tmp_path: Path, folder: Path) -> None:
    file = write(tmp_path, BASE + ADAPTER, model="org/base", adapter=folder).rename(tmp_path / "gpu.yaml")
    registry = load_registry(file)
    assert registry["base"].place("options.dtype") == f"{file}: base.options.dtype"
    assert registry["tone"].place("adapter") == f"{file}: tone.adapter"


def test_its_jobs_lie_on_the_queue_of_its_base(registry: Registry) -> None:
    assert registry.queues == ["base"]
    assert [registry.queue_of(name) for name in ("base", "tone", "unknown")] == ["base", "base", "unknown"]
    assert registry.names_on("base") == ("base", "tone")
    assert registry.names_on("unknown") == ("unknown",)
    assert registry["base"].served_names == ("base", "tone")


def test_the_entries_may_be_in_any_order(tmp_path: Path, folder: Path) -> None:
    text = "models:\n" + ADAPTER + BASE.removeprefix("models:\n")
    registry = load_registry(write(tmp_path, text, model="org/base", adapter=folder))
    assert list(registry.models) == ["tone", "base"]
    assert registry.names_on("base") == ("base", "tone")


def test_workers_report_their_adapters(registry: Registry, folder: Path) -> None:
    assert registry["base"].summary["adapters"] == {"tone": str(folder)}
    summary = registry["tone"].summary
    assert (summary["adapter_of"], summary["adapter"]) == ("base", str(folder))
    assert "adapters" not in summary


def test_the_fingerprint_changes_with_the_files(tmp_path: Path, registry: Registry, folder: Path) -> None:
    base, tone = registry["base"], registry["tone"]
    assert base.fingerprint != tone.fingerprint
    weights = folder / "adapter_model.safetensors"
    before = weights.stat()
    weights.write_bytes(b"changed")  # of the same size
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    changed = load_registry(tmp_path / "models.yaml")
    assert changed["tone"].fingerprint != tone.fingerprint
    assert changed["tone"].revision != tone.revision
    assert changed["base"].fingerprint == base.fingerprint
    assert needs_restart(base, changed["base"])
    assert str(ModelChanges.between(registry.models, changed.models)) == "changed: base, tone"


def test_another_adapter_needs_other_workers(tmp_path: Path, registry: Registry, folder: Path) -> None:
    text = (tmp_path / "models.yaml").read_text()
    second = text + ADAPTER.format(adapter=folder).replace("tone", "second", 1)
    (tmp_path / "models.yaml").write_text(second)
    new = load_registry(tmp_path / "models.yaml")
    assert needs_restart(registry["base"], new["base"])
    assert not needs_restart(new["base"], load_registry(tmp_path / "models.yaml")["base"])
    assert new["second"].fingerprint != new["tone"].fingerprint, "they have the same files, but other names"


def test_a_chat_template_in_its_folder_replaces_that_of_the_base(
    tmp_path: Path, folder: Path, base_folder: Path
) -> None:
    template = folder / "chat_template.jinja"
    template.write_text("{{ messages }}")
    registry = load_registry(write(tmp_path, BASE + ADAPTER, model=base_folder, adapter=folder))
    base, tone = registry["base"], registry["tone"]
    assert isinstance(base, VllmModel)
    assert isinstance(tone, VllmModel)
    assert tone.chat_template_text == "{{ messages }}"
    assert tone.prompt_tokenizer == TokenizerFiles(base_folder, renders_chat=True, template=template)
    assert tone.chat.tool_call_parser == "hermes"
    assert base.chat_template_text is None


def test_a_source_without_a_folder_may_be_a_hub_id(tmp_path: Path) -> None:
    for source, may_be in {"org/tone": True, "./tone": False, "/models/tone": False, "a/b/c": False}.items():
        adapter = load_registry(write(tmp_path, BASE + ADAPTER, model="org/base", adapter=source))["tone"].adapter
        assert adapter is not None
        assert (adapter.folder, adapter.content, adapter.may_be_hub_id) == (None, None, may_be)


def test_a_simulated_model_has_adapters_too(tmp_path: Path) -> None:
    text = "models:\n  - {{name: base, engine: simulated, slots: 3}}\n" + ADAPTER
    registry = load_registry(write(tmp_path, text, adapter="x"))
    assert registry["tone"].slots == 3
    assert registry["tone"].queue == "base"


@pytest.mark.parametrize(
    ("right", "wrong", "line", "words"),
    [
        (
            "adapter_of: base",
            "adapter_of: bse",
            10,
            "models[1].adapter_of: there is no model 'bse'; a base is an entry",
        ),
        ("adapter_of: base", "adapter_of: tone", 10, "models[1].adapter_of: there is no model 'tone'"),
        ("adapter_of: base", "adapter_of: 7", 10, "models[1].adapter_of: Input should be a valid string"),
        ("    adapter: org/tone\n", "", 9, "models[1].adapter: this field is required"),
        ("name: tone", "name: base", 9, "models[1].name: 'base' is declared twice"),
        ("name: tone", "name: a b", 9, "models[1].name: "),
        ("    adapter: org/tone\n", "    adapter: org/tone\n    engine: vllm\n", 12, "models[1].engine: unknown field"),
        ("    adapter_of: base\n", "", 9, "models[1].engine: must be one of "),
    ],
)
def test_errors_have_the_line(tmp_path: Path, right: str, wrong: str, line: int, words: str) -> None:
    text = (BASE + ADAPTER).format(model="org/base", adapter="org/tone")
    assert right in text
    file = tmp_path / "models.yaml"
    file.write_text(text.replace(right, wrong, 1))
    with pytest.raises(RegistryError) as caught:
        load_registry(file)
    assert caught.value.message.startswith(f"{file}, line {line}: {words}")


def test_a_base_on_an_engine_without_adapters(tmp_path: Path) -> None:
    text = (
        "models:\n"
        "  - {{name: base, engine: openai, model: m, options: {{base_url: 'http://up.example.com/v1'}}}}\n" + ADAPTER
    )
    with pytest.raises(RegistryError, match=r"line 4: models\[1\]\.adapter_of: 'base' runs on the engine openai"):
        load_registry(write(tmp_path, text, adapter="x"))
