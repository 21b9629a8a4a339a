"""Runs over sets, comparisons, labels and reports."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.evals.items import Item
from api.evals.judging import MAX_UNSENT
from api.evals.prompts import BYTES_PER_TOKEN
from api.evals.rubrics import Rubric, Scale
from api.evals.runs import Run, live_run_id
from api.evals.statistics import Conclusion
from api.keys.store import ApiKeyStore, generate_key
from shared.domain.errors import BudgetExceeded, ContextExceeded, InvalidRequest, NotFound
from shared.domain.judgements import RunKind
from shared.domain.owner import Owner
from shared.domain.request import Message
from shared.postgres.job_store import JobStore
from tests.conftest import Workers
from tests.support.database import make_owner
from tests.support.evals import ASKED, HELPFUL, Evaluation, end_judge

ASKED_MESSAGES = [Message(role="user", content=ASKED)]
POLITE = Rubric(name="polite", question="Is it polite?", judge="judge", scale=Scale.parse("yes/no"))


@pytest.fixture
async def evaluation(database: AsyncEngine, store: JobStore) -> Evaluation:
    return Evaluation(database, store, HELPFUL, POLITE)


def item(name: str, **answers: str) -> Item:
    return Item(name, ASKED_MESSAGES, list(answers.items()))


async def pairwise(evaluation: Evaluation, count: int, rubric: str | None = "helpful") -> Run:
    judge = None if rubric else "judge"
    run = await evaluation.service.create(RunKind.PAIRWISE, rubric, judge, ["m", "n"], {"expected": 2 * count})
    await evaluation.service.add(run.id, [item(f"q{n}", m="Paris.", n="Lyon.") for n in range(count)])
    return run


async def test_pairs_are_judged_in_both_orders(evaluation: Evaluation, workers: Workers) -> None:
    run = await pairwise(evaluation, 1)
    first, second = [new.request.messages[1].text for new in evaluation.queue.submitted if new.request.messages]
    assert first.index("Paris.") < first.index("Lyon.")
    assert second.index("Lyon.") < second.index("Paris.")
    rows = await evaluation.judgements()
    assert [(row.item, row.model, row.position) for row in rows] == [("q0", "m", 1), ("q0", "m", 2)]
    await end_judge(workers, rows[0].judge_job_id, {"reason": "right", "winner": "first"})
    await evaluation.collect()
    assert (await evaluation.service.get(run.id)).ended_at is None, "another one is expected"
    await end_judge(workers, rows[1].judge_job_id, {"reason": "right", "winner": "second"})
    await evaluation.collect()
    assert [row.score for row in await evaluation.judgements()] == [1, 1], "the first model's answer is better in both"
    ended = await evaluation.service.get(run.id)
    assert ended.ended_at is not None
    assert ended.counts == {"scored": 2}


async def test_a_judge_that_goes_by_the_order_is_shown_as_such(evaluation: Evaluation, workers: Workers) -> None:
    run = await pairwise(evaluation, 3)
    for row in await evaluation.judgements():
        await end_judge(workers, row.judge_job_id, {"reason": "", "winner": "first"})
    await evaluation.collect()
    found = await evaluation.service.compare("m", "n", None, 30)
    assert (found.run_id, found.rubric) == (run.id, "helpful")
    pairs = found.found.pairwise
    assert pairs is not None
    assert (pairs.swapped, pairs.ties, pairs.difference.mean) == (3, 3, 0)
    assert found.found.shown.conclusion is Conclusion.TOO_FEW


async def test_is_the_second_worse(evaluation: Evaluation, workers: Workers) -> None:
    run = await pairwise(evaluation, 25, rubric=None)
    rows = await evaluation.judgements()
    for row in rows[2:]:
        await end_judge(workers, row.judge_job_id, {"winner": "first" if row.position == 1 else "second"})
    await end_judge(workers, rows[0].judge_job_id, "no idea")
    await end_judge(workers, rows[1].judge_job_id, {"winner": "tie"})
    await evaluation.collect()
    await evaluation.collect()
    found = await evaluation.service.compare("m", "n", None, 30)
    difference, sensitivity = found.found.difference, found.found.sensitivity
    assert (difference.n, found.unparsable, difference.mean) == (24, 1, -1), "an item needs both orders"
    assert found.found.shown.conclusion is Conclusion.WORSE
    assert sensitivity is not None
    assert sensitivity.against_a is not None
    assert (found.found.unscored, sensitivity.against_a.n, sensitivity.against_a.mean) == (1, 25, -23 / 25)
    turned = (await evaluation.service.compare("n", "m", None, 30)).found
    assert (turned.difference.mean, turned.shown.conclusion) == (1, Conclusion.BETTER)
    with pytest.raises(NotFound):
        await evaluation.service.compare("m", "judge", None, 30)
    with pytest.raises(NotFound, match="has not compared these models"):
        await evaluation.service.compare("m", "judge", None, 30, run_id=run.id)


async def test_a_model_that_has_not_answered_is_not_left_out(evaluation: Evaluation, workers: Workers) -> None:
    """They are equal where both have answered; `n` has not answered 20 of 45 items, and `m` one."""
    run = await evaluation.service.create(RunKind.PAIRWISE, "helpful", None, ["m", "n"], {"expected": 90})
    await evaluation.service.add(run.id, [item(f"q{n}", m="Paris.", n="Lyon.") for n in range(24)])
    failed = [Item(f"f{n}", ASKED_MESSAGES, [("m", "Paris.")], {"n": "it broke"}) for n in range(20)]
    await evaluation.service.add(run.id, [*failed, Item("g", ASKED_MESSAGES, [("n", "Lyon.")], {"m": "it broke"})])
    assert len(evaluation.queue.submitted) == 48, "there is nothing to judge of the others"
    for row in (await evaluation.judgements())[:48]:
        await end_judge(workers, row.judge_job_id, {"winner": "tie"})
    await evaluation.collect()
    found = await evaluation.service.compare("m", "n", None, 30)
    assert found.found.unanswered == (1, 20)
    assert (found.found.difference.n, found.found.difference.mean) == (24, 0)
    assert found.found.shown.n == 45
    assert found.found.shown.mean == pytest.approx(-19 / 45)
    assert found.found.shown.conclusion is Conclusion.WORSE
    turned = await evaluation.service.compare("n", "m", None, 30)
    assert (turned.found.unanswered, turned.found.shown.conclusion) == ((20, 1), Conclusion.BETTER)
    ended = await evaluation.service.get(run.id)
    assert (ended.ended_at is not None, ended.counts) == (True, {"scored": 48, "unanswered": 42})
    reasons = {row.reason for row in await evaluation.judgements() if row.state == "unanswered"}
    assert reasons == {"n: it broke", "m: it broke"}


async def test_a_run_without_any_answer_of_a_model_ends_by_itself(evaluation: Evaluation) -> None:
    run = await evaluation.service.create(RunKind.PAIRWISE, "helpful", None, ["m", "n"], {"expected": 60})
    items = [Item(f"f{n}", ASKED_MESSAGES, [("m", "Paris.")], {"n": "it broke"}) for n in range(30)]
    await evaluation.service.add(run.id, items[:20])
    assert (await evaluation.service.get(run.id)).ended_at is None
    await evaluation.service.add(run.id, items[10:])
    assert (await evaluation.service.get(run.id)).ended_at is not None
    found = (await evaluation.service.compare("m", "n", None, 30)).found
    assert (found.difference.n, found.shown.n, found.shown.conclusion) == (0, 30, Conclusion.WORSE)


async def test_scores_of_a_set_are_compared_with_failures(evaluation: Evaluation, workers: Workers) -> None:
    run = await evaluation.service.create(RunKind.SET, "helpful", None, ["m", "n"], {"expected": 6})
    items = [item("q0", m="Paris.", n="Lyon."), Item("q1", ASKED_MESSAGES, [("m", "Paris.")], {"n": "it broke"})]
    await evaluation.service.add(run.id, [*items, item("q2", m="Paris.", n="Nice.")])
    rows = {(row.item, row.model): row for row in await evaluation.judgements()}
    for place, said in ((("q0", "m"), 4), (("q0", "n"), 3), (("q1", "m"), 5), (("q2", "m"), 2), (("q2", "n"), "?")):
        await end_judge(workers, rows[place].judge_job_id, {"reason": "", "score": said})
    await evaluation.collect()
    found = (await evaluation.service.compare("m", "n", None, 30, run_id=run.id)).found
    assert (found.unanswered, found.unscored) == ((0, 1), 1)
    assert (found.difference.n, found.difference.mean) == (1, -1)
    assert (found.shown.n, found.shown.mean) == (2, (-1 - 4) / 2)
    with pytest.raises(NotFound, match="has not compared these models"):
        await evaluation.service.compare("m", "judge", None, 30, run_id=run.id)


async def test_a_judge_that_cannot_read_one_item_reads_the_others(evaluation: Evaluation) -> None:
    run = await evaluation.service.create(RunKind.SET, "helpful", None, ["m"], {"expected": 2})
    evaluation.queue.refusal = ContextExceeded("messages: this model's context is 8 tokens", param="messages")
    await evaluation.service.add(run.id, [item("q0", m="Paris.")])
    assert evaluation.queue.refused == len(BYTES_PER_TOKEN), "its texts are shortened further each time"
    evaluation.queue.refusal = None
    await evaluation.service.add(run.id, [item("q1", m="Paris.")])
    rows = await evaluation.judgements()
    assert [(row.state, row.reason) for row in rows] == [
        ("failed", "messages: this model's context is 8 tokens"),
        ("pending", None),
    ]
    assert evaluation.counted("judgements", "failed") == 1


async def test_items_may_be_sent_again(evaluation: Evaluation) -> None:
    run = await evaluation.service.create(RunKind.SET, "helpful", None, ["m", "n"], {"expected": 4})
    evaluation.queue.refusal = BudgetExceeded("used up")
    items = [item("q0", m="Paris.", n="Lyon."), item("q1", m="Paris.", n="Nice.")]
    with pytest.raises(BudgetExceeded):
        await evaluation.service.add(run.id, items)
    evaluation.queue.refusal = None
    for _ in range(2):
        judgements = await evaluation.service.add(run.id, items)
        assert [(one.item, one.model) for one in judgements] == [("q0", "m"), ("q0", "n"), ("q1", "m"), ("q1", "n")]
    assert len(evaluation.queue.submitted) == 4
    assert len(await evaluation.judgements()) == 4


async def test_items_that_are_never_sent_again_fail(evaluation: Evaluation) -> None:
    run = await evaluation.service.create(RunKind.SET, "helpful", None, ["m"], {"expected": 1})
    evaluation.queue.refusal = BudgetExceeded("used up")
    with pytest.raises(BudgetExceeded):
        await evaluation.service.add(run.id, [item("q0", m="Paris.")])
    await evaluation.collect()
    assert [row.state for row in await evaluation.judgements()] == ["pending"]
    old = datetime.now(UTC) - 2 * MAX_UNSENT
    async with evaluation.database.begin() as connection:
        await connection.execute(text("UPDATE judgements SET created_at = :old"), {"old": old})
    await evaluation.collect()
    assert [row.state for row in await evaluation.judgements()] == ["failed"]
    assert (await evaluation.service.get(run.id)).ended_at is not None


async def test_runs_that_cannot_be(evaluation: Evaluation) -> None:
    service = evaluation.service
    for kind, rubric, judge, models, error in (
        (RunKind.SET, None, None, ["m"], InvalidRequest),
        (RunKind.PAIRWISE, "helpful", None, ["m"], InvalidRequest),
        (RunKind.PAIRWISE, "helpful", None, ["m", "m"], InvalidRequest),
        (RunKind.PAIRWISE, None, None, ["m", "n"], InvalidRequest),
        (RunKind.PAIRWISE, None, "no such model", ["m", "n"], NotFound),
        (RunKind.SET, "no such rubric", None, ["m"], NotFound),
    ):
        with pytest.raises(error):
            await service.create(kind, rubric, judge, models, {})
    with pytest.raises(NotFound):
        await service.add("evalrun_1", [item("q0", m="x")])
    scored = await service.create(RunKind.SET, "helpful", None, ["m"], {"expected": 1})
    with pytest.raises(InvalidRequest, match="the models of this run are m; `q0` has answers of others"):
        await service.add(scored.id, [item("q0", m="x", n="y")])
    run = await service.create(RunKind.PAIRWISE, "helpful", None, ["m", "n"], {"expected": 2})
    with pytest.raises(InvalidRequest, match="needs the answers of m and n"):
        await service.add(run.id, [item("q0", m="x", judge="y")])
    evaluation.book.replace({"helpful": HELPFUL.model_copy(update={"question": "Is it short?"})})
    with pytest.raises(InvalidRequest, match="has changed since"):
        await service.add(run.id, [item("q0", m="x", n="y")])
    await evaluation.begin_sampling()
    live = live_run_id(evaluation.book["helpful"])
    with pytest.raises(InvalidRequest, match="a live run takes no items"):
        await service.add(live, [item("q0", m="x", n="y")])
    with pytest.raises(InvalidRequest, match="name the rubric of a live run"):
        await service.compare("m", "n", None, 30, run_id=live)


async def judged(evaluation: Evaluation, workers: Workers, owner: Owner, *scores: int, model: str = "m") -> list[str]:
    """Answers with scores by the rubric `helpful`."""
    if not evaluation.queue.submitted:
        await evaluation.begin_sampling()
    jobs = {
        await evaluation.log(owner, model=model, ended_s_ago=60 - index): score for index, score in enumerate(scores)
    }
    async with evaluation.database.begin() as connection:
        await connection.execute(text("UPDATE eval_runs SET options = jsonb_set(options, '{watermark,ended_at}',"
            " to_jsonb(now() - interval '1 hour'))"))  # fmt: skip
    await evaluation.sampler.step()
    await evaluation.make_due()
    await evaluation.judges.step()
    for row in await evaluation.judgements():
        if row.item in jobs:
            await end_judge(workers, row.judge_job_id, {"reason": "so", "score": jobs[row.item]})
    await evaluation.collect()
    return list(jobs)


async def test_scores_are_reported_with_intervals_and_agreement(
    evaluation: Evaluation, workers: Workers, owner: Owner
) -> None:
    jobs = await judged(evaluation, workers, owner, 5, 4, 4, 2, 1)
    for job, score in zip(jobs, (5, 4, 3, 2, 2), strict=True):
        await evaluation.service.label("helpful", job, "ann", score)
    await evaluation.service.label("helpful", jobs[0], "bob", 1)
    await evaluation.service.label("helpful", jobs[0], "bob", 4)
    report = await evaluation.service.report("helpful", 30)
    (model,) = report.models
    assert model.mean is not None
    assert (model.mean.n, model.scores) == (5, {1: 1, 2: 1, 4: 2, 5: 1})
    assert model.mean.mean == pytest.approx(3.2)
    assert model.mean.interval is not None
    assert 1 <= model.mean.interval.low < 3.2 < model.mean.interval.high <= 5
    assert (report.with_people.n, report.by_labeller["ann"].n, report.people.n) == (5, 5, 1), "answers"
    assert report.with_people.observed == pytest.approx(3 / 6), "of the pairs of scores"
    assert report.by_labeller["ann"].observed == pytest.approx(0.6)
    assert report.by_labeller["ann"].kappa is not None
    assert 0.7 < report.by_labeller["ann"].kappa < 1
    other = await make_owner(evaluation.database, "other")
    assert (await evaluation.service.report("helpful", 30, other.project_id)).models == []
    with pytest.raises(NotFound):
        await evaluation.service.report("no such rubric", 30)


async def test_models_are_compared_by_scores_of_sampled_answers(
    evaluation: Evaluation, workers: Workers, owner: Owner
) -> None:
    await judged(evaluation, workers, owner, *[5, 4] * 12)
    await judged(evaluation, workers, owner, *[1, 2] * 12, model="n")
    found = await evaluation.service.compare("m", "n", "helpful", 30)
    assert (found.run_id, found.found.pairwise, found.found.difference.n) == (None, None, 24)
    assert found.found.difference.mean == pytest.approx(-3)
    assert found.found.shown.conclusion is Conclusion.WORSE


async def test_labellers_are_keys_whatever_their_names_are(
    evaluation: Evaluation, workers: Workers, owner: Owner
) -> None:
    jobs = await judged(evaluation, workers, owner, 5, 4)
    keys = ApiKeyStore(evaluation.database)
    people = [await keys.create("ann", generate_key(), project="test", generated=True) for _ in range(2)]
    first, second = (str(person) for person in people)
    for person, score in ((first, 5), (second, 1)):
        for job in jobs:
            await evaluation.service.label("helpful", job, person, score)
    report = await evaluation.service.report("helpful", 30)
    assert (set(report.by_labeller), report.people.n) == ({first, second}, 2), (
        "not one person who has changed their mind"
    )
    assert report.names == {first: "ann", second: "ann"}
    async with evaluation.database.begin() as connection:
        await connection.execute(text("UPDATE api_keys SET name = 'anna' WHERE 'key_' || id = :id"), {"id": first})
    labels = await evaluation.service.labels(limit=10, after=None, rubric=None, project_id=None)
    assert await evaluation.service.labeller_names(labels.items) == {first: "anna", second: "ann"}
    await evaluation.service.label("helpful", jobs[0], "ann", 3)
    labels = await evaluation.service.labels(limit=10, after=None, rubric=None, project_id=None)
    assert (labels.items[0].labeller, await evaluation.service.labeller_names(labels.items[:1])) == ("ann", {})


async def test_labels(evaluation: Evaluation, workers: Workers, owner: Owner) -> None:
    (job,) = await judged(evaluation, workers, owner, 5)
    other = await make_owner(evaluation.database, "other")
    label = await evaluation.service.label("helpful", job, "ann", "3", owner.project_id)
    assert (label.score, label.project_id) == (3, owner.project_id)
    with pytest.raises(InvalidRequest, match="one of the scale 1-5"):
        await evaluation.service.label("helpful", job, "ann", 6)
    for rubric, name, project_id in (
        ("helpful", "job_1", None),
        ("helpful", job, other.project_id),
        ("polite", job, None),
        ("no such rubric", job, None),
    ):
        with pytest.raises(NotFound):
            await evaluation.service.label(rubric, name, "ann", 1, project_id)
    page = await evaluation.service.labels(limit=10, after=None, rubric="helpful", project_id=owner.project_id)
    assert [(one.item, one.labeller, one.score) for one in page.items] == [(job, "ann", 3)]
    page = await evaluation.service.labels(limit=10, after=None, rubric=None, project_id=other.project_id)
    assert page.items == []
    with pytest.raises(InvalidRequest):
        await evaluation.service.labels(limit=10, after="x", rubric=None, project_id=None)


async def test_labels_of_an_earlier_version_of_a_rubric_do_not_count(
    evaluation: Evaluation, workers: Workers, owner: Owner
) -> None:
    jobs = await judged(evaluation, workers, owner, 5, 4, 1)
    for job, score in zip(jobs, (5, 3, 1), strict=True):
        for person in ("ann", "bob"):
            await evaluation.service.label("helpful", job, person, score)
    assert (await evaluation.service.report("helpful", 30)).people.n == 3
    evaluation.book.replace({"helpful": HELPFUL.model_copy(update={"scale": Scale.parse("yes/no")})})
    report = await evaluation.service.report("helpful", 30)
    assert (report.with_people.n, report.people.n) == (0, 0)
    with pytest.raises(NotFound):
        await evaluation.service.label("helpful", jobs[0], "eve", "yes")


async def test_only_scored_answers_are_labelled(evaluation: Evaluation, workers: Workers, owner: Owner) -> None:
    (job,) = await judged(evaluation, workers, owner, 5)
    async with evaluation.database.begin() as connection:
        await connection.execute(text("UPDATE judgements SET state = 'unparsable', score = NULL"))
    assert await evaluation.service._labels.next_items("helpful", live_run_id(HELPFUL), "ann", None) == []
    assert job


async def test_the_next_answer_to_label_is_one_that_others_have_labelled(
    evaluation: Evaluation, workers: Workers, owner: Owner
) -> None:
    jobs = await judged(evaluation, workers, owner, 5, 4, 3)
    labels, run_id = evaluation.service._labels, live_run_id(HELPFUL)
    assert await labels.next_items("helpful", run_id, "ann", None) == jobs[::-1], "the newest first"
    await evaluation.service.label("helpful", jobs[0], "bob", 4)
    assert await labels.next_items("helpful", run_id, "ann", None) == [jobs[0], jobs[2], jobs[1]]
    assert await labels.next_items("helpful", run_id, "bob", None) == [jobs[2], jobs[1]]
    other = await make_owner(evaluation.database, "other")
    assert await labels.next_items("helpful", run_id, "ann", other.project_id) == []


async def test_the_cost_of_judges_is_reported(
    evaluation: Evaluation, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    await judged(evaluation, workers, owner, 5)
    (row,) = await evaluation.judgements()
    names = (
        "job_id, attempt, ended_at, kind, project_id, key_id, requested_model, model, outcome, final, input_fresh,"
        " input_cache_read, input_cache_write_5m, input_cache_write_1h, output_text, output_reasoning, total_tokens,"
        " source, cost, charge"
    )
    async with database.begin() as connection:
        await connection.execute(text("DELETE FROM usage_events"))
        await connection.execute(
            text(f"INSERT INTO usage_events ({names}) VALUES (:id, 1, now(), 'judge', 1, 1, 'judge', 'judge',"  # noqa: S608
                " 'completed', true, 30, 0, 0, 0, 10, 0, 40, 'engine', 0.25, 0.5)"), {"id": row.judge_job_id},
        )  # fmt: skip
    assert (await evaluation.service.report("helpful", 30)).cost == Decimal("0.25")
    assert await evaluation.store.costs([row.judge_job_id]) == {"judge": Decimal("0.25")}
