"""Exports: what is in them, samples, levels, memory, and what remains of one that does not end well."""

from __future__ import annotations

import asyncio
import io
import secrets
import tracemalloc
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import orjson
import pyarrow.parquet
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.responses import Response

from api.http import parquet
from api.http.errors import IncompleteResponse
from api.keys.principal import Principal
from api.request_log.bodies import Bodies
from api.requests import export as export_module
from api.requests.export import EXPORT_HEADER, LEVEL_HEADER, ExportOptions, Exports
from api.requests.export_store import ExportStore
from api.requests.filters import RequestFilters
from api.requests.sampling import Sample, sample_number
from shared.domain.errors import InvalidRequest, Unavailable
from shared.domain.log_level import LogLevel
from shared.domain.owner import Owner
from shared.postgres.audit_store import AuditStore
from shared.telemetry.metrics import Metrics
from tests.support.logged_requests import NOON, Logged, logged, write

MINUTE = timedelta(minutes=1)
FULL = ExportOptions(level=LogLevel.FULL)


class Received:
    """What a client receives of a response. It takes `most` parts, and then the connection is lost."""

    def __init__(self, most: int | None = None) -> None:
        self.parts: list[bytes] = []
        self.headers: dict[str, str] = {}
        self.is_complete = False
        self._most = most
        self.lost = asyncio.Event()

    async def of(self, response: Response) -> Received:
        async def receive() -> dict[str, Any]:
            await self.lost.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
                return
            if message["body"]:
                self.parts.append(message["body"])
            self.is_complete = not message.get("more_body", False)
            if self._most is not None and len(self.parts) >= self._most:
                self.lost.set()
                await asyncio.Event().wait()  # nobody reads

        await response({"type": "http", "method": "GET", "headers": []}, receive, send)
        return self

    @property
    def content(self) -> bytes:
        return b"".join(self.parts)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.content.splitlines()]

    @property
    def ids(self) -> list[str]:
        return [line["metadata"]["job_id"] for line in self.lines]


async def export(exports: Exports, principal: Principal, options: ExportOptions = FULL, **filters: Any) -> Received:
    project_id = filters.pop("project_id", principal.project_id)
    return await Received().of(await exports.start(principal, RequestFilters(project_id, **filters), options))


async def fill(database: AsyncEngine, project_id: int, count: int, **columns: Any) -> list[Logged]:
    rows = [
        logged(NOON - number * MINUTE, project_id=project_id, asked=f"question {number}", **columns)
        for number in range(count)
    ]
    await write(database, rows)
    return rows


async def exported(database: AsyncEngine) -> list[Any]:
    async with database.connect() as connection:
        return list(await connection.execute(text("SELECT * FROM exports ORDER BY id")))


async def test_an_export_has_the_requests_whose_bodies_are_kept(
    database: AsyncEngine, owner: Owner, other_owner: Owner, reader: Principal, exports: Exports, metrics: Metrics
) -> None:
    rows = await fill(database, owner.project_id, 75, end_user="ann")
    await fill(database, other_owner.project_id, 3)
    await write(database, [logged(project_id=owner.project_id), logged(project_id=owner.project_id, body="lost")])
    received = await export(exports, reader, models=("m",))
    assert received.is_complete
    assert received.ids == [row.id for row in rows], "newest first"
    assert len(received.parts) > 1
    assert received.headers[LEVEL_HEADER] == "full"
    assert received.headers["content-type"] == "application/x-ndjson"
    first, last = received.lines[0], received.lines[-1]
    assert first["messages"] == [
        {"role": "user", "content": "question 0"}, {"role": "assistant", "content": "The Rhine."},
    ]  # fmt: skip
    assert first["metadata"]["project"] == "test"
    assert last["metadata"]["headrace"]["rows"] == 75
    (row,) = await exported(database)
    assert received.headers[EXPORT_HEADER] == f"export_{row.id}" == first["metadata"]["headrace"]["export"]
    assert (row.project_id, row.key_id, row.level, row.rows) == (owner.project_id, owner.key_id, "full", 75)
    assert row.filters == {"models": ["m"], "format": "jsonl"}
    assert row.ended_at is not None
    (entry,) = await AuditStore(database).page(limit=9, action="request.export")
    assert (entry.object_id, entry.key_id, entry.project) == (f"export_{row.id}", owner.key_id, "test")
    assert metrics.exported_requests._value.get() == 75
    assert metrics.request_exports.labels("jsonl", "complete")._value.get() == 1


async def test_a_sample_is_drawn_from_bodies_that_have_not_expired(
    database: AsyncEngine, owner: Owner, reader: Principal, exports: Exports
) -> None:
    """Rows are kept for longer than bodies, and say that they were kept."""
    kept = await fill(database, owner.project_id, 3)
    midnight = NOON.replace(hour=0)
    first = logged(midnight, project_id=owner.project_id, asked="the first one of its day")
    expired = [logged(midnight - (1 + n) * MINUTE, project_id=owner.project_id, body="kept") for n in range(100)]
    await write(database, [first, *expired])
    received = await export(exports, reader, ExportOptions(level=LogLevel.FULL, sample=Sample(count=10)))
    assert received.ids == [row.id for row in (*kept, first)]


async def test_the_audit_log_does_not_name_end_users(
    database: AsyncEngine, reader: Principal, exports: Exports
) -> None:
    """An erasure could not remove the name from it."""
    await export(exports, reader, end_user="ann", models=("m",))
    (row,) = await exported(database)
    assert row.filters == {"models": ["m"], "end_user": "ann", "format": "jsonl"}
    (entry,) = await AuditStore(database).page(limit=9, action="request.export")
    assert entry.after == {"models": ["m"], "format": "jsonl", "level": "full"}


async def test_the_list_of_exports(
    database: AsyncEngine, owner: Owner, other_owner: Owner, reader: Principal, exports: Exports
) -> None:
    await export(exports, reader)
    await export(exports, reader, project_id=None)
    store = ExportStore(database)
    of_all, own = await store.page(None, limit=9, after=None)
    assert (of_all.project, own.project, own.rows) == (None, "test", 0)
    assert await store.page(owner.project_id, limit=9, after=None) == [own]
    assert await store.page(other_owner.project_id, limit=9, after=None) == []
    assert await store.page(None, limit=9, after=of_all.id) == [own]


async def test_what_is_kept_in_full_is_redacted_by_the_rules_of_the_project(
    database: AsyncEngine, owner: Owner, other_owner: Owner, admin: Principal, exports: Exports
) -> None:
    rules = {"own": [{"name": "codename", "words": ["Falcon"]}]}
    options = orjson.dumps({"redaction": rules}).decode()
    statement = text("UPDATE projects SET options = CAST(:options AS jsonb) WHERE id = :id")
    async with database.connect() as connection:
        await connection.execute(statement, {"options": options, "id": owner.project_id})
    asked = "Write to ann@example.org about Falcon"
    feedback = [("note", "bob@example.org")]
    rows = [
        logged(
            NOON - number * MINUTE, project_id=one.project_id, asked=asked, feedback=feedback, end_user="c@d.example"
        )
        for number, one in enumerate((owner, other_owner))
    ]
    kept_redacted = logged(NOON - 5 * MINUTE, project_id=owner.project_id, asked="[EMAIL]", level="redacted")
    await write(database, [*rows, kept_redacted])
    received = await export(exports, admin, ExportOptions(), project_id=None)
    own, other, redacted = received.lines
    assert own["messages"][0]["content"] == "Write to [EMAIL] about [CODENAME]"
    assert other["messages"][0]["content"] == "Write to [EMAIL] about Falcon", "each project has its own rules"
    assert redacted["messages"][0]["content"] == "[EMAIL]"
    assert b"example" not in received.content
    assert received.headers[LEVEL_HEADER] == "redacted"
    assert {line["metadata"]["headrace"]["redaction_level"] for line in received.lines} == {"redacted"}
    full = (await export(exports, admin, FULL, project_id=None)).lines
    assert full[0]["messages"][0]["content"] == asked
    assert [line["metadata"]["headrace"]["redaction_level"] for line in full] == ["full", "full", "redacted"]


async def test_nothing_is_exported_by_rules_that_cannot_be_read(
    database: AsyncEngine, owner: Owner, reader: Principal, exports: Exports
) -> None:
    statement = text("UPDATE projects SET options = CAST(:options AS jsonb)")
    async with database.connect() as connection:
        await connection.execute(statement, {"options": '{"redaction": [{"name": "codename"}]}'})
    await fill(database, owner.project_id, 1)
    received = Received()
    with pytest.raises(IncompleteResponse):
        await received.of(await exports.start(reader, RequestFilters(owner.project_id), ExportOptions()))
    assert not received.content


async def test_samples_are_drawn_again_by_their_seed(
    database: AsyncEngine, owner: Owner, reader: Principal, exports: Exports
) -> None:
    rows = await fill(database, owner.project_id, 60)

    def smallest(count: int, seed: int) -> list[str]:
        chosen = sorted(rows, key=lambda row: sample_number(seed, row.id))[:count]
        return [row.id for row in rows if row in chosen]

    async def sample(seed: int = 7, **size: Any) -> list[str]:
        options = ExportOptions(level=LogLevel.FULL, sample=Sample(**size), seed=seed)
        return (await export(exports, reader, options)).ids

    ten = await sample(count=10)
    assert ten == smallest(10, 7), "newest first"
    assert await sample(count=10) == ten
    assert await sample(8, count=10) == smallest(10, 8) != ten
    assert set(await sample(count=5)) < set(ten)
    assert await sample(count=100) == [row.id for row in rows]
    fraction = await sample(fraction=0.3)
    numbers = {row.id: int.from_bytes(sample_number(7, row.id)) / 2**256 for row in rows}
    assert fraction == [row.id for row in rows if numbers[row.id] < 0.3], "PostgreSQL counts as Python does"
    assert [one.filters["sample"] for one in await exported(database)] == [10, 10, 10, 5, 100, 0.3]


async def test_a_sample_of_a_number_reads_further_pages(
    database: AsyncEngine, owner: Owner, reader: Principal, exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.requests.export.PORTION", 7)
    rows = await fill(database, owner.project_id, 40)
    options = ExportOptions(level=LogLevel.FULL, sample=Sample(count=9), seed=3)
    expected = sorted(rows, key=lambda row: sample_number(3, row.id))[:9]
    assert set((await export(exports, reader, options)).ids) == {row.id for row in expected}
    everything = await export(exports, reader, FULL)
    assert everything.ids == [row.id for row in rows]


async def test_parquet_is_the_same(database: AsyncEngine, owner: Owner, reader: Principal, exports: Exports) -> None:
    rows = await fill(database, owner.project_id, 40)
    received = await export(exports, reader, ExportOptions("parquet", LogLevel.FULL))
    assert received.headers["content-type"] == parquet.PARQUET
    table = pyarrow.parquet.read_table(io.BytesIO(received.content))
    assert table.column("job_id").to_pylist() == [row.id for row in rows]
    assert table.schema.metadata[b"headrace.redaction_level"] == b"full"
    assert len(received.parts) > 1


async def test_parquet_without_its_package_names_the_extra(
    database: AsyncEngine, reader: Principal, exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(InvalidRequest, match=r"extra `parquet`") as caught:
        await export(exports, reader, ExportOptions("parquet"))
    assert caught.value.param == "format"
    assert await exported(database) == []


class Failing(Bodies):
    """Fails after some calls."""

    def __init__(self, bodies: Bodies, calls: int) -> None:
        self._bodies = bodies
        self._left = calls

    async def open_bodies(self, job_ids: Sequence[str], **options: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ConnectionError("the database is away")
        return await self._bodies.open_bodies(job_ids, **options)

    async def sizes(self, job_ids: Sequence[str], **options: Any) -> Any:
        return await self._bodies.sizes(job_ids, **options)


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
async def test_an_export_that_fails_is_cut_off(
    database: AsyncEngine, owner: Owner, reader: Principal, exports: Exports, metrics: Metrics, file_format: Any
) -> None:
    await fill(database, owner.project_id, 80)
    sources = exports._sources
    broken = Exports(
        type(sources)(sources.store, Failing(sources.bodies, 1), sources.redactors), exports._exports, metrics
    )
    received = Received()
    response = await broken.start(reader, RequestFilters(owner.project_id), ExportOptions(file_format, LogLevel.FULL))
    with pytest.raises(IncompleteResponse):
        await received.of(response)
    assert received.content
    assert not received.is_complete
    if file_format == "jsonl":
        assert all("rows" not in line["metadata"]["headrace"] for line in received.lines)
    else:
        with pytest.raises(pyarrow.ArrowInvalid):
            pyarrow.parquet.read_table(io.BytesIO(received.content))
    (row,) = await exported(database)
    assert (row.rows, row.ended_at) == (32, None)
    assert metrics.request_exports.labels(file_format, "failed")._value.get() == 1


async def test_a_client_that_leaves_ends_the_export(
    database: AsyncEngine, owner: Owner, reader: Principal, exports: Exports, metrics: Metrics
) -> None:
    await fill(database, owner.project_id, 200)
    received = await Received(most=2).of(await exports.start(reader, RequestFilters(owner.project_id), FULL))
    assert not received.is_complete
    (row,) = await exported(database)
    assert row.ended_at is None
    assert 32 <= row.rows < 200
    assert metrics.request_exports.labels("jsonl", "interrupted")._value.get() == 1
    assert (await export(exports, reader)).is_complete, "its place is free again"


async def test_few_exports_are_made_at_a_time(
    database: AsyncEngine, owner: Owner, reader: Principal, exports: Exports
) -> None:
    waiting = [await exports.start(reader, RequestFilters(owner.project_id), FULL) for _ in range(2)]
    with pytest.raises(Unavailable, match="Other exports"):
        await exports.start(reader, RequestFilters(owner.project_id), FULL)
    for response in waiting:
        await Received().of(response)
    assert (await export(exports, reader)).is_complete


async def test_large_bodies_are_read_a_few_at_a_time(
    database: AsyncEngine, owner: Owner, reader: Principal, exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever tokens the log says they have: images have few."""
    monkeypatch.setattr(export_module, "GROUP_BYTES", 3000)
    opened: list[int] = []
    open_bodies = Bodies.open_bodies

    async def recorded(self: Bodies, job_ids: Sequence[str], **options: Any) -> Any:
        opened.append(len(job_ids))
        return await open_bodies(self, job_ids, **options)

    monkeypatch.setattr(Bodies, "open_bodies", recorded)
    asked = [secrets.token_hex(size) for size in (1000, 1000, 4000, 10, 10)]
    rows = [
        logged(NOON - number * MINUTE, project_id=owner.project_id, asked=question)
        for number, question in enumerate(asked)
    ]
    await write(database, rows)
    assert (await export(exports, reader)).ids == [row.id for row in rows]
    assert opened == [2, 1, 2]


async def test_memory_does_not_grow_with_the_export(
    database: AsyncEngine, owner: Owner, reader: Principal, exports: Exports
) -> None:
    long = "a long text " * 2000
    rows = [
        logged(NOON - number * MINUTE, project_id=owner.project_id, asked=f"{number} {long}") for number in range(1200)
    ]
    await write(database, rows)
    del rows
    size = 0

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        nonlocal size
        size += len(message.get("body", b""))

    async def peak_of(**filters: Any) -> int:
        """The most memory that an export takes."""
        response = await exports.start(reader, RequestFilters(owner.project_id, **filters), FULL)
        tracemalloc.start()
        try:
            await response({"type": "http", "method": "GET", "headers": []}, receive, send)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    await peak_of(start=NOON - 10 * MINUTE)  # what is loaded and cached at the first time
    some = await peak_of(start=NOON - 599 * MINUTE)
    size = 0
    everything = await peak_of()
    assert size > 1200 * len(long)
    assert everything < 1.2 * some, (everything, some, size)
