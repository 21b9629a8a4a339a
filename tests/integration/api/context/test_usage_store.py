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
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Message
from shared.postgres.job_store import JobStore
from tests.support.database import make_owner
from tests.support.metrics import api_metrics


def relayed(name: str) -> OpenAIModel:
    entry = {"name": name, "engine": "openai", "model": "m", "options": {"base_url": "http://localhost:1/v1"}}
    return OpenAIModel.model_validate(entry)


async def ended(
    store: JobStore,
    database: AsyncEngine,
    owner: Owner,
    request: GenerateRequest,
    tokens: int | None,
    model: str = "m",
    attempt: int = 1,
) -> None:
    """A job of the model that has ended with this usage."""
    job, _ = await store.insert(NewJob(owner, model, 3, request))
    usage = None if tokens is None else json.dumps({"prompt_tokens": tokens, "completion_tokens": 1})
    statement = text(
        "UPDATE jobs SET status = :status, finished_at = clock_timestamp(), usage = CAST(:usage AS jsonb),"
        " attempt = :attempt WHERE id = :id"
    )
    async with database.begin() as connection:
        status = "failed" if tokens is None else "completed"
        await connection.execute(statement, {"id": job.id, "status": status, "usage": usage, "attempt": attempt})


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
    for _ in range(20):  # answers from the response cache, and those of other jobs
        await ended(store, database, owner, GenerateRequest(prompt="x" * 5000), 5000, attempt=0)
    await ratios.read()
    assert window.estimates.tokens_per_byte("m", owner.project_id) == 0.5
    assert window.estimates.tokens_per_byte("m") == 1 / 3, "one project alone does not decide for others"
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
    usage, key = UsageStore(database), ("m", owner.project_id)
    for found in (
        await usage.recent(["m", "missing"]),
        await usage.of_projects(["m", "missing"], [owner.project_id, 10**6]),
    ):
        assert {key: sorted(prompts) for key, prompts in found.items()} == {key: [(1000, 101), (1000, 102)]}


async def test_a_project_does_not_change_the_estimates_of_another(
    store: JobStore, database: AsyncEngine, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_store, "SAMPLE", 10)
    registry = Registry({"m": relayed("m")})
    window = ContextWindow(registry)
    ratios = LearnedRatios(registry, UsageStore(database), window.estimates)
    english, dense = GenerateRequest(prompt="x" * 4000), GenerateRequest(prompt="7" * 4000)
    assert window.estimates.estimate("m", english, owner.project_id) == 1334
    for _ in range(8):
        await ended(store, database, owner, english, 1000)
    other = await make_owner(database, "other")
    for _ in range(12):  # more than the sample
        await ended(store, database, other, dense, 4000)
    await ratios.read()
    assert window.estimates.estimate("m", english, owner.project_id) == 1000
    assert window.estimates.estimate("m", dense, other.project_id) == 4000
    assert window.estimates.estimate("m", english, owner.project_id + 1000) == 1334
