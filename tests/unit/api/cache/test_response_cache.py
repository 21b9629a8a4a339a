"""Which requests the response cache serves, by the options of the request, its key and its model."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest
from sqlalchemy.exc import OperationalError, ProgrammingError

from api.cache import response_cache
from api.cache.response_cache import ResponseCache
from api.cache.store import CacheStore
from api.keys.principal import Principal, Scope
from shared.config.models.loader import Registry
from shared.config.models.openai import OpenAIModel
from shared.config.models.simulated import SimulatedModel
from shared.domain.answer_options import CacheControl, CacheOptions, KeyOptions, RequestOptions
from shared.domain.decisions import CacheDecision, Decisions
from shared.domain.job import Job
from shared.domain.log_level import LogLevel
from shared.domain.new_job import NewJob
from shared.domain.owner import MAX_END_USER, Owner
from shared.domain.request import GenerateRequest, Sampling
from shared.postgres.job_store import JobStore
from shared.telemetry.metrics import Metrics
from tests.support.metrics import api_metrics

SECRET = b"s" * 32
PRINCIPAL = Principal(1, 2, frozenset(Scope))
ON = CacheOptions(ttl=60)
REPEATABLE = GenerateRequest(prompt="x", sampling=Sampling(temperature=0))


class Unavailable:
    """A database that is away, or takes too long."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def secret(self, _: bytes) -> bytes:
        raise self._error

    async def cached_bytes(self, *_: Any) -> int | None:
        raise self._error

    async def answer(self, *_: Any, **__: Any) -> tuple[Job, bool] | None:
        raise self._error


class Slow(Unavailable):
    """A database in which lookups, or writes, wait for `released`."""

    def __init__(self, *, lookups: bool) -> None:
        self._lookups = lookups
        self.released = asyncio.Event()
        self.writes = 0
        self.error: Exception

    async def cached_bytes(self, *_: Any) -> int | None:
        if self._lookups:
            await self.released.wait()
        return 7

    async def answer(self, *_: Any, answer_bytes: int, **__: Any) -> tuple[Job, bool] | None:
        assert answer_bytes == 7
        self.writes += 1
        await self.released.wait()
        return cast(Job, "the job with the answer"), True


def registry(**model: Any) -> Registry:
    return Registry({"m": SimulatedModel(name="m", engine="simulated", **model)})


def cache(models: Registry | None = None, jobs: Any = None, store: Any = None, **others: Any) -> ResponseCache:
    arguments = {"secret": SECRET, **others}
    return ResponseCache(
        models or registry(), cast(CacheStore, store), cast(JobStore, jobs), arguments.pop("metrics", api_metrics()),
        **arguments,
    )  # fmt: skip


def new_job(request: GenerateRequest = REPEATABLE, end_user: str | None = None, **changes: Any) -> NewJob:
    options = RequestOptions(**{name: changes.pop(name) for name in ("cache", "cache_control") if name in changes})
    return NewJob(Owner(1, 2, end_user), "m", 3, request, options=options, **changes)


async def decided(
    new: NewJob, *, key: CacheOptions | None = None, model: CacheOptions | None = None
) -> CacheDecision | None:
    principal = replace(PRINCIPAL, options=KeyOptions(cache=key))
    admitted = await cache(registry(cache=model)).admit(principal, new)
    decision = admitted.decisions.cache
    assert (admitted.cache_key is not None) == (decision is not None and decision.outcome == "MISS")
    return decision


async def outcome(new: NewJob, **options: CacheOptions) -> str | None:
    decision = await decided(new, **options)
    return None if decision is None else decision.outcome


async def test_the_cache_is_off_unless_something_turns_it_on() -> None:
    assert await outcome(new_job()) is None
    assert await outcome(new_job(cache_control=CacheControl(no_cache=True))) is None
    assert await outcome(new_job(cache_control=CacheControl(no_cache=True, max_age_s=0))) is None
    assert await outcome(new_job(cache=ON)) == "MISS"
    assert await outcome(new_job(), key=ON) == "MISS"
    assert await outcome(new_job(), model=ON) == "MISS"
    assert await outcome(new_job(cache_control=CacheControl(max_age_s=5))) == "MISS"


async def test_the_request_decides_before_the_key_and_the_key_before_the_model() -> None:
    async def ttl_s(new: NewJob, **options: CacheOptions) -> int | None:
        decision = await decided(new, **options)
        return None if decision is None else decision.ttl_s

    options = {"key": CacheOptions(ttl=2), "model": CacheOptions(ttl=3)}
    assert await ttl_s(new_job(cache=CacheOptions(ttl=1)), **options) == 1
    assert await ttl_s(new_job(), **options) == 2
    assert await ttl_s(new_job(), model=options["model"]) == 3
    assert await ttl_s(new_job(cache_control=CacheControl(max_age_s=9)), **options) == 2
    assert await ttl_s(new_job(cache_control=CacheControl(max_age_s=9))) == 9
    assert await ttl_s(new_job(cache_control=CacheControl(max_age_s=10**9))) == 30 * 24 * 3600


@pytest.mark.parametrize(
    "changes",
    [
        {"cache_control": CacheControl(no_store=True)},
        {"cache_control": CacheControl(no_store=True, max_age_s=60)},
        {"log_level": LogLevel.NONE},
        {"request": REPEATABLE.model_copy(update={"prompt_only": True})},
    ],
    ids=str,
)
async def test_requests_that_bypass_the_cache(changes: dict[str, Any]) -> None:
    assert await outcome(new_job(**changes), key=ON) == "BYPASS"
    assert await outcome(new_job(**changes, cache=ON)) == "BYPASS"


async def test_no_store_is_reported_even_if_the_cache_is_off() -> None:
    assert await outcome(new_job(cache_control=CacheControl(no_store=True))) == "BYPASS"
    assert await outcome(new_job(log_level=LogLevel.NONE)) is None, "there is nothing to bypass"


@pytest.mark.parametrize(
    ("sampling", "repeatable"),
    [
        (Sampling(), False),
        (Sampling(temperature=0.7), False),
        (Sampling(temperature=0), True),
        (Sampling(temperature=0.7, seed=0), True),
    ],
    ids=str,
)
async def test_only_repeatable_requests_are_cached_unless_the_request_asks(
    sampling: Sampling, *, repeatable: bool
) -> None:
    request = GenerateRequest(prompt="x", sampling=sampling)
    expected = "MISS" if repeatable else "BYPASS"
    assert await outcome(new_job(request), model=ON) == expected
    assert await outcome(new_job(request), key=ON) == expected
    assert await outcome(new_job(request, cache_control=CacheControl(no_cache=True)), key=ON) == expected
    assert await outcome(new_job(request, cache=ON)) == "MISS"
    assert await outcome(new_job(request, cache_control=CacheControl(max_age_s=5)), model=ON) == "MISS"


@pytest.mark.parametrize(
    ("image", "repeatable"),
    [
        ({"url": "https://camera.example/latest.jpg"}, False),
        ({"file_id": "file_1"}, True),
        ({"data": "QQ==", "media_type": "image/png"}, True),
    ],
    ids=["url", "file", "data"],
)
async def test_what_a_url_stands_for_may_have_changed(image: dict[str, str], *, repeatable: bool) -> None:
    content = [{"type": "image", **image}]
    body = {"messages": [{"role": "user", "content": content}], "sampling": {"temperature": 0}}
    new = new_job(GenerateRequest.model_validate(body))
    assert await outcome(new, model=ON) == ("MISS" if repeatable else "BYPASS")
    assert await outcome(replace(new, options=RequestOptions(cache=ON))) == "MISS"


async def key_of(new: NewJob, principal: Principal = PRINCIPAL, models: Registry | None = None) -> bytes | None:
    return (await cache(models).admit(principal, new)).cache_key


async def test_the_scope_separates_keys_and_end_users() -> None:
    def scoped(scope: Any, end_user: str | None = None, key_id: int = 2) -> NewJob:
        new = new_job(cache=CacheOptions(scope=scope), end_user=end_user)
        return replace(new, owner=replace(new.owner, key_id=key_id))

    assert await key_of(scoped("project", "ann")) == await key_of(scoped("project", "ben", key_id=3))
    assert await key_of(scoped("key", "ann")) == await key_of(scoped("key", "ben"))
    keys = [scoped("project"), scoped("key"), scoped("key", key_id=3), scoped("user", "ann"), scoped("user", "ben")]
    assert len({await key_of(new) for new in keys} - {None}) == 5


@pytest.mark.parametrize("name", [None, "x" * MAX_END_USER])
async def test_an_unknown_end_user_finds_no_other_users_answers(name: str | None) -> None:
    assert await outcome(new_job(cache=CacheOptions(scope="user"), end_user=name)) == "BYPASS"
    assert await outcome(new_job(cache=ON, end_user=name)) == "MISS"


async def test_another_entry_of_the_model_has_other_keys_unless_only_its_operation_changed() -> None:
    def upstream(**options: Any) -> Registry:
        fields = {"base_url": "http://a/v1", **options}
        return Registry(
            {"m": OpenAIModel.model_validate({"name": "m", "engine": "openai", "model": "x", "options": fields})}
        )

    new = new_job(cache=ON)
    first = await key_of(new, models=upstream())
    assert await key_of(new, models=upstream(max_retries=1)) == first
    assert await key_of(new, models=upstream(base_url="http://b/v1")) != first
    assert await key_of(new, models=upstream(max_tokens_field="max_completion_tokens")) != first
    assert await key_of(new, models=registry(options={"default_tokens": 5})) != await key_of(new)


async def test_jobs_of_the_service_are_not_cached() -> None:
    assert await outcome(new_job(kind="summary"), model=ON) is None


async def test_earlier_decisions_stay() -> None:
    admitted = await cache().admit(PRINCIPAL, new_job(cache=ON, decisions=Decisions(tokens_estimated=True)))
    assert admitted.decisions.tokens_estimated
    assert admitted.decisions.headers()["x-headrace-cache"] == "MISS"


@pytest.mark.parametrize("error", [OperationalError("", None, Exception()), ConnectionResetError(), TimeoutError()])
async def test_errors_of_the_cache_let_the_request_run(error: Exception) -> None:
    def errors(metrics: Metrics) -> float:
        return metrics.registry().get_sample_value("headrace_cache_errors_total") or 0.0

    metrics, away = api_metrics(), Unavailable(error)
    new = new_job(cache=ON)
    broken = cache(store=away, secret=None, metrics=metrics)
    admitted = await broken.admit(PRINCIPAL, new)
    assert admitted.decisions.cache == CacheDecision(outcome="BYPASS", reason="unavailable")
    assert errors(metrics) == 1
    broken = cache(jobs=away, metrics=metrics)
    assert await broken.answer(await broken.admit(PRINCIPAL, new), None) is None
    assert errors(metrics) == 2


async def test_a_lookup_that_takes_too_long_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_cache, "LOOKUP_TIMEOUT_S", 0.01)
    slow = Slow(lookups=True)
    served = cache(jobs=slow)
    assert await served.answer(await served.admit(PRINCIPAL, new_job(cache=ON)), None) is None
    assert slow.writes == 0


async def test_a_write_that_takes_long_is_awaited_as_the_request_would_run_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(response_cache, "LOOKUP_TIMEOUT_S", 0.01)
    slow = Slow(lookups=False)
    served = cache(jobs=slow)
    answering = asyncio.create_task(served.answer(await served.admit(PRINCIPAL, new_job(cache=ON)), None))
    await asyncio.wait([answering], timeout=0.05)
    assert not answering.done()
    slow.released.set()
    answer: object = await answering
    assert answer == ("the job with the answer", True)
    assert slow.writes == 1


async def test_a_write_with_an_unknown_outcome_is_an_error() -> None:
    class Lost(Slow):
        async def answer(self, *_: Any, **__: Any) -> tuple[Job, bool] | None:
            raise self.error

    lost = Lost(lookups=False)
    served = cache(jobs=lost)
    new = await served.admit(PRINCIPAL, new_job(cache=ON))
    for lost.error in (OperationalError("", None, Exception()), TimeoutError()):
        with pytest.raises(type(lost.error)):
            await served.answer(new, None)
    lost.error = ProgrammingError("", None, Exception())  # refused by the database: nothing was written
    assert await served.answer(new, None) is None


async def test_no_cache_looks_nothing_up() -> None:
    failing = cache(jobs=Unavailable(AssertionError()))
    new = await failing.admit(PRINCIPAL, new_job(cache=ON, cache_control=CacheControl(no_cache=True)))
    assert new.cache_key is not None
    assert await failing.answer(new, None) is None
