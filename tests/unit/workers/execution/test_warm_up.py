"""The prompt cache is filled before the worker takes jobs, and nothing about that is fatal."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any

import pytest

from shared.config.models.vllm import VllmModel
from shared.domain.errors import InvalidRequest
from shared.domain.request import GenerateRequest
from shared.postgres.prefix_store import PrefixStore, ProjectPrefixes, ReusedPrefix
from shared.postgres.warm_up_store import WarmedPrefix, WarmUpStore
from shared.telemetry.metrics import Metrics
from tests.support.metrics import worker_metrics
from workers.engines.base import EngineDead, EngineError
from workers.execution.warm_up import WarmUp

A, B = ProjectPrefixes(1, "a", "salt-a"), ProjectPrefixes(2, "b", "salt-b")
Prefilled = list[tuple[str, list[int]]]


class Words:
    """An engine whose tokens are the characters of the last raw prompt, or of the system message."""

    def __init__(self, room: int = 1000) -> None:
        self.prefix_room = room
        self.prefilled: Prefilled = []
        self.on_prefill: Callable[[Sequence[int]], object] = lambda tokens: None

    async def prefix(self, requests: Sequence[GenerateRequest]) -> Sequence[int]:
        (text,) = {str(request.prompt or (request.messages or [])[0].text) for request in requests}
        if text == "refused":
            raise InvalidRequest("the template refuses it", param="messages")
        return [ord(character) for character in text]

    async def prefill(self, request_id: str, tokens: Sequence[int], salt: str) -> int:
        if (waits := self.on_prefill(tokens)) is not None:
            await waits  # type: ignore[misc]
        self.prefilled.append((salt, list(tokens)))
        return 0


class Rows(PrefixStore):
    """Two projects, and jobs whose ids are their prompts."""

    def __init__(self, *reused: ReusedPrefix) -> None:
        self.reused = reused
        self.limits: list[tuple[float, int, Sequence[int] | None]] = []

    async def projects(self, model: str, names: Sequence[str] | None, limit: int) -> list[ProjectPrefixes]:
        return [project for project in (A, B) if names is None or project.name in names]

    async def by_id(self, project_ids: Collection[int]) -> dict[int, ProjectPrefixes]:
        return {project.id: project for project in (A, B)}

    async def most_reused(
        self, model: str, *, hours: float, limit: int, project_ids: Sequence[int] | None = None
    ) -> list[ReusedPrefix]:
        self.limits.append((hours, limit, project_ids))
        return list(self.reused)

    async def requests(self, job_ids: Sequence[str]) -> list[GenerateRequest]:
        return [GenerateRequest(prompt=job_id) for job_id in job_ids]


class Ledger(WarmUpStore):
    """Keeps the prefixes that were recorded."""

    def __init__(self, error: Exception | None = None) -> None:
        self.prefixes: list[WarmedPrefix] = []
        self._error = error

    async def record(self, model: str, engine: str, prefixes: Sequence[WarmedPrefix]) -> None:
        if self._error is not None:
            raise self._error
        assert (model, engine) == ("m", "vllm")
        self.prefixes += prefixes


def warm_up(
    engine: Words, *prompts: dict[str, Any], store: Rows | None = None, ledger: Ledger | None = None, **fields: Any
) -> tuple[WarmUp, Metrics]:
    model = VllmModel.model_validate(
        {"name": "m", "engine": "vllm", "model": "x", "warm_prompts": list(prompts), **fields}
    )
    metrics = worker_metrics("m")
    return WarmUp(model, lambda: engine, store or Rows(), ledger or Ledger(), metrics), metrics


def raising(error: Exception) -> Callable[[Sequence[int]], object]:
    def fail(tokens: Sequence[int]) -> object:
        raise error

    return fail


def counted(metrics: Metrics) -> tuple[float, float, float]:
    """The warm and the failed prefixes, and the tokens of the warm ones."""
    registry = metrics.registry()
    results = [
        registry.get_sample_value("headrace_warmed_prefixes_total", {"model": "m", "result": result}) or 0
        for result in ("warm", "failed")
    ]
    return *results, registry.get_sample_value("headrace_warmed_tokens_total", {"model": "m"}) or 0  # type: ignore[return-value]


async def test_each_prompt_is_computed_for_each_project(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    engine = Words()
    warm, metrics = warm_up(engine, {"text": "hello"}, {"text": "x", "as": "prompt", "projects": ["b", "nobody"]})
    await warm.run()
    hello = [ord(character) for character in "hello"]
    assert engine.prefilled == [("salt-a", hello), ("salt-b", hello), ("salt-b", [ord("x")])]
    assert counted(metrics) == (3, 0, 11)
    assert "model=m prompt cache warm: 3 prefixes, 11 tokens" in caplog.text
    assert "m.warm_prompts[1].projects: there is no project 'nobody'" in caplog.text
    assert "hello" not in caplog.text


async def test_what_was_computed_is_recorded_for_each_project(caplog: pytest.LogCaptureFixture) -> None:
    engine, ledger = Words(), Ledger()

    def fail_for_x(tokens: Sequence[int]) -> None:
        if list(tokens) == [ord("x")]:
            raise EngineError("too much")

    engine.on_prefill = fail_for_x
    warm, _ = warm_up(engine, {"text": "hello"}, {"text": "x"}, ledger=ledger)
    await warm.run()
    assert ledger.prefixes == [WarmedPrefix(1, 5, 0), WarmedPrefix(2, 5, 0)]
    unavailable, metrics = warm_up(Words(), {"text": "hello"}, ledger=Ledger(OSError("no database")))
    await unavailable.run()
    assert counted(metrics)[0] == 2
    assert "cannot record the usage of its warm-up" in caplog.text


async def test_an_entry_without_prompts_does_nothing() -> None:
    warm, metrics = warm_up(Words())
    assert not warm.needed
    await warm.run()
    assert counted(metrics) == (0, 0, 0)


async def test_a_prompt_that_fails_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    engine = Words()
    warm, metrics = warm_up(engine, {"text": "refused"}, {"file": "/does/not/exist"}, {"text": "y"})
    await warm.run()
    assert [tokens for _, tokens in engine.prefilled] == 2 * [[ord("y")]]
    assert counted(metrics) == (2, 2, 2)
    assert "models.yaml: m.warm_prompts[0]: skipped: the template refuses it" in caplog.text
    assert "models.yaml: m.warm_prompts[1]: skipped: [Errno 2] No such file" in caplog.text


async def test_an_error_of_the_engine_concerns_one_prefix() -> None:
    engine = Words()
    engine.on_prefill = lambda tokens: raising(EngineError("no"))(tokens) if len(tokens) == 1 else None
    warm, metrics = warm_up(engine, {"text": "x"}, {"text": "long"})
    await warm.run()
    assert counted(metrics) == (2, 2, 8)


async def test_an_engine_without_a_cache(caplog: pytest.LogCaptureFixture) -> None:
    engine = Words(room=0)
    warm, _ = warm_up(engine, {"text": "x"})
    await warm.run()
    assert engine.prefilled == []
    assert "the engine caches no prefixes of this model" in caplog.text


async def test_only_a_share_of_the_cache_is_filled() -> None:
    engine = Words(room=20)
    warm, metrics = warm_up(engine, {"text": 10 * "x"}, {"text": 5 * "y"})
    await warm.run()
    assert [(salt, len(tokens)) for salt, tokens in engine.prefilled] == [("salt-a", 10), ("salt-a", 5)]
    assert counted(metrics) == (2, 2, 15)


async def test_the_time_limit_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    engine = Words()
    engine.on_prefill = lambda tokens: asyncio.Event().wait() if len(tokens) > 1 else None
    warm, metrics = warm_up(engine, {"text": "x"}, {"text": "endless"}, warm_prompts_timeout_s=0.05)
    await warm.run()
    assert counted(metrics) == (2, 0, 2)
    assert "warm_prompts: reached the limit of 0.05 s" in caplog.text
    engine.on_prefill = lambda tokens: None
    await warm.run()
    assert len(engine.prefilled) == 6, "what was interrupted is tried again at the next start"


async def test_a_prefix_with_which_the_engine_died_is_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    engine = Words()
    engine.on_prefill = lambda tokens: raising(EngineDead())(tokens) if len(tokens) == 6 else None
    warm, _ = warm_up(engine, {"text": "x"}, {"text": "deadly", "projects": ["a"]}, {"text": "y"})
    await warm.run()
    assert [tokens for _, tokens in engine.prefilled] == 2 * [[ord("x")]]
    engine.prefilled.clear()
    engine.on_prefill = lambda tokens: None
    await warm.run()
    assert [tokens for _, tokens in engine.prefilled] == 2 * [[ord("x")]] + 2 * [[ord("y")]]
    cold = "warm_prompts[1] (text) for project a, 6 tokens, stays cold: the engine died while it was computed"
    assert cold in caplog.text


async def test_an_unavailable_database_is_not_fatal(caplog: pytest.LogCaptureFixture) -> None:
    class Away(Rows):
        async def projects(self, model: str, names: Sequence[str] | None, limit: int) -> list[ProjectPrefixes]:
            raise ConnectionRefusedError

    engine = Words()
    warm, _ = warm_up(engine, {"text": "x"}, store=Away())
    await warm.run()
    assert engine.prefilled == []
    assert "the prompt cache is only partly warm" in caplog.text


async def test_the_prefixes_that_saved_most() -> None:
    """One that another begins with is computed with it, and only so much of a prompt as was found in the cache."""
    store = Rows(
        ReusedPrefix(1, 6, 600, ("system, then one",)),
        ReusedPrefix(1, 3, 300, ("system, then one",)),
        ReusedPrefix(2, 6, 200, ("system, then one",)),
        ReusedPrefix(1, 8, 100, ("system, then one",)),
        ReusedPrefix(2, 5, 90, ("other",)),
        ReusedPrefix(2, 5, 80, ("third",)),
    )
    engine = Words()
    warm, _ = warm_up(engine, {"top": 3, "hours": 2}, store=store)
    await warm.run()
    texts = [(salt, "".join(map(chr, tokens))) for salt, tokens in engine.prefilled]
    assert texts == [("salt-a", "system"), ("salt-b", "system"), ("salt-a", "system, "), ("salt-b", "other")]
    assert store.limits == [(2, 12, None)]


async def test_the_prefixes_of_named_projects_only() -> None:
    store = Rows(ReusedPrefix(2, 2, 20, ("hello",)))
    warm, _ = warm_up(Words(), {"top": 3, "projects": ["b"]}, store=store)
    await warm.run()
    assert store.limits == [(24, 12, [2])]
