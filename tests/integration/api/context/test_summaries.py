"""Summaries are written once, found again by what they replace, and extended."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from api.context.shortening import Shortening
from api.context.summaries import KIND, MAX_STAGES, Summaries
from api.context.summary_store import StoredSummary, SummaryStore
from api.context.window import ContextWindow
from api.jobs.retention import Retention
from api.jobs.retention_store import RetentionStore
from api.keys.principal import Principal
from shared.config.models.loader import Registry
from shared.config.models.simulated import SimulatedModel
from shared.domain.answer_options import ContextOptions, KeyOptions, RequestOptions, TokenLimits
from shared.domain.errors import ErrorCode, QuotaExceeded
from shared.domain.job import Choice, Failure, Job, JobStatus
from shared.domain.log_level import LogLevel
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Message, Sampling
from shared.postgres.job_store import JobStore
from shared.postgres.store import seconds
from shared.postgres.tables import JobRow, SummaryRow
from shared.redis.event_log import EventLog
from shared.telemetry.instruments import Exporter
from shared.telemetry.metrics import Metrics
from tests.support.metrics import api_metrics
from tests.support.waiting import eventually

SUMMARIZE = ContextOptions(strategy="summarize", model="cheap")


class Writer:
    """Stands in for the job service and the workers: each summary names what it was written from."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self.written: list[NewJob] = []
        self.submitting = asyncio.Event()
        self.submitted = asyncio.Event()
        self.before_submit: asyncio.Event | None = None
        self.release = asyncio.Event()
        self.release.set()
        self.error: Failure | QuotaExceeded | None = None
        self.text: str | None = None
        self.is_paused = False

    async def is_queue_paused(self, model: str) -> bool:
        return self.is_paused

    async def submit(self, principal: Principal, new: NewJob) -> tuple[Job, bool]:
        if isinstance(self.error, QuotaExceeded):
            raise self.error
        self.written.append(new)
        if self.before_submit is not None:
            self.submitting.set()
            await self.before_submit.wait()
        inserted = await self._store.insert(new)
        self.submitted.set()
        return inserted

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
                {"name": name, "engine": "simulated", "options": {"max_model_len": limit}, "context": context}
            )
            for name, limit, context in (("sim", 400, {"model": "cheap"}), ("cheap", cheap, None))
        }
        registry, metrics = Registry(models), Metrics(Exporter.API, models)
        window = ContextWindow(registry)
        self.summaries = Summaries(
            SummaryStore(database), registry, window, metrics, timeout_s=timeout_s, pause_s=pause_s
        )
        self._shortening = Shortening(registry, window, self.summaries, metrics)

    @property
    def writing(self) -> list[asyncio.Task[StoredSummary]]:
        """The summaries that are being written."""
        return [writing.task for writing in self.summaries._writing.values()]

    async def shorten(
        self,
        turns: int,
        *,
        owner: Owner | None = None,
        log_level: LogLevel | None = None,
        first: str = "",
        newest: int = 18,
        max_tokens: int | None = None,
        limits: TokenLimits | None = None,
        options: ContextOptions = SUMMARIZE,
    ) -> NewJob:
        """Shorten a conversation of turns with 40 tokens, and a question of `newest` words.

        `first`: how it begins. `limits`: those of the key.
        """
        words = " word" * 18
        messages = [Message(role="user", content=f"{first}{words}")] if first else []
        for n in range(turns):
            messages += [
                Message(role="user", content=f"q{n}{words}"),
                Message(role="assistant", content=f"m{n}{words}"),
            ]
        messages.append(Message(role="user", content="now" + " word" * newest))
        new = NewJob(
            owner or self.owner,
            "sim",
            4,
            GenerateRequest(messages=messages, sampling=Sampling(max_tokens=max_tokens)),
            options=RequestOptions(context=options),
            log_level=log_level,
        )
        principal = replace(Principal.of(new.owner), options=KeyOptions(token_limits=limits))
        return await self._shortening.shorten(principal, new, self.writer)


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
    names = "q0 m0 q1 m1 q2 m2 q3 m3 q4 m4 q5 m5"
    text = rf"\[.* replaced by summary (\w+), .*:\]\n{names}\n\[End of summary \1\.\]\n\nq6 word"
    assert re.match(text, first_text(new))
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


async def test_a_paused_model_is_not_waited_for(setup: Setup, writer: Writer) -> None:
    """What it has written before is used. Once its queue is resumed, it writes again."""
    await setup.shorten(9, first="a")
    writer.is_paused = True
    known, unknown = [await setup.shorten(9, first=first) for first in ("a", "b")]
    assert known.decisions.context is not None
    assert known.decisions.context.strategy == "summarize"
    assert unknown.decisions.context is not None
    assert "the queue of the model `cheap` is paused" in (unknown.decisions.context.note or "")
    assert len(writer.written) == 1
    writer.is_paused = False
    await setup.shorten(9, first="b")
    assert len(writer.written) == 2


async def test_a_growing_conversation_uses_its_summary_and_then_extends_it(setup: Setup, writer: Writer) -> None:
    beginnings = [first_text(await setup.shorten(turns)) for turns in range(9, 18)]
    assert len(set(beginnings)) == len(writer.written) == 2
    assert [len(seen.split()) for seen in writer.seen()] == sorted(len(seen.split()) for seen in writer.seen())
    assert writer.seen()[0].startswith("q0 m0 ")
    second = (writer.written[1].request.messages or [])[0].text
    assert re.search(r"<summary-(\w+)>\nq0 m0 .*\n</summary-\1>", second)
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


async def test_a_stored_summary_that_is_too_long_to_be_extended_is_written_anew(
    database: AsyncEngine, owner: Owner, writer: Writer
) -> None:
    setup = Setup(database, owner, writer, cheap=550, timeout_s=20)
    writer.text = "q0 " + "long " * 60
    await setup.shorten(6, first="other")
    written = len(writer.written)
    writer.text = "short"
    decision = (await setup.shorten(16, first="other", max_tokens=200)).decisions.context
    assert decision is not None
    assert decision.strategy == "summarize"
    assert "long long" not in (writer.written[written].request.messages or [])[0].text
    assert writer.seen()[written].startswith("q0 m0")


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


@pytest.mark.parametrize(("written", "note"), [("", "returned no text"), ("long " * 500, "is too long")])
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


async def test_no_summary_is_kept_of_a_request_of_which_nothing_is_kept(
    setup: Setup, writer: Writer, database: AsyncEngine
) -> None:
    decision = (await setup.shorten(9, log_level=LogLevel.NONE)).decisions.context
    assert decision is not None
    assert "nothing of the request may be stored" in (decision.note or "")
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


async def test_a_first_summary_of_a_long_conversation_needs_few_jobs(setup: Setup, writer: Writer) -> None:
    new = await setup.shorten(60)  # 15 cuts
    assert len(writer.written) == 1
    assert writer.seen()[0].startswith("q0 m0 q1 m1")
    assert first_text(await setup.shorten(60)) == first_text(new)
    await setup.shorten(64)
    assert len(writer.written) == 2
    assert "q0 word" not in (writer.written[1].request.messages or [])[0].text
    writer.text = "short"
    each_turn = SUMMARIZE.model_copy(update={"trigger_tokens": 1})  # is cut
    new = await setup.shorten(60, first="other", options=each_turn)
    assert len(writer.written) == 3
    assert new.decisions.context is not None
    assert new.decisions.context.summarized_messages == 121


async def test_a_request_lets_a_bounded_number_of_jobs_run(database: AsyncEngine, owner: Owner, writer: Writer) -> None:
    setup = Setup(database, owner, writer, cheap=550, timeout_s=20)
    writer.text = "short"
    jobs = []
    for _ in range(6):
        before = len(writer.written)
        decision = (await setup.shorten(80)).decisions.context
        jobs.append(len(writer.written) - before)
        assert decision is not None
        if decision.strategy == "summarize":
            break
        assert "later requests continue" in (decision.note or "")
    assert decision is not None
    assert decision.strategy == "summarize"
    assert jobs[:-1] == [MAX_STAGES] * (len(jobs) - 1)
    assert 0 < jobs[-1] <= MAX_STAGES
    names = [name for seen in writer.seen() for name in seen.split() if re.fullmatch(r"q\d+", name)]
    assert names == [f"q{number}" for number in range(len(names))], "nothing was summarized twice"


async def test_another_room_extends_the_same_summary(setup: Setup, writer: Writer) -> None:
    writer.text = "q0 to m5"
    await setup.shorten(9)
    decision = (await setup.shorten(9, max_tokens=100)).decisions.context
    assert decision is not None
    assert decision.strategy == "summarize"
    assert len(writer.written) == 2
    second = (writer.written[1].request.messages or [])[0].text
    assert "q0 to m5" in second
    assert "q5 word" not in second
    assert "q6 word" in second


async def test_a_summary_takes_no_room_that_the_request_needs(setup: Setup, writer: Writer) -> None:
    cases: list[tuple[int, TokenLimits | None, int | None]] = [
        (365, None, None),
        (396, None, None),
        (150, TokenLimits(max_input=170), None),
        (250, None, 140),
    ]
    for newest, limits, max_tokens in cases:
        decision = (await setup.shorten(9, newest=newest, limits=limits, max_tokens=max_tokens)).decisions.context
        assert decision is not None
        assert (decision.strategy, decision.dropped_messages) == ("sliding_window", 18)
        assert "there is no room for one" in (decision.note or "")
    assert writer.written == []


async def test_a_long_summary_is_not_used_if_it_does_not_fit(setup: Setup, writer: Writer) -> None:
    writer.text = "long " * 80
    decision = (await setup.shorten(9, newest=330)).decisions.context
    assert decision is not None
    assert decision.strategy == "sliding_window"
    assert "is too long" in (decision.note or "")
    assert len(writer.written) == 1


async def test_a_summary_has_the_limits_of_the_key(setup: Setup, writer: Writer) -> None:
    for limits in (TokenLimits(max_input=330), TokenLimits(max_output=8)):
        decision = (await setup.shorten(15, limits=limits)).decisions.context
        assert decision is not None
        assert decision.strategy == "sliding_window"
        assert "limit of" in (decision.note or "")
    assert writer.written == []
    decision = (await setup.shorten(15, limits=TokenLimits(max_input=440, max_output=50))).decisions.context
    assert decision is not None
    assert decision.strategy == "summarize"
    assert len(writer.written) == 6
    for new in writer.written:
        assert len((new.request.messages or [])[0].text.split()) < 440
        assert new.request.sampling.max_tokens == 50


async def test_a_slow_summary_pauses_only_its_conversation(database: AsyncEngine, owner: Owner, writer: Writer) -> None:
    setup = Setup(database, owner, writer, cheap=8192, timeout_s=0.05, pause_s=3600)
    writer.release.clear()

    async def note(turns: int) -> str:
        decision = (await setup.shorten(turns)).decisions.context
        assert decision is not None
        return decision.note or ""

    assert "not written within" in await note(9)
    assert "not written within" in await note(9), "it waits for the job that is running"
    assert "an earlier request got none either" in await note(15)
    await writer.submitted.wait()
    assert len(writer.written) == 1
    writer.submitted.clear()
    writer.release.set()
    await eventually(lambda: stored(database), "the summary is stored")
    assert "q0 m0" in first_text(await setup.shorten(9))
    await setup.shorten(15)
    await writer.submitted.wait()  # the pause has ended


async def test_only_a_model_that_fails_twice_is_paused_for_other_conversations(
    database: AsyncEngine, owner: Owner, writer: Writer
) -> None:
    setup = Setup(database, owner, writer, cheap=8192, timeout_s=20, pause_s=3600)

    async def jobs(first: str, **arguments: Any) -> int:
        before = len(writer.written)
        await setup.shorten(9, first=first, **arguments)
        return len(writer.written) - before

    writer.error = Failure(ErrorCode.INVALID_REQUEST, "refused")
    assert [await jobs(first) for first in ("a", "b", "c", "a")] == [1, 1, 1, 0]
    writer.error = Failure(ErrorCode.ENGINE_ERROR, "broken")
    assert [await jobs(first) for first in ("d", "d", "e", "f")] == [1, 0, 1, 0]
    async with database.connect() as connection:
        project = await connection.scalar(text("INSERT INTO projects (name) VALUES ('other') RETURNING id"))
    assert await jobs("f", owner=replace(owner, project_id=project)) == 1


async def end_all(database: AsyncEngine) -> None:
    async with database.connect() as connection:
        values = {"status": "completed", "finished_at": func.now(), "output": [{"text": "x"}]}
        await connection.execute(update(JobRow).where(JobRow.finished_at.is_(None)).values(**values))


async def contents(database: AsyncEngine) -> dict[str, int]:
    """How many jobs still have their input, by kind."""
    query = (
        "SELECT coalesce(kind, 'request') AS kind, count(*) AS jobs FROM jobs WHERE request::text <> '{}' GROUP BY 1"
    )
    async with database.connect() as connection:
        return {row.kind: row.jobs for row in await connection.execute(text(query))}


async def test_all_that_was_derived_from_a_job_is_deleted_with_it(
    database: AsyncEngine, owner: Owner, writer: Writer, store: JobStore
) -> None:
    setup = Setup(database, owner, writer, cheap=550, timeout_s=20)
    job, _ = await store.insert(await setup.shorten(30))
    stages = len(writer.written)
    other, _ = await store.insert(await setup.shorten(9, first="other"))
    others = len(writer.written) - stages
    assert stages > others > 1
    await end_all(database)
    assert await stored(database) == stages + others
    deleted = await store.delete(job.id, owner.project_id)
    assert len(deleted) == 1 + stages
    assert await stored(database) == others
    assert await contents(database) == {"request": 1, "summary": others}
    assert len(await store.delete(other.id, owner.project_id)) == 1 + others
    assert (await stored(database), await contents(database)) == (0, {})


async def test_a_late_or_failed_summary_is_deleted_with_its_job(
    database: AsyncEngine, owner: Owner, writer: Writer, store: JobStore
) -> None:
    setup = Setup(database, owner, writer, cheap=8192, timeout_s=0.05)
    writer.release.clear()
    late, _ = await store.insert(await setup.shorten(9))
    writer.release.set()
    await eventually(lambda: stored(database), "the summary is stored")
    writer.error = Failure(ErrorCode.ENGINE_ERROR, "broken")
    failed, _ = await store.insert(await setup.shorten(9, first="other"))
    await end_all(database)
    for job in (late, failed):
        assert len(await store.delete(job.id, owner.project_id)) == 2
    assert (await stored(database), await contents(database)) == (0, {})


@pytest.mark.parametrize("error", [None, Failure(ErrorCode.ENGINE_ERROR, "broken")])
async def test_a_summary_that_is_written_when_its_job_is_deleted_is_not_kept(
    database: AsyncEngine, owner: Owner, writer: Writer, store: JobStore, error: Failure | None
) -> None:
    setup = Setup(database, owner, writer, cheap=8192, timeout_s=0.05)
    writer.release.clear()
    writer.error = error
    job, _ = await store.insert(await setup.shorten(9))
    async with database.connect() as connection:
        ended = update(JobRow).where(JobRow.id == job.id).values(status="completed", finished_at=func.now())
        await connection.execute(ended)
    assert await store.delete(job.id, owner.project_id) == [job.id]
    assert await contents(database) == {"summary": 1}
    await end_all(database)
    (writing,) = setup.writing
    writer.release.set()
    await asyncio.wait([writing])
    assert (await stored(database), await contents(database)) == (0, {})


async def test_a_stage_that_fails_after_its_conversation_was_deleted_is_not_kept(
    database: AsyncEngine, owner: Owner, writer: Writer, store: JobStore
) -> None:
    """Also one that was submitted after the deletion, and so was not there to be marked."""
    setup = Setup(database, owner, writer, cheap=550, timeout_s=20)
    job, _ = await store.insert(await setup.shorten(30))
    first_stages = len(writer.written)
    await end_all(database)
    writer.release.clear()
    writer.submitted.clear()
    writer.error = Failure(ErrorCode.ENGINE_ERROR, "broken")
    before_submit = writer.before_submit = asyncio.Event()
    extending = asyncio.create_task(setup.shorten(60))
    await writer.submitting.wait()
    assert len(await store.delete(job.id, owner.project_id)) == 1 + first_stages
    before_submit.set()
    await writer.submitted.wait()
    await end_all(database)
    writer.release.set()
    await extending
    assert (await stored(database), await contents(database)) == (0, {})


async def test_a_stored_summary_of_another_process_is_used(
    database: AsyncEngine, owner: Owner, store: JobStore
) -> None:
    """Two processes write the same summary at the same time."""
    writers = [Writer(store), Writer(store)]
    setups = [Setup(database, owner, writer, cheap=8192, timeout_s=20) for writer in writers]
    for writer in writers:
        writer.release.clear()
    waiting = [asyncio.create_task(setup.shorten(9)) for setup in setups]
    for writer in writers:
        await writer.submitted.wait()
    await end_all(database)
    decisions = []
    for writer, request in zip(writers, waiting, strict=True):
        writer.release.set()
        decisions.append((await request).decisions.context)
    assert decisions[0] is not None
    assert decisions[0].summary_job is not None
    assert decisions[0] == decisions[1]
    assert (await stored(database), await contents(database)) == (1, {"summary": 1})


async def test_summaries_are_kept_as_long_as_they_are_used(
    setup: Setup, writer: Writer, database: AsyncEngine, logs: EventLog
) -> None:
    retention = Retention(RetentionStore(database), logs, api_metrics(), retention_s=3 * 3600)

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
