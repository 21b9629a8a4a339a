"""models.yaml: defaults and properties of the models, and error messages with file, line and field."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from shared.config.models.base import RegistryError, TokenizerFiles, WordTokenizer
from shared.config.models.loader import ENGINES, load_registry
from shared.config.models.openai import OpenAIModel, PresetName
from shared.config.models.presets import PRESETS
from shared.config.models.simulated import SimulatedModel
from shared.config.models.upstream import UpstreamModel
from shared.config.models.vllm import ChatSettings, VllmModel
from tests.support.vendors.catalog import VENDORS

GOOD = """\
models:
  - name: small
    engine: simulated
    slots: 4
  - name: org/large:7b
    engine: vllm
    model: /models/large
    options:
      max_model_len: 4096
      kv_cache_dtype: auto
    chat:
      tool_call_parser: hermes
      default_chat_template_kwargs: {enable_thinking: false}
"""


def write(folder: Path, content: str | bytes) -> Path:
    file = folder / "models.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def test_valid_file(tmp_path: Path) -> None:
    registry = load_registry(write(tmp_path, GOOD))
    assert list(registry.models) == ["small", "org/large:7b"]
    assert (registry["small"].slots, registry["org/large:7b"].slots) == (4, 64)
    large = registry["org/large:7b"]
    assert isinstance(large, VllmModel)
    assert large.max_model_len == 4096
    assert large.chat.tool_call_parser == "hermes"
    assert large.chat.default_chat_template_kwargs == {"enable_thinking": False}


ONE_OF = f"must be one of {', '.join(ENGINES)}"


@pytest.mark.parametrize(
    ("right", "wrong", "line", "words"),
    [
        ("engine: vllm", "engine: vlm", 6, f"models[1].engine: {ONE_OF}, got 'vlm'"),
        ("    engine: simulated\n", "", 2, f"models[0].engine: {ONE_OF}"),
        ("slots", "slotz", 4, "models[0].slotz: unknown field"),
        ("slots: 4", "slots: many", 4, "models[0].slots: Input should be a valid integer"),
        ("slots: 4", "slots: 0", 4, "models[0].slots: Input should be greater than or equal to 1"),
        ("slots: 4", "options: {ttft_ms: fast}", 4, "models[0].options.ttft_ms: Input should be a valid number"),
        ("slots: 4", "options:\n      itl: 5", 5, "models[0].options.itl: unknown field"),
        ("slots: 4", "options: [1]", 4, "models[0].options: must be a mapping"),
        ("    model: /models/large\n", "", 5, "models[1].model: this field is required"),
        ("name: small", "nam: small", 2, "models[0].name: this field is required"),
        ("name: small", "name: a b", 2, "models[0].name: "),
        ("name: org/large:7b", "name: small", 5, "models[1].name: 'small' is declared twice"),
        ("max_model_len: 4096", "max_model_len: 4k", 9, "models[1].options.max_model_len: Input should be a valid"),
        ("max_model_len: 4096", "max_num_seqs: 0", 9, "models[1].options.max_num_seqs: Input should be greater"),
        (
            "kv_cache_dtype: auto",
            "reasoning_parser: qwen3",
            8,
            "models[1].options: reasoning_parser is not an engine option",
        ),
        (
            "kv_cache_dtype: auto",
            "enable_auto_tool_choice: true",
            8,
            "models[1].options: enable_auto_tool_choice is not",
        ),
        ("tool_call_parser: hermes", "tool_parser: hermes", 12, "models[1].chat.tool_parser: unknown field"),
        ("tool_call_parser: hermes", "tool_call_parser: ''", 12, "models[1].chat.tool_call_parser: String should have"),
        ("tool_call_parser: hermes", "chat_template_content_format: xml", 12, "models[1].chat.chat_template_content_"),
        ("{enable_thinking: false}", "fast", 13, "models[1].chat.default_chat_template_kwargs: must be a mapping"),
        ("models:", "modells:", 1, "models: this field is required"),
        ("    slots: 4", "   slots: 4", 4, "not valid YAML"),
        ("    slots: 4", "\tslots: 4", 4, "not valid YAML"),
        ("name: small", "name: *small", 2, "not valid YAML: found undefined alias"),
        ("name: small", "name: sm\x00all", 2, "not valid YAML"),
        ("slots: 4", "slots: 4\n    engine: vllm", 5, "models[0].engine: is already set in line 3"),
        (
            "slots: 4",
            "options: {itl_ms: 1, ttft_ms: 1, itl_ms: 2}",
            4,
            "models[0].options.itl_ms: is already set in line 4",
        ),
        ("kv_cache_dtype: auto", "max_model_len: 1", 10, "models[1].options.max_model_len: is already set in line 9"),
        ("slots: 4", "context: {strategy: window}", 4, "models[0].context.strategy: Input should be 'error', 'sliding"),
        ("slots: 4", "context: {target: 0.9}", 4, "models[0].context.target: target must be less than trigger=0.8"),
        (
            "slots: 4",
            "context:\n      strategy: summarize\n      model: cheap",
            6,
            "models[0].context.model: there is no model 'cheap'",
        ),
        (
            "slots: 4",
            "options: {max_model_len: 100}\n    context: {strategy: summarize, model: small}",
            5,
            "models[0].context.model: the context of 'small', 100 tokens, is too small to write summaries",
        ),
        (
            "{enable_thinking: false}",
            "{a: {b: 1, b: 2}}",
            13,
            "models[1].chat.default_chat_template_kwargs.a.b: is alr",
        ),
    ],
)
def test_errors_have_the_line(tmp_path: Path, right: str, wrong: str, line: int, words: str) -> None:
    assert right in GOOD
    file = write(tmp_path, GOOD.replace(right, wrong, 1))
    with pytest.raises(RegistryError) as caught:
        load_registry(file)
    assert caught.value.message.startswith(f"{file}, line {line}: {words}")


UPSTREAM = """\
models:
  - name: gpt
    engine: openai
    model: gpt-x
    options:
      base_url: https://api.example.com/v1/
      api_key_env: UPSTREAM_API_KEY
"""


def test_upstream_model(tmp_path: Path) -> None:
    model = load_registry(write(tmp_path, UPSTREAM))["gpt"]
    assert isinstance(model, OpenAIModel)
    assert (model.slots, model.max_model_len, model.options.max_retries) == (256, None, 3)
    assert model.options.base_url == "https://api.example.com/v1"


PRESET = """\
models:
  - name: gpt
    engine: openai
    preset: gemini
    model: theirs
    options:
      api_key_env: UPSTREAM_API_KEY
"""


def test_presets(tmp_path: Path) -> None:
    """A preset has an address, unless each installation has its own; options take precedence."""
    for name, preset in PRESETS.items():
        address = "" if preset.base_url else f"\n      base_url: {preset.example_url}"
        content = PRESET.replace("gemini", name).replace("UPSTREAM_API_KEY", f"UPSTREAM_API_KEY{address}")
        model = load_registry(write(tmp_path, content))["gpt"]
        assert isinstance(model, OpenAIModel)
        assert model.server is preset
        assert model.options.base_url == (preset.base_url or preset.example_url)
        assert model.options.max_tokens_field == preset.max_tokens_field
        assert model.capabilities == preset.capabilities
        assert model.provider == preset.provider
        changed = PRESET.replace("gemini", name) + "      base_url: http://x/v1\n      max_tokens_field: max_tokens\n"
        model = load_registry(write(tmp_path, changed + "    modalities: [image]\n"))["gpt"]
        assert isinstance(model, OpenAIModel)
        assert (model.options.base_url, model.options.max_tokens_field) == ("http://x/v1", "max_tokens")
        assert model.capabilities.modalities == {"text", "image"}
    assert get_args(PresetName) == tuple(PRESETS)


def test_prefill_says_whether_answers_continue(tmp_path: Path) -> None:
    for preset, option, expected in (
        ("gemini", "", False),
        ("gemini", "      prefill: true\n", True),
        ("vllm", "      base_url: http://x/v1\n", True),
        ("vllm", "      base_url: http://x/v1\n      prefill: false\n", False),
    ):
        model = load_registry(write(tmp_path, PRESET.replace("gemini", preset) + option))["gpt"]
        assert model.capabilities.continues == expected


def test_a_preset_needs_no_options(tmp_path: Path) -> None:
    content = PRESET.partition("    options:")[0]
    model = load_registry(write(tmp_path, content))["gpt"]
    assert isinstance(model, OpenAIModel)
    assert model.options.api_key_env is None


@pytest.mark.parametrize(
    ("right", "wrong", "line", "words"),
    [
        ("preset: gemini", "preset: gemnii", 4, "models[0].preset: must be one of openai, azure, "),
        ("preset: gemini", "preset: [gemini]", 4, "models[0].preset: must be one of openai, azure, "),
        ("preset: gemini", "preset: vllm", 6, "models[0].options.base_url: this field is required"),
        ("      api_key_env: UPSTREAM_API_KEY", "      api_version: v1", 7, "models[0].options.api_version: only the "),
        ("      api_key_env: UPSTREAM_API_KEY", "      base_ulr: x", 7, "models[0].options.base_ulr: unknown field"),
        (
            "    options:\n      api_key_env: UPSTREAM_API_KEY",
            "    options: [1]",
            6,
            "models[0].options: must be a map",
        ),
        ("    options:", "    modalities: [smell]\n    options:", 6, "models[0].modalities[0]: Input should be 'text'"),
    ],
)
def test_errors_of_presets_have_the_line(tmp_path: Path, right: str, wrong: str, line: int, words: str) -> None:
    assert right in PRESET
    file = write(tmp_path, PRESET.replace(right, wrong, 1))
    with pytest.raises(RegistryError) as caught:
        load_registry(file)
    assert caught.value.message.startswith(f"{file}, line {line}: {words}")


def test_engine_names() -> None:
    assert ENGINES == ("vllm", "openai", "anthropic", "triton", "replicate", "runpod", "simulated")


def test_engine_properties(tmp_path: Path) -> None:
    upstream = load_registry(write(tmp_path, UPSTREAM))["gpt"]
    simulated = SimulatedModel(name="s", engine="simulated")
    bundled = VllmModel(name="v", engine="vllm", model="bundled:Small")
    models = (upstream, simulated, bundled)
    assert [model.yields for model in models] == [False, True, True]
    assert [model.package for model in models] == [None, None, "vllm"]
    assert [model.loads_model for model in models] == [False, False, True]
    assert [model.secret_envs for model in models] == [("UPSTREAM_API_KEY",), (), ()]
    assert [model.bundled_model for model in models] == [None, None, "Small"]
    assert [model.prompt_tokenizer for model in models] == [None, WordTokenizer(), None]
    assert bundled.source.endswith("/models/Small")


def test_prompt_tokenizer_of_a_local_model(tmp_path: Path) -> None:
    model = VllmModel(name="m", engine="vllm", model=str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert model.prompt_tokenizer is None, "one of the files is missing"
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert model.prompt_tokenizer == TokenizerFiles(tmp_path, renders_chat=True)
    for chat in (ChatSettings(chat_template="x"), ChatSettings(default_chat_template_kwargs={"a": 1})):
        changed = model.model_copy(update={"chat": chat})
        assert changed.prompt_tokenizer == TokenizerFiles(tmp_path, renders_chat=False)


@pytest.mark.parametrize(
    ("right", "wrong", "line", "words"),
    [
        ("    model: gpt-x\n", "", 2, "model: this field is required"),
        ("      base_url: https://api.example.com/v1/\n", "", 5, "options.base_url: this field is required"),
        ("https://api", "api", 6, "options.base_url: must be a URL such as https://api.openai.com/v1"),
        ("https://api", "file://api", 6, "options.base_url: must be a URL"),
        ("https://api", "https://user:pass@api", 6, "options.base_url: must be a URL"),
        ("/v1/", "/v1?key=7", 6, "options.base_url: must be a URL"),
        ("example.com", "example.com:port", 6, "options.base_url: must be a URL"),
        ("UPSTREAM_API_KEY", "sk-12345", 7, "options.api_key_env: must be the name of the environment variable"),
        ("api_key_env: U", "api_key: U", 7, "options.api_key: unknown field; use options.api_key_env"),
        (
            "api_key_env: UPSTREAM_API_KEY",
            "max_concurrency: 0",
            7,
            "options.max_concurrency: Input should be greater",
        ),
        ("api_key_env: UPSTREAM_API_KEY", "max_retries: -1", 7, "options.max_retries: Input should be greater"),
        ("api_key_env: UPSTREAM_API_KEY", "read_timeout_s: 0", 7, "options.read_timeout_s: Input should be greater"),
        (
            "api_key_env: UPSTREAM_API_KEY",
            "read_timeout_s: .inf",
            7,
            "options.read_timeout_s: Input should be a finite",
        ),
        ("gpt-x\n", "gpt-x\n    slots: 0\n", 5, "slots: Input should be greater"),
    ],
)
def test_errors_in_an_upstream_model(tmp_path: Path, right: str, wrong: str, line: int, words: str) -> None:
    assert right in UPSTREAM
    file = write(tmp_path, UPSTREAM.replace(right, wrong, 1))
    with pytest.raises(RegistryError) as caught:
        load_registry(file)
    assert caught.value.message.startswith(f"{file}, line {line}: models[0].{words}")
    assert "sk-12345" not in caught.value.message


@pytest.mark.parametrize("content", ["", "# models:\n", "- name: small\n", "hello\n", "7\n"])
def test_file_without_models(tmp_path: Path, content: str) -> None:
    file = write(tmp_path, content)
    with pytest.raises(RegistryError) as caught:
        load_registry(file)
    assert caught.value.message == f"{file}, line 1: models: this field is required"


@pytest.mark.parametrize("models", ["", " []", " small", " {name: small}"])
def test_models_must_be_a_non_empty_list(tmp_path: Path, models: str) -> None:
    file = write(tmp_path, f"# comment\nmodels:{models}\n")
    with pytest.raises(RegistryError, match=r"(?i)line 2: models: .*list"):
        load_registry(file)


def test_all_errors_are_reported(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD.replace("slots: 4", "slots: x").replace("model: /", "modell: /"))
    with pytest.raises(RegistryError) as caught:
        load_registry(file)
    assert [line.partition(": ")[0] for line in caught.value.message.splitlines()] == [
        f"{file}, line 4",
        f"{file}, line 5",
        f"{file}, line 7",
    ]


def test_all_repeated_keys_are_reported(tmp_path: Path) -> None:
    """In the file and in mappings that are used twice; a merged mapping may have a key of the one that merges it."""
    file = write(tmp_path, GOOD.replace("slots: 4", "slots: 4\n    slots: 5") + "models:\n  - {name: x}\n")
    with pytest.raises(RegistryError) as caught:
        load_registry(file)
    assert [line.partition(": ")[2] for line in caught.value.message.splitlines()] == [
        "models: is already set in line 1",
        "models[0].slots: is already set in line 4",
    ]
    aliases = (
        "models:\n- &a {name: a, engine: simulated, options: &o {itl_ms: 1}}\n"
        "- {<<: *a, name: b, options: *o}\n- {<<: *a, name: c}\n"
    )
    assert list(load_registry(write(tmp_path, aliases)).models) == ["a", "b", "c"]


# Options that nothing would read, by engine, and the field that the error names.
WITHOUT_EFFECT: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("responses", {}, {"prefill": True}, "options.prefill"),
    ("responses", {}, {"prefill": False}, "options.prefill"),
    ("responses", {}, {"max_tokens_field": "max_tokens"}, "options.max_tokens_field"),
    ("openai", {}, {"reasoning_summary": "auto"}, "options.reasoning_summary"),
    ("openai", {}, {"api_version": "v1"}, "options.api_version"),
    ("openai", {}, {"health_interval_s": 5}, "options.health_interval_s"),
    ("anthropic", {"max_logprob_values": 5}, {}, "max_logprob_values"),
    ("anthropic", {}, {"prompt_caching": "off", "min_cache_tokens": 5}, "options.min_cache_tokens"),
    ("replicate", {"max_logprob_values": 5}, {}, "max_logprob_values"),
    ("replicate", {}, {"input": {"messages": "chat"}}, "options.input.messages"),
    ("replicate", {}, {"input": {"conversation": "messages", "prompt": "text"}}, "options.input.prompt"),
    ("replicate", {}, {"input": {"chat_template": "a.jinja", "messages": "chat"}}, "options.input.messages"),
    ("replicate", {}, {"input": {"chat_template": "a.jinja", "system_prompt": "s"}}, "options.input.system_prompt"),
    (
        "replicate",
        {},
        {"input": {"conversation": "messages", "chat_template": "a.jinja"}},
        "options.input.chat_template",
    ),
    ("replicate", {}, {"input": {"stop_as": "list"}}, "options.input.stop_as"),
    ("replicate", {}, {"input": {"constants": {"prompt": "x"}}}, "options.input.constants"),
    ("replicate", {}, {"input": {"parameters": {"top_p": "p", "top_k": "p"}}}, "options.input.parameters"),
    ("replicate", {}, {"input": {"parameters": {"top_p": "prompt"}}}, "options.input.parameters"),
    ("replicate", {}, {"extra_body": ["x"], "input": {"constants": {"x": 1}}}, "options.extra_body"),
    ("runpod", {}, {"input": "vllm"}, "model"),
    ("runpod", {"model": None}, {"input": "vllm", "max_tokens_field": "max_tokens"}, "options.max_tokens_field"),
    ("runpod", {"model": None, "modalities": ["image"]}, {"input": "vllm"}, "modalities"),
    ("triton", {}, {"backend": "python", "structured_outputs": True}, "options.structured_outputs"),
    ("triton", {}, {"backend": "llmapi", "structured_outputs": True}, "options.structured_outputs"),
    ("triton", {}, {"api_key_env": None, "api_key_header": "X-Key"}, "options.api_key_header"),
    ("triton", {}, {"parameters": {"max_tokens": None}}, "options.parameters.max_tokens"),
    ("triton", {}, {"parameters": {"seed": "text_input"}}, "options.parameters"),
    ("triton", {}, {"backend": "llmapi", "parameters": {"stop": "sampling_param_seed"}}, "options.parameters"),
    ("triton", {}, {"inputs": {"text_input": "x"}}, "options.inputs.text_input"),
    ("triton", {}, {"inputs": {"sampling_parameters": "{}"}}, "options.inputs.sampling_parameters"),
    ("triton", {}, {"extra_body": ["lora"], "inputs": {"lora": "a"}}, "options.extra_body"),
    (
        "triton",
        {},
        {"tokenizer": "/models/a", "max_model_len": 100, "default_max_tokens": 5},
        "options.default_max_tokens",
    ),
]


@pytest.mark.parametrize(("engine", "members", "options", "field"), WITHOUT_EFFECT)
def test_options_without_effect(
    tmp_path: Path, engine: str, members: dict[str, Any], options: dict[str, Any], field: str
) -> None:
    """An option that nothing would read is an error that names its line and field."""
    vendor = VENDORS[engine]()
    vendor.url = "http://127.0.0.1:1"
    entry = vendor.spec().model_dump(mode="json", exclude_unset=True) | members
    entry["options"] = entry["options"] | options
    content = yaml.safe_dump({"models": [entry]}, sort_keys=False)
    file = write(tmp_path, content)
    with pytest.raises(RegistryError) as caught:
        load_registry(file)
    message = caught.value.message
    assert f": models[0].{field}: " in message
    line = int(message.partition("line ")[2].partition(":")[0])
    assert field.rpartition(".")[2] in content.splitlines()[line - 1]


def test_file_in_another_encoding(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD.encode() + "# Mühle\n".encode("latin-1"))
    with pytest.raises(RegistryError, match="line 14: not valid YAML: not UTF-8"):
        load_registry(file)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"missing\.yaml: cannot be read .*; set HEADRACE_MODELS"):
        load_registry(tmp_path / "missing.yaml")


def test_yaml_cannot_create_python_objects(tmp_path: Path) -> None:
    file = write(tmp_path, "models: !!python/object/apply:os.getpid []\n")
    with pytest.raises(RegistryError, match="line 1: not valid YAML"):
        load_registry(file)


def test_chat_template_is_read_from_its_file(tmp_path: Path) -> None:
    def model(**chat: str) -> VllmModel:
        return VllmModel(name="m", engine="vllm", model="x", chat=ChatSettings.model_validate(chat))

    file = tmp_path / "template.jinja"
    file.write_text("{{ messages }}")
    assert model().chat_template_text is None
    assert model(chat_template=str(file)).chat_template_text == "{{ messages }}"
    with pytest.raises(
        RegistryError, match=r"m\.chat\.chat_template: .*missing\.jinja cannot be read .*name a Jinja file"
    ):
        _ = model(chat_template=str(tmp_path / "missing.jinja")).chat_template_text


ENDPOINTS = """\
models:
  - name: gpt
    engine: openai
    model: gpt-x
    options:
      endpoints:
        - base_url: https://one.example.com/v1/
          api_key_env: KEY_A
          name: east
        - base_url: https://two.example.com/v1
          api_key_env: KEY_B
          weight: 3
        - {base_url: "https://two.example.com/v1", api_key_env: KEY_A}
"""


def test_several_endpoints(tmp_path: Path) -> None:
    model = load_registry(write(tmp_path, ENDPOINTS))["gpt"]
    assert isinstance(model, OpenAIModel)
    assert model.secret_envs == ("KEY_A", "KEY_B")
    targets = model.options.targets
    assert [(target.name, target.endpoint.base_url, target.endpoint.weight) for target in targets] == [
        ("east", "https://one.example.com/v1", 1),
        ("1", "https://two.example.com/v1", 3),
        ("2", "https://two.example.com/v1", 1),
    ]


@pytest.mark.parametrize(
    ("right", "wrong", "line", "words"),
    [
        ("      endpoints", "      base_url: https://a.b/v1\n      endpoints", 6, "base_url: cannot be combined with"),
        ("      endpoints", "      api_key_env: KEY\n      endpoints", 6, "api_key_env: cannot be combined with"),
        ("          weight: 3", "          weight: 0", 12, "endpoints[1].weight: Input should be greater than 0"),
        ("          weight: 3", "          wait: 3", 12, "endpoints[1].wait: unknown field"),
        ("api_key_env: KEY_B", "api_key_env: sk-1-2", 11, "endpoints[1].api_key_env: must be the name of the environ"),
        ("name: east", "name: east coast", 9, "endpoints[0].name: String should match pattern"),
        ("name: east", 'name: "1"', 6, "endpoints: two endpoints have the name '1'"),
        (
            "        - base_url: https://two.example.com/v1\n          api",
            "        - api",
            10,
            "endpoints[1].base_url: this",
        ),
        (ENDPOINTS[ENDPOINTS.index("      endpoints") :], "      endpoints: []\n", 6, "endpoints: List should have at"),
        ("https://two", "https://key@two", 10, "endpoints[1].base_url: must be a URL"),
    ],
)
def test_errors_in_endpoints(tmp_path: Path, right: str, wrong: str, line: int, words: str) -> None:
    file = write(tmp_path, ENDPOINTS.replace(right, wrong, 1))
    with pytest.raises(RegistryError) as caught:
        load_registry(file)
    assert caught.value.message.startswith(f"{file}, line {line}: models[0].options.{words}")


def test_endpoints_replace_the_address_of_a_preset(tmp_path: Path) -> None:
    text = ENDPOINTS.replace("engine: openai", "engine: openai\n    preset: gemini")
    model = load_registry(write(tmp_path, text))["gpt"]
    assert isinstance(model, OpenAIModel)
    hosts = [target.endpoint.base_url.split("/")[2] for target in model.options.targets]
    assert hosts == ["one.example.com", "two.example.com", "two.example.com"]


@pytest.mark.parametrize("name", VENDORS)
def test_common_options_of_relayed_models_take_effect(name: str) -> None:
    """An option that an engine ignores would be a parameter that is dropped silently."""
    vendor = VENDORS[name]()
    vendor.url = "http://127.0.0.1:1"
    model = vendor.spec(extra_body=["their_parameter"])
    assert isinstance(model, UpstreamModel)
    assert model.capabilities.extra_body == {"their_parameter"}
    entry = model.model_dump(exclude_unset=True) | {"modalities": ["image"]}
    if "image" in model.passes_on:
        assert type(model).model_validate(entry).capabilities.modalities == {"text", "image"}
    else:
        with pytest.raises(ValueError, match="modalities"):
            type(model).model_validate(entry)


@pytest.mark.parametrize(
    ("limits", "slots"),
    [
        ({}, 256),
        ({"max_concurrency": 8}, 8),
        ({"slots": 4, "max_concurrency": 8}, 4),
        ({"slots": 16, "max_concurrency": 8}, 8),
    ],
)
def test_max_concurrency_lowers_the_slots(limits: dict[str, int], slots: int) -> None:
    options = {"base_url": "http://127.0.0.1:1", **{name: limits[name] for name in limits if name != "slots"}}
    entry: dict[str, Any] = {"name": "m", "engine": "openai", "model": "theirs", "options": options}
    if "slots" in limits:
        entry["slots"] = limits["slots"]
    assert OpenAIModel.model_validate(entry).slots == slots
