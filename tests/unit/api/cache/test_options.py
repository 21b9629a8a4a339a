"""Whose options of the response cache apply to a request: its own, those of its key, or those of the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from api.cache.response_cache import ResponseCache
from api.cache.store import CacheStore
from api.keys.principal import Principal
from shared.config.models.loader import Registry
from shared.config.models.simulated import SimulatedModel
from shared.domain.answer_options import CacheControl, CacheOptions, KeyOptions, RequestOptions
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Sampling
from shared.postgres.job_store import JobStore
from tests.support.metrics import api_metrics

OWNER = Owner(1, 1)
REQUEST = GenerateRequest(prompt="x", sampling=Sampling(temperature=0))


@pytest.mark.parametrize(
    ("of_model", "of_key", "of_request", "ttl"),
    [
        ({}, {}, {}, None),
        ({"ttl": 10}, {}, {}, 10),
        ({"ttl": 10}, {"cache": CacheOptions(ttl=20)}, {}, 20),
        ({"ttl": 10}, {"cache": CacheOptions(ttl=20)}, {"cache": CacheOptions(ttl=30)}, 30),
        ({"ttl": 10}, {"no_cache": True}, {}, None),
        ({"ttl": 10}, {"no_cache": True}, {"cache": CacheOptions(ttl=30)}, 30),
        ({"ttl": 10}, {"no_cache": True}, {"cache_control": CacheControl(max_age_s=40)}, 40),
    ],
)
async def test_the_options_of_the_request_apply_before_those_of_the_key_and_the_model(
    of_model: dict[str, Any], of_key: dict[str, Any], of_request: dict[str, Any], ttl: int | None
) -> None:
    model = SimulatedModel.model_validate({"name": "m", "engine": "simulated", "cache": of_model or None})
    store, jobs = cast(CacheStore, None), cast(JobStore, None)  # the secret is given, and nothing is looked up
    cache = ResponseCache(Registry({"m": model}), store, jobs, api_metrics("m"), secret=b"x" * 32)
    principal = replace(Principal.of(OWNER), options=KeyOptions(**of_key))
    new = await cache.admit(principal, NewJob(OWNER, "m", 3, REQUEST, options=RequestOptions(**of_request)))
    decision = new.decisions.cache
    assert (decision.ttl_s if decision is not None else None) == ttl
    assert (new.cache_key is not None) == (ttl is not None)
