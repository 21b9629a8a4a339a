"""No interleaving of submits, lines of batches, ends, cancellations, answers of the cache and followers makes the books
of a budget wrong.

Hypothesis generates the interleavings: after each step, what is reserved is that of open jobs, what is spent is what
the ledger has charged, and both together are within the limit.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test
from sqlalchemy import text

from api.batches.batch import Position
from api.batches.store import BatchJob, BatchStore, NoRoom
from shared.domain.answer_options import CacheControl, RequestOptions
from shared.domain.errors import BudgetExceeded
from shared.domain.job import Failure, Job, JobStatus
from shared.domain.new_job import Idempotency, NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.postgres.budget_store import Budget
from shared.postgres.budget_windows import BudgetWindowStore
from shared.postgres.claim_store import ClaimStore
from shared.postgres.engine import connect
from shared.postgres.job_store import JobStore
from shared.postgres.recovery_store import RecoveryStore
from tests.conftest import Servers
from tests.integration.api.cache.test_cached_answers import new_job
from tests.integration.shared.postgres.test_budgets import new, result
from tests.support.budgets import add_budget, check_books, reservation, reservations
from tests.support.database import make_owner
from tests.support.examples import LONG, example_count
from tests.support.interleavings import Interleavings
from tests.support.ledger import set_price

SETTINGS = settings(example_count(6, long=500), stateful_step_count=25, suppress_health_check=[HealthCheck.too_slow])
# What a job reserves, in dollars; one of 20 output tokens is charged 2 cents.
an_amount = st.sampled_from(["0.1", "0.3", "0.7", "2"])
a_job = st.integers(0, 5)
BATCH = """
    INSERT INTO batches (id, project_id, key_id, endpoint, input_file_id, completion_window, status, expires_at)
    VALUES (:id, :project, :key, '/v1/completions', 'file', '24h', 'in_progress', now() + interval '1 day')
"""
KEYS = [bytes([number]) * 32 for number in range(2)]
_projects = iter(range(1_000_000))


class Books(Interleavings):
    """Rules that Hypothesis runs in any order, each on a project with a budget of a dollar a day."""

    budget: Budget
    owner: Owner

    def __init__(self) -> None:
        super().__init__()
        self.database = connect(self.database_url)
        self.store = JobStore(self.database)
        self.recovery = RecoveryStore(self.database)
        self.batches = BatchStore(self.database)
        self.worker = ClaimStore(self.database, "w")
        self.keys = 0
        self._do(self._open())

    async def _open(self) -> None:
        async with self.database.connect() as connection:  # an earlier example's
            await connection.execute(text("TRUNCATE jobs, cached_answers, budgets, usage_events, prices CASCADE"))
        await set_price(self.database, output_text=1000)
        self.owner = await make_owner(self.database, f"p{next(_projects)}")
        self.budget = await add_budget(self.database, self.owner, 1)
        self.batch = f"batch_{self.owner.project_id}"
        async with self.database.begin() as connection:
            values = {"id": self.batch, "project": self.owner.project_id, "key": self.owner.key_id}
            await connection.execute(text(BATCH), values)

    async def _close(self) -> None:
        await self.database.dispose()

    async def _submit(self, insert: Callable[[NewJob], Any], wanted: NewJob, amount: str) -> None:
        wanted = replace(wanted, reservations=(await reservation(self.database, self.budget, amount),))
        with suppress(BudgetExceeded):
            await insert(wanted)

    async def _promote(self, amounts: list[str]) -> None:
        batch = await self.batches.get(self.batch, self.owner.project_id)
        assert batch is not None
        lines = [
            BatchJob(
                batch.next.line + place,
                "m",
                GenerateRequest(prompt="x"),
                {},
                reservations=(await reservation(self.database, self.budget, amount),),
            )
            for place, amount in enumerate(amounts)
        ]
        end = batch.next.line + len(lines)
        submitted = await self.batches.submit(batch, lines, len(lines), Position(end))
        if isinstance(submitted, NoRoom) and submitted.line > batch.next.line:
            end = submitted.line
            before = [line for line in lines if line.line < end]
            submitted = await self.batches.submit(batch, before, len(before), Position(end))
            assert not isinstance(submitted, NoRoom), "there is room for the lines before it"
        assert submitted is not None

    async def _open_job(self, number: int) -> Job | None:
        query = text("SELECT id FROM jobs WHERE finished_at IS NULL ORDER BY id")
        async with self.database.connect() as connection:
            ids = list((await connection.execute(query)).scalars())
        return await self.store.get(ids[number % len(ids)]) if ids else None

    async def _finish(self, number: int, status: JobStatus, output_tokens: int) -> None:
        job = await self._open_job(number)
        if job is None or job.follows is not None or await self.worker.claim(job.id) is None:
            return
        failure = Failure("engine_error", "x") if status is JobStatus.FAILED else None
        ending = result(status, output_tokens, error=failure, leads=True, cacheable=status is JobStatus.COMPLETED)
        if status is not JobStatus.COMPLETED:
            (entry,) = ending.entries
            ending = replace(ending, entries=(replace(entry, charged=type(entry.counts)()),))
        assert await self.worker.finish(job.id, job.attempt + 1, ending)

    async def _cancel(self, number: int) -> None:
        job = await self._open_job(number)
        if job is not None:
            ending = result(JobStatus.CANCELLED, entries=(), attempts=(), leads=True, error=Failure("cancelled", "x"))
            await self.recovery.end_queued(job.id, job.attempt, ending, follows=job.follows)

    @rule(amount=an_amount)
    def submit(self, amount: str) -> None:
        self._do(self._submit(self.store.insert, new(self.owner), amount))

    @rule(amount=an_amount, again=st.booleans())
    def submit_idempotently(self, amount: str, again: bool) -> None:
        self.keys += not again
        key = Idempotency(f"k{self.keys}", "0" * 64)
        self._do(self._submit(lambda wanted: self.store.insert(wanted, key), new(self.owner), amount))

    @rule(amounts=st.lists(an_amount, min_size=1, max_size=3))
    def promote_lines_of_a_batch(self, amounts: list[str]) -> None:
        self._do(self._promote(amounts))

    @rule(amount=an_amount, key=st.sampled_from(KEYS), anew=st.booleans())
    def coalesce(self, amount: str, key: bytes, anew: bool) -> None:
        options = RequestOptions(cache_control=CacheControl(no_cache=anew))
        self._do(self._submit(self.store.coalesce, new_job(self.owner, cache_key=key, options=options), amount))

    @rule(amount=an_amount, key=st.sampled_from(KEYS))
    def answer(self, amount: str, key: bytes) -> None:
        self._do(self._submit(self.store.answer, new_job(self.owner, cache_key=key), "0.1"))

    @rule(number=a_job, status=st.sampled_from([JobStatus.COMPLETED, JobStatus.FAILED]), tokens=st.integers(0, 20))
    def finish(self, number: int, status: JobStatus, tokens: int) -> None:
        self._do(self._finish(number, status, tokens))

    @rule(number=a_job)
    def cancel(self, number: int) -> None:
        self._do(self._cancel(number))

    @rule()
    def release_ended(self) -> None:
        assert self._do(BudgetWindowStore(self.database).release_ended()) == 0, "nothing was left"

    @invariant()
    def the_books_are_right(self) -> None:
        self._do(check_books(self.database))

    async def _finish_all(self) -> None:
        while await self._open_job(0) is not None:
            await self._cancel(0)
            await self._finish(0, JobStatus.COMPLETED, 1)
        await check_books(self.database)
        assert await reservations(self.database) == []


# A failure is made small first, which takes a while.
@pytest.mark.timeout(7200 if LONG else 300)
@pytest.mark.hypothesis
def test_no_interleaving_makes_the_books_wrong(servers: Servers, database_url: str) -> None:
    class LocalBooks(Books):
        pass

    LocalBooks.database_url = database_url
    run_state_machine_as_test(LocalBooks, settings=SETTINGS)
