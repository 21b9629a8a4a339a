"""The conditions of a route's rules. To add one: a field here, and how it is evaluated in `api/routing/conditions.py`.

All conditions of a rule must hold. Problems that are visible without a request, such as a rule that can never apply,
are found when models.yaml is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from shared.config.models.base import NAME, Spec
from shared.config.models.capabilities import Capabilities

# Keywords of all rules of a route.
MAX_KEYWORDS = 1000

_Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]
_Texts = Annotated[tuple[_Text, ...], Field(min_length=1, max_length=MAX_KEYWORDS)]


class Conditions(BaseModel):
    """Conditions on a request. A list holds if one of its values holds; `false` holds if the opposite does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input_tokens_over: int | None = Field(None, ge=0, description="The prompt has more tokens.")
    input_tokens_under: int | None = Field(None, ge=1, description="The prompt has fewer tokens.")
    keywords: _Texts | None = Field(
        None,
        description="The newest message of the user, or the prompt, has one of these words or phrases, in any case.",
    )
    tools: bool | None = Field(None, description="The request has tools.")
    images: bool | None = Field(None, description="The conversation has images.")
    files: bool | None = Field(None, description="The conversation has files.")
    structured_output: bool | None = Field(None, description="The output must follow a schema or a grammar.")
    tier: _Texts | None = Field(None, description="The project's tier.")
    predicted_wait_over_s: float | None = Field(
        None,
        ge=0,
        description="A job of this priority would wait longer for the model `of`, or it has no worker.",
    )
    of: str | None = Field(
        None,
        min_length=1,
        pattern=NAME,
        description="The model of `predicted_wait_over_s`; by default the first level.",
    )

    @property
    def names(self) -> tuple[str, ...]:
        """The conditions that are set; none if the rule applies to all requests."""
        return tuple(name for name in type(self).model_fields if name != "of" and getattr(self, name) is not None)

    def contradiction(self) -> tuple[str, str] | None:
        """A field whose condition excludes another one, and a message; None if a request can meet all of them."""
        over, under = self.input_tokens_over, self.input_tokens_under
        if over is not None and under is not None and under <= over + 1:
            return "input_tokens_under", f"must be more than {over + 1} with input_tokens_over: {over}"
        if self.of is not None and self.predicted_wait_over_s is None:
            return "of", "belongs to predicted_wait_over_s"
        return None

    def covers(self, other: Conditions) -> bool:
        """Whether these hold for every request for which the others hold. May be False even if they do."""
        return all(_covers(name, self, other) for name in self.names)

    def unserved(self, model: Spec) -> Iterator[str]:
        """The requests with these conditions that a model cannot serve without shortening conversations."""
        capabilities: Capabilities = model.capabilities
        if self.images and "image" not in capabilities.modalities:
            yield "requests with images"
        if self.files and "file" not in capabilities.modalities:
            yield "requests with files"
        if self.tools and not capabilities.tools:
            yield "requests with tools"
        if self.structured_output and not capabilities.structures:
            yield "requests with a structured output"
        length: int | None = getattr(model, "max_model_len", None)
        shortens = model.context is not None and model.context.strategy != "error"
        if (
            self.input_tokens_over is not None
            and not shortens
            and length is not None
            and self.input_tokens_over + 1 >= length
        ):
            yield f"prompts of more than {self.input_tokens_over} tokens, because its max_model_len is {length}"


NO_CONDITIONS = Conditions.model_construct()


def _covers(name: str, conditions: Conditions, other: Conditions) -> bool:
    wide, narrow = getattr(conditions, name), getattr(other, name)
    if narrow is None:
        return False
    match name:
        case "input_tokens_over":
            return bool(narrow >= wide)
        case "input_tokens_under":
            return bool(narrow <= wide)
        case "predicted_wait_over_s":
            return conditions.of == other.of and bool(narrow >= wide)
        case "keywords" | "tier":
            fold = str.casefold if name == "keywords" else str
            return set(map(fold, narrow)) <= set(map(fold, wide))
    return bool(narrow == wide)
