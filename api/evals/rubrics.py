"""Rubrics: what judges and people are asked about answers, as rubrics.yaml declares it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from api.quality.intervals import YES_NO
from shared.config.yaml_file import Location, YamlFileError, read_yaml
from shared.domain.errors import HeadraceError, NotFound
from shared.domain.field_types import UnicodeText, message_of

# Changed whenever the text that judges get changes, so that scores of different texts are not mixed.
TEMPLATE_VERSION = "1"
NAME = r"[a-z0-9][a-z0-9_-]*"
MAX_NAME = 64
MAX_QUESTION = 4000
# More points than a judge, or a person, can tell apart.
MAX_POINTS = 11


class RubricsError(HeadraceError):
    """rubrics.yaml is not valid."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The scores of a rubric: the whole numbers from `low` to `high`. Of a `yes/no` scale, no is 0 and yes is 1."""

    low: int
    high: int
    yes_no: bool = False

    @classmethod
    def parse(cls, text: str) -> Scale:
        """Read a scale: `yes/no`, or a range such as `1-5`.

        Raises:
            ValueError: it is neither.
        """
        if text == YES_NO:
            return cls(0, 1, yes_no=True)
        match = re.fullmatch(r"([0-9]{1,2})-([0-9]{1,3})", text)
        if match is None:
            raise ValueError(f"must be {YES_NO}, or a range of whole numbers such as 1-5")
        low, high = int(match[1]), int(match[2])
        if low >= high:
            raise ValueError(f"must go from a lower number to a higher one, got {text}")
        if high - low >= MAX_POINTS:
            raise ValueError(f"must have at most {MAX_POINTS} points, got {high - low + 1}")
        return cls(low, high)

    def __str__(self) -> str:
        return YES_NO if self.yes_no else f"{self.low}-{self.high}"

    @property
    def scores(self) -> range:
        """All scores, from the worst to the best."""
        return range(self.low, self.high + 1)

    def score(self, value: object) -> int | None:
        """The score that a value stands for, as a judge or a person gives it; None if it is none of the scale.

        A number in quotes is accepted, and `yes` and `no` in any case, because models do not always keep to the schema
        that they are given. A boolean is a score of a `yes/no` scale only.
        """
        if self.yes_no:
            answer = value.strip().lower() if isinstance(value, str) else value
            return {"yes": 1, "no": 0, True: 1, False: 0}.get(answer) if isinstance(answer, str | int) else None
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}", value.strip()):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
            return None
        return int(value) if int(value) in self.scores else None

    def text(self, score: float) -> str:
        """A score as people read it."""
        return ("yes" if score else "no") if self.yes_no else f"{score:g}"


def _scale(value: Any) -> Scale:
    # YAML reads `yes/no` as a text, but a lone number or `yes` as something else.
    if isinstance(value, Scale):
        return value
    if not isinstance(value, str):
        raise ValueError(f"must be {YES_NO}, or a range of whole numbers such as 1-5")  # noqa: TRY004  # pydantic
    return Scale.parse(value.strip())


def _version(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Rate = Annotated[float, Field(ge=0, le=1, strict=False)]


class Sampling(BaseModel):
    """Which share of the logged answers is judged. Of several rates that apply to an answer, the lowest does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rate: Rate = 0.0
    models: dict[str, Rate] = Field(default_factory=dict, description="By the name of the model that answered.")
    projects: dict[str, Rate] = Field(default_factory=dict, description="By the name of the project.")
    seed: int = Field(0, ge=0, lt=2**31, description="Selects another sample.")

    @property
    def is_on(self) -> bool:
        """Whether any answer can be selected."""
        return any((self.rate, *self.models.values(), *self.projects.values()))

    def rate_of(self, model: str, project: str | None) -> float:
        """The share of a model's answers to a project that is judged.

        The rate of the model or of the project replaces the general one. If both are set, the lower applies: a rate of
        0 is always an opt-out.
        """
        own = [rates[name] for rates, name in ((self.models, model), (self.projects, project or "")) if name in rates]
        return min(own, default=self.rate)


class Rubric(BaseModel):
    """A question about an answer, and who answers it on which scale."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME, pattern=f"^{NAME}$")]
    question: Annotated[UnicodeText, Field(min_length=1, max_length=MAX_QUESTION), AfterValidator(str.strip)]
    scale: Annotated[Scale, BeforeValidator(_scale), PlainSerializer(str, return_type=str)] = Scale(1, 5)
    judge: str = Field(min_length=1, description="The model that judges, as models.yaml names it.")
    max_tokens: int = Field(512, ge=1, le=32_768, description="Of the judge's answer, with its reasoning.")
    prompt_version: Annotated[str, Field(min_length=1, max_length=64), BeforeValidator(_version)] = "1"
    sampling: Sampling = Sampling()

    def identity(self, judge: str | None = None) -> str:
        """Identifies scores that can be compared: of the same question, scale, judge and prompt."""
        parts = (self.name, self.question, str(self.scale), judge or self.judge, self.prompt_version, TEMPLATE_VERSION)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


# The rubric of a comparison that names none; its judge has to be named.
BETTER = "better"
BETTER_QUESTION = "Which answer is more correct, more complete and more helpful?"


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rubrics: list[Rubric] = Field(default_factory=list)


def load_rubrics(path: Path | None, models: Iterable[str]) -> dict[str, Rubric]:
    """Read and validate rubrics.yaml; without a path there are no rubrics.

    `models`: the names of models that may judge.

    Raises:
        RubricsError: the file is missing, is not YAML, or a field is wrong; the message names the line and the field.
    """
    if path is None:
        return {}
    try:
        file = read_yaml(path, variable="HEADRACE_RUBRICS", root="rubrics")
    except YamlFileError as error:
        raise RubricsError(str(error)) from error
    try:
        parsed = _File.model_validate(file.data)
    except ValidationError as error:
        problems = [_problem(problem) for problem in error.errors(include_url=False)]
        raise RubricsError("\n".join(file.error(*problem) for problem in problems)) from error
    known, found = set(models), dict[str, Rubric]()
    wrong: list[tuple[Location, str]] = []
    for index, rubric in enumerate(parsed.rubrics):
        if rubric.name in found:
            wrong.append((("rubrics", index, "name"), f"{rubric.name!r} is declared twice"))
        if rubric.judge not in known:
            wrong.append((("rubrics", index, "judge"), f"models.yaml declares no model {rubric.judge!r}"))
        found[rubric.name] = rubric
    if wrong:
        raise RubricsError("\n".join(file.error(*problem) for problem in wrong))
    return found


def _problem(problem: Mapping[str, Any]) -> tuple[Location, str]:
    message = {
        "extra_forbidden": "unknown field",
        "missing": "this field is required",
        "model_type": "must be a mapping",
        "dict_type": "must be a mapping",
    }.get(problem["type"], message_of(problem))
    return problem["loc"], message


class RubricBook:
    """The rubrics of this process. They are replaced all at once when the file is read again."""

    def __init__(self, rubrics: Mapping[str, Rubric]) -> None:
        self.rubrics = rubrics

    def replace(self, rubrics: Mapping[str, Rubric]) -> None:
        """Use these rubrics from now on."""
        self.rubrics = rubrics

    def __getitem__(self, name: str) -> Rubric:
        """The rubric of this name; raises `NotFound`."""
        found = self.rubrics.get(name)
        if found is None:
            names = ", ".join(self.rubrics) or "none; set HEADRACE_RUBRICS"
            raise NotFound(
                f"There is no rubric `{name[:MAX_NAME]}`; rubrics: {names}.", param="rubric", code="rubric_not_found"
            )
        return found

    def for_comparison(self, name: str | None, judge: str | None) -> Rubric | None:
        """The rubric of a comparison: the named one, or the one that asks which answer is better. None: the latter
        needs a judge.

        Raises:
            NotFound: there is no such rubric.
        """
        if name is not None and (name != BETTER or name in self.rubrics):
            return self[name]
        if judge is None:
            return None
        return Rubric(name=BETTER, question=BETTER_QUESTION, judge=judge)
