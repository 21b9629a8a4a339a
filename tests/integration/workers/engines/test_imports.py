"""Engines, and the processes that vLLM spawns, load neither Celery nor SQL libraries."""

from __future__ import annotations

import importlib.util
import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.context import BaseContext

import pytest

from tests.support.loaded import report_engine, report_loaded
from tests.support.vllm_forks import FORK_WITH_VLLM

UNWANTED = {"celery", "kombu", "sqlalchemy", "asyncpg", "alembic"}
# vLLM's engine process imports the last two by the paths in its configuration.
VLLM = ["workers.engines.vllm.engine", "workers.engines.vllm.executor", "workers.engines.vllm.scheduler"]


def loaded_by(context: BaseContext, modules: list[str], report: Callable[..., None] = report_loaded) -> set[str]:
    """The packages that a process has loaded after it imported the modules."""
    answer, end = context.Pipe(duplex=False)
    process = context.Process(target=report, args=(end, modules))  # type: ignore[attr-defined]
    process.start()
    end.close()
    try:
        assert answer.poll(200), "the process does not answer"
        return set(answer.recv())
    finally:
        process.join(20)
        answer.close()


@pytest.fixture
def worker_main(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spawned processes import `workers.main` as `__mp_main__`, as those of `python -m workers` do."""
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", importlib.util.find_spec("workers.main"))


@pytest.mark.usefixtures("worker_main")
@pytest.mark.parametrize(
    ("modules", "package"),
    [
        (["workers.engines.factory"], "pydantic"),
        (["workers.engines.openai.engine"], "aiohttp"),
        (["workers.engines.simulated.engine"], "pydantic"),
    ],
    ids=["factory", "openai", "simulated"],
)
def test_an_engine_loads_neither_celery_nor_sql(modules: list[str], package: str) -> None:
    loaded = loaded_by(multiprocessing.get_context("spawn"), modules)
    assert package in loaded
    assert loaded & UNWANTED == set()


@pytest.mark.vllm
def test_vllms_engine_process_loads_neither_celery_nor_sql() -> None:
    """It is forked from a process that has imported these modules and more, and then set up as a spawned one is."""
    loaded = loaded_by(FORK_WITH_VLLM, VLLM, report_engine)
    assert "vllm" in loaded
    assert loaded & UNWANTED == set()
