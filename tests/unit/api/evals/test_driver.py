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
from api.evals.sets import SetError, read_set
from api.quality.intervals import wilson

RUN = "evalrun_1"


class Api:
    """Answers as the API does. `b` answers the first `wrong` items wrong, and does not answer the first `fails` items
    after item 1. `jobs_of`: members of the jobs of a model, or a refusal of them."""

    def __init__(self, *, wrong: int = 0, fails: int = 0) -> None:
        self.wrong = wrong
        self.fails = fails
        self.comparison = COMPARISON
        self.is_unparsable = False
        self.jobs_of: dict[str, dict[str, Any] | httpx.Response] = {}
        self.runs: list[dict[str, Any]] = []
        self.calls: list[int] = []
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
                job = {"id": "job_1", "model": path.rpartition("/")[2], "status": "completed", "output_text": "right"}
                return httpx.Response(200, json=job)
            case "POST", "/v1/evals/runs":
                self.runs.append(body)
                return httpx.Response(200, json=self._run(body))
            case "POST", "/v1/evals/runs/evalrun_1/items":
                self.items |= {item["id"]: item for item in body["items"]}
                self.calls.append(len(body["items"]))
                return httpx.Response(200, json={"data": []})
            case "GET", "/v1/evals/runs/evalrun_1":
                return httpx.Response(200, json=self._run({"kind": "pairwise"}) | {"ended_at": "2026-11-30T12:00:00Z"})
            case "GET", "/v1/evals/comparison":
                return httpx.Response(200, json=self.comparison)
            case "GET", "/v1/evals/runs/evalrun_1/judgements":
                return self._judgements(dict(request.url.params))
        raise AssertionError(f"{request.method} {request.url}")

    def _job(self, body: dict[str, Any]) -> httpx.Response:
        number = int(body["messages"][-1]["content"].removeprefix("question "))
        model, others = body["model"], self.jobs_of.get(body["model"], {})
        if isinstance(others, httpx.Response):
            return others
        if number == 1:  # it takes longer than the request waits
            return httpx.Response(202, json={"id": model, "model": model, "status": "queued"})
        if model == "b" and 2 <= number < 2 + self.fails:
            error = {"message": "it broke"}
            return httpx.Response(200, json={"id": "job_0", "model": model, "status": "failed", "error": error})
        text = "wrong" if model == "b" and number < self.wrong else "right"
        job = {"id": f"job_{number}", "model": model, "status": "completed", "output_text": text, **others}
        return httpx.Response(200, json=job)

    @staticmethod
    def _run(body: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": RUN, "kind": body["kind"], "rubric": "better", "judge": "j", "expected": 2, "ended_at": None,
            "judgements": {"scored": 2}, "scale": "1-5",
        }  # fmt: skip

    def _judgements(self, params: dict[str, str]) -> httpx.Response:
        ids = ["3"] if params.get("after") else ["1", "2"]
        data: list[dict[str, Any]] = [
            {"id": one, "model": "recorded", "state": "scored", "score": float(one)} for one in ids[:2]
        ]
        if self.is_unparsable:
            data = [{**one, "state": "unparsable", "score": None} for one in data]
        if params.get("after"):
            data.append({"id": "4", "model": "recorded", "state": "unparsable", "score": None})
        return httpx.Response(200, json={"data": data, "has_more": len(ids) == 2, "last_id": ids[-1]})


COMPARISON = {
    "judge": "j", "rubric": "better", "n": 40, "difference": -0.5, "interval": {"low": -0.7, "high": -0.3}, "p": 0.0002,
    "pairwise": {"a_wins": 25, "b_wins": 5, "ties": 10, "order_disagreement": 12}, "unparsable": 1, "failed": 0,
    "unanswered": {"a": 0, "b": 0}, "unscored": 0, "sensitivity": None,
}  # fmt: skip
EVEN: dict[str, Any] = {"n": 40, "difference": 0.0, "interval": {"low": -0.1, "high": 0.1}, "p": 1.0}


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
    api = Api(fails=1)
    async with driver(api) as client:
        status = await command.compare(arguments(write_set(tmp_path, 41), judge="j"), client)
    output = capsys.readouterr()
    assert status == 3
    assert len(api.items) == 41
    assert api.items["5"]["answers"] == [{"model": "a", "text": "right"}, {"model": "b", "text": "right"}]
    assert api.items["2"]["answers"] == [{"model": "a", "text": "right"}, {"model": "b", "failed": "it broke"}]
    assert "preferred: a 25, neither 10, b 5" in output.out
    assert "disagreement of the two orders: 12 of 40 items (30%)" in output.out
    assert "1 unparsable, 0 failed" in output.out
    assert "b has not answered 1 items, such as 2: it broke" in output.err


async def test_a_model_that_fails_does_not_look_better(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where both have answered, they are equal; `b` has not answered a quarter of the items."""
    async with driver(Api(fails=15)) as client:
        status = await command.compare(arguments(write_set(tmp_path, 60, expected="right")), client)
    out = capsys.readouterr().out
    assert status == 3
    assert "b: exact 1.000 of 45 answers" in out
    assert f"not answered: b 15 of 60 (25.0%, 95 % interval {wilson(15, 60).low:.1%} to" in out
    assert "where both have answered and there is a score: +0.000" in out
    assert "n = 45" in out
    assert "with failed answers as the worst: -0.250" in out
    assert "n = 60" in out
    assert "Without the items that were not answered: No difference is shown" in out
    assert out.splitlines()[-1] == "b is worse than a."
    async with driver(Api(fails=60)) as client:
        assert await command.compare(arguments(write_set(tmp_path, 60, expected="right")), client) == 3


async def test_what_judges_have_not_scored_is_shown_with_what_it_can_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api = Api()
    worse = {**EVEN, "difference": -0.4, "interval": {"low": -0.5, "high": -0.3}, "n": 45}
    bounds = {"unscored_against_b": worse, "unscored_against_a": {**EVEN, "n": 45}}
    sensitivity = {"failures_as_worst": EVEN, **bounds}
    api.comparison = {**COMPARISON, **EVEN, "unscored": 5, "sensitivity": sensitivity}
    async with driver(api) as client:
        assert await command.compare(arguments(write_set(tmp_path, 45), judge="j"), client) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("No difference is shown")
    assert lines[-3].startswith("and if all 5 items without a score spoke against b: -0.400")
    assert lines[-2].startswith("and if all 5 items without a score spoke against a: +0.000")


async def test_an_answer_of_another_model_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    api = Api()
    api.jobs_of = {"b": {"model": "c"}}
    async with driver(api) as client:
        found = await client.answers("b", read_set(write_set(tmp_path, 3)), max_tokens=8)
        assert found.failed == {"0": "c has answered instead", "2": "c has answered instead"}
        assert dict(found.by) == {}
        api.jobs_of = {"b": {"model": "c", "requested_model": "b"}}
        found = await client.answers("b", read_set(write_set(tmp_path, 3)), max_tokens=8)
    assert found.failed == {}
    command._report(found)
    assert "b is a route; its answers are those of c 2" in capsys.readouterr().err


async def test_items_are_sent_in_parts_that_an_api_accepts(tmp_path: Path) -> None:
    path, api = tmp_path / "set.jsonl", Api()
    texts = ["x"] * 21 + ["y" * 600_000] * 3 + ["z"]
    turns = [[{"role": "user", "content": "?"}, {"role": "assistant", "content": text}] for text in texts]
    path.write_bytes(b"\n".join(orjson.dumps({"messages": turn, "model": "m"}) for turn in turns))
    async with driver(api) as client:
        await command.run(arguments(path, rubric="helpful"), client)
    assert api.calls == [20, 2, 1, 2]


async def test_cut_answers_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    api = Api()
    api.jobs_of = {"a": {"status": "incomplete"}}
    async with driver(api) as client:
        command._report(await client.answers("a", read_set(write_set(tmp_path, 4)), max_tokens=8))
    assert "a: 3 answers were cut at the limit of their tokens" in capsys.readouterr().err


async def test_answers_of_the_response_cache_are_not_new(tmp_path: Path) -> None:
    api = Api()
    api.jobs_of = {"a": {"cache": {"outcome": "HIT"}}, "b": {"cache": {"outcome": "MISS"}}}
    async with driver(api) as client:
        found = [await client.answers(model, read_set(write_set(tmp_path, 3)), max_tokens=8) for model in ("a", "b")]
    assert [one.reused for one in found] == [2, 0]


async def test_a_prompt_that_only_one_model_refuses_is_its_failure(tmp_path: Path) -> None:
    api = Api()
    error = {"message": "messages: this model's context is 8 tokens", "param": "messages"}
    api.jobs_of = {"b": httpx.Response(400, json={"error": error})}
    async with driver(api) as client:
        found = await client.answers("b", read_set(write_set(tmp_path, 2)), max_tokens=8)
        assert found.texts == {}
        assert "this model's context is 8 tokens" in found.failed["0"]
        api.jobs_of = {
            "b": httpx.Response(404, json={"error": {"message": "There is no model `b`.", "param": "model"}})
        }
        with pytest.raises(DriverError, match="There is no model"):
            await client.answers("b", read_set(write_set(tmp_path, 2)), max_tokens=8)


async def test_a_model_is_not_compared_with_itself(tmp_path: Path) -> None:
    api = Api()
    async with driver(api) as client:
        with pytest.raises(SetError, match="two different models"):
            await command.compare(arguments(write_set(tmp_path, 2, expected="x"), b="a"), client)
    assert api.jobs == []


async def test_repeated_items_are_pointed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "set.jsonl"
    messages = [{"role": "user", "content": "question 0"}]
    path.write_bytes(b"\n".join(orjson.dumps({"id": one, "messages": messages, "expected": "right"}) for one in "xyz"))
    async with driver(Api()) as client:
        await command.compare(arguments(path), client)
    assert "2 items of the set have the same messages as others" in capsys.readouterr().err


async def test_recorded_answers_are_those_of_the_models_that_gave_them(tmp_path: Path) -> None:
    path, api = tmp_path / "set.jsonl", Api()
    turn = [{"role": "user", "content": "question 0"}, {"role": "assistant", "content": "answer"}]
    models = ["x", "y", None, "x"]
    lines = [{"id": str(number), "messages": turn, "model": model} for number, model in enumerate(models)]
    path.write_bytes(b"\n".join(map(orjson.dumps, lines)))
    async with driver(api) as client:
        assert await command.run(arguments(path, rubric="helpful"), client) == 0
    assert [(run["models"], run["set"]["items"]) for run in api.runs] == [(["x"], 2), (["y"], 1), (["set.jsonl"], 1)]


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


async def test_without_a_score_the_command_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A judge that cannot judge must not look like a good result to a pipeline."""
    path, api = tmp_path / "set.jsonl", Api()
    turn = [{"role": "user", "content": "question 0"}, {"role": "assistant", "content": "recorded answer"}]
    path.write_bytes(orjson.dumps({"id": "0", "messages": turn, "model": "recorded"}))
    api.is_unparsable = True
    api.comparison = COMPARISON | {"n": 0, "difference": None, "interval": None, "p": None}
    async with driver(api) as client:
        assert await command.run(arguments(path, rubric="helpful"), client) == 1
        assert "recorded: no scores; 4 unparsable" in capsys.readouterr().out
        assert await command.compare(arguments(path, judge="j"), client) == 1
    assert "no item was compared" in capsys.readouterr().out


def test_yes_and_no_are_reported_as_a_rate() -> None:
    judgements = [{"state": "scored", "score": float(score)} for score in (1, 1, 1, 0)]
    interval = wilson(3, 4)
    assert command._scores("m", judgements, "yes/no") == (
        f"m: mean 0.750, 95 % interval {interval.low:.3f} to {interval.high:.3f}, n = 4; 0 unparsable, 0 failed"
    )
    assert command._scores("m", [{"state": "failed", "score": None}], "yes/no") == (
        "m: no scores; 0 unparsable, 1 failed"
    )


def test_what_a_model_has_not_answered_is_shown_beside_its_mean() -> None:
    judgements = [{"state": "scored", "score": 5.0}] * 3 + [{"state": "unanswered", "score": None}]
    line = command._scores("m", judgements, "1-5")
    assert line.startswith("m: mean 5.000, 95 % interval 5.000 to 5.000, n = 3; 0 unparsable, 0 failed, 1 not answered")
    assert "with these as the worst: mean 4.000" in line
    assert line.endswith("n = 4")


async def test_a_busy_server_is_asked_again_and_a_used_up_budget_is_not(tmp_path: Path) -> None:
    api, waits = Api(), list[float]()
    api.refusals = [httpx.Response(503, headers={"retry-after": "2"}, json={}), httpx.Response(429, json={})]
    async with driver(api, waits) as client:
        await client.call("GET", f"/v1/evals/runs/{RUN}")
        assert waits[0] == 2
        dated = {"retry-after": "Mon, 30 Nov 2026 12:00:00 GMT"}
        api.refusals = [httpx.Response(503, headers=dated, json={})]
        await client.call("GET", f"/v1/evals/runs/{RUN}")
        error = {"error": {"message": "The project's budget is used up."}}
        api.refusals = [httpx.Response(429, headers={"x-should-retry": "false"}, json=error)]
        with pytest.raises(DriverError, match="The project's budget is used up"):
            await client.call("GET", f"/v1/evals/runs/{RUN}")
    assert len(waits) == 3


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
