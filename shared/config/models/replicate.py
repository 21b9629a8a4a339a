"""Spec of a model that Replicate runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from shared.config.models.base import Unsupported
from shared.config.models.capabilities import TEXT_ONLY, Capabilities, Modality
from shared.config.models.operational import Operational
from shared.config.models.polled import PolledOptions
from shared.config.models.upstream import HttpUrl, UpstreamModel
from shared.domain.field_types import contradiction, without_effect
from shared.domain.request import GenerateRequest

REPLICATE_URL = "https://api.replicate.com/v1"
# Where predictions of Replicate itself are streamed from.
REPLICATE_STREAM_HOSTS = ("stream.replicate.com", "streaming.api.replicate.com")

# The parameters of a job that a model may take, under the name that the model's schema gives them.
ParameterName = Literal[
    "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "stop", "seed",
    "presence_penalty", "frequency_penalty", "repetition_penalty",
]  # fmt: skip
_INPUT = r"^[A-Za-z_][A-Za-z0-9_]{0,99}$"
_OWNER_AND_NAME = r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$"
_VERSION = r"^(?:[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*:)?[0-9a-f]{40,64}$"
InputName = Annotated[str, Field(pattern=_INPUT)]


def _host(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::\d{1,5})?", text):
        raise ValueError("must be a host such as stream.example.com, with a port if it is not the usual one")
    return text.lower()


class ReplicateInput(BaseModel):
    """How a request becomes the model's input, whose names are in the model's schema on Replicate."""

    model_config = ConfigDict(extra="forbid")

    conversation: Literal["text", "messages"] = Field(
        "text", description="How a conversation is sent: as one text, or as a list of messages."
    )
    chat_template: Path | None = Field(
        None,
        description="A Jinja file that renders the text of a conversation, as vLLM does. Without it a single message is"
        " sent as it is, and several with the names of their roles.",
    )
    prompt: InputName = "prompt"
    messages: InputName = "messages"
    system_prompt: InputName | None = Field(
        None, description="The input for system messages; without it they are part of the conversation."
    )
    parameters: dict[ParameterName, InputName] = Field(
        default={"max_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p"},
        description="The parameters that the model takes, with the names of its inputs.",
    )
    stop_as: Literal["list", "commas"] = Field("commas", description="How the stop strings are sent.")
    constants: dict[InputName, Any] = Field(default_factory=dict, description="Inputs that are sent with each request.")

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        if self.conversation == "messages":
            unused, reason = ["chat_template", "prompt"], "with conversation: messages"
        elif self.chat_template is not None:
            unused, reason = ["messages", "system_prompt"], "with a chat_template, which renders the whole conversation"
        else:
            unused, reason = ["messages"], "with conversation: text"
        for name in unused:
            if getattr(self, name) is not None and name in self.model_fields_set:
                raise without_effect(name, reason)
        if "stop_as" in self.model_fields_set and "stop" not in self.parameters:
            raise without_effect("stop_as", "without stop in parameters")
        return self

    @model_validator(mode="after")
    def _distinct_inputs(self) -> Self:
        inputs = [self.text_input, *filter(None, [self.system_prompt]), *self.parameters.values()]
        for name in inputs:
            if inputs.count(name) > 1:
                raise contradiction("parameters", f"the input {name} would be set twice")
        if self.text_input in self.constants:
            raise without_effect("constants", f"for {self.text_input}, which each request sets")
        return self

    @property
    def text_input(self) -> str:
        """The input that each request sets: its text or its messages."""
        return self.messages if self.conversation == "messages" else self.prompt


class ReplicateOptions(PolledOptions):
    """Options of the `replicate` engine."""

    base_url: HttpUrl = REPLICATE_URL
    stream_hosts: Operational[list[Annotated[str, AfterValidator(_host)]] | None] = Field(
        None,
        max_length=16,
        description="Hosts, besides that of base_url, from which predictions may be streamed; they receive the key."
        " By default those of Replicate if base_url is Replicate's.",
    )
    cancel_after_s: Operational[int | None] = Field(
        None, ge=5, le=86_400, description="Replicate cancels a prediction that takes longer in all."
    )
    input: ReplicateInput = Field(default_factory=ReplicateInput)


class ReplicateModel(UpstreamModel):
    """A model that Replicate runs: an official model, a version of a model, or a deployment."""

    passes_on: ClassVar[frozenset[Modality]] = TEXT_ONLY

    engine: Literal["replicate"]
    model: str | None = Field(None, pattern=_OWNER_AND_NAME, description="An official model: owner/name.")
    version: str | None = Field(None, pattern=_VERSION, description="A version's id, alone or as owner/name:id.")
    deployment: str | None = Field(None, pattern=_OWNER_AND_NAME, description="A deployment: owner/name.")
    options: ReplicateOptions = Field(default_factory=ReplicateOptions)

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if sum(name is not None for name in (self.model, self.version, self.deployment)) != 1:
            raise ValueError("set one of model, version and deployment")
        return self

    @property
    def starts_early(self) -> bool:
        return False

    @property
    def engine_capabilities(self) -> Capabilities:
        inputs = self.options.input
        return Capabilities(
            raw_prompts=inputs.conversation != "messages",
            resume=True,
            cancel=True,
            usage=self.model is not None,
            names=inputs.chat_template is not None,
            max_tokens="max_tokens" in inputs.parameters,
            sampling=frozenset(inputs.parameters) - {"max_tokens"},
        )

    @property
    def own_parameters(self) -> frozenset[str]:
        inputs = self.options.input
        names = [inputs.text_input, inputs.system_prompt, *inputs.parameters.values(), *inputs.constants]
        return frozenset(filter(None, names))

    def unsupported(self, request: GenerateRequest) -> Iterator[Unsupported]:
        inputs = self.options.input
        if "stop" in inputs.parameters and inputs.stop_as == "commas" and any("," in s for s in request.sampling.stop):
            yield Unsupported("stop", "stop strings with commas")

    @property
    def stream_hosts(self) -> frozenset[str]:
        """The hosts that may stream predictions, and receive the key. One of several hosts gets no key of another."""
        bases = {urlsplit(target.endpoint.base_url).netloc.lower() for target in self.options.targets}
        own = bases if len(bases) == 1 else set()
        if self.options.stream_hosts is not None:
            return frozenset(own).union(self.options.stream_hosts)
        return frozenset(own).union(REPLICATE_STREAM_HOSTS if own == {urlsplit(REPLICATE_URL).netloc} else ())
