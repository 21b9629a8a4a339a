"""`python -m api.evals`: models answer a set, judges compare the answers, and the command says whether one is worse."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from api.evals import __main__ as command
from api.evals.driver import Driver, DriverError
from api.evals.sets import read_set
from api.quality.intervals import wilson

RUN = "evalrun_1"


class Api:
    """Answers as the API does. `b` answers the first `wrong` items wrong, and does not answer item 0 if it `fails`."""

    def __init__(self, *, wrong: int = 0, fails: bool = False) -> None:
        self.wrong = wrong
        self.fails = fails
        self.items: dict[str, dict[str, Any]] = {}
        self.jobs: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.known: set[str] = set()
        self.cache_control: list[str | None] = []
        self.refusals: list[httpx.Response] = []
        self.polls = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.refusals:
            return self.refusals.pop(0)
        body = orjson.loads(request.content) if request.content else {}
        match request.method, request.url.path:
            case "POST", "/v1/jobs":
                self.jobs.append(body)
                self.keys.append(request.headers["idempotency-key"])
                self.cache_control.append(request.headers.get("cache-control"))
                response = self._job(body)
                if self.keys[-1] in self.known:
                    response.headers["idempotent-replayed"] = "true"
                return response
            case "GET", path if path.startswith("/v1/jobs/"):
                self.polls += 1
                return httpx.Response(200, json={"id": "job_1", "status": "completed", "output_text": "right"})
            case "POST", "/v1/evals/runs":
                return httpx.Response(200, json=self._run(body))
            case "POST", "/v1/evals/runs/evalrun_1/items":
                self.items |= {item["id"]: item for item in body["items"]}
                return httpx.Response(200, json={"data": []})
            case "GET", "/v1/evals/runs/evalrun_1":
                return httpx.Response(200, json=self._run({"kind": "pairwise"}) | {"ended_at": "2026-11-30T12:00:00Z"})
            case "GET", "/v1/evals/comparison":
                return httpx.Response(200, json=COMPARISON)
            case "GET", "/v1/evals/runs/evalrun_1/judgements":
                return self._judgements(dict(request.url.params))
        raise AssertionError(f"{request.method} {request.url}")

    def _job(self, body: dict[str, Any]) -> httpx.Response:
        number = int(body["messages"][-1]["content"].removeprefix("question "))
        if number == 1:  # it takes longer than the request waits
            return httpx.Response(202, json={"id": "job_1", "status": "queued"})
        if self.fails and body["model"] == "b" and number == 0:
            error = {"message": "it broke"}
            return httpx.Response(200, json={"id": "job_0", "status": "failed", "error": error})
        text = "wrong" if body["model"] == "b" and number < self.wrong else "right"
        return httpx.Response(200, json={"id": f"job_{number}", "status": "completed", "output_text": text})

    @staticmethod
    def _run(body: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": RUN, "kind": body["kind"], "rubric": "better", "judge": "j", "expected": 2, "ended_at": None,
            "judgements": {"scored": 2}, "scale": "1-5",
        }  # fmt: skip

    @staticmethod
    def _judgements(params: dict[str, str]) -> httpx.Response:
        ids = ["3"] if params.get("after") else ["1", "2"]
        data = [{"id": one, "model": "recorded", "state": "scored", "score": float(one)} for one in ids[:2]]
        if params.get("after"):
            data.append({"id": "4", "model": "recorded", "state": "unparsable", "score": None})
        return httpx.Response(200, json={"data": data, "has_more": len(ids) == 2, "last_id": ids[-1]})


COMPARISON = {
    "judge": "j", "rubric": "better", "n": 40, "difference": -0.5, "interval": {"low": -0.7, "high": -0.3}, "p": 0.0002,
    "pairwise": {"a_wins": 25, "b_wins": 5, "ties": 10, "order_disagreement": 12}, "unparsable": 1, "failed": 0,
}  # fmt: skip


def write_set(folder: Path, count: int, **members: Any) -> Path:
    path = folder / "set.jsonl"
    lines = [
        {"id": str(number), "messages": [{"role": "user", "content": f"question {number}"}], **members}
        for number in range(count)
    ]
    path.write_bytes(b"\n".join(map(orjson.dumps, lines)))
    return path


Arguments = Callable[..., argparse.Namespace]


def arguments(path: Path, **changes: Any) -> argparse.Namespace:
    values = {
        "a": "a", "b": "b", "set": path, "rubric": None, "judge": None, "metric": "exact", "chart": None, "limit": None,
        "max_tokens": 8, "model": [], "fresh": False,
    }  # fmt: skip
    return argparse.Namespace(**{**values, **changes})


def driver(api: Api, waits: list[float] | None = None) -> Driver:
    async def sleep(seconds: float) -> None:
        if waits is not None:
            waits.append(seconds)

    return Driver("http://api", "key", lambda *_: None, transport=httpx.MockTransport(api), sleep=sleep)


async def test_a_worse_model_is_reported_by_its_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    api, chart = Api(wrong=30), tmp_path / "chart.svg"
    async with driver(api) as client:
        status = await command.compare(arguments(write_set(tmp_path, 60, expected="Right."), chart=chart), client)
    out = capsys.readouterr().out
    assert status == 3
    assert "a: exact 1.000" in out
    assert "b is worse than a." in out
    assert "95 % interval" in out
    assert "n = 60" in out
    assert chart.read_text().startswith("<svg")
    assert {job["priority"] for job in api.jobs} == {9}
    assert len(set(api.keys)) == 120, "one job for each model and item"
    assert api.polls == 2, "jobs that take long are polled"


async def test_the_same_command_finds_its_answers_again(tmp_path: Path) -> None:
    path = write_set(tmp_path, 3)
    first, second = Api(), Api()
    for api in (first, second):
        async with driver(api) as client:
            await client.answers("a", read_set(path), max_tokens=8)
    assert sorted(first.keys) == sorted(second.keys)
    other = Api()
    async with driver(other) as client:
        await client.answers("a", read_set(path), max_tokens=9)
    assert not set(other.keys) & set(first.keys)


async def test_answers_of_an_earlier_command_are_not_silently_those_of_a_new_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_set(tmp_path, 4, expected="right")
    earlier, api = Api(), Api()
    async with driver(earlier) as client:
        await command.compare(arguments(path, limit=3), client)
    assert "earlier command" not in capsys.readouterr().err
    api.known = set(earlier.keys)
    async with driver(api) as client:
        await command.compare(arguments(path), client)
        assert "b: 3 answers are those of an earlier command" in capsys.readouterr().err
        await command.compare(arguments(path, fresh=True), client)
    assert "earlier command" not in capsys.readouterr().err
    assert len(set(api.keys)) == 16
    assert api.cache_control == [None] * 8 + ["no-cache"] * 8, "nor are they those of the response cache"


async def test_equal_models_show_no_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with driver(Api()) as client:
        assert await command.compare(arguments(write_set(tmp_path, 40, expected="right")), client) == 0
    assert "No difference is shown" in capsys.readouterr().out


async def test_a_judge_compares_the_answers_of_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    api = Api(fails=True)
    async with driver(api) as client:
        status = await command.compare(arguments(write_set(tmp_path, 41), judge="j"), client)
    output = capsys.readouterr()
    assert status == 3
    assert len(api.items) == 40, "an item that one model has not answered is not judged"
    assert api.items["5"]["answers"] == [{"model": "a", "text": "right"}, {"model": "b", "text": "right"}]
    assert "preferred: a 25, neither 10, b 5" in output.out
    assert "disagreement of the two orders: 12 of 40 items (30%)" in output.out
    assert "1 unparsable, 0 failed" in output.out
    assert "b has not answered 1 items, such as 0: it broke" in output.err


async def test_recorded_answers_are_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, api = tmp_path / "set.jsonl", Api()
    turn = [{"role": "user", "content": "question 0"}, {"role": "assistant", "content": "recorded answer"}]
    path.write_bytes(orjson.dumps({"id": "0", "messages": turn, "model": "recorded"}))
    async with driver(api) as client:
        assert await command.run(arguments(path, rubric="helpful"), client) == 0
    assert api.jobs == []
    assert api.items["0"]["messages"] == turn[:1]
    assert api.items["0"]["answers"] == [{"model": "recorded", "text": "recorded answer"}]
    assert "recorded: mean 2.000" in capsys.readouterr().out


def test_yes_and_no_are_reported_as_a_rate() -> None:
    judgements = [{"state": "scored", "score": float(score)} for score in (1, 1, 1, 0)]
    interval = wilson(3, 4)
    assert command._scores("m", judgements, yes_no=True) == (
        f"m: mean 0.750, 95 % interval {interval.low:.3f} to {interval.high:.3f}, n = 4; 0 unparsable, 0 failed"
    )
    assert command._scores("m", [{"state": "failed", "score": None}], yes_no=True) == (
        "m: no scores; 0 unparsable, 1 failed"
    )


async def test_a_busy_server_is_asked_again_and_a_used_up_budget_is_not(tmp_path: Path) -> None:
    api, waits = Api(), list[float]()
    api.refusals = [httpx.Response(503, headers={"retry-after": "2"}, json={}), httpx.Response(429, json={})]
    async with driver(api, waits) as client:
        await client.call("GET", f"/v1/evals/runs/{RUN}")
        assert waits[0] == 2
        error = {"error": {"message": "The project's budget is used up."}}
        api.refusals = [httpx.Response(429, headers={"x-should-retry": "false"}, json=error)]
        with pytest.raises(DriverError, match="The project's budget is used up"):
            await client.call("GET", f"/v1/evals/runs/{RUN}")
    assert len(waits) == 2


def test_a_set_without_answers_needs_a_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_set(tmp_path, 1))
    monkeypatch.delenv("HEADRACE_API_KEY", raising=False)
    assert command.main(["compare", "a", "b", "--set", path]) == 2
    monkeypatch.setenv("HEADRACE_API_KEY", "hr_x")
    monkeypatch.setattr(command, "Driver", lambda *_: driver(Api()))
    assert command.main(["compare", "a", "b", "--set", path]) == 1
    assert "name a --rubric or a --judge" in capsys.readouterr().err
    assert command.main(["run", "helpful", "--set", str(tmp_path / "missing")]) == 1
