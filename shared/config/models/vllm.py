"""Spec of a model that vLLM runs in the worker."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from shared.config.bundled_model import BUNDLED_PREFIX, bundled_model_path
from shared.config.models.adapters import Adapter
from shared.config.models.base import PromptTokenizer, RegistryError, Spec, TokenizerFiles
from shared.config.models.capabilities import EVERYTHING, Capabilities
from shared.config.models.operational import Operational
from shared.config.models.prices import Price
from shared.config.models.warm_prompts import MAX_WARM_PROMPTS, WarmPrompt
from shared.domain.field_types import contradiction, without_effect
from shared.domain.request import MAX_LOGPROBS
from shared.domain.structure_size import StructureBounds

DEFAULT_SLOTS = 64


_Positive = Annotated[int, Field(ge=1)]


class VllmOptions(TypedDict, total=False):
    """vLLM's `AsyncEngineArgs` by name.

    The structure of the usual options is checked here. What they mean to the installed vLLM is checked by the worker,
    before it loads the model (`workers.engines.vllm.checks`): the API has no vLLM.
    """

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]

    max_model_len: _Positive | None
    max_num_seqs: _Positive
    max_num_batched_tokens: _Positive | None
    enforce_eager: bool
    enable_prefix_caching: bool | None
    enable_chunked_prefill: bool | None
    tensor_parallel_size: _Positive
    pipeline_parallel_size: _Positive
    kv_cache_memory_bytes: _Positive | None
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)]
    quantization: Annotated[str, Field(min_length=1)] | None
    attention_backend: Annotated[str, Field(min_length=1)] | None
    speculative_config: dict[str, Any] | None
    data_parallel_size: _Positive
    num_gpu_blocks_override: _Positive | None
    kv_offloading_size: Annotated[float, Field(gt=0)] | None
    enable_lora: bool
    max_loras: _Positive
    max_lora_rank: _Positive
    max_cpu_loras: _Positive | None
    max_logprobs: Annotated[int, Field(ge=-1)]


class ChatSettings(BaseModel):
    """How conversations are rendered and answers parsed, with the names of `vllm serve`.

    Tool calls are enabled by naming a `tool_call_parser`; without one, no tools are called.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    tool_call_parser: str | None = Field(None, min_length=1, description="vLLM's parser for the model's tool calls.")
    reasoning_parser: str | None = Field(None, min_length=1, description="vLLM's parser for the model's reasoning.")
    chat_template: str | None = Field(
        None, min_length=1, description="A Jinja file that replaces the model's template."
    )
    chat_template_content_format: Literal["auto", "string", "openai"] = "auto"
    default_chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Variables for the template; those of a request take precedence."
    )
    exclude_tools_when_tool_choice_none: bool = False
    tool_strict_level: str | None = Field(None, description="Needs vLLM 0.32 or later.")


# Engine options that are set in `chat` instead.
_CHAT_OPTIONS = ("reasoning_parser", "tool_call_parser", "chat_template", "enable_auto_tool_choice")


def _engine_options(options: VllmOptions) -> VllmOptions:
    for name in _CHAT_OPTIONS:
        if name in options:
            hint = "chat.tool_call_parser enables it" if name == "enable_auto_tool_choice" else f"set chat.{name}"
            raise ValueError(f"{name} is not an engine option; {hint} instead")
    return options


# Parameters that vLLM does not support together with speculative decoding.
_NOT_WITH_SPECULATION = frozenset({"min_p", "logit_bias"})


# `max_logprobs` without a limit.
_UNLIMITED = -1


@cache
def _capabilities(*, reasons: bool, speculates: bool, max_logprobs: int) -> Capabilities:
    unsupported = _NOT_WITH_SPECULATION if speculates else frozenset()
    if not reasons:
        unsupported |= {"thinking_token_budget"}
    alternatives = MAX_LOGPROBS if max_logprobs == _UNLIMITED else min(max_logprobs, MAX_LOGPROBS)
    return replace(
        EVERYTHING,
        sampling=EVERYTHING.sampling - unsupported,
        logprobs=alternatives,
        prompt_logprobs=alternatives,
    )


class VllmModel(Spec):
    """A model that runs in a vLLM engine inside the worker. `options` are `AsyncEngineArgs` by name."""

    package: ClassVar[str | None] = "vllm"
    loads_model: ClassVar[bool] = True
    takes_adapters: ClassVar[bool] = True

    engine: Literal["vllm"]
    model: str = Field(min_length=1, description="A local folder, a hub id, or bundled:NAME.")
    options: Annotated[VllmOptions, AfterValidator(_engine_options)] = Field(default_factory=VllmOptions)
    start: Literal["fast", "compiled"] | None = Field(
        None,
        description="`fast`: the model runs as it is (`enforce_eager`). `compiled`: it is compiled first, which takes"
        " longer to start and generates faster. What was compiled is kept for later starts.",
    )
    chat: ChatSettings = Field(default_factory=ChatSettings)
    structured_outputs: Operational[StructureBounds] = Field(default_factory=StructureBounds)
    warm_prompts: Operational[list[WarmPrompt]] = Field(
        default_factory=list,
        max_length=MAX_WARM_PROMPTS,
        description="Prompts whose start is computed when the engine starts, before the worker takes jobs.",
    )
    warm_prompts_timeout_s: Operational[float] = Field(
        60, gt=0, le=3600, description="How long that may take. The worker takes jobs after that in any case."
    )

    @model_validator(mode="after")
    def _caches_what_is_warmed(self) -> Self:
        if self.warm_prompts and self.options.get("enable_prefix_caching") is False:
            raise without_effect("warm_prompts", "with options.enable_prefix_caching: false")
        if "warm_prompts_timeout_s" in self.model_fields_set and not self.warm_prompts:
            raise without_effect("warm_prompts_timeout_s", "without warm_prompts")
        return self

    @model_validator(mode="after")
    def _starts_in_one_way(self) -> Self:
        if self.start is None:
            return self
        if "enforce_eager" in self.options:
            raise contradiction("start", "is another word for options.enforce_eager; keep one of them")
        if self.start == "fast" and self.options.get("compilation_config") is not None:
            raise without_effect("options.compilation_config", "with start: fast")
        return self

    @property
    def capabilities(self) -> Capabilities:
        """A thinking budget needs to know where the reasoning ends, speculation rules out some parameters, and vLLM
        refuses requests with more log probabilities than `max_logprobs`.
        """
        reasons = self.chat.reasoning_parser is not None or self.options.get("reasoning_config") is not None
        return _capabilities(
            reasons=reasons,
            speculates=self.options.get("speculative_config") is not None,
            max_logprobs=self.options.get("max_logprobs", MAX_LOGPROBS),
        )

    @property
    def structure_bounds(self) -> StructureBounds:
        return self.structured_outputs

    @property
    def compiles_all_tools(self) -> bool:
        return self.chat.tool_strict_level == "parameter"

    @property
    def slots(self) -> int:
        """Number of sequences that the engine runs at the same time (`max_num_seqs`)."""
        return self.options.get("max_num_seqs", DEFAULT_SLOTS)

    def with_dtype(self, dtype: str) -> VllmModel:
        """The same model with its dtype named: the fingerprint includes the dtype that a worker uses."""
        return self.model_copy(update={"options": {**self.options, "dtype": dtype}})

    def as_adapter(self, name: str, description: str, adapter: Adapter, price: list[Price] | None = None) -> VllmModel:
        """See `Spec.as_adapter`. An adapter's own chat template replaces that of its base."""
        copy = super().as_adapter(name, description, adapter, price)
        copy.warm_prompts = []
        if (template := adapter.template) is not None:
            copy.chat = copy.chat.model_copy(update={"chat_template": str(template)})
        return copy

    @property
    def fingerprinted(self) -> dict[str, Any]:
        """With the option that `start` stands for: compiled code rounds differently."""
        entry = super().fingerprinted
        if entry.pop("start") == "fast":
            entry["options"]["enforce_eager"] = True
        return entry

    @property
    def bundled_model(self) -> str | None:
        return self.model.removeprefix(BUNDLED_PREFIX) if self.model.startswith(BUNDLED_PREFIX) else None

    @property
    def source(self) -> str:
        """The model for vLLM: a path or a hub id."""
        return str(bundled_model_path(self.model)) if self.bundled_model is not None else self.model

    @property
    def folder(self) -> Path | None:
        """The folder with the model's files; None if they are not on this machine."""
        path = Path(self.source).expanduser()
        return path if path.is_dir() else None

    @property
    def prompt_tokenizer(self) -> PromptTokenizer | None:
        folder = self.folder
        if folder is None or not all((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
            return None
        template = None if self.adapter is None else self.adapter.template
        own_template = self.chat.chat_template is None or template is not None
        return TokenizerFiles(folder, own_template and not self.chat.default_chat_template_kwargs, template)

    @property
    def chat_template_text(self) -> str | None:
        """The content of `chat.chat_template`; None if the model's own template is used.

        Raises:
            RegistryError: the file cannot be read.
        """
        if (name := self.chat.chat_template) is None:
            return None
        try:
            return Path(name).expanduser().read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise RegistryError(
                f"{self.place('chat.chat_template')}: {name} cannot be read ({error}); name a Jinja file"
            ) from error

    @property
    def max_model_len(self) -> int | None:
        """Context length in tokens, prompt and output together; None if only the engine knows it."""
        if (chosen := self.options.get("max_model_len")) is not None:
            return chosen
        if self.folder is None or not (config := self.folder / "config.json").is_file():
            return None
        length = json.loads(config.read_text()).get("max_position_embeddings")
        return int(length) if length else None
