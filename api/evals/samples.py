"""SQL of live sampling: which answers of the request log are judged, and how far the log was read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import case, cast, func, literal, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from api.evals.rubrics import Rubric
from api.evals.runs import live_run_id
from shared.domain.job import JobStatus
from shared.domain.judgements import JudgementState, RunKind
from shared.domain.log_level import LogLevel
from shared.postgres.engine import limit_idle, transaction
from shared.postgres.quality_tables import EvalRunRow, JudgementRow
from shared.postgres.request_log_tables import RequestLogRow
from shared.postgres.store import Store
from shared.postgres.tables import ProjectRow, Timestamp

# Entries of the log that are read at once.
CHUNK = 500
# Entries are written in about the order of their ends: by then, those of a moment are all there.
SETTLE = timedelta(seconds=15)
# A body that was not written by then is not waited for.
BODY_WAIT = timedelta(minutes=10)
# A run that is opened again so soon after its end continues where it was: processes with different rubrics, as while a
# new version is rolled out, end each other's runs.
CONTINUED = timedelta(minutes=1)
_LEVELS = [level.value for level in LogLevel if level.keeps_body]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer of which the request log keeps the body."""

    job_id: str
    ended_at: datetime
    project_id: int
    project: str | None
    model: str
    requested_model: str


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a step has done: the number of entries that were selected, and of those among them that are to be judged.

    `paused`: why none is judged now. `more`: the log has further entries already.
    """

    selected: int = 0
    added: int = 0
    paused: str | None = None
    more: bool = False


class SampleStore(Store):
    """Live runs, and the entries of the request log that they have not read yet."""

    async def open_run(self, rubric: Rubric) -> str:
        """Return the id of the live run of a rubric, which begins now if it is not open; others of its name end.

        One that has ended within `CONTINUED` does not begin now, but where it was.
        """
        run_id = live_run_id(rubric)
        watermark = func.jsonb_build_object("ended_at", func.to_jsonb(func.now()), "job_id", "", type_=JSONB)
        options = func.jsonb_build_object(
            "watermark", watermark, "identity", rubric.identity(), "scale", str(rubric.scale), type_=JSONB
        )
        values = {
            "id": run_id,
            "kind": RunKind.LIVE.value,
            "rubric": rubric.name,
            "prompt_version": rubric.prompt_version,
            "judge_model": rubric.judge,
            "options": options,
        }
        opened = (
            insert(EvalRunRow)
            .values(values)
            .on_conflict_do_update(
                index_elements=[EvalRunRow.id],
                set_={
                    "ended_at": None,
                    "options": case((EvalRunRow.ended_at > func.now() - CONTINUED, EvalRunRow.options), else_=options),
                },
                where=EvalRunRow.ended_at.is_not(None),
            )
        )
        replaced = (
            update(EvalRunRow)
            .where(
                EvalRunRow.kind == RunKind.LIVE.value,
                EvalRunRow.rubric == rubric.name,
                EvalRunRow.id != run_id,
                EvalRunRow.ended_at.is_(None),
            )
            .values(ended_at=func.now())
        )
        async with transaction(self._engine) as connection:
            await connection.execute(opened)
            await connection.execute(replaced)
        return run_id

    async def end_others(self, run_ids: Sequence[str]) -> None:
        """End the live runs of rubrics that are not sampled any more."""
        await self._changes(
            update(EvalRunRow)
            .where(EvalRunRow.kind == RunKind.LIVE.value, EvalRunRow.ended_at.is_(None), EvalRunRow.id.not_in(run_ids))
            .values(ended_at=func.now())
        )

    async def pending(self, run_id: str) -> int:
        """The number of judgements of a run that are open."""
        row = await self._first(
            select(func.count()).where(
                JudgementRow.run_id == run_id, JudgementRow.state == JudgementState.PENDING.value
            )
        )
        return int(row[0]) if row is not None else 0

    async def pause(self, run_id: str, *, seconds: float, reason: str) -> None:
        """Judge no further answers for so long, in all processes."""
        until = func.now() + timedelta(seconds=seconds)
        pause = func.jsonb_build_object("until", func.to_jsonb(until), "reason", reason, type_=JSONB)
        await self._changes(
            update(EvalRunRow)
            .where(EvalRunRow.id == run_id)
            .values(options=EvalRunRow.options.concat(func.jsonb_build_object("paused", pause, type_=JSONB)))
        )

    async def sample(self, run_id: str, is_selected: Callable[[Candidate], bool], *, room: int) -> Sampled | None:
        """Read the next entries of the log, and add judgements of those that are selected, at most `room`.

        The entries are read once, whatever happens to them: what a pause or a full run leaves out is not judged later,
        because the budget of tomorrow is for the answers of tomorrow. None: another process is reading.
        """
        async with transaction(self._engine) as connection:
            found = select(EvalRunRow.options, func.now().label("now"), limit_idle()).where(
                EvalRunRow.id == run_id, EvalRunRow.ended_at.is_(None)
            )
            run = (await connection.execute(found.with_for_update(of=EvalRunRow, skip_locked=True))).first()
            if run is None:
                return None
            mark = run.options["watermark"]
            after = (datetime.fromisoformat(mark["ended_at"]), mark["job_id"])
            until = await _read_until(connection, run.now)
            rows = await _entries(connection, after, until)
            more = len(rows) == CHUNK
            last = rows[-1] if more else None
            position = (last.ended_at, last.job_id) if last is not None else (max(until, after[0]), "")
            if position <= after:
                return Sampled()
            selected = [row for row in rows if is_selected(row)]
            paused = run.options.get("paused")
            is_paused = paused is not None and datetime.fromisoformat(paused["until"]) > run.now
            chosen = [] if is_paused else selected[:room]
            for one in chosen:
                await connection.execute(_new_judgement(run_id, one))
            stored = {"watermark": {"ended_at": position[0].isoformat(), "job_id": position[1]}}
            options = EvalRunRow.options.concat(cast(literal(stored, JSONB), JSONB))
            await connection.execute(update(EvalRunRow).where(EvalRunRow.id == run_id).values(options=options))
        return Sampled(len(selected), len(chosen), paused["reason"] if is_paused else None, more)

    async def forget_reasons(self, before: datetime) -> None:
        """Delete what judges wrote about answers that ended before then: it may quote them."""
        await self._changes(
            update(JudgementRow)
            .where(JudgementRow.answered_at < before, JudgementRow.reason.is_not(None))
            .values(reason=None)
        )


async def _read_until(connection: AsyncConnection, now: datetime) -> datetime:
    """Before which end the log is complete, bodies included."""
    until = now - SETTLE
    pending = select(func.min(RequestLogRow.ended_at)).where(
        text("request_log.body = 'pending'"), RequestLogRow.ended_at > now - BODY_WAIT
    )
    oldest: datetime | None = await connection.scalar(pending)
    return until if oldest is None else min(until, oldest)


async def _entries(connection: AsyncConnection, after: tuple[datetime, str], until: datetime) -> list[Candidate]:
    """The next entries of complete answers to clients whose body the log keeps."""
    position = tuple_(RequestLogRow.ended_at, RequestLogRow.job_id)
    statement = (
        select(
            RequestLogRow.job_id,
            RequestLogRow.ended_at,
            RequestLogRow.project_id,
            ProjectRow.name.label("project"),
            RequestLogRow.model,
            RequestLogRow.requested_model,
        )
        .outerjoin(ProjectRow, ProjectRow.id == RequestLogRow.project_id)
        .where(
            position > tuple_(literal(after[0], Timestamp), literal(after[1])),
            RequestLogRow.ended_at < until,
            RequestLogRow.level.in_(_LEVELS),
            RequestLogRow.status == JobStatus.COMPLETED.value,
            RequestLogRow.body == "kept",
            RequestLogRow.kind.is_(None),
            # The answer of another job says no more than once how good the model is.
            ~RequestLogRow.answered,
        )
        .order_by(RequestLogRow.ended_at, RequestLogRow.job_id)
        .limit(CHUNK)
    )
    return [Candidate(**row._asdict()) for row in await connection.execute(statement)]


def _new_judgement(run_id: str, one: Candidate) -> Any:
    return (
        insert(JudgementRow)
        .values(
            run_id=run_id,
            item=one.job_id,
            model=one.model,
            project_id=one.project_id,
            requested_model=one.requested_model,
            answered_at=one.ended_at,
        )
        .on_conflict_do_nothing()
    )
