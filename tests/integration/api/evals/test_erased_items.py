"""Judgements of jobs whose data is erased, or that are deleted: their runs end, and nothing of the text remains."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.erasure.store import ErasureStore
from api.evals.items import Item
from api.evals.runs import ABANDONED_S, Run
from shared.domain.judgements import RunKind
from shared.domain.owner import Owner
from shared.domain.request import Message
from shared.postgres.job_store import JobStore
from shared.postgres.recovery_store import RecoveryStore
from tests.conftest import Workers
from tests.support.evals import HELPFUL, Evaluation, end_judge
from tests.support.job_rows import add_job

CANARY = "canary-4711"


@pytest.fixture
async def evaluation(database: AsyncEngine, store: JobStore) -> Evaluation:
    return Evaluation(database, store, HELPFUL)


async def jobs_of(database: AsyncEngine, owner: Owner, *users: str) -> list[str]:
    return [await add_job(database, owner, ended_s_ago=10, end_user=user) for user in users]


def item(name: str, **answers: str) -> Item:
    return Item(name, [Message(role="user", content=CANARY)], list(answers.items()))


async def set_run(evaluation: Evaluation, *jobs: str) -> Run:
    run = await evaluation.service.create(RunKind.SET, "helpful", None, ["m"], {"expected": len(jobs)})
    await evaluation.service.add(run.id, [item(job, m="Paris.") for job in jobs])
    return run


async def tables_with(database: AsyncEngine, word: str) -> set[str]:
    found = set()
    async with database.connect() as connection:
        for table in ("jobs", "judgements", "feedback", "eval_runs"):
            query = f"SELECT count(*) FROM {table} t WHERE position(:word IN t::text) > 0"  # noqa: S608 a name
            if (await connection.execute(text(query), {"word": word})).scalar_one():
                found.add(table)
    return found


async def test_a_run_ends_without_the_items_that_were_erased(
    evaluation: Evaluation, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    of_ann, of_bob = await jobs_of(database, owner, "ann", "bob")
    run = await set_run(evaluation, of_ann, of_bob)
    portion = await ErasureStore(database).erase_jobs(owner.project_id, [of_ann])
    assert portion.counts["judgements"] == 1
    assert (await evaluation.service.get(run.id)).ended_at is None, "another item is to be judged"
    waiting = {row.item: row.judge_job_id for row in await evaluation.judgements()}
    assert [one.id for one in await RecoveryStore(database).overdue()] == [waiting[of_ann]]
    await end_judge(workers, waiting[of_bob], {"reason": "right", "score": 4})
    await evaluation.collect()
    ended = await evaluation.service.get(run.id)
    assert (ended.ended_at is not None, ended.counts) == (True, {"erased": 1, "scored": 1})


@pytest.mark.parametrize("by_deletion", [False, True])
async def test_a_run_ends_with_the_erasure_of_its_last_items(
    evaluation: Evaluation, owner: Owner, store: JobStore, database: AsyncEngine, by_deletion: bool
) -> None:
    (job,) = await jobs_of(database, owner, "ann")
    run = await set_run(evaluation, job)
    if by_deletion:
        await store.delete(job, owner.project_id)
    else:
        await ErasureStore(database).erase_jobs(owner.project_id, [job])
    ended = await evaluation.service.get(run.id)
    assert (ended.ended_at is not None, ended.counts) == (True, {"erased": 1})


async def test_an_erased_item_is_not_judged_if_it_is_sent_again(
    evaluation: Evaluation, owner: Owner, database: AsyncEngine
) -> None:
    (job,) = await jobs_of(database, owner, "ann")
    run = await set_run(evaluation, job)
    await ErasureStore(database).erase_jobs(owner.project_id, [job])
    (again,) = await evaluation.service.add(run.id, [item(job, m="Paris.")])
    assert again.state.value == "erased"
    assert len(evaluation.queue.submitted) == 1
    await evaluation.collect()
    assert [row.state for row in await evaluation.judgements()] == ["failed"], "as earlier versions read it"


async def test_erased_items_count_for_nothing(
    evaluation: Evaluation, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    jobs = await jobs_of(database, owner, "ann", "bob", "bob")
    run = await evaluation.service.create(RunKind.PAIRWISE, "helpful", None, ["m", "n"], {"expected": 6})
    await evaluation.service.add(run.id, [item(job, m="Paris.", n="Lyon.") for job in jobs])
    for row in await evaluation.judgements():
        await end_judge(workers, row.judge_job_id, {"winner": "first" if row.position == 1 else "second"})
    await evaluation.collect()
    await ErasureStore(database).erase_jobs(owner.project_id, jobs[:1])
    found = (await evaluation.service.compare("m", "n", None, 30)).found
    assert (found.erased, found.difference.n, found.unscored, found.sensitivity) == (1, 2, 0, None)
    scored = await evaluation.service.create(RunKind.SET, "helpful", None, ["m", "n"], {"expected": 2})
    await evaluation.service.add(scored.id, [item(jobs[0], m="Paris.", n="Lyon.")])
    await ErasureStore(database).erase_jobs(owner.project_id, jobs[:1])
    found = (await evaluation.service.compare("m", "n", None, 30, run_id=scored.id)).found
    assert (found.erased, found.difference.n, found.unscored, found.sensitivity) == (1, 0, 0, None)


async def sampled(evaluation: Evaluation, workers: Workers, owner: Owner, job: str, **verdict: Any) -> None:
    """Let a judge score the logged answer of a job, or leave its judgement open."""
    await evaluation.begin_sampling()
    await evaluation.log(owner, job_id=job)
    await evaluation.sampler.step()
    await evaluation.collect()
    if verdict:
        for row in await evaluation.judgements():
            await end_judge(workers, row.judge_job_id, verdict)
        await evaluation.collect()


async def feedback(database: AsyncEngine, owner: Owner, job: str) -> None:
    insert = text(
        "INSERT INTO feedback (project_id, job_id, metric, value, comment, tags, source)"
        " VALUES (:project, :job, :metric, cast(:value AS jsonb), :comment, cast(:tags AS text[]), 'key')"
    )
    async with database.begin() as connection:
        for metric, value, comment, tags in (
            ("rating", '"down"', f"not {CANARY}", [CANARY]),
            ("accuracy", "0.5", None, []),
            ("better", f'"{CANARY}"', None, []),
        ):
            values = {"metric": metric, "value": value, "comment": comment, "tags": tags}
            await connection.execute(insert, {"project": owner.project_id, "job": job, **values})


async def test_texts_about_an_answer_are_deleted_with_its_job_and_numbers_remain(
    evaluation: Evaluation, workers: Workers, owner: Owner, store: JobStore, database: AsyncEngine
) -> None:
    job, other = await jobs_of(database, owner, "ann", "bob")
    await sampled(evaluation, workers, owner, job, reason=f"it says {CANARY}", score=4)
    await evaluation.service.label("helpful", job, "ann", 3)
    await feedback(database, owner, job)
    await feedback(database, owner, other)
    assert await tables_with(database, CANARY) == {"jobs", "judgements", "feedback"}
    (judge,) = [row.judge_job_id for row in await evaluation.judgements()]
    # What quotes the answer is in the log of the judge's job too.
    assert await store.delete(job, owner.project_id) == [job, judge]
    async with database.connect() as connection:
        rows = text("SELECT job_id, metric, comment, tags FROM feedback ORDER BY job_id = :other, metric")
        found = [tuple(row) for row in await connection.execute(rows, {"other": other})]
    assert found == [
        (job, "accuracy", None, []), (job, "rating", None, []),
        (other, "accuracy", None, []), (other, "better", None, []), (other, "rating", f"not {CANARY}", [CANARY]),
    ]  # fmt: skip
    assert await tables_with(database, CANARY) == {"feedback"}, "what is about another answer"
    (row,) = await evaluation.judgements()
    assert (row.state, row.score, row.reason) == ("scored", 4, None)
    assert (await evaluation.service.report("helpful", 30)).with_people.n == 1


async def test_a_deleted_answer_is_not_judged_any_more(
    evaluation: Evaluation, workers: Workers, owner: Owner, store: JobStore, database: AsyncEngine
) -> None:
    (job,) = await jobs_of(database, owner, "ann")
    await sampled(evaluation, workers, owner, job)
    (row,) = await evaluation.judgements()
    assert await store.delete(job, owner.project_id) == [job], "the judge's job goes on until the next sweep"
    assert await evaluation.judgements() == []
    assert [one.id for one in await RecoveryStore(database).overdue()] == [row.judge_job_id]


async def test_another_projects_job_is_left_as_it_is(
    evaluation: Evaluation, workers: Workers, owner: Owner, store: JobStore, database: AsyncEngine
) -> None:
    (job,) = await jobs_of(database, owner, "ann")
    await feedback(database, owner, job)
    assert await store.delete(job, owner.project_id + 1) == []
    assert await tables_with(database, CANARY) == {"feedback"}


async def test_a_run_whose_items_stop_coming_ends(
    evaluation: Evaluation, workers: Workers, database: AsyncEngine
) -> None:
    """As when its command was interrupted. One that was begun recently, or is being judged, does not."""
    abandoned, judged, recent = [
        await evaluation.service.create(RunKind.SET, "helpful", None, ["m"], {"expected": 2}) for _ in range(3)
    ]
    for run in (abandoned, judged):
        await evaluation.service.add(run.id, [item("q0", m="Paris.")])
    await end_judge(workers, (await evaluation.judgements())[0].judge_job_id, {"reason": "", "score": 4})
    await evaluation.collect()
    await evaluation.judges.end_abandoned()
    assert [(await evaluation.service.get(run.id)).ended_at for run in (abandoned, judged, recent)] == [None] * 3
    old = {"old": datetime.now(UTC) - timedelta(seconds=ABANDONED_S), "recent": recent.id}
    async with database.begin() as connection:
        await connection.execute(text("UPDATE eval_runs SET created_at = :old WHERE id <> :recent"), old)
        await connection.execute(text("UPDATE judgements SET created_at = :old WHERE run_id <> :recent"), old)
    await evaluation.judges.end_abandoned()
    runs = [await evaluation.service.get(run.id) for run in (abandoned, judged, recent)]
    assert [run.ended_at is not None for run in runs] == [True, False, False]
    assert runs[0].counts == {"scored": 1}, "fewer than it expects"
