"""Spec of a model that vLLM runs in the worker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from shared.config.bundled_model import BUNDLED_PREFIX, bundled_model_path
from shared.config.models.base import RegistryError, Spec

DEFAULT_SLOTS = 64


class VllmOptions(TypedDict, total=False):
    """`AsyncEngineArgs` by name: those that are read here too; the others are vLLM's to check."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]

    max_model_len: Annotated[int, Field(ge=1)] | None
    max_num_seqs: Annotated[int, Field(ge=1)]


class ChatSettings(BaseModel):
    """How a model's conversations are rendered and its answers parsed: what `vllm serve` calls the same.

    With a `tool_call_parser` tools are called automatically; without one no tool is called at all.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    tool_call_parser: str | None = Field(None, min_length=1, description="How the model writes tool calls.")
    reasoning_parser: str | None = Field(None, min_length=1, description="How the model writes its reasoning.")
    chat_template: str | None = Field(None, min_length=1, description="A Jinja file, in place of the model's own.")
    chat_template_content_format: Literal["auto", "string", "openai"] = "auto"
    default_chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Variables of the template; a request's own go before them."
    )
    exclude_tools_when_tool_choice_none: bool = False
    tool_strict_level: str | None = Field(None, description="Of vLLM 0.32 and later.")


# What a vLLM model's options may not say, since `chat` does.
_SAID_IN_CHAT = ("reasoning_parser", "tool_call_parser", "chat_template", "enable_auto_tool_choice")


def _engine_options(options: VllmOptions) -> VllmOptions:
    for name in _SAID_IN_CHAT:
        if name in options:
            where = "chat.tool_call_parser turns it on" if name == "enable_auto_tool_choice" else f"say chat.{name}"
            raise ValueError(f"{name} is not an engine's option; {where} instead")
    return options


class VllmModel(Spec):
    """A model in a vLLM engine of our own. `options` are `AsyncEngineArgs` by name."""

    engine: Literal["vllm"]
    model: str = Field(min_length=1, description="A local folder, a hub id, or bundled:NAME.")
    options: Annotated[VllmOptions, AfterValidator(_engine_options)] = Field(default_factory=VllmOptions)
    chat: ChatSettings = Field(default_factory=ChatSettings)

    @property
    def slots(self) -> int:
        """Sequences that the engine runs at once (`max_num_seqs`)."""
        return self.options.get("max_num_seqs", DEFAULT_SLOTS)

    @property
    def source(self) -> str:
        """What vLLM is given: a folder's path, or a hub id."""
        if self.model.startswith(BUNDLED_PREFIX):
            return str(bundled_model_path(self.model))
        return self.model

    @property
    def folder(self) -> Path | None:
        """The model's files, where they are on this machine."""
        path = Path(self.source).expanduser()
        return path if path.is_dir() else None

    @property
    def chat_template_text(self) -> str | None:
        """The template that `chat.chat_template` names; None: the model's own.

        Raises:
            RegistryError: the file cannot be read.
        """
        if (name := self.chat.chat_template) is None:
            return None
        try:
            return Path(name).expanduser().read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise RegistryError(
                f"models.yaml: {self.name}.chat.chat_template: {name} cannot be read ({error}); name a Jinja file"
            ) from error

    @property
    def max_model_len(self) -> int | None:
        """Context length in tokens, prompt and output together; None where only the engine can tell."""
        if (chosen := self.options.get("max_model_len")) is not None:
            return chosen
        if self.folder is None or not (config := self.folder / "config.json").is_file():
            return None
        length = json.loads(config.read_text()).get("max_position_embeddings")
        return int(length) if length else None
