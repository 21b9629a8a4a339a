"""Rubrics, runs, judgements and labels as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from api.evals.items import Item
from api.evals.judgements import Judgement
from api.evals.labels import Label
from api.evals.prompts import MAX_REASON
from api.evals.rubrics import MAX_NAME, Rubric, Sampling
from api.evals.runs import Run
from api.evals.service import RubricState
from api.http.pagination import PageView
from shared.domain.field_types import MAX_MODEL_NAME, UnicodeText, contradiction
from shared.domain.judgements import JudgementState, RunKind
from shared.domain.request import Message

MAX_ITEM_ID = 200
MAX_ITEMS = 50
MAX_MODELS = 10
MAX_SET_ITEMS = 100_000

# PostgreSQL's `text` refuses U+0000.
STORABLE = r"^[^\x00]*$"

RubricName = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
ModelName = Annotated[UnicodeText, Field(min_length=1, max_length=MAX_MODEL_NAME, pattern=STORABLE)]
ItemId = Annotated[UnicodeText, Field(min_length=1, max_length=MAX_ITEM_ID, pattern=STORABLE)]


class LiveRunView(BaseModel):
    """The live run of a rubric: its judgements by state, and why it judges nothing now, if so."""

    id: str
    started_at: datetime
    judgements: dict[str, int]
    paused_until: datetime | None
    paused_reason: str | None


class RubricView(BaseModel):
    """A rubric of rubrics.yaml."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "eval.rubric",
                    "name": "helpful",
                    "question": "Does the answer give the user what they asked for?",
                    "scale": "1-5",
                    "judge": "large",
                    "prompt_version": "1",
                    "sampling": {"rate": 0.02, "models": {"small": 0.1}, "projects": {}, "seed": 0},
                    "live": None,
                }
            ]
        }
    )

    object: Literal["eval.rubric"] = "eval.rubric"
    name: str
    question: str
    scale: str = Field(description="`yes/no`, or a range of whole numbers: `1-5`.")
    judge: str = Field(description="The model that judges.")
    prompt_version: str
    sampling: Sampling
    live: LiveRunView | None = Field(description="Null if no sampled answer was judged by this version of the rubric.")

    @classmethod
    def of(cls, state: RubricState) -> Self:
        """The JSON form of a rubric."""
        rubric, run = state.rubric, state.run
        return cls(**_rubric(rubric), live=None if run is None else _live(run))


def _rubric(rubric: Rubric) -> dict[str, Any]:
    return {
        "name": rubric.name,
        "question": rubric.question,
        "scale": str(rubric.scale),
        "judge": rubric.judge,
        "prompt_version": rubric.prompt_version,
        "sampling": rubric.sampling,
    }


def _live(run: Run) -> LiveRunView:
    paused = run.options.get("paused") or {}
    return LiveRunView(
        id=run.id,
        started_at=run.created_at,
        judgements=dict(run.counts),
        paused_until=paused.get("until"),
        paused_reason=paused.get("reason"),
    )


class RubricList(BaseModel):
    """All rubrics."""

    object: Literal["list"] = "list"
    data: list[RubricView]


class EvalSet(BaseModel):
    """The set that a run judges. The server stores no more of it than this."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[UnicodeText, Field(max_length=200, pattern=STORABLE)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    items: int = Field(ge=1, le=MAX_SET_ITEMS, description="How many items the run will have.")


class RunCreate(BaseModel):
    """A run over a set."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "kind": "pairwise",
                    "rubric": "helpful",
                    "models": ["large", "large-int4"],
                    "set": {"name": "support.jsonl", "sha256": "0" * 64, "items": 200},
                }
            ]
        },
    )

    kind: Literal["set", "pairwise"] = Field(
        description="`set`: single answers get scores. `pairwise`: the answers of two models are compared, in both"
        " orders."
    )
    rubric: RubricName | None = Field(
        None, description="By default, and only with `pairwise`: which answer is better in general."
    )
    judge: ModelName | None = Field(None, description="The model that judges. Default: that of the rubric.")
    models: list[ModelName] = Field(min_length=1, max_length=MAX_MODELS, description="The models that answer.")
    set: EvalSet

    @property
    def expected(self) -> int:
        """The number of judgements."""
        return self.set.items * (2 if self.kind == "pairwise" else len(self.models))


class RunView(BaseModel):
    """A series of judgements by one rubric."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "evalrun_0193c2d2b7a57c1c8f9e2a4b6c8d0e1f",
                    "object": "eval.run",
                    "kind": "pairwise",
                    "rubric": "helpful",
                    "prompt_version": "1",
                    "scale": "1-5",
                    "judge": "large",
                    "models": ["large", "large-int4"],
                    "set": {"name": "support.jsonl", "sha256": "0" * 64, "items": 200},
                    "expected": 400,
                    "judgements": {"scored": 390, "pending": 8, "unparsable": 2},
                    "created_at": "2026-11-30T12:00:00Z",
                    "ended_at": None,
                }
            ]
        }
    )

    id: str
    object: Literal["eval.run"] = "eval.run"
    kind: RunKind
    rubric: str
    prompt_version: str
    scale: str | None = Field(description="That of the scores; null if it is not known.")
    judge: str
    models: list[str] = Field(description="Empty for the live run of a rubric.")
    set: EvalSet | None
    expected: int | None = Field(description="How many judgements it will have; null for a live run.")
    judgements: dict[str, int] = Field(description="How many there are, by state.")
    created_at: datetime
    ended_at: datetime | None

    @classmethod
    def of(cls, run: Run) -> Self:
        """The JSON form of a run."""
        return cls(
            id=run.id,
            kind=run.kind,
            rubric=run.rubric,
            prompt_version=run.prompt_version,
            scale=run.options.get("scale"),
            judge=run.judge_model,
            models=run.options.get("models", []),
            set=run.options.get("set"),
            expected=run.options.get("expected"),
            judgements=dict(run.counts),
            created_at=run.created_at,
            ended_at=run.ended_at,
        )


class RunList(PageView[RunView]):
    """A page of runs, newest first."""


class ChatMessage(BaseModel):
    """A message of a conversation, as text."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: UnicodeText


class Answer(BaseModel):
    """A model's answer to a conversation, or why it has not answered."""

    model_config = ConfigDict(extra="forbid")

    model: ModelName
    text: UnicodeText | None = None
    failed: Annotated[UnicodeText, Field(min_length=1, max_length=MAX_REASON, pattern=STORABLE)] | None = Field(
        None, description="Instead of `text`: why there is none. The model has failed on this item."
    )

    @model_validator(mode="after")
    def _either(self) -> Self:
        if (self.text is None) == (self.failed is None):
            raise contradiction("text", "an answer has either this or `failed`")
        return self


class ItemCreate(BaseModel):
    """An item of a set with the answers that are judged. Its texts are only in the jobs of the judge."""

    model_config = ConfigDict(extra="forbid")

    id: ItemId
    messages: list[ChatMessage] = Field(min_length=1, max_length=1000, fail_fast=True)
    answers: list[Answer] = Field(min_length=1, max_length=MAX_MODELS)

    @model_validator(mode="after")
    def _one_of_each_model(self) -> Self:
        if len({one.model for one in self.answers}) < len(self.answers):
            raise contradiction("answers", "a model has one answer to an item")
        return self

    def item(self) -> Item:
        """The item that this is."""
        messages = [Message(role=one.role, content=one.content) for one in self.messages]
        return Item(
            self.id,
            messages,
            [(one.model, one.text) for one in self.answers if one.text is not None],
            {one.model: one.failed for one in self.answers if one.failed is not None},
        )


class ItemsCreate(BaseModel):
    """Items to judge."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {
                            "id": "1",
                            "messages": [{"role": "user", "content": "What is the capital of France?"}],
                            "answers": [
                                {"model": "large", "text": "Paris."},
                                {"model": "large-int4", "text": "It is Paris."},
                            ],
                        }
                    ]
                }
            ]
        },
    )

    items: list[ItemCreate] = Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)

    @model_validator(mode="after")
    def _different(self) -> Self:
        if len({one.id for one in self.items}) < len(self.items):
            # The second one would not be judged, and the run would wait for it for ever.
            raise contradiction("items", "two of them have the same id")
        return self


class JudgementView(BaseModel):
    """What a judge says of an answer, or of two answers in one order."""

    id: str
    object: Literal["eval.judgement"] = "eval.judgement"
    run_id: str
    item: str = Field(description="The judged job, or the item of a set.")
    model: str
    position: int = Field(
        description="0: of one answer. Of two: 1 if the first model's answer was shown first, else 2."
    )
    judge_job_id: str | None
    state: JudgementState
    score: float | None = Field(
        description="On the rubric's scale. Of two answers: 1 if the first model's is better, 0 if the second's is, 0.5"
        " if neither. Null unless the state is `scored`, or of two answers `unanswered`: it is the one of the answer"
        " that there is."
    )
    reason: str | None
    created_at: datetime
    ended_at: datetime | None

    @classmethod
    def of(cls, one: Judgement) -> Self:
        """The JSON form of a judgement."""
        return cls(
            id=str(one.id),
            run_id=one.run_id,
            item=one.item,
            model=one.model,
            position=one.position,
            judge_job_id=one.judge_job_id,
            state=one.state,
            score=one.score,
            reason=one.reason,
            created_at=one.created_at,
            ended_at=one.ended_at,
        )


class JudgementList(PageView[JudgementView]):
    """A page of judgements, oldest first."""


class LabelCreate(BaseModel):
    """What a person says of an answer by a rubric."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"rubric": "helpful", "item": "job_0193c2d2b7a57c1c8f9e2a4b6c8d0e1f", "score": 4}]
        },
    )

    rubric: RubricName
    item: ItemId = Field(description="The judged job.")
    score: bool | int | Literal["yes", "no"] = Field(description="On the rubric's scale.")


class LabelView(BaseModel):
    """A label."""

    id: str
    object: Literal["eval.label"] = "eval.label"
    rubric: str
    item: str
    labeller: str = Field(description="The id of the person's key.")
    labeller_name: str | None = Field(description="The name of that key; null if it does not exist any more.")
    score: float
    created_at: datetime

    @classmethod
    def of(cls, label: Label, *, names: Mapping[str, str]) -> Self:
        """The JSON form of a label."""
        return cls(
            id=str(label.id),
            rubric=label.rubric,
            item=label.item,
            labeller=label.labeller,
            labeller_name=names.get(label.labeller),
            score=label.score,
            created_at=label.created_at,
        )


class LabelList(PageView[LabelView]):
    """A page of labels, newest first."""
