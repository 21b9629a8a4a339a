"""Spec of a model on a Triton server, reached by the generate extension of its HTTP API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from shared.config.models.base import PromptTokenizer, TokenizerFiles
from shared.config.models.capabilities import ALL_SAMPLING, ALL_STRUCTURES, TEXT_ONLY, Capabilities, Modality
from shared.config.models.operational import Operational
from shared.config.models.upstream import StreamedOptions, UpstreamModel
from shared.domain.field_types import contradiction, without_effect

Backend = Literal["vllm", "tensorrtllm", "llmapi", "python"]
# The parameters of a job that a model may take as inputs of these names.
ParameterName = Literal[
    "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "stop", "bad_words",
]  # fmt: skip
TensorName = Annotated[str, Field(min_length=1, max_length=200)]
InputValue = bool | int | float | str | list[str] | list[int] | list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Convention:
    """How the models of one backend name their inputs and outputs.

    `parameters`: the inputs for the parameters of a job. `inputs`: sent with each request. `sampling_parameters`: the
    input for a JSON object with vLLM's sampling parameters, in place of `parameters`. `guides`: how the backend calls
    the members of a structured output. `cumulative`: each event repeats the text before it. `stops`: the backend ends
    its text before a stop string. `finish_reason`, `input_tokens` and `output_tokens` are outputs; None if the backend
    does not report it.
    """

    parameters: Mapping[str, str]
    inputs: Mapping[str, InputValue]
    sampling_parameters: str | None = None
    guides: Mapping[str, str] = field(default_factory=dict)
    cumulative: bool = False
    stops: bool = False
    finish_reason: str | None = None
    input_tokens: str | None = None
    output_tokens: str | None = None


_TENSORRTLLM = (
    "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "seed", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "bad_words",
)  # fmt: skip
_LLMAPI = ("max_tokens", "temperature", "top_p", "top_k", "seed", "presence_penalty", "frequency_penalty", "stop")
# The inputs for structured outputs of TensorRT-LLM's backends.
GUIDE_INPUTS = ("guided_decoding_guide_type", "guided_decoding_guide")
# vLLM would need a reasoning parser for the budget, and token ids as numbers for the bias.
_VLLM_SAMPLING = ALL_SAMPLING - {"thinking_token_budget", "logit_bias"}

CONVENTIONS: Mapping[Backend, Convention] = {
    "vllm": Convention(
        parameters={},
        sampling_parameters="sampling_parameters",
        inputs={
            "stream": True,
            "return_finish_reason": True,
            "return_num_input_tokens": True,
            "return_num_output_tokens": True,
        },
        guides={"json_schema": "json"} | {name: name for name in ALL_STRUCTURES - {"json_schema"}},
        stops=True,
        finish_reason="finish_reason",
        input_tokens="num_input_tokens",
        output_tokens="num_output_tokens",
    ),
    "tensorrtllm": Convention(
        parameters={name: name for name in _TENSORRTLLM} | {"stop": "stop_words"},
        inputs={"stream": True, "exclude_input_in_output": True, "return_num_input_tokens": True},
        guides={"json_schema": "json_schema", "json_object": "json", "regex": "regex", "grammar": "ebnf_grammar"},
        input_tokens="num_input_tokens",
    ),
    "llmapi": Convention(
        parameters={name: f"sampling_param_{name}" for name in _LLMAPI},
        inputs={
            "streaming": True,
            "sampling_param_exclude_input_from_output": True,
            "return_finish_reason": True,
            "return_stop_reason": True,
        },
        cumulative=True,
        stops=True,
        finish_reason="finish_reason",
    ),
    "python": Convention(parameters={"max_tokens": "max_tokens"}, inputs={"stream": True}),
}


class TritonOptions(StreamedOptions):
    """Options of the `triton` engine. What is not set follows the conventions of the backend."""

    backend: Backend = Field(
        description="`vllm`; `tensorrtllm`: its ensemble or BLS model; `llmapi`: TensorRT-LLM's LLM API; `python`: a"
        " model of one's own, whose inputs `parameters` names."
    )
    api_key_header: Operational[Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] | None] = Field(
        None, description="The header for the key, as in --http-restricted-api. Default: Authorization, as a bearer."
    )
    version: str | None = Field(None, pattern=r"^[0-9]+$", description="A version of the model; default: Triton's.")
    text_input: TensorName = "text_input"
    text_output: TensorName = "text_output"
    parameters: dict[ParameterName, TensorName | None] = Field(
        default_factory=dict, description="The model's input for a parameter of a job; null: it has none."
    )
    inputs: dict[TensorName, InputValue] = Field(
        default_factory=dict, description="Inputs and request parameters that are sent with each request."
    )
    output: Literal["incremental", "cumulative"] | None = Field(
        None, description="Whether an event has new text, or all the text so far."
    )
    includes_prompt: bool = Field(False, description="Whether the text begins with the prompt, which is removed then.")
    default_max_tokens: int = Field(
        1024, ge=1, description="For requests without max_tokens, if the room in the context is not known."
    )
    structured_outputs: bool | None = Field(
        None, description="Whether the backend constrains its output. Default: true for `vllm`."
    )
    tokenizer: str | None = Field(
        None, min_length=1, description="A folder with tokenizer.json, tokenizer_config.json and the chat template."
    )
    chat_template: str | None = Field(
        None, min_length=1, description="A Jinja file. Without it and a tokenizer, the model takes no conversations."
    )


class TritonModel(UpstreamModel):
    """A model that the worker relays to a Triton server."""

    passes_on: ClassVar[frozenset[Modality]] = TEXT_ONLY

    engine: Literal["triton"]
    model: str = Field(min_length=1, pattern=r"^[^/?#\s]+$", description="The model's name in Triton's repository.")
    options: TritonOptions

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        options, convention = self.options, self.convention
        if options.structured_outputs and not convention.guides:
            raise contradiction(
                "options.structured_outputs", f"the backend {options.backend} cannot constrain its output"
            )
        if options.api_key_header is not None and not self.secret_envs:
            raise without_effect("options.api_key_header", "without api_key_env")
        if self.room_is_known and "default_max_tokens" in options.model_fields_set:
            raise without_effect("options.default_max_tokens", "with max_model_len and a tokenizer")
        if "max_tokens" in self.missing_parameters and convention.sampling_parameters is not None:
            raise contradiction("options.parameters.max_tokens", f"the backend {options.backend} always takes it")
        inputs = [options.text_input, *filter(None, [convention.sampling_parameters]), *self.parameters.values()]
        for name in inputs:
            if inputs.count(name) > 1:
                raise contradiction("options.parameters", f"the input {name} would be set twice")
        for fixed in (options.text_input, convention.sampling_parameters):
            if fixed in options.inputs:
                raise without_effect(f"options.inputs.{fixed}", "because each request sets it")
        return self

    @property
    def room_is_known(self) -> bool:
        """Whether the engine can count what a prompt leaves of the context."""
        return self.options.max_model_len is not None and self.options.tokenizer is not None

    @property
    def default_max_tokens(self) -> int | None:
        return None if self.room_is_known else self.options.default_max_tokens

    @property
    def own_parameters(self) -> frozenset[str]:
        options, convention = self.options, self.convention
        names = [options.text_input, convention.sampling_parameters, *self.parameters.values()]
        return frozenset(filter(None, names)).union(convention.inputs, options.inputs, GUIDE_INPUTS)

    @property
    def missing_parameters(self) -> frozenset[str]:
        """The parameters of the backend that this model does not have, according to the entry."""
        return frozenset(name for name, tensor in self.options.parameters.items() if tensor is None)

    @property
    def cuts_at_stop_strings(self) -> bool:
        """Whether the worker ends the text before a stop string, because the backend does not."""
        return not self.convention.stops or "stop" in self.missing_parameters

    @property
    def convention(self) -> Convention:
        return CONVENTIONS[self.options.backend]

    @property
    def parameters(self) -> Mapping[str, str]:
        """The model's inputs by the names of a job's parameters."""
        own = self.options.parameters
        usual = {name: tensor for name, tensor in self.convention.parameters.items() if name not in own}
        return usual | {name: tensor for name, tensor in own.items() if tensor is not None}

    @property
    def structures(self) -> frozenset[str]:
        """The members of a structured output that are sent to the backend."""
        wanted = self.options.structured_outputs
        is_on = self.options.backend == "vllm" if wanted is None else wanted
        return frozenset(self.convention.guides if is_on else ())

    @property
    def tokenizer_folder(self) -> Path | None:
        name = self.options.tokenizer
        return Path(name).expanduser() if name is not None else None

    @property
    def template_file(self) -> Path | None:
        name = self.options.chat_template
        return Path(name).expanduser() if name is not None else None

    @property
    def prompt_tokenizer(self) -> PromptTokenizer | None:
        folder, template = self.tokenizer_folder, self.template_file
        files = [folder / name for name in ("tokenizer.json", "tokenizer_config.json")] if folder is not None else []
        if folder is None or not all(file.is_file() for file in [*files, *filter(None, [template])]):
            return None
        return TokenizerFiles(folder, renders_chat=True, template=template)

    @property
    def engine_capabilities(self) -> Capabilities:
        options = self.options
        sampling = set(self.parameters)
        if self.convention.sampling_parameters is not None:
            sampling |= (_VLLM_SAMPLING | {"max_tokens"}) - self.missing_parameters
        sampling.add("stop")
        if self.cuts_at_stop_strings:
            sampling.add("include_stop_str_in_output")
        return Capabilities(
            names=True,
            max_tokens="max_tokens" in sampling,
            conversations=options.chat_template is not None or options.tokenizer is not None,
            raw_prompts=True,
            continues=True,
            cancel=True,
            usage=options.tokenizer is not None or self.convention.output_tokens is not None,
            token_counting=self.prompt_tokenizer is not None,
            structures=self.structures,
            sampling=frozenset(sampling - {"max_tokens"}),
            chat_options=frozenset({"parallel_tool_calls"}),
        )
