"""Batches, files and two answers of the same prompt, for pictures of the console: made-up rows."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.domain.owner import Owner

# The batch that has a page in the pictures, the one with errors, and the jobs with two answers.
RUNNING = "batch_019ad3f0a1b27c3d8e4f5a6b7c8d9e0f"
INVALID = "batch_019ad3eea1b27c3d8e4f5a6b7c8d9e0f"
ANSWERS = ("job_019ad3f1a1b27c3d8e4f5a6b7c8d9e01", "job_019ad3f1a1b27c3d8e4f5a6b7c8d9e02")
_BATCHES: tuple[tuple[str, str, str, str, int, int, int, float], ...] = (
    (RUNNING, "file-019ad3f0a1b27c3d8e4f5a6b7c8d9e0a", "evaluation-2026-11-30.jsonl", "in_progress", 12_480,
     8_217, 14, 26),
    (INVALID, "file-019ad3eea1b27c3d8e4f5a6b7c8d9e0a", "tickets-unclean.jsonl", "failed", 0, 0, 0, 71),
    ("batch_019ad3b0a1b27c3d8e4f5a6b7c8d9e0f", "file-019ad3b0a1b27c3d8e4f5a6b7c8d9e0a", "summaries-week-48.jsonl",
     "completed", 3_200, 3_200, 0, 190),
    ("batch_019ad2b0a1b27c3d8e4f5a6b7c8d9e0f", "file-019ad2b0a1b27c3d8e4f5a6b7c8d9e0a", "translations.jsonl",
     "completed", 940, 937, 3, 1_320),
    ("batch_019ad1b0a1b27c3d8e4f5a6b7c8d9e0f", "file-019ad1b0a1b27c3d8e4f5a6b7c8d9e0a", "labels-first-try.jsonl",
     "cancelled", 50_000, 11_904, 0, 2_930),
)  # fmt: skip
_ERRORS = [
    {"code": "invalid_json", "message": "The line is not a JSON object.", "line": 17, "param": None},
    {"code": "missing_custom_id", "message": "custom_id: this field is required.", "line": 402, "param": "custom_id"},
    {"code": "duplicate_custom_id", "message": "The custom_id `ticket-88` is used by another line; it must be unique in"
     " a batch.", "line": 1_204, "param": "custom_id"},
]  # fmt: skip
_PROMPT = "A worker crashed in the middle of an answer. What does the reader of the stream see?"
_TEXTS = (
    "Nothing but a short pause. The tokens that had arrived stay, and the next worker continues with the one after"
    " them.\n\nThe log of the job is in Redis, and each event in it has a number. When the lease of the lost worker"
    " ends, another claims the job, reads what was written, and appends from there.\n\nSo the reader needs no special"
    " case: it keeps reading, or reconnects with the number of the last event that it has seen.",
    "The reader sees a gap of one to two seconds, and then the rest of the answer.\n\n- Tokens before the crash are"
    " kept.\n- The job is claimed by another worker, which resumes at the next token.\n- If that is impossible, the"
    " stream says `job.restarted`, and the answer begins again.",
)
_ANSWERS = (("llama-3-70b", 0.412, 6.1, 118), ("qwen3-8b", 0.064, 2.2, 84))
_JOB = """
    INSERT INTO jobs (id, project_id, key_id, model, status, priority, request, metadata, created_at, attempt, worker,
        attempts, started_at, first_token_at, finished_at, usage, output, log)
    VALUES (:id, :project_id, :key_id, :model, 'completed', 3, CAST(:request AS json), '{}', :created_at, 1, :worker,
        CAST(:attempts AS jsonb), :created_at, :first_token_at, :finished_at, CAST(:usage AS jsonb),
        CAST(:output AS json), :log)
"""
_FILE = """
    INSERT INTO files (id, project_id, key_id, purpose, filename, bytes, created_at, expires_at)
    VALUES (:id, :project_id, :key_id, :purpose, :filename, :bytes, :created_at, :expires_at)
"""
_BATCH = """
    INSERT INTO batches (id, project_id, key_id, endpoint, input_file_id, completion_window, status, errors,
        output_file_id, error_file_id, usage, created_at, expires_at, in_progress_at, ended_at, total, submitted,
        completed, failed, metadata, due_at)
    VALUES (:id, :project_id, :key_id, '/v1/chat/completions', :input, '24h', :status, CAST(:errors AS json), :output,
        :error, CAST(:usage AS jsonb), :created_at, :expires_at, :in_progress_at, :ended_at, :total, :total, :completed,
        :failed, CAST(:metadata AS json), now() + interval '1 day')
"""


async def insert_batches(connection: AsyncConnection, owner: Owner, now: datetime) -> None:
    """Insert the rows, of an owner."""
    common = {"project_id": owner.project_id, "key_id": owner.key_id}
    for batch_id, input_id, name, status, total, completed, failed, minutes_ago in _BATCHES:
        created_at = now - timedelta(minutes=minutes_ago)
        ended_at = None if status == "in_progress" else created_at + timedelta(minutes=minutes_ago * 0.4)
        output = input_id[:-1] + "b" if status in ("completed", "cancelled") else None
        error = input_id[:-1] + "c" if failed and ended_at is not None else None
        files = [(input_id, "batch", name, 1_480 * (total or 2_310))]
        files += [(output, "batch_output", f"{batch_id}_output.jsonl", 2_210 * completed)] if output else []
        files += [(error, "batch_output", f"{batch_id}_error.jsonl", 410 * failed)] if error else []
        rows = [
            {**common, "id": file_id, "purpose": purpose, "filename": filename, "bytes": size, "created_at": created_at,
             "expires_at": created_at + timedelta(days=30) if purpose == "batch_output" else None}
            for file_id, purpose, filename, size in files
        ]  # fmt: skip
        await connection.execute(text(_FILE), rows)
        usage = {
            "prompt_tokens": 412 * completed,
            "cached_tokens": 300 * completed,
            "completion_tokens": 188 * completed,
        }
        values = {
            **common, "id": batch_id, "input": input_id, "status": status, "total": total, "completed": completed,
            "failed": failed, "errors": json.dumps(_ERRORS) if status == "failed" else None, "output": output,
            "error": error, "usage": json.dumps(usage) if output else None, "created_at": created_at,
            "expires_at": created_at + timedelta(days=1), "ended_at": ended_at,
            "in_progress_at": created_at + timedelta(seconds=4) if total else None,
            "metadata": json.dumps({"purpose": "nightly evaluation"}) if batch_id == RUNNING else None,
        }  # fmt: skip
        await connection.execute(text(_BATCH), values)
    for job_id, answer, (model, first_s, took_s, tokens) in zip(ANSWERS, _TEXTS, _ANSWERS, strict=True):
        row = _job(job_id, answer, model, first_s, took_s, tokens, now - timedelta(minutes=2))
        await connection.execute(text(_JOB), {**common, **row})


def _job(
    job_id: str, answer: str, model: str, first_s: float, took_s: float, tokens: int, created_at: datetime
) -> dict[str, Any]:
    messages = [
        {"role": "system", "content": "You explain distributed systems to engineers, in plain words."},
        {"role": "user", "content": _PROMPT},
    ]
    usage = {"prompt_tokens": 46, "completion_tokens": tokens, "cached_tokens": 32}
    worker = f"{model}-1"
    finished_at = created_at + timedelta(seconds=took_s)
    attempt = {"number": 1, "worker": worker, "started_at": created_at.isoformat(), "tokens": tokens,
               "ended_at": finished_at.isoformat(), "outcome": "completed"}  # fmt: skip
    timings = {"queued_ms": 3, "ttft_ms": round(first_s * 1000), "total_ms": round(took_s * 1000)}
    events = [
        ("started", {"worker": worker, "attempt": 1}),
        ("delta", {"index": 0, "text": answer, "finish_reason": "stop"}),
        ("completed", {"usage": usage, "timings": timings}),
    ]
    return {
        "id": job_id,
        "model": model,
        "worker": worker,
        "request": json.dumps({"messages": messages, "sampling": {"temperature": 0.3, "max_tokens": 400}}),
        "created_at": created_at,
        "first_token_at": created_at + timedelta(seconds=first_s),
        "finished_at": finished_at,
        "attempts": json.dumps([attempt]),
        "usage": json.dumps(usage),
        "output": json.dumps([{"index": 0, "text": answer, "finish_reason": "stop"}]),
        "log": "\n".join(f"{number} {name} {json.dumps(data)}" for number, (name, data) in enumerate(events, 1)),
    }
