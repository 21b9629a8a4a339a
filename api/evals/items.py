"""Items of sets, and the judgements that a run has of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from api.evals.judgements import NewJudgement
from api.evals.prompts import Judged
from api.evals.runs import Run
from shared.domain.errors import InvalidRequest
from shared.domain.judgements import RunKind
from shared.domain.request import Message

# Of the two models of a comparison.
PAIR = 2


@dataclass(frozen=True, slots=True)
class Item:
    """An item of a set: a conversation, and the answers of models to it, by model. `unanswered`: the models that have
    not answered it, and why."""

    id: str
    conversation: Sequence[Message]
    answers: Sequence[tuple[str, str]]
    unanswered: Mapping[str, str] = field(default_factory=dict)


def judgements_of(run: Run, item: Item) -> list[tuple[NewJudgement, Judged | None]]:
    """The judgements of an item, each with what is judged; None if a model has not answered."""
    models, answers, unanswered = list(run.options["models"]), dict(item.answers), item.unanswered
    given = {*answers, *unanswered}
    if run.kind is RunKind.SET:
        if not given <= set(models):
            raise InvalidRequest(
                f"items: the models of this run are {', '.join(models)}; `{item.id[:64]}` has answers of others",
                param="items",
            )
        failed = [(NewJudgement(item.id, model, unanswered=why), None) for model, why in unanswered.items()]
        return [
            *((NewJudgement(item.id, model), Judged(item.conversation, [text])) for model, text in answers.items()),
            *failed,
        ]
    if given != set(models):
        raise InvalidRequest(
            f"items: each item needs the answers of {' and '.join(models)}; `{item.id[:64]}` has others", param="items"
        )
    if unanswered:
        score = 0.5 if len(unanswered) == PAIR else float(models[0] in answers)
        why = "; ".join(f"{model}: {reason}" for model, reason in unanswered.items())
        return [(NewJudgement(item.id, models[0], position, unanswered=why, score=score), None) for position in (1, 2)]
    first, second = (answers[model] for model in models)
    return [
        (NewJudgement(item.id, models[0], 1), Judged(item.conversation, [first, second])),
        (NewJudgement(item.id, models[0], 2), Judged(item.conversation, [second, first])),
    ]
