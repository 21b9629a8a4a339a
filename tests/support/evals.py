"""Judges on a test's database, with judge jobs that the test ends itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.evals.identity import JudgeIdentity
from api.evals.judgements import JudgementStore
from api.evals.judging import Judges
from api.evals.labels import LabelStore
from api.evals.rubrics import Rubric, RubricBook, Sampling
from api.evals.runs import RunStore
from api.evals.samples import SampleStore
from api.evals.sampling import Sampler
from api.evals.scores import ScoreStore
from api.evals.service import EvalService
from api.keys.principal import Principal
from api.keys.store import ApiKeyStore
from api.request_log.bodies import Bodies, Body, Missing, MissingReason
from shared.config.models.loader import Registry
from shared.config.models.simulated import SimulatedModel
from shared.domain.job import Attempt, Choice, Job, JobStatus, Usage, new_job_id
from shared.domain.log_level import LogLevel
from shared.domain.new_job import Idempotency, NewJob
from shared.domain.owner import Owner
from shared.domain.result import JobResult
from shared.postgres.job_store import JobStore
from shared.postgres.store import json_text
from shared.telemetry.metrics import Metrics
from tests.conftest import Workers
from tests.support.metrics import api_metrics
from tests.support.transcripts import output_of

ASKED = "What is the capital of France?"
HELPFUL = Rubric(name="helpful", question="Does the answer help?", judge="judge", sampling=Sampling(rate=1))


class KnownBodies(Bodies):
    """The bodies that a test gives. All others are lost."""

    def __init__(self, bodies: dict[str, Body | Missing]) -> None:
        self._known = bodies

    async def open_bodies(
        self, job_ids: Sequence[str], *, since: datetime | None = None, until: datetime | None = None
    ) -> dict[str, Body | Missing]:
        return {one: self._known.get(one, Missing(MissingReason.LOST)) for one in job_ids}


@dataclass
class JudgeQueue:
    """Stands in for the job service: stores judge jobs without admission, or refuses them."""

    store: JobStore
    submitted: list[NewJob] = field(default_factory=list)
    cancelled: list[tuple[str, int]] = field(default_factory=list)
    refusal: Exception | None = None
    refused: int = 0

    async def submit(
        self, principal: Principal, new: NewJob, idempotency: Idempotency | None = None
    ) -> tuple[Job, bool]:
        if self.refusal is not None:
            self.refused += 1
            raise self.refusal
        self.submitted.append(new)
        return await self.store.insert(new, idempotency)

    async def cancel(self, job_id: str, project_id: int) -> None:
        self.cancelled.append((job_id, project_id))


class Evaluation:
    """All parts of judges of a process, for rubrics."""

    def __init__(self, database: AsyncEngine, store: JobStore, *rubrics: Rubric) -> None:
        models = {
            name: SimulatedModel.model_validate({"name": name, "engine": "simulated"}) for name in ("judge", "m", "n")
        }
        self.database = database
        self.metrics: Metrics = api_metrics(*models)
        self.book = RubricBook({rubric.name: rubric for rubric in rubrics})
        self.bodies: dict[str, Body | Missing] = {}
        self.queue = JudgeQueue(store)
        self.runs, self.samples = RunStore(database), SampleStore(database)
        self.store = JudgementStore(database)
        self.judges = Judges(
            self.book,
            self.runs,
            self.store,
            self.samples,
            JudgeIdentity(database),
            ApiKeyStore(database),
            self.queue,
            KnownBodies(self.bodies),
            Registry(models),
            self.metrics,
        )
        self.sampler = Sampler(self.book, self.samples, self.metrics, retention_days=30)
        self.service = EvalService(
            self.book, self.judges, self.runs, self.store, ScoreStore(database), LabelStore(database), Registry(models)
        )

    async def log(self, owner: Owner, answer: str = "Paris.", *, ended_s_ago: float = 60, **columns: Any) -> str:
        """Add an entry of the request log with a body; returns the job's id."""
        ended_at = datetime.now(UTC) - timedelta(seconds=ended_s_ago)
        values = {
            "job_id": new_job_id(), "ended_at": ended_at, "project_id": owner.project_id, "key_id": owner.key_id,
            "model": "m", "requested_model": "m", "status": "completed", "created_at": ended_at, "level": "full",
            "body": "kept", "kind": None, **columns,
        }  # fmt: skip
        names = ", ".join(values)
        insert = f"INSERT INTO request_log ({names}) VALUES ({', '.join(f':{name}' for name in values)})"  # noqa: S608
        async with self.database.begin() as connection:
            await connection.execute(text(insert), values)
        job_id = str(values["job_id"])
        self.bodies[job_id] = body_of(job_id, answer)
        return job_id

    async def begin_sampling(self, s_ago: float = 3600) -> None:
        """Open the live runs, as if that had been some time ago."""
        await self.sampler.step()
        await self.move_watermark(s_ago)

    async def move_watermark(self, s_ago: float) -> None:
        """Let the log have been read up to some time ago."""
        began = {"watermark": {"ended_at": (datetime.now(UTC) - timedelta(seconds=s_ago)).isoformat(), "job_id": ""}}
        async with self.database.begin() as connection:
            await connection.execute(
                text("UPDATE eval_runs SET options = options || CAST(:began AS jsonb)"), {"began": json_text(began)}
            )

    async def judgements(self) -> list[Row[Any]]:
        """All judgements, in the order in which they were added."""
        async with self.database.connect() as connection:
            return list(await connection.execute(text("SELECT * FROM judgements ORDER BY id")))

    async def make_due(self) -> None:
        """Let all pending judgements be due now."""
        async with self.database.begin() as connection:
            await connection.execute(text("UPDATE judgements SET due_at = now()"))

    async def collect(self) -> None:
        """Look at all judge jobs now."""
        await self.make_due()
        await self.judges.step()

    def counted(self, name: str, *labels: str) -> float:
        """The value of a counter."""
        return float(getattr(self.metrics, name).labels(*labels)._value.get())


def body_of(job_id: str, answer: str = "Paris.", **request: Any) -> Body:
    """A body of the request log: a question, and this answer."""
    asked = request or {"messages": [{"role": "user", "content": ASKED}]}
    return Body(job_id, datetime.now(UTC), LogLevel.FULL, asked, [Choice(0, answer, "stop").stored()])


async def end_judge(
    workers: Workers, job_id: str, says: Mapping[str, object] | str | None, *, status: JobStatus = JobStatus.COMPLETED
) -> None:
    """End the job of a judge with what it says."""
    now = datetime.now(UTC)
    said = says if isinstance(says, str) or says is None else orjson.dumps(says).decode()
    output = output_of() if said is None else output_of(Choice(0, said, "stop"))
    result = JobResult(
        status=status,
        finished_at=now,
        output=output,
        usage=Usage(30, 0, 10),
        error=None,
        first_token_at=now,
        attempts=(Attempt(1, "w", now, now, 2, status.value, "fp"),),
        log=b"",
    )
    worker = workers("w")
    assert await worker.claim(job_id) is not None
    assert await worker.finish(job_id, 1, result)
