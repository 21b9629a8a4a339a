"""Summaries are written once, found again by what they replace, and extended."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from api.context.shortening import Shortening
from api.context.summaries import KIND, Summaries
from api.context.summary_store import SummaryStore
from api.context.window import ContextWindow
from api.jobs.retention import Retention
from api.jobs.retention_store import RetentionStore
from api.keys.principal import Principal
from shared.config.models.loader import Registry
from shared.config.models.simulated import SimulatedModel
from shared.domain.answer_options import ContextOptions, RequestOptions
from shared.domain.errors import ErrorCode, QuotaExceeded
from shared.domain.job import Choice, Failure, Job, JobStatus
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Message
from shared.postgres.job_store import JobStore, NewJob
from shared.postgres.store import seconds
from shared.postgres.tables import JobRow, SummaryRow
from shared.telemetry.instruments import Exporter
from shared.telemetry.metrics import Metrics
from tests.support.waiting import eventually

SUMMARIZE = ContextOptions(strategy="summarize", model="cheap")


class Writer:
    """Stands in for the job service and the workers: each summary names what it was written from."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self.written: list[NewJob] = []
        self.submitted = asyncio.Event()
        self.release = asyncio.Event()
        self.release.set()
        self.error: Failure | QuotaExceeded | None = None
        self.text: str | None = None

    async def submit(self, principal: Principal, new: NewJob) -> tuple[Job, bool]:
        if isinstance(self.error, QuotaExceeded):
            raise self.error
        self.written.append(new)
        self.submitted.set()
        return await self._store.insert(new)

    async def ended(self, job: Job) -> Job:
        await self.release.wait()
        if isinstance(self.error, Failure):
            return replace(job, status=JobStatus.FAILED, error=self.error)
        names = re.findall(r"\b[mq]\d+\b", (job.request.messages or [])[0].text)
        written = self.text if self.text is not None else " ".join(dict.fromkeys(names))
        return replace(job, status=JobStatus.COMPLETED, output=(Choice(0, f" {written}\n", "stop"),))

    def seen(self) -> list[str]:
        """The names of the messages that each job was given."""
        texts = [(new.request.messages or [])[0].text for new in self.written]
        return [" ".join(dict.fromkeys(re.findall(r"\b[mq]\d+\b", text))) for text in texts]


class Setup:
    """A step of admission, with models of 400 and `cheap` tokens of context."""

    def __init__(
        self, database: AsyncEngine, owner: Owner, writer: Writer, *, cheap: int, timeout_s: float, pause_s: float = 0
    ) -> None:
        self.owner = owner
        self.writer = writer
        models = {
            name: SimulatedModel.model_validate(
                {"name": name, "engine": "simulated", "options": {"max_model_len": limit}}
            )
            for name, limit in (("sim", 400), ("cheap", cheap))
        }
        registry, metrics = Registry(models), Metrics(Exporter.API, models)
        window = ContextWindow(registry)
        self.summaries = Summaries(
            SummaryStore(database), registry, window, metrics, timeout_s=timeout_s, pause_s=pause_s
        )
        self._shortening = Shortening(registry, window, self.summaries, metrics)

    async def shorten(self, turns: int, *, owner: Owner | None = None, store: bool | None = None) -> NewJob:
        """Shorten a conversation of turns with 40 tokens, and a question."""
        words = " word" * 18
        messages = []
        for n in range(turns):
            messages += [
                Message(role="user", content=f"q{n}{words}"),
                Message(role="assistant", content=f"m{n}{words}"),
            ]
        messages.append(Message(role="user", content="now" + words))
        new = NewJob(
            owner or self.owner,
            "sim",
            4,
            GenerateRequest(messages=messages),
            options=RequestOptions(context=SUMMARIZE, store=store),
        )
        return await self._shortening.shorten(Principal.of(new.owner), new, self.writer)


@pytest.fixture
def writer(store: JobStore) -> Writer:
    return Writer(store)


@pytest.fixture
async def setup(database: AsyncEngine, owner: Owner, writer: Writer) -> AsyncIterator[Setup]:
    made = Setup(database, owner, writer, cheap=8192, timeout_s=20)
    yield made
    await made.summaries.close()


def first_text(new: NewJob) -> str:
    return (new.request.messages or [])[0].text


async def stored(database: AsyncEngine) -> int:
    async with database.connect() as connection:
        return int((await connection.execute(select(func.count()).select_from(SummaryRow))).scalar_one())


async def test_a_summary_replaces_what_was_dropped(setup: Setup, writer: Writer) -> None:
    new = await setup.shorten(9)
    assert "summary:]\nq0 m0 q1 m1 q2 m2 q3 m3 q4 m4 q5 m5\n[End of the summary.]\n\nq6 word" in first_text(new)
    assert len(new.request.messages or ()) == 7
    (job,) = writer.written
    assert (job.kind, job.model, job.priority, job.owner) == (KIND, "cheap", 4, setup.owner)
    decision = new.decisions.context
    assert decision is not None
    assert (decision.strategy, decision.summarized_messages, decision.dropped_messages) == ("summarize", 12, 0)
    assert decision.tokens_before == 381
    assert decision.tokens_after is not None
    assert decision.tokens_after < 200
    assert decision.note is None


async def test_a_growing_conversation_uses_its_summary_and_then_extends_it(setup: Setup, writer: Writer) -> None:
    beginnings = [first_text(await setup.shorten(turns)) for turns in range(9, 18)]
    assert len(set(beginnings)) == len(writer.written) == 2
    assert [len(seen.split()) for seen in writer.seen()] == sorted(len(seen.split()) for seen in writer.seen())
    assert writer.seen()[0].startswith("q0 m0 ")
    second = (writer.written[1].request.messages or [])[0].text
    assert "<summary>\nq0 m0" in second
    assert "q0 word" not in second  # only its summary
    assert writer.written[1].decisions.context is not None


async def test_another_project_does_not_find_it(setup: Setup, writer: Writer, database: AsyncEngine) -> None:
    await setup.shorten(9)
    async with database.connect() as connection:
        project = await connection.scalar(text("INSERT INTO projects (name) VALUES ('other') RETURNING id"))
    await setup.shorten(9, owner=replace(setup.owner, project_id=project))
    assert len(writer.written) == 2


async def test_concurrent_requests_share_a_summary(setup: Setup, writer: Writer) -> None:
    writer.release.clear()
    requests = [asyncio.create_task(setup.shorten(9)) for _ in range(5)]
    await writer.submitted.wait()
    writer.release.set()
    assert len({first_text(new) for new in await asyncio.gather(*requests)}) == 1
    assert len(writer.written) == 1


async def test_what_is_too_long_for_the_model_is_summarized_in_stages(
    database: AsyncEngine, owner: Owner, writer: Writer
) -> None:
    setup = Setup(database, owner, writer, cheap=550, timeout_s=20)
    new = await setup.shorten(30)
    assert len(writer.written) > 3
    assert "q0 m0" in first_text(new)
    written = len(writer.written)
    assert first_text(await setup.shorten(30)) == first_text(new)
    assert len(writer.written) == written
    assert await stored(database) == written


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (Failure(ErrorCode.ENGINE_ERROR, "broken"), "failed: broken"),
        (QuotaExceeded("too many jobs"), "was rejected: too many jobs"),
    ],
)
async def test_without_a_summary_messages_are_dropped(
    setup: Setup, writer: Writer, error: Failure | QuotaExceeded, note: str
) -> None:
    writer.error = error
    new = await setup.shorten(9)
    assert first_text(new).startswith("q6 word")
    decision = new.decisions.context
    assert decision is not None
    assert (decision.strategy, decision.dropped_messages, decision.summarized_messages) == ("sliding_window", 12, 0)
    assert decision.note is not None
    assert note in decision.note
    writer.error = None
    assert "q0 m0" in first_text(await setup.shorten(9))  # tried again


async def test_after_a_failure_requests_do_not_wait_for_the_model(
    database: AsyncEngine, owner: Owner, writer: Writer
) -> None:
    setup = Setup(database, owner, writer, cheap=8192, timeout_s=20, pause_s=3600)
    await setup.shorten(9)
    writer.error = Failure(ErrorCode.ENGINE_ERROR, "broken")
    for turns in (15, 16):
        decision = (await setup.shorten(turns)).decisions.context
        assert decision is not None
        assert "failed: broken" in (decision.note or "")
    assert len(writer.written) == 2
    assert "q0 m0" in first_text(await setup.shorten(9))  # an existing one is used


@pytest.mark.parametrize(("written", "note"), [("", "wrote nothing"), ("long " * 500, "is too long")])
async def test_a_useless_summary_is_not_used(setup: Setup, writer: Writer, written: str, note: str) -> None:
    writer.text = written
    decision = (await setup.shorten(9)).decisions.context
    assert decision is not None
    assert note in (decision.note or "")


async def test_a_model_that_is_too_small(database: AsyncEngine, owner: Owner, writer: Writer) -> None:
    setup = Setup(database, owner, writer, cheap=400, timeout_s=20)
    decision = (await setup.shorten(9)).decisions.context
    assert decision is not None
    assert "400 tokens, is too small" in (decision.note or "")
    assert not writer.written


async def test_with_store_false_nothing_is_kept(setup: Setup, writer: Writer, database: AsyncEngine) -> None:
    decision = (await setup.shorten(9, store=False)).decisions.context
    assert decision is not None
    assert "`store` false" in (decision.note or "")
    assert (writer.written, await stored(database)) == ([], 0)


async def test_a_summary_that_is_late_serves_later_requests(
    database: AsyncEngine, owner: Owner, writer: Writer
) -> None:
    setup = Setup(database, owner, writer, cheap=8192, timeout_s=0.05)
    writer.release.clear()
    decision = (await setup.shorten(9)).decisions.context
    assert decision is not None
    assert "not written within 0.05 s" in (decision.note or "")
    writer.release.set()
    await eventually(lambda: stored(database), "the summary is stored")
    assert "q0 m0" in first_text(await setup.shorten(9))
    assert len(writer.written) == 1


async def test_a_summary_is_deleted_with_a_job_that_used_it(
    setup: Setup, store: JobStore, database: AsyncEngine
) -> None:
    new = await setup.shorten(9)
    job, _ = await store.insert(new)
    async with database.connect() as connection:
        await connection.execute(update(JobRow).values(status="completed", finished_at=func.now()))
    assert await stored(database) == 1
    assert await store.delete(job.id, setup.owner.project_id)
    assert await stored(database) == 0


async def test_summaries_are_kept_as_long_as_they_are_used(setup: Setup, writer: Writer, database: AsyncEngine) -> None:
    retention = Retention(RetentionStore(database), retention_s=3 * 3600)

    async def age(hours: int) -> None:
        async with database.connect() as connection:
            await connection.execute(
                update(SummaryRow).values({SummaryRow.used_at: func.now() - seconds(hours * 3600)})
            )

    await setup.shorten(9)
    await age(2)
    await setup.shorten(9)
    async with database.connect() as connection:
        (used,) = (await connection.execute(select(SummaryRow.used_at > func.now() - seconds(60)))).scalars()
    assert used
    await age(4)
    await retention.sweep()
    assert await stored(database) == 0
    assert len(writer.written) == 1
