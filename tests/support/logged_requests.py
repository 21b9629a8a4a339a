"""Rows of the request log as ended jobs leave them, with encrypted bodies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import orjson
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.request_log.bodies import Bodies
from api.request_log.data_keys import DataKeys
from api.request_log.encryption import MasterKeys, seal
from api.request_log.store import RequestLogStore
from shared.domain.master_key import generate_master_key
from shared.postgres.quality_tables import EvalRunRow, FeedbackRow, JudgementRow
from shared.postgres.request_log_tables import RequestBodyRow, RequestLogRow

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
MASTER_KEY = generate_master_key()
_numbers = count()


@dataclass(frozen=True)
class Logged:
    """A request to log. `content`: None: the log has no body of it."""

    columns: dict[str, Any]
    content: dict[str, Any] | None = None
    feedback: Sequence[tuple[str, Any]] = ()
    scores: Sequence[tuple[str, float]] = field(default_factory=tuple)

    @property
    def id(self) -> str:
        return str(self.columns["job_id"])


def job_id_at(moment: datetime) -> str:
    """An id of a job that was submitted then."""
    return f"job_{int(moment.timestamp() * 1000):012x}7{next(_numbers):019x}"


def logged(
    ended_at: datetime = NOON,
    *,
    asked: str | None = None,
    answer: str = "The Rhine.",
    feedback: Sequence[tuple[str, Any]] = (),
    scores: Sequence[tuple[str, float]] = (),
    content: dict[str, Any] | None = None,
    **columns: Any,
) -> Logged:
    """A completed request. `asked`: the message of the user, which is kept with the answer."""
    if asked is not None:
        messages = [{"role": "user", "content": asked}]
        content = {"request": {"messages": messages}, "output": [{"text": answer, "finish_reason": "stop"}]}
    created_at = ended_at - timedelta(seconds=2)
    kept = {} if content is None else {"level": "full", "body": "kept"}
    values = {
        "job_id": job_id_at(created_at), "ended_at": ended_at, "project_id": 1, "key_id": 1, "model": "m",
        "requested_model": "m", "status": "completed", "created_at": created_at, "level": "metadata",
        "input_tokens": 10, "output_tokens": 5, **kept,
    }  # fmt: skip
    return Logged({**values, **columns}, content, feedback, scores)


async def write(database: AsyncEngine, requests: Sequence[Logged]) -> None:
    """Write requests, with their bodies, feedback and scores."""
    keys = DataKeys(database, MasterKeys.of(MASTER_KEY))
    names = [column.key for column in RequestLogRow.__table__.columns]
    blank = dict.fromkeys(names) | {"answered": False, "body": "none"}
    bodies = []
    for request in requests:
        if request.content is not None:
            ended_at = request.columns["ended_at"]
            key = await keys.of_day(ended_at.astimezone(UTC).date())
            sealed = seal(key.cipher, request.id, orjson.dumps({"output": [], **request.content}))
            owner = {"project_id": request.columns["project_id"], "data_key_id": key.id}
            bodies.append({"job_id": request.id, "ended_at": ended_at, **owner, "body": sealed})
    async with database.begin() as connection:
        await connection.execute(insert(RequestLogRow), [blank | request.columns for request in requests])
        if bodies:
            await connection.execute(insert(RequestBodyRow), bodies)
        for request in requests:
            owner = {"project_id": request.columns["project_id"]}
            for metric, value in request.feedback:
                row = {**owner, "job_id": request.id, "metric": metric, "value": value, "source": "key"}
                await connection.execute(insert(FeedbackRow), [row])
            for rubric, score in request.scores:
                await connection.execute(_RUN, {"id": f"run_{rubric}", "rubric": rubric})
                row = {**owner, "run_id": f"run_{rubric}", "item": request.id, "model": "m", "state": "scored"}
                await connection.execute(insert(JudgementRow), [{**row, "score": score}])


_RUN = text(
    f"INSERT INTO {EvalRunRow.__tablename__} (id, kind, rubric, prompt_version, judge_model)"  # noqa: S608
    " VALUES (:id, 'live', :rubric, '1', 'judge') ON CONFLICT DO NOTHING"
)


def bodies_of(database: AsyncEngine, key: str = MASTER_KEY) -> Bodies:
    """Reads the bodies that `write` has written, with this master key; an empty one is none."""
    return Bodies(RequestLogStore(database), MasterKeys.of(key))
