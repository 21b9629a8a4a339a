"""Running stacks, one with the simulated engine and one with vLLM, each shared by all tests of a run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence

import httpx
import pytest

from shared.config.bundled_model import bundled_model_path
from shared.domain.master_key import generate_master_key
from tests.conftest import SIM_REDIS_DB, VLLM_REDIS_DB, Servers
from tests.support.database import create_database, drop_database, switch_database
from tests.support.last_use import LAST_USE
from tests.support.stack import Stack, stack_template, write_models

FAIL = "<<fail>>"
ROUTE = "steady"
DEAR_ROUTE = "thrifty"
# Options of the vLLM engine, and of vLLM's own server in the tests that compare the two.
VLLM_OPTIONS: dict[str, object] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 1024,
    "max_num_seqs": 32,
    "kv_cache_memory_bytes": 1 << 30,
}
# The second one leaves no room for an answer that can be parsed.
VLLM_RUBRICS = """\
rubrics:
  - {name: helpful, question: "Which answer is right?", judge: smollm2, max_tokens: 80}
  - {name: cut, question: "Which answer is right?", judge: smollm2, max_tokens: 3}
"""
# A system message that is longer than a block of the prompt cache, which has 128 tokens on a CPU.
WARM_TEXT = " ".join(f"Rule {number}: answer in {number} words." for number in range(20))


def make_stack(
    servers: Servers,
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    models: list[dict[str, object]],
    *,
    routes: Sequence[dict[str, object]] = (),
    redis_db: int | None = None,
    **settings: object,
) -> Stack:
    """A stack with its own database and Redis database. No process has been started yet."""
    folder = tmp_path_factory.mktemp(name)
    database = f"stack_{name}"
    create_database(servers.postgres_url, database, template=stack_template(servers.postgres_url))
    return Stack(
        switch_database(servers.postgres_url, database),
        servers.empty_redis(redis_db),
        write_models(folder / "models.yaml", models, routes),
        folder,
        **settings,
    )


@pytest.fixture(scope="session")
def sim_stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The API, one worker for `sim` (fast) and one for `small` (2 slots, slow); `orphan` has no worker.

    The route `auto` prefers `sim` and `small`, or for requests with a certain word, `orphan`.
    `ROUTE` leads to `sim`, and to `small` if that fails. `DEAR_ROUTE` leads to `dear`, which has no worker either.
    """
    models: list[dict[str, object]] = [
        {
            "name": "sim",
            "engine": "simulated",
            "slots": 32,
            "options": {"ttft_ms": 5, "itl_ms": 5, "fail_on": FAIL, "max_model_len": 4096},
        },
        {"name": "small", "engine": "simulated", "slots": 2, "options": {"ttft_ms": 5, "itl_ms": 20}},
        {"name": "orphan", "engine": "simulated", "slots": 2, "price": {"input": 0, "output": 1000}},
        {"name": "dear", "engine": "simulated", "slots": 2, "price": {"input": 0, "output": 2000}},
    ]
    routes: list[dict[str, object]] = [
        {
            "name": "auto",
            "models": ["sim", "small"],
            "rules": [{"name": "scarce", "if": {"keywords": ["orphan"]}, "model": "orphan"}],
            "fallbacks": {"orphan": ["small", "sim"]},
        },
        {"name": ROUTE, "otherwise": "sim", "fallbacks": {"sim": ["small"]}},
        {"name": DEAR_ROUTE, "models": ["orphan", "dear"], "otherwise": "dear"},
    ]
    stack = make_stack(
        servers,
        tmp_path_factory,
        "sim",
        models,
        routes=routes,
        redis_db=SIM_REDIS_DB,
        HEADRACE_MAX_BODY_BYTES=100_000,
        HEADRACE_WEBHOOK_ALLOW_HTTP="true",
        HEADRACE_WEBHOOK_ALLOW_PRIVATE="127.0.0.0/8",
    )

    def end() -> None:
        stack.stop()
        drop_database(servers.postgres_url, "stack_sim")

    with LAST_USE.ended_after("sim_stack", end):
        stack.start_api()
        stack.start_worker("sim")
        stack.start_worker("small")
        yield stack


@pytest.fixture
async def sim(sim_stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the stack with the simulated engine."""
    async with sim_stack.client() as client:
        yield client


@pytest.fixture(scope="session")
def vllm_stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The API and one worker with a vLLM engine and the small bundled model."""
    models: list[dict[str, object]] = [
        {
            "name": "smollm2",
            "engine": "vllm",
            "model": str(bundled_model_path("SmolLM2-135M-Instruct")),
            "options": VLLM_OPTIONS,
            "chat": {"tool_call_parser": "hermes"},
            "warm_prompts": [{"text": WARM_TEXT}, {"top": 2, "hours": 1}],
        }
    ]
    routes: list[dict[str, object]] = [{"name": "auto", "models": ["smollm2"]}]
    stack = make_stack(servers, tmp_path_factory, "vllm", models, routes=routes, redis_db=VLLM_REDIS_DB)
    stack.environment["HEADRACE_RUBRICS"] = str(stack.folder / "rubrics.yaml")
    stack.environment["HEADRACE_LOG_KEY"] = generate_master_key()
    (stack.folder / "rubrics.yaml").write_text(VLLM_RUBRICS)

    def end() -> None:
        stack.stop(gently=True)  # vLLM removes files at exit
        drop_database(servers.postgres_url, "stack_vllm")

    with LAST_USE.ended_after("vllm_stack", end):
        stack.start_api()
        stack.start_worker("smollm2", within_s=240)
        yield stack


@pytest.fixture
async def vllm(vllm_stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the stack with the vLLM engine."""
    async with vllm_stack.client() as client:
        yield client
