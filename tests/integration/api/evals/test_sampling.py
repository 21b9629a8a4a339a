"""Answers of the request log are sampled once each, and their judge jobs are submitted and collected once."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.evals.identity import PROJECT, JudgeIdentity
from api.evals.judging import KIND
from api.evals.rubrics import Sampling, Scale
from api.evals.runs import live_run_id
from api.evals.sampling import MAX_PENDING, is_selected
from api.keys.principal import Scope
from api.keys.store import ApiKeyStore
from api.request_log.bodies import Missing, MissingReason
from shared.domain.errors import BudgetExceeded, NotFound, QuotaExceeded
from shared.domain.job import Job, JobStatus
from shared.domain.log_level import LogLevel
from shared.domain.new_job import Idempotency, NewJob
from shared.domain.owner import Owner
from shared.domain.priorities import BATCH_PRIORITY
from shared.postgres.job_store import JobStore
from tests.conftest import Workers
from tests.support.database import make_owner
from tests.support.evals import ASKED, HELPFUL, Evaluation, body_of, end_judge


@pytest.fixture
async def evaluation(database: AsyncEngine, store: JobStore) -> Evaluation:
    found = Evaluation(database, store, HELPFUL)
    await found.begin_sampling()
    return found


async def test_only_complete_answers_with_a_body_are_judged(evaluation: Evaluation, owner: Owner) -> None:
    wanted = {await evaluation.log(owner, level=level) for level in ("redacted", "full")}
    for left_out in (
        {"level": "metadata", "body": "none"}, {"body": "lost"}, {"body": "erased"}, {"status": "incomplete"},
        {"status": "failed"}, {"kind": "summary"}, {"kind": "judge"}, {"ended_s_ago": 0}, {"ended_s_ago": 7200},
        {"answered": True},
    ):  # fmt: skip
        await evaluation.log(owner, **left_out)
    await evaluation.sampler.step()
    assert {row.item for row in await evaluation.judgements()} == wanted
    await evaluation.sampler.step()
    assert len(await evaluation.judgements()) == 2, "an entry is read once"


async def test_the_sample_is_the_one_that_the_hash_says(database: AsyncEngine, store: JobStore, owner: Owner) -> None:
    other = await make_owner(database, "quiet")
    rubric = HELPFUL.model_copy(update={"sampling": Sampling(rate=0.5, models={"n": 1}, projects={"quiet": 0}, seed=7)})
    evaluation = Evaluation(database, store, rubric)
    await evaluation.begin_sampling()
    jobs = [await evaluation.log(owner, ended_s_ago=600 - number) for number in range(40)]
    of_model = [await evaluation.log(owner, model="n") for _ in range(3)]
    for _ in range(3):
        await evaluation.log(other, model="n")
    await asyncio.gather(*(evaluation.sampler.step() for _ in range(4)))
    selected = {job for job in jobs if is_selected(rubric, job, "m", "a project without a rate of its own")}
    assert {row.item for row in await evaluation.judgements()} == selected | set(of_model)
    assert 5 < len(selected) < 35


async def test_a_body_that_is_being_written_is_waited_for(evaluation: Evaluation, owner: Owner) -> None:
    pending = await evaluation.log(owner, ended_s_ago=100, body="pending")
    later = await evaluation.log(owner, ended_s_ago=50)
    await evaluation.sampler.step()
    assert await evaluation.judgements() == []
    async with evaluation.database.begin() as connection:
        await connection.execute(text("UPDATE request_log SET body = 'kept'"))
    await evaluation.sampler.step()
    assert [row.item for row in await evaluation.judgements()] == [pending, later]


async def test_a_judge_job_is_an_ordinary_job_of_a_project_of_its_own(
    evaluation: Evaluation, database: AsyncEngine, owner: Owner
) -> None:
    job = await evaluation.log(owner, "Paris, of course.")
    await evaluation.sampler.step()
    await evaluation.judges.step()
    (new,) = evaluation.queue.submitted
    assert (new.kind, new.priority, new.model, new.log_level) == (KIND, BATCH_PRIORITY, "judge", LogLevel.NONE)
    assert new.request.messages is not None
    assert ASKED in new.request.messages[1].text
    assert "Paris, of course." in new.request.messages[1].text
    async with database.connect() as connection:
        row = (await connection.execute(text("SELECT p.name, k.scopes FROM projects p JOIN api_keys k"
            " ON k.project_id = p.id WHERE p.id = :id"), {"id": new.owner.project_id})).one()  # fmt: skip
    assert (row.name, row.scopes) == (PROJECT, [Scope.INFERENCE.value])
    (judgement,) = await evaluation.judgements()
    assert (judgement.item, judgement.model, judgement.project_id) == (job, "m", owner.project_id)
    assert judgement.judge_job_id is not None
    assert new.owner.project_id != owner.project_id


async def test_the_project_of_judges_is_created_once(database: AsyncEngine) -> None:
    keys = ApiKeyStore(database)
    found = await asyncio.gather(*(JudgeIdentity(database).principal(keys) for _ in range(6)))
    assert len(set(found)) == 1
    async with database.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM api_keys")) == 1
    assert await JudgeIdentity(database).project_id() == found[0].project_id


async def test_a_score_is_collected_once(
    evaluation: Evaluation, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    await evaluation.log(owner)
    await evaluation.sampler.step()
    await evaluation.judges.step()
    await evaluation.collect()
    (row,) = await evaluation.judgements()
    assert (row.state, row.score) == ("pending", None), "its job has not ended"
    await end_judge(workers, row.judge_job_id, {"reason": "It is right.", "score": 5})
    await evaluation.make_due()
    await asyncio.gather(*(evaluation.judges.step() for _ in range(4)))
    (row,) = await evaluation.judgements()
    assert (row.state, row.score, row.reason) == ("scored", Decimal(5), "It is right.")
    assert row.ended_at is not None
    assert evaluation.counted("judgements", "scored") == 1


async def test_a_step_reads_all_judges_that_have_ended(
    evaluation: Evaluation, workers: Workers, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are: their answers are deleted a minute after their end."""
    monkeypatch.setattr("api.evals.judging.LOOKED_AT", 2)
    for _ in range(6):
        await evaluation.log(owner)
    await evaluation.sampler.step()
    await evaluation.judges.step()
    rows = await evaluation.judgements()
    for row in rows[:5]:
        await end_judge(workers, row.judge_job_id, {"reason": "", "score": 4})
    await evaluation.collect()
    assert [row.state for row in await evaluation.judgements()] == ["scored"] * 5 + ["pending"]
    await evaluation.make_due()
    (again,) = await evaluation.store.take_due(10, submitted=True)
    assert again.judgement.id == rows[5].id
    assert await evaluation.store.take_due(10, submitted=True) == [], "it is taken once"
    await evaluation.make_due()
    assert await evaluation.store.take_due(10, submitted=False) == [], "it has a job"


@pytest.mark.parametrize(
    ("says", "status", "state"),
    [
        ("I would give it a 5.", JobStatus.COMPLETED, "unparsable"),
        ({"reason": "good", "score": 6}, JobStatus.COMPLETED, "unparsable"),
        ('{"reason": "go', JobStatus.INCOMPLETE, "unparsable"),
        (None, JobStatus.COMPLETED, "unparsable"),
        (None, JobStatus.FAILED, "failed"),
    ],
)
async def test_what_is_no_score_is_counted_apart(
    evaluation: Evaluation, workers: Workers, owner: Owner, says: object, status: JobStatus, state: str
) -> None:
    await evaluation.log(owner)
    await evaluation.sampler.step()
    await evaluation.judges.step()
    (row,) = await evaluation.judgements()
    await end_judge(workers, row.judge_job_id, says, status=status)  # type: ignore[arg-type]
    await evaluation.collect()
    (row,) = await evaluation.judgements()
    assert (row.state, row.score) == (state, None)
    assert evaluation.counted("judgements", state) == 1
    report = await evaluation.service.report("helpful", 30)
    assert [(one.mean, one.unparsable, one.failed) for one in report.models] == [
        (None, int(state == "unparsable"), int(state == "failed"))
    ]


async def test_an_answer_that_was_deleted_is_no_score(evaluation: Evaluation, workers: Workers, owner: Owner) -> None:
    await evaluation.log(owner)
    await evaluation.sampler.step()
    await evaluation.judges.step()
    (row,) = await evaluation.judgements()
    await end_judge(workers, row.judge_job_id, {"score": 5})
    async with evaluation.database.begin() as connection:
        await connection.execute(text("UPDATE jobs SET output = NULL"))
    await evaluation.collect()
    (row,) = await evaluation.judgements()
    assert (row.state, row.reason) == ("failed", "the judge's answer was deleted before it was read")


async def test_a_judge_of_what_was_erased_meanwhile_is_cancelled(
    evaluation: Evaluation, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    await evaluation.log(owner)
    await evaluation.sampler.step()
    insert = evaluation.queue.store.insert

    async def insert_after_erasure(new: NewJob, idempotency: Idempotency | None) -> tuple[Job, bool]:
        async with evaluation.database.begin() as connection:
            await connection.execute(text("DELETE FROM judgements"))
        return await insert(new, idempotency)

    monkeypatch.setattr(evaluation.queue.store, "insert", insert_after_erasure)
    await evaluation.judges.step()
    (new,) = evaluation.queue.submitted
    ((job_id, project_id),) = evaluation.queue.cancelled
    assert project_id == new.owner.project_id
    async with evaluation.database.connect() as connection:
        assert await connection.scalar(text("SELECT id FROM jobs")) == job_id


async def test_a_process_that_ends_between_two_commits_submits_no_second_job(
    evaluation: Evaluation, owner: Owner
) -> None:
    await evaluation.log(owner)
    await evaluation.sampler.step()
    await evaluation.judges.step()
    (row,) = await evaluation.judgements()
    async with evaluation.database.begin() as connection:  # as if it had ended before it wrote the id down
        await connection.execute(text("UPDATE judgements SET judge_job_id = NULL, due_at = now()"))
    await evaluation.judges.step()
    (again,) = await evaluation.judgements()
    assert again.judge_job_id == row.judge_job_id


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [(BudgetExceeded("used up", retry_after_s=3600), "budget"), (QuotaExceeded("too many"), "quota")],
)
async def test_a_used_up_budget_pauses_sampling_and_is_counted(
    evaluation: Evaluation, owner: Owner, refusal: Exception, reason: str
) -> None:
    evaluation.queue.refusal = refusal
    for _ in range(2):
        await evaluation.log(owner)
    await evaluation.sampler.step()
    await evaluation.judges.step()
    assert await evaluation.judgements() == []
    assert evaluation.counted("sampling_skipped", reason) == 2
    evaluation.queue.refusal = None
    await evaluation.move_watermark(45)
    await evaluation.log(owner, ended_s_ago=40)
    await evaluation.sampler.step()
    await evaluation.judges.step()
    assert (await evaluation.judgements(), evaluation.counted("sampling_skipped", reason)) == ([], 3)
    (state,) = await evaluation.service.rubrics()
    assert state.run is not None
    assert state.run.options["paused"]["reason"] == reason
    async with evaluation.database.begin() as connection:
        await connection.execute(
            text("UPDATE eval_runs SET options = jsonb_set(options, '{paused,until}', to_jsonb(now()))")
        )
    await evaluation.move_watermark(30)
    await evaluation.log(owner, ended_s_ago=20)
    await evaluation.sampler.step()
    await evaluation.judges.step()
    assert len(await evaluation.judgements()) == 1, "the answers of the pause are not judged afterwards"
    assert len(evaluation.queue.submitted) == 1


async def test_answers_that_cannot_be_judged_are_counted(evaluation: Evaluation, owner: Owner) -> None:
    lost = await evaluation.log(owner)
    evaluation.bodies[lost] = Missing(MissingReason.LOST)
    damaged = await evaluation.log(owner)
    evaluation.bodies[damaged] = body_of(damaged, messages=[{"role": "user", "content": [{"type": "[EMAIL]"}]}])
    pending = await evaluation.log(owner)
    evaluation.bodies[pending] = Missing(MissingReason.PENDING)
    await evaluation.sampler.step()
    await evaluation.judges.step()
    assert evaluation.counted("sampling_skipped", "body") == 2
    assert [row.item for row in await evaluation.judgements()] == [pending], "it is tried again"
    evaluation.bodies[pending] = body_of(pending)
    evaluation.queue.refusal = NotFound("no such model")
    await evaluation.collect()
    assert (await evaluation.judgements(), evaluation.counted("sampling_skipped", "judge")) == ([], 1)


async def test_a_judge_that_is_too_slow_skips_answers(
    evaluation: Evaluation, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_PENDING > 2
    monkeypatch.setattr("api.evals.sampling.MAX_PENDING", 2)
    for _ in range(5):
        await evaluation.log(owner)
    await evaluation.sampler.step()
    assert len(await evaluation.judgements()) == 2
    assert evaluation.counted("sampling_skipped", "backlog") == 3


async def test_a_changed_rubric_begins_another_run(evaluation: Evaluation, workers: Workers, owner: Owner) -> None:
    await evaluation.log(owner)
    await evaluation.sampler.step()
    await evaluation.judges.step()
    changed = HELPFUL.model_copy(update={"scale": Scale.parse("yes/no")})
    evaluation.book.replace({"helpful": changed})
    await evaluation.sampler.step()
    (row,) = await evaluation.judgements()
    await end_judge(workers, row.judge_job_id, {"score": 5})
    await evaluation.collect()
    (row,) = await evaluation.judgements()
    assert (row.state, row.reason) == ("failed", "its rubric was removed, or changed")
    (state,) = await evaluation.service.rubrics()
    assert state.run is not None
    assert (state.run.id, state.run.counts) == (live_run_id(changed), {})
    page = await evaluation.service.page(limit=10, after=None, rubric="helpful")
    assert [run.ended_at is None for run in page.items] == [True, False]
    evaluation.book.replace({})
    await evaluation.sampler.step()
    page = await evaluation.service.page(limit=10, after=None, rubric=None)
    assert all(run.ended_at is not None for run in page.items)


async def test_a_run_that_another_process_has_ended_continues(evaluation: Evaluation, owner: Owner) -> None:
    """As while a new version of the rubrics is rolled out: otherwise nothing would be sampled in this time."""
    job = await evaluation.log(owner)
    await evaluation.samples.end_others([])
    await evaluation.sampler.step()
    assert [row.item for row in await evaluation.judgements()] == [job]
    await evaluation.log(owner)
    await evaluation.move_watermark(3600)
    async with evaluation.database.begin() as connection:
        await connection.execute(text("UPDATE eval_runs SET ended_at = now() - interval '2 minutes'"))
    await evaluation.sampler.step()
    assert [row.item for row in await evaluation.judgements()] == [job], "sampling was off"


async def test_what_judges_wrote_about_old_answers_is_deleted(
    evaluation: Evaluation, workers: Workers, owner: Owner
) -> None:
    await evaluation.log(owner)
    await evaluation.sampler.step()
    await evaluation.judges.step()
    (row,) = await evaluation.judgements()
    await end_judge(workers, row.judge_job_id, {"reason": "It quotes the answer.", "score": 2})
    await evaluation.collect()
    async with evaluation.database.begin() as connection:
        await connection.execute(text("UPDATE judgements SET answered_at = now() - interval '31 days'"))
    evaluation.sampler._forgot_at = float("-inf")
    await evaluation.sampler.step()
    (row,) = await evaluation.judgements()
    assert (row.score, row.reason) == (Decimal(2), None)
