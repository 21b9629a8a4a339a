"""Feedback as JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StringConstraints,
    model_validator,
)

from api.feedback.store import Feedback
from api.feedback.tokens import MAX_TOKEN
from api.http.pagination import PageView
from shared.domain.database_text import storable
from shared.domain.feedback import (
    MAX_COMMENT,
    MAX_CONVERSATION,
    MAX_METRIC,
    MAX_NUMBER,
    MAX_TAG,
    MAX_TAGS,
    MAX_VALUE,
    METRIC_PATTERN,
    RATING,
    FeedbackSource,
    Rating,
)
from shared.domain.field_types import contradiction, unicode_text
from shared.domain.owner import MAX_END_USER


def _stored(text: str) -> str:
    """The text as it is stored."""
    return storable(unicode_text(text))


STORED = AfterValidator(_stored)
Metric = Annotated[str, StringConstraints(min_length=1, max_length=MAX_METRIC, pattern=METRIC_PATTERN)]
Value = (
    StrictBool
    | Annotated[StrictInt, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
    | Annotated[StrictFloat, Field(ge=-MAX_NUMBER, le=MAX_NUMBER, allow_inf_nan=False)]
    | Annotated[str, StringConstraints(max_length=MAX_VALUE), STORED]
)
Comment = Annotated[
    Annotated[str, StringConstraints(max_length=MAX_COMMENT), STORED] | None, Field(description="Why; kept as it is.")
]
Conversation = Annotated[
    Annotated[str, StringConstraints(min_length=1, max_length=MAX_CONVERSATION), STORED] | None,
    Field(description="Or the conversation that it is about."),
]
Tags = Annotated[
    list[Annotated[str, StringConstraints(min_length=1, max_length=MAX_TAG), STORED]],
    Field(max_length=MAX_TAGS, description="Such as `wrong`, `too-long`."),
]
Author = Annotated[
    Annotated[str, StringConstraints(max_length=MAX_END_USER), STORED] | None,
    Field(
        description="Whose feedback it is; by default that of the end user whom the request named. Each has one value"
        " of a metric."
    ),
]


class FeedbackCreate(BaseModel):
    """Feedback about an answer or a conversation. It replaces that of the same metric and author."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "job_id": "job_0192c7a8e4d17cc38f2d5b1e6a90c4f7",
                    "metric": "accuracy",
                    "value": 0.5,
                    "comment": "The second source does not say that.",
                    "tags": ["citation"],
                    "user": "user-17",
                }
            ]
        }
    )

    job_id: str | None = Field(None, max_length=100, description="The job that gave the answer.")
    response_id: str | None = Field(
        None,
        max_length=100,
        description="The same, by the id of the answer: `resp_…`, `chatcmpl-…`, `cmpl-…` or `msg_…`.",
    )
    conversation: Conversation = None
    token: str | None = Field(
        None,
        max_length=MAX_TOKEN,
        description="The answer's `x-headrace-feedback-token`, instead of an API key: it names the job.",
    )
    metric: Metric = Field(RATING, description="What the value is about. `rating` is that of thumbs.")
    value: Value = Field(description="A boolean, a number or a text; of the metric `rating`: `up` or `down`.")
    comment: Comment = None
    tags: Tags = Field(default_factory=list)
    user: Author = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        targets = [name for name in ("job_id", "response_id", "conversation") if getattr(self, name) is not None]
        if len(targets) > 1:
            raise contradiction(targets[1], f"give only one of {targets[0]} and {targets[1]}")
        if self.metric == RATING:
            if isinstance(self.value, bool):
                self.value = Rating.UP if self.value else Rating.DOWN
            if self.value not in tuple(Rating):
                raise contradiction("value", "must be `up` or `down` for the metric `rating`")
        return self


class JobFeedbackCreate(BaseModel):
    """Thumbs for the answer of a job. They replace those of the same author."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"rating": "down", "comment": "It is not true."}]})

    rating: Rating
    comment: Comment = None
    tags: Tags = Field(default_factory=list)
    user: Author = None


class FeedbackView(BaseModel):
    """What somebody thinks of an answer, or of a conversation."""

    id: str
    object: Literal["feedback"] = "feedback"
    job_id: str | None
    conversation: str | None
    metric: str
    value: bool | int | float | str
    comment: str | None
    tags: list[str]
    user: str | None
    source: FeedbackSource = Field(description="Whether a key or an answer's token was used, or the console.")
    model: str | None = Field(description="The model that gave the answer.")
    requested_model: str | None = Field(description="The model or route that the request named.")
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, feedback: Feedback) -> Self:
        """The JSON form of feedback."""
        members: dict[str, Any] = {
            name: getattr(feedback, name)
            for name in ("job_id", "conversation", "metric", "value", "comment", "source", "model", "requested_model",
                         "created_at", "updated_at")
        }  # fmt: skip
        return cls(
            id=format_id(feedback.id),
            tags=list(feedback.tags),
            user=feedback.author or None,
            **members,
        )


class FeedbackList(PageView[FeedbackView]):
    """A page of feedback."""


class FeedbackDeleted(BaseModel):
    """Deleted feedback."""

    id: str
    object: Literal["feedback.deleted"] = "feedback.deleted"
    deleted: Literal[True] = True


def format_id(number: int) -> str:
    """The id of feedback, such as `feedback_12`."""
    return f"feedback_{number}"
