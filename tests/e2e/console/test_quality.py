"""Judges end to end: sampled answers, sets, budgets, the command line, and the pages of quality."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.evals.identity import PROJECT
from shared.domain.master_key import generate_master_key
from shared.postgres.engine import connect
from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.e2e.console.test_protection import sign_in
from tests.support.browser import needs_chromium
from tests.support.console import COLOURS, PHONE, accessibility_faults, create_key, visit
from tests.support.database import drop_database
from tests.support.forked import run_forked
from tests.support.metrics import samples
from tests.support.stack import Stack
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

RUBRICS = """\
rubrics:
  - name: helpful
    question: Does the answer help?
    judge: judge
    sampling: {rate: 1}
  - name: polite
    question: Is the answer polite?
    scale: yes/no
    judge: dear
"""
QUESTION = "What carries the water?"
ITEMS = 20
ITEM: dict[str, Any] = {
    "id": "q", "messages": [{"role": "user", "content": QUESTION}], "answers": [{"model": "sim", "text": "x"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An API that logs everything, with judges; all its jobs are run by simulated engines. `dear` has no worker."""
    options = {"ttft_ms": 1, "itl_ms": 1, "stop_after": 6}  # a cut answer is not judged
    models: list[dict[str, object]] = [
        {"name": name, "engine": "simulated", "slots": 32, "options": options} for name in ("sim", "other", "judge")
    ]
    models.append({"name": "dear", "engine": "simulated", "price": {"input": 1000, "output": 1000}})
    stack = make_stack(
        servers,
        tmp_path_factory,
        "evals",
        models,
        HEADRACE_LOG_KEY=generate_master_key(),
        HEADRACE_REQUEST_LOG_LEVEL="full",
    )
    (stack.folder / "rubrics.yaml").write_text(RUBRICS)
    stack.environment["HEADRACE_RUBRICS"] = str(stack.folder / "rubrics.yaml")
    try:
        stack.start_api()
        stack.start_workers(["sim", "other", "judge"])
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_evals")


@pytest.fixture(scope="module")
def key(stack: Stack) -> str:
    """A key that may do everything."""
    return create_key(stack, "ann", "inference", "admin", "logs")


@pytest_asyncio.fixture(loop_scope="session")
async def client(stack: Stack, key: str) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.client(headers={"Authorization": f"Bearer {key}"}) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="session")
async def database(stack: Stack) -> AsyncIterator[AsyncEngine]:
    engine = connect(stack.environment["DATABASE_URL"])
    yield engine
    await engine.dispose()


def run_command(stack: Stack, key: str, *arguments: str, check: bool = False) -> Any:
    environment = {**stack.environment, "HEADRACE_URL": stack.url, "HEADRACE_API_KEY": key}
    return run_forked("api.evals", *arguments, environment=environment, check=check)


def write_set(folder: Path, **members: Any) -> str:
    path = folder / "set.jsonl"
    lines = [
        {"id": f"q{number}", "messages": [{"role": "user", "content": f"{QUESTION} {number}"}], **members}
        for number in range(ITEMS)
    ]
    path.write_bytes(b"\n".join(map(orjson.dumps, lines)))
    return str(path)


async def judged_answers(client: httpx.AsyncClient, database: AsyncEngine, count: int = 2) -> list[str]:
    """Answers of the model `sim` that were sampled and judged, as if they had been given a minute ago."""
    body = {"model": "sim", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 8}

    async def has_begun() -> bool:
        async with database.connect() as connection:
            return bool(await connection.scalar(text("SELECT count(*) FROM eval_runs WHERE kind = 'live'")))

    await eventually(has_begun, "the live run has begun")
    jobs = [
        (await client.post("/v1/jobs", json=body, headers={"Prefer": "wait=30"})).json()["id"] for _ in range(count)
    ]

    async def are_kept() -> bool:
        async with database.connect() as connection:
            kept = "SELECT count(*) FROM request_log WHERE body = 'kept' AND job_id = ANY(:jobs)"
            return bool(await connection.scalar(text(kept), {"jobs": jobs}) == count)

    await eventually(are_kept, "the bodies are kept")
    async with database.begin() as connection:
        for table in ("request_log", "request_bodies"):
            await connection.execute(
                text(f"UPDATE {table} SET ended_at = ended_at - interval '1 minute' WHERE job_id = ANY(:jobs)"),  # noqa: S608
                {"jobs": jobs},
            )
        await connection.execute(
            text(
                "UPDATE eval_runs SET options = jsonb_set(options, '{watermark,ended_at}',"
                " to_jsonb(now() - interval '2 minutes')) WHERE kind = 'live'"
            )
        )

    async def are_scored() -> bool:
        async with database.connect() as connection:
            scored = "SELECT count(*) FROM judgements WHERE state = 'scored' AND item = ANY(:jobs)"
            return bool(await connection.scalar(text(scored), {"jobs": jobs}) == count)

    await eventually(are_scored, "the answers are judged")
    return jobs


async def test_sampled_answers_are_judged_and_labelled(
    stack: Stack, client: httpx.AsyncClient, database: AsyncEngine, key: str
) -> None:
    jobs = await judged_answers(client, database)
    report = (await client.get("/v1/evals/report", params={"rubric": "helpful"})).json()
    # The simulated engine gives the first value of the schema: the lowest score.
    (model,) = report["models"]
    assert (model["model"], model["mean"], model["scores"]) == ("sim", 1, {"1": model["n"]})
    for job, score in zip(jobs, (1, 2), strict=True):
        label = await client.post("/v1/evals/labels", json={"rubric": "helpful", "item": job, "score": score})
        assert label.status_code == 200, label.text
        assert label.json()["labeller_name"] == "ann"
    report = (await client.get("/v1/evals/report", params={"rubric": "helpful"})).json()
    assert (report["agreement"]["n"], report["agreement"]["observed"]) == (2, 0.5)
    (labeller,) = report["by_labeller"].values()
    assert (labeller["name"], labeller["n"]) == ("ann", 2)
    listed = (await client.get("/v1/evals/labels", params={"rubric": "helpful"})).json()
    assert {one["item"] for one in listed["data"]} == set(jobs)
    rubric = (await client.get("/v1/evals/rubrics")).json()["data"][0]
    assert rubric["live"]["judgements"]["scored"] >= 2
    async with database.connect() as connection:
        kinds = set((await connection.execute(text("SELECT kind FROM request_log"))).scalars())
        levels = set((await connection.execute(text("SELECT log_level FROM jobs WHERE kind = 'judge'"))).scalars())
    assert (kinds, levels) == ({None}, {"none"}), "nothing is kept of what a judge reads"
    assert (await samples(stack, "api"))["headrace_judgements_total", "scored"] >= 2
    other = create_key(stack, "other", "inference", "logs")
    async with stack.client(headers={"Authorization": f"Bearer {other}"}) as stranger:
        body = {"rubric": "helpful", "item": jobs[0], "score": 1}
        assert (await stranger.post("/v1/evals/labels", json=body)).status_code == 404
        assert (await stranger.get("/v1/evals/rubrics")).status_code == 403
    plain = create_key(stack, "plain", "inference")
    async with stack.client(headers={"Authorization": f"Bearer {plain}"}) as unscoped:
        assert (await unscoped.get("/v1/evals/labels")).status_code == 403


async def test_two_models_are_compared_in_both_orders(
    stack: Stack, client: httpx.AsyncClient, key: str, tmp_path: Path
) -> None:
    arguments = ("compare", "sim", "other", "--set", write_set(tmp_path), "--max-tokens", "4")
    chart = tmp_path / "chart.svg"
    result = run_command(stack, key, *arguments, "--judge", "judge", "--chart", str(chart))
    assert result.returncode == 0, result.stdout + result.stderr
    # This judge always prefers what it reads first.
    assert f"disagreement of the two orders: {ITEMS} of {ITEMS} items (100%)" in result.stdout
    assert "No difference is shown" in result.stdout
    assert chart.read_text().startswith("<svg")
    found = (await client.get("/v1/evals/comparison", params={"a": "sim", "b": "other"})).json()
    assert (found["n"], found["difference"], found["conclusion"]) == (ITEMS, 0, "no_difference_shown")
    assert found["pairwise"]["order_disagreement"] == ITEMS
    run = (await client.get(f"/v1/evals/runs/{found['run_id']}")).json()
    assert (run["judgements"], run["expected"], run["set"]["items"]) == ({"scored": 2 * ITEMS}, 2 * ITEMS, ITEMS)
    judgements = (await client.get(f"/v1/evals/runs/{found['run_id']}/judgements", params={"limit": 2})).json()
    assert [(one["item"], one["position"]) for one in judgements["data"]] == [("q0", 1), ("q0", 2)]
    assert judgements["has_more"]


async def test_a_set_is_scored_by_a_rubric(stack: Stack, key: str, tmp_path: Path) -> None:
    path = write_set(tmp_path)
    result = run_command(stack, key, "run", "helpful", "--set", path, "--model", "sim", "--limit", "3")
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"sim: mean 1\.000.*n = 3; 0 unparsable, 0 failed", result.stdout)


async def test_a_used_up_budget_stops_judges(stack: Stack, client: httpx.AsyncClient, key: str, tmp_path: Path) -> None:
    budget = await client.post(
        "/v1/admin/budgets", json={"project": PROJECT, "period": "total", "limit_usd": 0.01, "hard": True}
    )
    assert budget.status_code == 200, budget.text
    try:
        result = run_command(
            stack, key, "run", "polite", "--set", write_set(tmp_path), "--model", "sim", "--limit", "2"
        )
    finally:
        await client.delete(f"/v1/admin/budgets/{budget.json()['id']}")
    assert result.returncode == 1
    assert "429" in result.stderr
    assert "budget" in result.stderr


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "runs", {"kind": "set", "models": ["sim"], "set": {"name": "x", "sha256": "0" * 64, "items": 1}}, 400),
        ("POST", "runs", {"kind": "pairwise", "judge": "judge", "models": ["sim"], "set": {"items": 1}}, 400),
        ("POST", "runs/evalrun_1/items", {"items": []}, 400),
        ("POST", "runs/evalrun_1/items", {"items": [ITEM, ITEM]}, 400),
        ("POST", "runs/evalrun_1/items", {"items": [{**ITEM, "answers": 2 * ITEM["answers"]}]}, 400),
        ("POST", "runs/evalrun_1/items", {"items": [{**ITEM, "answers": [{"model": "sim"}]}]}, 400),
        (
            "POST",
            "runs/evalrun_1/items",
            {"items": [{**ITEM, "answers": [{"model": "sim", "text": "x", "failed": "y"}]}]},
            400,
        ),
        ("POST", "runs/evalrun_1/items", {"items": [ITEM]}, 404),
        ("GET", "runs/evalrun_1", None, 404),
        ("GET", "runs/%00", None, 404),
        ("GET", "runs?after=x", None, 400),
        ("GET", "report?rubric=none", None, 404),
        ("GET", "comparison?a=sim&b=none", None, 404),
        ("POST", "labels", {"rubric": "helpful", "item": "job_1", "score": 1}, 404),
        ("POST", "labels", {"rubric": "helpful", "item": "job_1", "score": 9}, 400),
        ("POST", "labels", {"rubric": "helpful", "item": "a\x00b", "score": 1}, 400),
    ],
)
async def test_requests_that_are_refused(
    client: httpx.AsyncClient, method: str, path: str, body: Any, status: int
) -> None:
    response = await client.request(method, f"/v1/evals/{path}", json=body)
    assert response.status_code == status, response.text
    assert response.json()["error"]["message"]


async def test_the_pages(stack: Stack, client: httpx.AsyncClient, database: AsyncEngine, key: str) -> None:
    await judged_answers(client, database)
    with sign_in(stack, key) as operator:
        page = operator.get("quality", params={"rubric": "helpful", "a": "sim", "b": "other"}).text
        assert "Does the answer help?" in page
        assert re.search(r'name-cell">sim<', page)
        empty = operator.get("quality", params={"rubric": "polite", "a": "sim", "b": "nothing"}).text
        assert "Nothing was judged" in empty
        assert "There are too few answers to tell." in empty
    plain = create_key(stack, "no logs", "inference")
    with sign_in(stack, plain) as member:
        assert "Answers are not shown" in member.get("quality/labels").text
        assert QUESTION not in member.get("quality/labels").text
        assert re.search(r'name-cell">sim<', member.get("quality").text) is None, "another project's scores"
        token = re.search(r'name="csrf_token" value="([^"]+)"', member.get("").text)
        assert token is not None
        form = {"csrf_token": token[1], "rubric": "helpful", "item": "job_1", "score": "1"}
        assert member.post("quality/labels", data=form).status_code == 403


@needs_chromium
async def test_answers_are_labelled_with_the_keyboard(
    browser: Browser, stack: Stack, client: httpx.AsyncClient, database: AsyncEngine
) -> None:
    await judged_answers(client, database)
    labeller = create_key(stack, "bob", "inference", "admin")  # `admin` includes `logs`
    async with visit(browser, stack.url) as bob:
        await bob.sign_in(labeller)
        await bob.open("quality/labels?rubric=helpful")
        await expect(bob.page.get_by_role("heading", name="Does the answer help?")).to_be_visible()
        await expect(bob.page.get_by_text(QUESTION)).to_be_visible()
        assert await accessibility_faults(bob.page) == []
        await bob.page.keyboard.press("4")
        await expect(bob.page.get_by_text("1 answer labelled")).to_be_visible()
        await bob.page.get_by_role("button", name="2", exact=True).click()
        await expect(bob.page.get_by_text("2 answers labelled")).to_be_visible()
        found = (await client.get("/v1/evals/labels", params={"rubric": "helpful"})).json()["data"]
        assert [one["score"] for one in found if one["labeller_name"] == "bob"] == [2, 4]
        opened = (await client.get("/v1/admin/audit", params={"action": "request.open"})).json()["data"]
        assert len(opened) >= 2, "who has read a logged answer is recorded"
        await bob.open("quality?rubric=helpful&a=sim&b=other")
        assert await accessibility_faults(bob.page) == []
        await bob.page.emulate_media(color_scheme="dark")
        assert await accessibility_faults(bob.page, COLOURS) == []
    async with visit(browser, stack.url, viewport=PHONE) as phone:
        await phone.sign_in(labeller)
        for path in ("quality?rubric=helpful&a=sim&b=other", "quality/labels?rubric=helpful"):
            await phone.open(path)
            assert await phone.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
