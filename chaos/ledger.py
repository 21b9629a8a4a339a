"""Verification of the ledger: each attempt of an ended job has an entry with its tokens; output is charged once."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.domain.events import EventType, parse_archive
from workers.engines.simulated.engine import EMOJI, EMOJI_IDS, WORDS

# A token of the simulated engine: no token is the beginning of another one that others complete. Or its emoji, which
# is several tokens, in each row of 16.
_TOKEN = re.compile("|".join(re.escape(word) for word in sorted((*WORDS, EMOJI), key=len, reverse=True)))
_ROW, _EMOJI_AT = 16, 5
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
    """How many tokens the event log of an ended job has. `whole`: Redis has not lost it, and nothing was discarded."""

    job_id: str
    tokens: int
    whole: bool

    def agrees(self, in_ledger: int) -> bool:
        """Whether so many tokens in the ledger are those of the log. Tokens of an emoji that is not complete are in the
        log without a text."""
        missing = in_ledger - self.tokens
        if not self.whole:
            return missing >= 0
        return missing == 0 or (0 < missing < len(EMOJI_IDS) and self.tokens % _ROW == _EMOJI_AT)


async def logged_tokens(database: AsyncEngine) -> AsyncIterator[Logged]:
    """Counts the tokens of all logs in their texts, whatever the processes have counted."""
    async with database.connect() as connection:
        async for row in await connection.stream(_LOGS):
            events = parse_archive(row.log)
            deltas = (event.payload()["text"] for event in events if event.type is EventType.DELTA)
            tokens = sum(_tokens(delta) for delta in deltas)
            is_whole = events[0].seq == 1 and all(event.type is not EventType.RESTARTED for event in events)
            yield Logged(row.id, tokens, is_whole)


def _tokens(delta: str) -> int:
    return sum(len(EMOJI_IDS) if token == EMOJI else 1 for token in _TOKEN.findall(delta))


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
