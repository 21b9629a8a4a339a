"""Rubrics, runs, reports, comparisons and labels, for the API and the console."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from api.evals.items import PAIR, Item, judgements_of
from api.evals.judgements import Judgement, JudgementStore
from api.evals.judging import Judges, judged_body
from api.evals.labels import Label, LabelStore
from api.evals.outcomes import Compared, compare_pairs, compare_samples, compare_scores
from api.evals.prompts import Judged
from api.evals.reports import RubricReport, build_report
from api.evals.rubrics import Rubric, RubricBook, Scale
from api.evals.runs import Run, RunStore, is_run_id, live_run_id
from api.evals.scores import ModelScores, ScoreStore
from api.http.pagination import Page, check_after, fetch_page
from api.keys.principal import Principal, Scope
from api.keys.store import format_id
from api.requests.service import LoggedRequests
from shared.config.models.loader import Registry
from shared.domain.errors import InvalidRequest, NotFound
from shared.domain.judgements import JudgementState, RunKind
from shared.domain.request import Message


@dataclass(frozen=True, slots=True)
class RubricState:
    """A rubric with its live run, if one has begun."""

    rubric: Rubric
    run: Run | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Whether model `b` is worse than `a`. `run_id`: of the run over a set; None: of scores of sampled answers.

    `unparsable`, `failed` and `pending` are judgements, while `found` counts items.
    """

    a: str
    b: str
    rubric: str
    judge_model: str
    run_id: str | None
    found: Compared
    unparsable: int
    failed: int
    pending: int


@dataclass(frozen=True, slots=True)
class ToLabel:
    """An answer for a person to label."""

    rubric: Rubric
    item: str
    conversation: Sequence[Message]
    answer: str


class EvalService:
    """What operators and labellers do with judges."""

    def __init__(
        self,
        book: RubricBook,
        judges: Judges,
        runs: RunStore,
        judgements: JudgementStore,
        scores: ScoreStore,
        labels: LabelStore,
        registry: Registry,
    ) -> None:
        self._book = book
        self._judges = judges
        self._runs = runs
        self._judgements = judgements
        self._scores = scores
        self._labels = labels
        self._registry = registry
        # Reports take no connections from submits.
        self._one_at_a_time = asyncio.Lock()

    # Rubrics and runs

    async def rubrics(self) -> list[RubricState]:
        """All rubrics, in the order of the file."""
        found = list(self._book.rubrics.values())
        return [RubricState(rubric, await self._runs.get(live_run_id(rubric))) for rubric in found]

    async def page(self, *, limit: int, after: str | None, rubric: str | None) -> Page[Run]:
        """Return a page of runs, newest first.

        Raises:
            InvalidRequest: `after` is not the id of a run.
        """
        check_after(after, "run", is_run_id)
        rubric = _storable(rubric)
        return await fetch_page(limit, lambda count: self._runs.page(limit=count, after=after, rubric=rubric))

    async def get(self, run_id: str) -> Run:
        """Return a run.

        Raises:
            NotFound: there is no such run.
        """
        run = await self._runs.get(run_id) if is_run_id(run_id) else None
        if run is None:
            raise NotFound(f"There is no run `{run_id[:64]}`.", param="run_id", code="run_not_found")
        return run

    async def judgements(self, run_id: str, *, limit: int, after: str | None) -> Page[Judgement]:
        """Return a page of the judgements of a run, oldest first; raises as `get`, and for an invalid `after`."""
        await self.get(run_id)
        if after is not None and not (after.isascii() and after.isdigit() and len(after) < 19):
            raise InvalidRequest(f"after: must be the id of a judgement, got {after[:64]!r}", param="after")
        cursor = None if after is None else int(after)
        return await fetch_page(limit, lambda count: self._judgements.page(run_id, limit=count, after=cursor))

    async def create(
        self, kind: RunKind, rubric: str | None, judge: str | None, models: Sequence[str], options: dict[str, Any]
    ) -> Run:
        """Create a run over a set, whose items follow. `options["expected"]`: how many judgements it will have.

        Raises:
            NotFound: there is no such rubric, or no such judge.
            InvalidRequest: a parameter is missing.
        """
        if kind is RunKind.SET and rubric is None:
            raise InvalidRequest("rubric: a run that scores single answers needs a rubric", param="rubric")
        if kind is RunKind.PAIRWISE and len(set(models)) != PAIR:
            raise InvalidRequest("models: a pairwise run needs two different models", param="models")
        found = self._book.for_comparison(rubric, judge) if kind is RunKind.PAIRWISE else self._book[rubric or ""]
        if found is None:
            raise InvalidRequest("judge: name the model that judges, or a rubric", param="judge")
        if judge is not None:
            found = found.model_copy(update={"judge": judge})
        self._registry[found.judge]
        return await self._runs.create(kind, found, {**options, "models": list(models)})

    async def add(self, run_id: str, items: Sequence[Item]) -> list[Judgement]:
        """Judge items of a set. Idempotent: what was judged, or is being judged, is not judged again.

        Raises:
            NotFound: there is no such run.
            InvalidRequest: it takes no items, an item has answers of other models than the run, or the judge cannot
                take it.
            BudgetExceeded, QuotaExceeded: the judges' project has no room; send the same items again later.
        """
        run = await self.get(run_id)
        if run.kind is RunKind.LIVE:
            raise InvalidRequest("run_id: a live run takes no items; its answers are sampled", param="run_id")
        found = self._book.for_comparison(run.rubric, run.judge_model)
        rubric = None if found is None else found.model_copy(update={"judge": run.judge_model})
        if rubric is None or rubric.identity() != run.options.get("identity"):
            raise InvalidRequest("run_id: the rubric of this run has changed since; start another one", param="run_id")
        work = [one for item in items for one in judgements_of(run, item)]
        judgements = await self._judgements.add(run.id, [new for new, _ in work])
        for judgement, (_, judged) in zip(judgements, work, strict=True):
            if judged is not None and judgement.state is JudgementState.PENDING and judgement.judge_job_id is None:
                await self._judges.submit_of_set(run.id, rubric, judgement, judged)
        return judgements

    # Reports

    async def report(self, rubric_name: str, days: int, project_id: int | None = None) -> RubricReport:
        """What judges have said by a rubric about the sampled answers of the last days, and how far people agree.

        Raises:
            NotFound: there is no such rubric.
        """
        rubric = self._book[rubric_name]
        run_ids, since = [live_run_id(rubric)], datetime.now(UTC) - timedelta(days=days)
        async with self._one_at_a_time:
            models = await self._scores.by_model(run_ids, since=since, project_id=project_id)
            cost = await self._scores.cost(run_ids, since=since, project_id=project_id)
            pairs = await self._labels.with_judge(rubric.name, run_ids, project_id)
            people = await self._labels.between_people(rubric.name, run_ids, project_id)
            names = await self._labels.names({pair.labeller for pair in pairs})
            return await asyncio.to_thread(build_report, rubric, since, models, pairs, people, cost, names)

    async def compare(
        self, a: str, b: str, rubric: str | None, days: int, *, run_id: str | None = None, project_id: int | None = None
    ) -> Comparison:
        """Compare two models: by a run over a set, by default the newest one that compared them, or else by the scores
        of their sampled answers of the last days.

        Raises:
            NotFound: there is no such run or rubric, or nothing to compare by.
            InvalidRequest: the run is a live one.
        """
        a, b = _storable(a), _storable(b)
        if run_id is None and project_id is None:
            run_id = await self._scores.last_pairwise(a, b, _storable(rubric))
        async with self._one_at_a_time:
            if run_id is not None:
                return await self._compare_run(await self.get(run_id), a, b)
            if rubric is None:
                raise NotFound(
                    f"No run has compared `{a[:64]}` with `{b[:64]}`; run `python -m api.evals compare`, or name a"
                    " rubric to compare the scores of sampled answers.",
                    param="rubric",
                    code="comparison_not_found",
                )
            return await self._compare_scores(self._book[rubric], a, b, days, project_id)

    async def _compare_run(self, run: Run, a: str, b: str) -> Comparison:
        if run.kind is RunKind.LIVE:
            raise InvalidRequest("run_id: name the rubric of a live run, not the run", param="run_id")
        models = run.options.get("models", [])
        if a == b or not {a, b} <= set(models):
            raise NotFound(f"The run `{run.id}` has not compared these models.", param="run_id")
        outcomes = await self._scores.outcomes(run.id)
        if run.kind is RunKind.PAIRWISE:
            found = await asyncio.to_thread(compare_pairs, outcomes, turned=models == [b, a])
        else:
            scale = run.options.get("scale")
            found = await asyncio.to_thread(compare_scores, outcomes, a, b, Scale.parse(scale) if scale else None)
        counts = {state.value: run.counts.get(state.value, 0) for state in _WITHOUT_SCORE}
        return Comparison(a, b, run.rubric, run.judge_model, run.id, found, **counts)

    async def _compare_scores(self, rubric: Rubric, a: str, b: str, days: int, project_id: int | None) -> Comparison:
        since = datetime.now(UTC) - timedelta(days=days)
        found = await self._scores.by_model([live_run_id(rubric)], since=since, project_id=project_id)
        by_model = defaultdict(lambda: ModelScores(""), {one.model: one for one in found})
        both = by_model[a], by_model[b]
        unscored = [one.of(JudgementState.UNPARSABLE) + one.of(JudgementState.FAILED) for one in both]
        compared = await asyncio.to_thread(
            compare_samples, both[0].scores, both[1].scores, (unscored[0], unscored[1]), rubric.scale
        )
        counts = {state.value: sum(one.of(state) for one in both) for state in _WITHOUT_SCORE}
        return Comparison(a, b, rubric.name, rubric.judge, None, compared, **counts)

    # Labels

    async def label(
        self, rubric_name: str, item: str, labeller: str, value: object, project_id: int | None = None
    ) -> Label:
        """Store what a person, or rather their key, says of an answer. `labeller`: the id of the key. `project_id`: the
        only project whose answers they may label.

        Raises:
            NotFound: there is no such rubric, or no judgement of this answer that the person may see.
            InvalidRequest: the score is none of the rubric's scale.
        """
        rubric, item = self._book[rubric_name], _storable(item)
        score = rubric.scale.score(value)
        if score is None:
            raise InvalidRequest(f"score: must be one of the scale {rubric.scale}", param="score")
        # Not of its earlier runs: their question, or scale, was another one.
        found = await self._labels.project_of(item, [live_run_id(rubric)])
        if found is None or (project_id is not None and found[0] != project_id):
            raise NotFound(f"There is no judged answer `{item[:64]}` for the rubric `{rubric.name}`.", param="item")
        return await self._labels.put(rubric.name, item, found[0], labeller, score)

    async def labeller_names(self, labels: Sequence[Label]) -> Mapping[str, str]:
        """The names of the keys of those who gave these labels, by the ids of the keys."""
        return await self._labels.names({one.labeller for one in labels})

    async def labels(self, *, limit: int, after: str | None, rubric: str | None, project_id: int | None) -> Page[Label]:
        """Return a page of labels, newest first."""
        if after is not None and not (after.isascii() and after.isdigit() and len(after) < 19):
            raise InvalidRequest(f"after: must be the id of a label, got {after[:64]!r}", param="after")
        cursor, rubric = None if after is None else int(after), _storable(rubric)
        return await fetch_page(
            limit,
            lambda count: self._labels.page(limit=count, after=cursor, rubric=rubric, project_id=project_id),
        )

    async def next_to_label(self, rubric_name: str, principal: Principal, requests: LoggedRequests) -> ToLabel | None:
        """An answer that the principal's key has not labelled; None if there is none whose text the log still has.

        It is recorded that the key has read it.

        Raises:
            Forbidden: the key may not read logged answers.
            NotFound: there is no such rubric.
        """
        principal.require(Scope.LOGS)
        rubric = self._book[rubric_name]
        project_id = None if Scope.ADMIN in principal.scopes else principal.project_id
        labeller = format_id(principal.key_id)
        for item in await self._labels.next_items(rubric.name, live_run_id(rubric), labeller, project_id):
            try:
                _, body = await requests.open(principal, item)
            except NotFound:
                continue  # its entry has expired
            judged = await asyncio.to_thread(judged_body, body)
            if isinstance(judged, Judged):
                return ToLabel(rubric, item, judged.conversation, judged.answers[0])
        return None


T = TypeVar("T", str, str | None)


def _storable(text: T) -> T:
    """A name of a request as PostgreSQL's `text` can have it; no name has the character that it refuses."""
    return text and text.replace("\0", "\ufffd")


_WITHOUT_SCORE = (JudgementState.UNPARSABLE, JudgementState.FAILED, JudgementState.PENDING)
