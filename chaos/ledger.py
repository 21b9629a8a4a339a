"""Verification of the ledger: each attempt of an ended job has an entry with its tokens; output is charged once."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.domain.events import EventType, parse_archive
from workers.engines.simulated.engine import WORDS

# A token of the simulated engine. No token is the beginning of another one that others complete.
_TOKEN = re.compile("|".join(re.escape(word) for word in sorted(WORDS, key=len, reverse=True)))
_LOGS = text("SELECT id, log FROM jobs WHERE log IS NOT NULL")
_ENTRIES = text("""
    SELECT job_id, attempt, final, source, output_text + output_reasoning AS output,
        coalesce((charged->>'output_text')::int, CASE WHEN charged IS NULL THEN output_text ELSE 0 END) AS charged
    FROM usage_events WHERE correction = 0 ORDER BY job_id, attempt
""")


async def read_entries(database: AsyncEngine) -> dict[str, list[Any]]:
    """The entries of each job: `attempt`, `final`, `source`, and its `output` tokens and those that are `charged`."""
    entries: dict[str, list[Any]] = {}
    async with database.connect() as connection:
        for row in await connection.execute(_ENTRIES):
            entries.setdefault(row.job_id, []).append(row)
    return entries


class Logged(NamedTuple):
    """How many tokens the event log of an ended job has, discarded ones included. `whole`: Redis has not lost it."""

    job_id: str
    tokens: int
    whole: bool


async def logged_tokens(database: AsyncEngine) -> AsyncIterator[Logged]:
    """Counts the tokens of all logs in their texts, whatever the processes have counted."""
    async with database.connect() as connection:
        async for row in await connection.stream(_LOGS):
            events = parse_archive(row.log)
            deltas = (event.payload()["text"] for event in events if event.type is EventType.DELTA)
            yield Logged(row.id, sum(len(_TOKEN.findall(delta)) for delta in deltas), events[0].seq == 1)


def differences(job: Mapping[str, Any], entries: Sequence[Any]) -> Iterator[str]:
    """What is wrong about the entries of an ended job, which the API has described."""
    expected = [(attempt["number"], attempt["tokens"]) for attempt in job["attempts"]]
    found = [(entry.attempt, entry.output) for entry in entries]
    if found != expected:
        yield f"entries (attempt, output tokens) {found}, expected {expected}"
    if [entry.final for entry in entries] != [False] * (len(entries) - 1) + [True] * bool(entries):
        yield "not exactly the last entry is final"
    delivered = 0 if job["status"] == "failed" else (job["usage"] or {}).get("completion_tokens", 0)
    if (charged := sum(entry.charged for entry in entries)) != delivered:
        yield f"{charged} output tokens are charged, {delivered} were delivered"
