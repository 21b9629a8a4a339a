"""`warm_prompts` of a model that runs in the worker: prompts whose start is computed before the worker takes jobs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from shared.domain.field_types import contradiction, unicode_text, without_effect
from shared.domain.request import ChatOptions, GenerateRequest, Message, Tool

MAX_WARM_PROMPTS = 100
MAX_TOP = 1000
DEFAULT_HOURS = 24.0
# The kinds of entries: an entry has exactly one of them.
KINDS = ("text", "file", "messages", "top")

Text = Annotated[str, StringConstraints(min_length=1), AfterValidator(unicode_text)]


class WarmPrompt(BaseModel):
    """An entry of `warm_prompts`: a text, a file with a text, messages, or the most reused prefixes.

    A text is a system message, or with `as: prompt` the start of raw prompts. Only what later requests have in common
    with the prompt is computed: of a system message, everything before the user's first word.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    text: Text | None = Field(None, description="A system message.")
    file: Annotated[str, StringConstraints(min_length=1)] | None = Field(
        None, description="A file with a system message, in UTF-8."
    )
    messages: list[Message] | None = Field(None, min_length=1, description="The start of a conversation.")
    tools: list[Tool] | None = Field(None, min_length=1, description="The tools of the requests.")
    kind: Literal["system", "prompt"] = Field(
        "system", alias="as", description="`prompt`: the text is the start of raw prompts, without a chat template."
    )
    top: int | None = Field(
        None, ge=1, le=MAX_TOP, description="The number of prefixes that saved the most tokens in `hours` hours."
    )
    hours: float = Field(DEFAULT_HOURS, gt=0, le=24 * 30, description="With `top`.")
    projects: list[Text] | None = Field(
        None,
        min_length=1,
        description="The names of the projects that the prompts are for. By default those that used the model last.",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(KINDS)}")
        for name, field, kinds in (
            ("as", "kind", ("text", "file")),
            ("hours", "hours", ("top",)),
            ("tools", "tools", ("text", "file", "messages")),
        ):
            if field in self.model_fields_set and given[0] not in kinds:
                raise without_effect(name, f"with {given[0]}")
        if self.kind == "prompt" and self.tools is not None:
            raise contradiction("tools", "raw prompts have no tools")
        if any(message.media for message in self.messages or ()):
            raise contradiction("messages", "messages have texts only")
        return self

    def requests(self) -> Sequence[GenerateRequest]:
        """The requests whose common prefix is to be computed; none with `top`.

        The prefix of a conversation that a user's message would follow is what two such messages have in common.

        Raises:
            OSError: the file cannot be read.
            UnicodeDecodeError: the file is not UTF-8.
        """
        if self.top is not None:
            return ()
        text = self.content
        if self.kind == "prompt":
            return (GenerateRequest(prompt=text),)
        messages = self.messages or [Message(role="system", content=text)]
        chat = ChatOptions(tools=self.tools)
        if messages[-1].role in ("user", "tool"):
            return (GenerateRequest(messages=messages, chat=chat),)
        return [
            GenerateRequest(messages=[*messages, Message(role="user", content=content)], chat=chat)
            for content in ("Who?", "A 1")
        ]

    @property
    def content(self) -> str | None:
        """The text, or that of the file; None if it has neither. Raises as `requests`."""
        return Path(self.file).expanduser().read_text("utf-8") if self.file is not None else self.text

    @property
    def label(self) -> str:
        """A description of the entry for log lines, without its text."""
        if self.top is not None:
            return f"top {self.top} of {self.hours:g} h"
        return f"file {self.file}" if self.file is not None else "text" if self.text is not None else "messages"
