"""The usage from which the tokens of a byte are learned, with a real database."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.context import usage_store
from api.context.learned_ratios import LearnedRatios
from api.context.usage_store import UsageStore
from api.context.window import ContextWindow
from shared.config.models.loader import Registry
from shared.config.models.openai import OpenAIModel
from shared.domain.content import ImagePart
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Message
from shared.postgres.job_store import JobStore, NewJob
from tests.support.metrics import api_metrics


def relayed(name: str) -> OpenAIModel:
    entry = {"name": name, "engine": "openai", "model": "m", "options": {"base_url": "http://localhost:1/v1"}}
    return OpenAIModel.model_validate(entry)


async def ended(
    store: JobStore, database: AsyncEngine, owner: Owner, request: GenerateRequest, tokens: int | None, model: str = "m"
) -> None:
    """A job of the model that has ended with this usage."""
    job, _ = await store.insert(NewJob(owner, model, 3, request))
    usage = None if tokens is None else json.dumps({"prompt_tokens": tokens, "completion_tokens": 1})
    statement = text(
        "UPDATE jobs SET status = :status, finished_at = clock_timestamp(), usage = CAST(:usage AS jsonb)"
        " WHERE id = :id"
    )
    async with database.begin() as connection:
        status = "failed" if tokens is None else "completed"
        await connection.execute(statement, {"id": job.id, "status": status, "usage": usage})


async def test_ratios_are_learned_from_usage(store: JobStore, database: AsyncEngine, owner: Owner) -> None:
    registry, metrics = Registry({"m": relayed("m"), "new": relayed("new")}), api_metrics("m", "new")
    window = ContextWindow(registry)
    ratios = LearnedRatios(registry, UsageStore(database), window.estimates, metrics)
    prompt = GenerateRequest(messages=[Message(role="user", content="ä" * 500)])
    await ratios.read()
    assert window.estimates.tokens_per_byte("m") == 1 / 3
    for _ in range(5):
        await ended(store, database, owner, prompt, 532)
    await ended(store, database, owner, prompt, None)
    await ended(store, database, owner, prompt, 0)
    image = ImagePart(type="image", media_type="image/png", data="A" * 100)
    await ended(store, database, owner, GenerateRequest(messages=[Message(role="user", content=[image])]), 9999)
    await ended(store, database, owner, GenerateRequest(prompt=[1, 2, 3]), 9999)
    await ratios.read()
    assert window.estimates.tokens_per_byte("m") == 0.5
    assert window.estimates.tokens_per_byte("new") == 1 / 3
    shown = [metrics.tokens_per_byte.labels(model)._value.get() for model in ("m", "new")]
    assert shown == [0.5, 1 / 3]


async def test_only_the_last_jobs_of_a_model_are_read(
    store: JobStore, database: AsyncEngine, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_store, "SAMPLE", 2)
    prompt = GenerateRequest(prompt="x" * 1000)
    for tokens in range(100, 103):
        await ended(store, database, owner, prompt, tokens)
        await ended(store, database, owner, prompt, 999, model="another")
    recent = await UsageStore(database).recent(["m", "missing"])
    assert {model: sorted(found) for model, found in recent.items()} == {"m": [(1000, 101), (1000, 102)], "missing": []}
