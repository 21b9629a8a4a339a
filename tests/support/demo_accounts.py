"""What the pages of usage, limits, requests, quality and webhooks show in the pictures of the console."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from api.evals.rubrics import load_rubrics
from api.evals.runs import live_run_id
from shared.postgres.engine import connect
from tests.support.demo_data import MODELS
from tests.support.waiting import eventually

RUBRICS = """\
rubrics:
  - name: helpful
    question: Does the answer solve what the user asks for?
    judge: claude-sonnet
    sampling: {rate: 0.05}
  - name: grounded
    question: Does the answer state only what the request or common knowledge supports?
    scale: yes/no
    judge: claude-sonnet
"""
STATEMENTS = Path(__file__).with_name("demo_accounts.sql")
_JUDGEMENTS = """
    INSERT INTO judgements (run_id, item, project_id, model, requested_model, state, score, reason, answered_at,
        ended_at)
    SELECT :run, job_id, project_id, model, requested_model,
        CASE WHEN abs(hashtext(job_id || 's')) % 61 = 0 THEN 'unparsable' ELSE 'scored' END,
        CASE WHEN abs(hashtext(job_id || 's')) % 61 = 0 THEN NULL
            ELSE least(5, 3 + abs(hashtext(job_id || 'j')) % CASE model WHEN 'qwen3-8b' THEN 2 ELSE 3 END) END,
        'The answer names the mechanism and gives an example.', ended_at, ended_at
    FROM request_log WHERE level = 'redacted' AND abs(hashtext(job_id || 'judged')) % 3 = 0
"""
_LABELS = """
    INSERT INTO labels (rubric, item, project_id, labeller, score)
    SELECT 'helpful', item, project_id, 'ann', least(5, greatest(1, score + hashtext(item || 'l') % 2))
    FROM judgements WHERE run_id = :run AND state = 'scored' ORDER BY item LIMIT 40
"""
_ENDPOINTS = (
    ("whe_shop", "https://shop.example.com/hooks/headrace", "order service", ["job.*"], None),
    ("whe_batch", "https://etl.example.com/headrace", "nightly evaluation", ["batch.*", "budget.*"], None),
    ("whe_old", "https://old.example.com/hook", None, ["job.completed"], "gone"),
)
_DELIVERIES = """
    INSERT INTO webhook_deliveries (event_id, project_id, endpoint_id, type, object_id, created_at, state, tries,
        ended_at, due_at)
    SELECT 'evt_' || md5(job_id), project_id, 'whe_shop', 'job.' || status, job_id, ended_at,
        CASE n % 20 WHEN 0 THEN 'dead' WHEN 1 THEN 'pending' ELSE 'delivered' END,
        CASE n % 20 WHEN 0 THEN 12 WHEN 1 THEN 3 ELSE 1 END,
        CASE n % 20 WHEN 1 THEN NULL ELSE ended_at + interval '210 ms' END, now() + interval '1 day'
    FROM (SELECT *, row_number() OVER (ORDER BY ended_at DESC) AS n FROM request_log WHERE project_id = :project
        ORDER BY ended_at DESC LIMIT 21) AS newest
    ORDER BY ended_at
"""
_TRIES = """
    INSERT INTO webhook_tries (delivery_id, number, at, status, error, duration_ms)
    SELECT id, n, created_at + interval '3 s' * (n - 1), CASE state WHEN 'delivered' THEN 200 ELSE 503 END,
        CASE state WHEN 'delivered' THEN NULL ELSE 'The receiver answered 503.' END, 38 + hashtext(event_id) % 20
    FROM webhook_deliveries, generate_series(1, tries) AS n
"""


def write_rubrics(folder: Path) -> Path:
    """Write the rubrics.yaml of the pictures."""
    path = folder / "rubrics.yaml"
    path.write_text(RUBRICS)
    return path


async def fill_accounts(database_url: str, rubrics: Path) -> None:
    """Add to what `demo_data.fill` and `demo_operations.fill_operations` have written."""
    engine = connect(database_url)
    try:
        async with engine.begin() as connection:
            raw = await connection.get_raw_connection()
            assert raw.driver_connection is not None
            await raw.driver_connection.execute(STATEMENTS.read_text())
            await _judge(connection, rubrics)
            await _deliver(connection)
    finally:
        await engine.dispose()


async def logged_job(database_url: str) -> str:
    """The newest job whose body is in the request log, once the API process has written all bodies."""
    engine = connect(database_url)

    async def is_written() -> bool:
        async with engine.connect() as connection:
            return not await connection.scalar(text("SELECT count(*) FROM request_log WHERE body = 'pending'"))

    try:
        await eventually(is_written, "the bodies are in the log", within_s=60)
        async with engine.connect() as connection:
            newest = "SELECT job_id FROM request_log WHERE body = 'kept' ORDER BY ended_at DESC LIMIT 1"
            return str(await connection.scalar(text(newest)))
    finally:
        await engine.dispose()


async def _judge(connection: AsyncConnection, path: Path) -> None:
    for rubric in load_rubrics(path, [str(model["name"]) for model in MODELS]).values():
        if not rubric.sampling.is_on:
            continue
        run = live_run_id(rubric)
        options = {"identity": rubric.identity(), "scale": str(rubric.scale)}
        values: dict[str, Any] = {"run": run, "rubric": rubric.name, "version": rubric.prompt_version,
                                  "judge": rubric.judge, "options": json.dumps(options)}  # fmt: skip
        await connection.execute(
            text(
                "INSERT INTO eval_runs (id, kind, rubric, prompt_version, judge_model, options)"
                " SELECT :run, 'live', :rubric, :version, :judge, CAST(:options AS jsonb) || jsonb_build_object("
                "'watermark', jsonb_build_object('ended_at', to_jsonb(now() + interval '1 day'), 'job_id', ''))"
            ),
            values,
        )
        await connection.execute(text(_JUDGEMENTS), {"run": run})
        await connection.execute(text(_LABELS), {"run": run})


async def _deliver(connection: AsyncConnection) -> None:
    project = await connection.scalar(text("SELECT id FROM projects WHERE name = 'team-docs'"))
    for identifier, url, description, events, disabled in _ENDPOINTS:
        await connection.execute(
            text(
                "INSERT INTO webhook_endpoints (id, project_id, url, description, events, secrets, disabled)"
                " VALUES (:id, :project, :url, :description, :events, '[]', :disabled)"
            ),
            {"id": identifier, "project": project, "url": url, "description": description, "events": events,
             "disabled": disabled},
        )  # fmt: skip
    await connection.execute(text(_DELIVERIES), {"project": project})
    await connection.execute(text(_TRIES))
