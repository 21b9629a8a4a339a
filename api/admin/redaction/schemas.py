"""The dry run of the redaction as JSON."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from api.keys.changes import MAX_NAME
from shared.domain.field_types import contradiction, unicode_text
from shared.domain.redaction_rules import RedactionRules

MAX_TEXT = 1_000_000


class RedactionPreview(BaseModel):
    """A text to redact, by the rules of a project, by other rules, or by the default ones."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "text": "Card 4111 1111 1111 1111, badge E-123456",
                    "rules": {"own": [{"name": "employee_id", "pattern": r"\bE-[0-9]{6}\b"}]},
                }
            ]
        },
    )

    text: Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(unicode_text)]
    project: str | None = Field(None, max_length=MAX_NAME, description="Its rules apply.")
    rules: RedactionRules | None = Field(None, description="These rules apply. Nothing is stored.")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.project is not None and self.rules is not None:
            raise contradiction("rules", "cannot be combined with project")
        return self


class RedactedText(BaseModel):
    """A redacted text."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "redaction.preview",
                    "text": "Card [CARD], badge [EMPLOYEE_ID]",
                    "counts": {"employee_id": 1, "card": 1},
                }
            ]
        }
    )

    object: Literal["redaction.preview"] = "redaction.preview"
    text: str
    counts: dict[str, int] = Field(description="How often something was replaced, by kind or by the name of a rule.")
