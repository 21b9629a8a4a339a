"""What the pages of operations show in the pictures of the console: options, lost workers, decisions, keys."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api.keys.changes import ProjectChanges
from api.keys.principal import Scope
from api.keys.store import ApiKeyStore, generate_key, parse_id
from shared.domain.answer_options import NO_KEY_OPTIONS, KeyOptions, TokenLimits
from shared.postgres.engine import connect
from tests.support.demo_data import MODELS, go_on

ROUTES: list[dict[str, object]] = [
    {
        "name": "auto",
        "description": "the cheapest model that is good enough",
        "models": ["qwen3-8b", "llama-3-70b", "claude-sonnet"],
        "rules": [
            {"name": "contracts", "if": {"keywords": ["contract", "liability"]}, "model": "claude-sonnet"},
            {"name": "long", "if": {"input_tokens_over": 6000}, "model": "llama-3-70b"},
            {"name": "trial", "if": {"tier": ["free"]}, "split": {"qwen3-8b": 90, "smollm2": 10}},
        ],
        "fallbacks": {"llama-3-70b": ["claude-sonnet"], "qwen3-8b": ["llama-3-70b"]},
    }
]  # fmt: skip
# Share of the requests, model, and what the route decided.
_DECIDED: tuple[tuple[float, str, dict[str, Any]], ...] = (
    (0.30, "qwen3-8b", {"rule": "complexity", "score": 0.21}),
    (0.12, "qwen3-8b", {"rule": "conversation"}),
    (0.06, "qwen3-8b", {"rule": "trial"}),
    (0.01, "smollm2", {"rule": "trial"}),
    (0.14, "llama-3-70b", {"rule": "complexity", "score": 0.58}),
    (0.08, "llama-3-70b", {"rule": "long"}),
    (0.03, "llama-3-70b", {"rule": "complexity", "score": 0.2, "tried": ["qwen3-8b"]}),
    (0.05, "claude-sonnet", {"rule": "contracts"}),
    (0.02, "claude-sonnet", {"rule": "complexity", "tried": ["llama-3-70b"], "left": ["llama-3-70b"]}),
)
_CACHED: tuple[tuple[float, dict[str, Any]], ...] = (
    (0.17, {"outcome": "HIT", "age_s": 900}),
    (0.04, {"outcome": "COALESCED"}),
    (0.42, {"outcome": "MISS"}),
    (0.16, {"outcome": "BYPASS", "reason": "not_repeatable"}),
    (0.03, {"outcome": "BYPASS", "reason": "no_store"}),
)
_KEYS: tuple[tuple[str, str, tuple[Scope, ...], timedelta | None, bool], ...] = (
    ("web shop", "team-search", (Scope.INFERENCE,), timedelta(days=81), True),
    ("nightly evaluation", "team-search", (Scope.INFERENCE,), None, True),
    ("docs assistant", "team-docs", (Scope.INFERENCE,), timedelta(days=3), True),
    ("laptop of maria", "team-docs", (Scope.INFERENCE,), timedelta(days=-2), True),
    ("on-call", "operations", (Scope.ADMIN,), timedelta(days=364), True),
    ("trial 4711", "trials", (Scope.INFERENCE,), timedelta(days=30), False),
)


async def fill_operations(database_url: str) -> None:
    """Add to what `demo_data.fill` has written."""
    engine = connect(database_url)
    try:
        await _keys(engine)
        async with engine.begin() as connection:
            await _workers(connection)
            await _decisions(connection, datetime.min.replace(tzinfo=UTC))
    finally:
        await engine.dispose()


async def refresh(database_url: str) -> None:
    """Bring the data up to date: see `demo_data.go_on`."""
    engine = connect(database_url)
    try:
        async with engine.begin() as connection:
            await _decisions(connection, await go_on(connection))
    finally:
        await engine.dispose()


async def _keys(engine: AsyncEngine) -> None:
    keys = ApiKeyStore(engine)
    for name, project, scopes, expires_in, used in _KEYS:
        limits = KeyOptions(token_limits=TokenLimits(max_output=512, on_exceed="clamp"))
        created = await keys.create(
            name,
            generate_key(),
            project=project,
            scopes=scopes,
            priority_floor=0 if Scope.ADMIN in scopes else 3,
            generated=True,
            options=limits if project == "trials" else NO_KEY_OPTIONS,
        )
        assert created is not None
        values = {"id": parse_id(created), "expires": expires_in, "used": timedelta(minutes=7) if used else None}
        async with engine.begin() as connection:
            statement = (
                "UPDATE api_keys SET created_at = now() - interval '9 days',"
                " expires_at = now() + CAST(:expires AS interval),"
                " last_used_at = now() - CAST(:used AS interval) WHERE id = :id"
            )
            await connection.execute(text(statement), values)
    await keys.change_project("trials", ProjectChanges(tier="free"))
    revoked = await keys.create("old gateway", generate_key(), project="team-search", generated=True)
    await keys.revoke(parse_id(revoked or "") or 0)


async def _workers(connection: AsyncConnection) -> None:
    for entry in MODELS:
        options = {name: value for name, value in entry.items() if name != "name"}
        values = {"model": entry["name"], "options": json.dumps(options)}
        statement = "UPDATE workers SET options = CAST(:options AS jsonb) WHERE model = :model"
        await connection.execute(text(statement), values)
    await connection.execute(
        text("UPDATE workers SET last_error = 'CUDA out of memory: tried to allocate 2.1 GiB'"
             " WHERE lease_expires_at < now()")
    )  # fmt: skip
    await connection.execute(
        text("UPDATE workers SET breaker_since = now() - interval '40 seconds', breaker_reason = 'the upstream responds"
             " with 529 overloaded_error' WHERE model = 'claude-sonnet'")
    )  # fmt: skip
    copies = (
        ("qwen3-8b-4", "loading", timedelta(seconds=38), timedelta(hours=12)),
        ("qwen3-8b-5", "drained", timedelta(minutes=22), timedelta(minutes=-22)),
    )
    for worker, state, since, lease in copies:
        statement = (
            "INSERT INTO workers (id, model, slots, state, state_since, started_at, lease_expires_at, version, options)"
            " SELECT :id, model, 64, :state, now() - CAST(:since AS interval), now() - CAST(:since AS interval),"
            " now() + CAST(:lease AS interval), version, options FROM workers WHERE id = 'qwen3-8b-1'"
        )
        await connection.execute(text(statement), {"id": worker, "state": state, "since": since, "lease": lease})


# Numbers from 0 to 1 that the id of a job determines: one for its route, another for the cache.
_ROUTED = """
    UPDATE jobs SET model = :model, requested_model = 'auto', decisions = CAST(:decision AS jsonb)
    WHERE finished_at > :since AND deaths = 0
        AND (('x' || substr(md5(id), 1, 8))::bit(32)::bigint % 10000) / 10000.0 BETWEEN :low AND :high - 0.00001
"""
_LOOKED_UP = """
    UPDATE jobs SET decisions = coalesce(decisions, '{}') || CAST(:decision AS jsonb)
    WHERE finished_at > :since
        AND (('x' || substr(md5(id), 9, 8))::bit(32)::bigint % 10000) / 10000.0 BETWEEN :low AND :high - 0.00001
"""


async def _decisions(connection: AsyncConnection, since: datetime) -> None:
    """Give the jobs that ended after a time decisions."""
    at = 0.0
    for share, model, decision in _DECIDED:
        route = json.dumps({"route": {"route": "auto", **decision}})
        values: dict[str, Any] = {"model": model, "decision": route, "low": at, "high": at + share,
                                  "since": since}  # fmt: skip
        await connection.execute(text(_ROUTED), values)
        at += share
    at = 0.0
    for share, decision in _CACHED:
        values = {"decision": json.dumps({"cache": decision}), "low": at, "high": at + share, "since": since}
        await connection.execute(text(_LOOKED_UP), values)
        at += share
    await connection.execute(
        text("UPDATE jobs SET usage = usage || '{\"cached_tokens\": 320}' WHERE finished_at > :since"),
        {"since": since},
    )
    await connection.execute(
        text(
            "INSERT INTO cached_answers (key, project_id, model, job_id, bytes, expires_at, hits)"
            " SELECT decode(md5(id), 'hex'), project_id, model, id, 2400 + length(id) * 31, now() + interval '1 hour',"
            " length(md5(id)) % 7 FROM jobs WHERE finished_at > :since AND decisions -> 'cache' ->> 'outcome' = 'MISS'"
        ),
        {"since": since},
    )
