"""The parts of an erasure: what goes with jobs, the request log, feedback, the ledger and its sums, and files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisUnavailable
from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.erasure.files import ERASED, FileErasure
from api.erasure.ledger_store import LedgerErasure
from api.erasure.run import DataStores, ErasureRun
from api.erasure.store import PORTION, ErasureStore
from api.files.blobs import CHUNK, LocalBlobs
from shared.domain.events import EventType, event
from shared.domain.owner import Owner
from shared.domain.response import response_id
from shared.domain.webhook_events import EventType as WebhookEventType
from shared.domain.webhook_events import event_id
from shared.postgres.quality_tables import EvalRunRow, FeedbackRow, JudgementRow, LabelRow
from shared.postgres.recovery_store import RecoveryStore
from shared.postgres.request_log_tables import ExportRow, RequestBodyRow, RequestLogRow
from shared.postgres.tables import BatchRow, FileRow, IdempotencyKeyRow, JobRow
from shared.postgres.usage_sums import UsageSums
from shared.postgres.webhook_tables import WebhookDeliveryRow
from shared.redis.event_log import Append, EventLog
from tests.support.database import make_owner
from tests.support.job_rows import add_job
from tests.support.usage_entries import NOON, entry, write

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.fixture
async def other_owner(database: AsyncEngine) -> Owner:
    """Another project with one key."""
    return await make_owner(database, "other")


@pytest.fixture
def erasure(database: AsyncEngine) -> ErasureStore:
    return ErasureStore(database)


async def rows(database: AsyncEngine, statement: Any) -> Sequence[Any]:
    async with database.connect() as connection:
        return (await connection.execute(statement)).all()


async def add(database: AsyncEngine, table: Any, *values: dict[str, Any]) -> None:
    async with database.begin() as connection:
        await connection.execute(insert(table), list(values))


def log_row(job_id: str, owner: Owner, **columns: Any) -> dict[str, Any]:
    return {
        "job_id": job_id, "ended_at": NOW, "project_id": owner.project_id, "key_id": owner.key_id, "end_user": "ann",
        "model": "m", "requested_model": "m", "status": "completed", "created_at": NOW, "level": "full", **columns,
    }  # fmt: skip


async def test_jobs_are_erased_in_portions(database: AsyncEngine, erasure: ErasureStore, owner: Owner) -> None:
    for _ in range(PORTION + 3):
        await add_job(database, owner, ended_s_ago=10, end_user="ann", request={"prompt": "x"}, output=[{"text": "y"}])
    other = await add_job(database, owner, ended_s_ago=10, end_user="bob", request={"prompt": "x"})
    sizes = []
    while found := await erasure.jobs(owner.project_id, "ann", ()):
        portion = await erasure.erase_jobs(owner.project_id, [job_id for job_id, _ in found])
        sizes.append(portion.counts["jobs"])
    assert sizes == [PORTION, 3]
    left = await rows(database, select(JobRow).where(JobRow.deleted_at.is_(None)))
    assert [(row.id, row.end_user) for row in left] == [(other, "bob")]
    assert not await rows(database, select(JobRow.id).where(JobRow.end_user == "ann"))


async def test_what_goes_with_a_job(database: AsyncEngine, erasure: ErasureStore, owner: Owner) -> None:
    job = await add_job(database, owner, ended_s_ago=10, end_user="ann")
    judge = await add_job(database, owner, ended_s_ago=10, kind="judge", request={"prompt": "of ann"})
    kept = await add_job(database, owner, ended_s_ago=10, end_user="bob")
    project = {"project_id": owner.project_id}
    await add(
        database,
        IdempotencyKeyRow,
        *(
            {**project, "key_id": owner.key_id, "key": name, "request_sha256": "", "job_id": name}
            for name in (job, kept)
        ),
    )
    await add(
        database,
        FeedbackRow,
        {
            **project,
            "job_id": job,
            "metric": "rating",
            "value": "up",
            "comment": "Ann says",
            "tags": ["x"],
            "source": "key",
        },
        {**project, "job_id": job, "metric": "text", "value": "Ann", "source": "key", "comment": None, "tags": []},
        {**project, "job_id": kept, "metric": "up", "value": True, "comment": "good", "source": "key", "tags": []},
    )
    run = {"id": "run_1", "kind": "live", "rubric": "r", "prompt_version": "1", "judge_model": "m"}
    await add(database, EvalRunRow, run)
    await add(
        database,
        JudgementRow,
        {"run_id": "run_1", "item": job, "model": "m", "judge_job_id": judge, "reason": "Ann"},
        {"run_id": "run_1", "item": kept, "model": "m", "judge_job_id": None, "reason": None},
    )
    await add(database, LabelRow, {"rubric": "r", "item": job, "labeller": "k", "score": 1})

    portion = await erasure.erase_jobs(owner.project_id, [job])
    assert portion.others == [judge]
    assert portion.counts == {
        "jobs": 1, "idempotency_keys": 1, "webhook_deliveries": 0, "feedback": 2, "judgements": 1, "labels": 1
    }  # fmt: skip
    feedback = await rows(database, select(FeedbackRow.job_id, FeedbackRow.comment).order_by(FeedbackRow.comment))
    assert {tuple(row) for row in feedback} == {(job, None), (kept, "good")}
    assert [row.item for row in await rows(database, select(JudgementRow.item))] == [kept]
    (of_judge,) = await rows(database, select(JobRow.request, JobRow.deleted_at).where(JobRow.id == judge))
    assert of_judge.request == {}


async def test_deliveries_to_the_urls_of_requests_are_deleted(
    database: AsyncEngine, erasure: ErasureStore, owner: Owner
) -> None:
    """A URL may name the user. Deliveries to endpoints have nothing but ids."""
    jobs = [await add_job(database, owner, ended_s_ago=10, end_user=user) for user in ("ann", "ann", "bob")]
    logged = "job_" + "f" * 32

    def delivery(event_type: WebhookEventType, object_id: str, **columns: Any) -> dict[str, Any]:
        return {
            "event_id": event_id(event_type, object_id), "project_id": owner.project_id, "type": event_type.value,
            "object_id": object_id, "url": "https://example.com/ann", "endpoint_id": None, **columns,
        }  # fmt: skip

    to_endpoint = {"url": None, "endpoint_id": "endpoint_1"}
    await add(
        database,
        WebhookDeliveryRow,
        delivery(WebhookEventType.JOB_COMPLETED, jobs[0]),
        delivery(WebhookEventType.RESPONSE_FAILED, response_id(jobs[1])),
        delivery(WebhookEventType.JOB_COMPLETED, logged),
        delivery(WebhookEventType.JOB_COMPLETED, jobs[0], **to_endpoint),
        delivery(WebhookEventType.JOB_COMPLETED, jobs[2]),
    )
    assert (await erasure.erase_jobs(owner.project_id, jobs[:2])).counts["webhook_deliveries"] == 2
    await add(database, RequestLogRow, log_row(logged, owner, body="none", batch_id=None))
    counts = await erasure.erase_log(owner.project_id, "ann", ())
    assert counts is not None
    assert counts["webhook_deliveries"] == 1
    columns = (WebhookDeliveryRow.object_id, WebhookDeliveryRow.endpoint_id)
    left = await rows(database, select(*columns).order_by(WebhookDeliveryRow.id))
    assert [tuple(row) for row in left] == [(jobs[0], "endpoint_1"), (jobs[2], None)]


async def test_events_of_budgets_lose_the_name(database: AsyncEngine, erasure: ErasureStore, owner: Owner) -> None:
    common = {"project_id": owner.project_id, "endpoint_id": "endpoint_1", "type": "budget.exceeded"}
    await add(
        database,
        WebhookDeliveryRow,
        *(
            {**common, "event_id": f"evt_{name}", "object_id": "budget_1", "data": {"end_user": name, "spend_usd": 2.5}}
            for name in ("ann", "bob")
        ),
    )
    assert (await erasure.erase_author(owner.project_id, "ann"))["webhook_deliveries"] == 1
    found = await rows(database, select(WebhookDeliveryRow.data).order_by(WebhookDeliveryRow.event_id))
    assert [row.data for row in found] == [{"end_user": None, "spend_usd": 2.5}, {"end_user": "bob", "spend_usd": 2.5}]


@pytest.mark.parametrize("by_log", [False, True])
async def test_waiting_judges_are_ended(
    database: AsyncEngine, erasure: ErasureStore, owner: Owner, by_log: bool
) -> None:
    """They wait at the lowest priority, with what the user wrote in their requests. `by_log`: the judged job itself was
    deleted after its retention."""
    job = "job_1" if by_log else await add_job(database, owner, ended_s_ago=10, end_user="ann")
    if by_log:
        await add(database, RequestLogRow, log_row(job, owner))
    judges = await make_owner(database, "judges")
    waiting = [await add_job(database, judges, status="queued", kind="judge") for _ in range(2)]
    await add(
        database, EvalRunRow, {"id": "run_1", "kind": "live", "rubric": "r", "prompt_version": "1", "judge_model": "m"}
    )
    await add(
        database,
        JudgementRow,
        {"run_id": "run_1", "model": "m", "item": job, "judge_job_id": waiting[0]},
        {"run_id": "run_1", "model": "m", "item": "job_of_bob", "judge_job_id": waiting[1]},
    )
    recovery = RecoveryStore(database)
    assert await recovery.overdue() == []
    if by_log:
        await erasure.erase_log(owner.project_id, "ann", ())
    else:
        await erasure.erase_jobs(owner.project_id, [job])
    assert [one.id for one in await recovery.overdue()] == waiting[:1]


async def test_an_open_job_is_purged_after_its_end(database: AsyncEngine, erasure: ErasureStore, owner: Owner) -> None:
    job = await add_job(database, owner, status="in_progress", end_user="ann")
    assert [one.id for one in await erasure.open_jobs(owner.project_id, "ann", "")] == [job]
    await erasure.erase_jobs(owner.project_id, [job])
    (row,) = await rows(database, select(JobRow.log_level, JobRow.end_user, JobRow.deleted_at).where(JobRow.id == job))
    assert tuple(row) == ("none", None, None)


async def test_the_request_log_keeps_rows_without_name_and_body(
    database: AsyncEngine, erasure: ErasureStore, owner: Owner
) -> None:
    body = {"ended_at": NOW, "project_id": owner.project_id, "data_key_id": 1, "body": b"x"}
    await add(
        database,
        RequestLogRow,
        log_row("job_1", owner, body="kept", batch_id=None),
        log_row("job_2", owner, body="pending", batch_id=None),
        log_row("job_3", owner, body="none", batch_id=None),
        log_row("job_4", owner, body="kept", batch_id="batch_1"),
        log_row("job_5", owner, body="kept", batch_id=None) | {"end_user": "bob"},
    )
    await add(database, RequestBodyRow, *({"job_id": f"job_{number}", **body} for number in (1, 4, 5)))
    counts = await erasure.erase_log(owner.project_id, "ann", ["batch_1"])
    assert counts is not None
    assert (counts["log_rows"], counts["log_bodies"]) == (4, 2)
    assert await erasure.erase_log(owner.project_id, "ann", ["batch_1"]) is None
    columns = (RequestLogRow.job_id, RequestLogRow.end_user, RequestLogRow.body)
    left = await rows(database, select(*columns).order_by(RequestLogRow.job_id))
    assert [tuple(row) for row in left] == [
        ("job_1", None, "erased"), ("job_2", None, "erased"), ("job_3", None, "none"), ("job_4", "ann", "erased"),
        ("job_5", "bob", "kept"),
    ]  # fmt: skip
    assert [row.job_id for row in await rows(database, select(RequestBodyRow.job_id))] == ["job_5"]


async def test_feedback_of_the_user_loses_its_author(
    database: AsyncEngine, erasure: ErasureStore, owner: Owner
) -> None:
    common = {"project_id": owner.project_id, "metric": "rating", "value": "up", "source": "key", "tags": []}
    await add(
        database,
        FeedbackRow,
        {**common, "job_id": "job_1", "author": "ann", "comment": "mine"},
        {**common, "job_id": "job_2", "author": "ann", "comment": None},
        {**common, "job_id": "job_2", "author": "", "comment": None},
        {**common, "job_id": "job_3", "author": "bob", "comment": "his"},
    )
    await erasure.erase_author(owner.project_id, "ann")
    left = await rows(database, select(FeedbackRow.job_id, FeedbackRow.author, FeedbackRow.comment))
    assert sorted(tuple(row) for row in left) == [("job_1", "", None), ("job_2", "", None), ("job_3", "bob", "his")]


async def test_the_ledger_keeps_its_amounts(database: AsyncEngine) -> None:
    later = NOON + timedelta(hours=3)
    await write(
        database,
        [
            entry(end_user="ann", engine="vllm"),
            entry(end_user="ann", ended_at=later, model="n", engine="openai"),
            entry(end_user="bob"),
            entry(engine="vllm"),
            entry(end_user="ann", project_id=7),
        ],
    )
    sums = UsageSums(database)
    await sums.add()
    await write(database, [entry(end_user="ann")])
    totals = text("SELECT sum(charge), sum(input_fresh), sum(requests) FROM usage_sums WHERE project_id = 1")
    before = await rows(database, totals)

    ledger, after, erased = LedgerErasure(database), None, 0
    while True:
        portion = await ledger.erase(1, "ann", after)
        erased += portion.entries
        after = portion.until
        if after is None:
            break
    assert erased == 3
    assert await rows(database, totals) == before
    names = text("SELECT end_user, requests FROM usage_sums WHERE project_id = 1 ORDER BY 1, 2")
    assert [tuple(row) for row in await rows(database, names)] == [("", 1), ("", 2), ("bob", 1)]
    engines = text("SELECT model, engine FROM usage_sums WHERE project_id = 1 AND end_user = '' ORDER BY 1")
    assert [tuple(row) for row in await rows(database, engines)] == [("m", "vllm"), ("n", "openai")]
    await sums.add()
    of_ledger = text("SELECT count(*) FROM usage_events WHERE project_id = 1 AND end_user = 'ann'")
    assert (await rows(database, of_ledger))[0][0] == 0
    assert [tuple(row) for row in await rows(database, names)] == [("", 1), ("", 3), ("bob", 1)]
    assert (await rows(database, text("SELECT end_user FROM usage_sums WHERE project_id = 7")))[0][0] == "ann"


async def test_exports_of_the_user_lose_the_name(
    database: AsyncEngine, erasure: ErasureStore, owner: Owner, other_owner: Owner
) -> None:
    of_ann = {"end_user": "ann", "models": ["m"]}
    await add(
        database,
        ExportRow,
        {"project_id": owner.project_id, "filters": of_ann, "level": "redacted"},
        {"project_id": None, "filters": of_ann, "level": "redacted"},
        {"project_id": owner.project_id, "filters": {"end_user": "bob"}, "level": "redacted"},
        {"project_id": owner.project_id, "filters": {"models": ["ann"]}, "level": "redacted"},
        {"project_id": other_owner.project_id, "filters": of_ann, "level": "redacted"},
    )
    await erasure.erase_author(owner.project_id, "ann")
    erased = {"end_user": "[erased]", "models": ["m"]}
    filters = [row.filters for row in await rows(database, select(ExportRow.filters).order_by(ExportRow.id))]
    assert filters == [erased, erased, {"end_user": "bob"}, {"models": ["ann"]}, of_ann]


async def test_a_call_that_redis_has_failed_can_be_repeated(
    database: AsyncEngine, erasure: ErasureStore, owner: Owner, logs: EventLog, redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    job = await add_job(database, owner, ended_s_ago=10, end_user="ann")
    await logs.append([Append(job, 1, [event(1, EventType.STARTED, {"attempt": 1, "text": "of ann"})])])

    async def unavailable(*_: str) -> None:
        raise RedisUnavailable

    unused: Any = None

    data = DataStores(erasure, LedgerErasure(database), unused, unused, logs)

    def new_run() -> ErasureRun:
        return ErasureRun(data, owner.project_id, "ann", 60.0)

    with monkeypatch.context() as patched:
        patched.setattr(logs, "delete", unavailable)
        with pytest.raises(RedisUnavailable):
            await new_run().run()
    await new_run().run()
    assert [key async for key in redis.scan_iter("hr:log:*")] == []
    assert not await rows(database, select(JobRow.id).where(JobRow.end_user == "ann"))


class RecordedFiles:
    """Files that take so long to read that the call ends after one of them."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self.run: Any = None

    async def requests_of(self, file_id: str, end_user: str) -> tuple[int, set[str]]:
        self.read.append(file_id)
        if len(self.read) % 2 == 0:
            self.run._deadline = 0.0
        return 1, set()

    async def results_of(self, file_id: str, job_ids: Sequence[str], custom_ids: set[str]) -> int:
        raise AssertionError("there are no results")


async def test_files_are_read_once_however_many_calls_an_erasure_takes(
    database: AsyncEngine, erasure: ErasureStore, owner: Owner, logs: EventLog
) -> None:
    names = [f"batch_{number}" for number in range(4)]
    for name in names:
        await add(
            database,
            FileRow,
            {"id": f"file_{name}", "project_id": owner.project_id, "key_id": owner.key_id, "purpose": "batch",
             "filename": "in.jsonl", "bytes": 1},
        )  # fmt: skip
        await add(
            database,
            BatchRow,
            {"id": name, "project_id": owner.project_id, "key_id": owner.key_id, "endpoint": "/v1/chat/completions",
             "input_file_id": f"file_{name}", "completion_window": "24h", "status": "completed", "expires_at": NOW,
             "ended_at": NOW},
        )  # fmt: skip
        for user in ("ann", "bob"):
            await add_job(database, owner, ended_s_ago=10, end_user=user, batch_id=name)
        await add(database, RequestLogRow, log_row(f"job_of_{name}", owner, body="none", batch_id=name))
    files: Any = RecordedFiles()
    unused: Any = None
    data = DataStores(erasure, LedgerErasure(database), files, unused, logs)
    calls = 0
    while True:
        run = ErasureRun(data, owner.project_id, "ann", 60.0)
        files.run = run
        await run.run()
        calls += 1
        if not run.is_late:
            break
    assert files.read == [f"file_{name}" for name in names]
    assert calls == 3
    left = await rows(database, select(JobRow.batch_id).where(JobRow.end_user == "ann"))
    assert not left
    assert not await rows(database, select(RequestLogRow.job_id).where(RequestLogRow.end_user == "ann"))
    assert len(await rows(database, select(JobRow.id).where(JobRow.deleted_at.is_(None)))) == len(names)


class TestFiles:
    @pytest.fixture
    def blobs(self, tmp_path: Path) -> LocalBlobs:
        return LocalBlobs(tmp_path)

    @staticmethod
    async def write(blobs: LocalBlobs, content: bytes) -> None:
        async with blobs.writing("file") as blob:
            await blob.write(content)

    @staticmethod
    def request(number: int, padding: int = 0, **body: Any) -> bytes:
        return json.dumps({"custom_id": f"c{number}", "body": {"prompt": "x" * padding, **body}}).encode()

    @pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
    @pytest.mark.parametrize("end", [b"", b"\n"])
    async def test_lines_of_requests_become_blank(
        self, blobs: LocalBlobs, tmp_path: Path, mark: bytes, end: bytes
    ) -> None:
        lines = [
            self.request(0, user="ann"),
            self.request(1, user="bob"),
            b"no JSON",
            self.request(2, padding=3 * CHUNK, safety_identifier="ann"),
            self.request(3, metadata={"user_id": "ann"}, user="other"),
            self.request(4),
            self.request(5, user="ann"),
        ]
        await self.write(blobs, mark + b"\n".join(lines) + end)
        files = FileErasure(blobs, max_line_bytes=10 * CHUNK)
        assert await files.requests_of("file", "ann") == (4, {"c0", "c2", "c3", "c5"})
        erased = [line if number in (1, 2, 5) else b" " * len(line) for number, line in enumerate(lines)]
        assert (tmp_path / "file").read_bytes() == mark + b"\n".join(erased) + end
        assert await files.requests_of("file", "ann") == (0, set())

    async def test_lines_of_results_say_that_they_were_erased(self, blobs: LocalBlobs, tmp_path: Path) -> None:
        results = [
            {"id": f"batch_req_{number}", "custom_id": f"c{number}", "response": {"body": "x" * 200}, "error": None}
            for number in range(4)
        ]
        content = b"".join(json.dumps(one).encode() + b"\n" for one in results) + b'{"custom_id":"c2"}\n'
        await self.write(blobs, content)
        files = FileErasure(blobs, max_line_bytes=CHUNK)
        assert await files.results_of("file", ["job_1"], {"c2"}) == 3
        changed = (tmp_path / "file").read_bytes()
        assert len(changed) == len(content)
        *lines, last = changed.splitlines()
        assert [json.loads(line) for line in lines] == [results[0], ERASED, ERASED, results[3]]
        assert last == b" " * len(b'{"custom_id":"c2"}'), "too short for the note"

    async def test_a_missing_file_is_no_error(self, blobs: LocalBlobs) -> None:
        assert await FileErasure(blobs, max_line_bytes=10).requests_of("file", "ann") == (0, set())
