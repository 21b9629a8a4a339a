"""Engines, and the processes that vLLM spawns, load neither Celery nor SQL libraries."""

from __future__ import annotations

import importlib.util
import multiprocessing
import sys

import pytest

from tests.support.loaded import report_loaded

UNWANTED = {"celery", "kombu", "sqlalchemy", "asyncpg", "alembic"}
# vLLM's engine process imports the last two by the paths in its configuration.
VLLM = ["workers.engines.vllm.engine", "workers.engines.vllm.executor", "workers.engines.vllm.scheduler"]


def loaded_by(modules: list[str]) -> set[str]:
    """The packages that a spawned process has loaded after it imported the modules."""
    spawn = multiprocessing.get_context("spawn")
    answer, end = spawn.Pipe(duplex=False)
    process = spawn.Process(target=report_loaded, args=(end, modules))
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
        pytest.param(VLLM, "vllm", marks=pytest.mark.vllm),
    ],
    ids=["factory", "openai", "simulated", "vllm"],
)
def test_an_engine_loads_neither_celery_nor_sql(modules: list[str], package: str) -> None:
    loaded = loaded_by(modules)
    assert package in loaded
    assert loaded & UNWANTED == set()
