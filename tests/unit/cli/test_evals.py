"""`headrace evals`."""

from __future__ import annotations

from typing import Any

from tests.support.command_line import run
from tests.support.scripted_api import ScriptedApi, refusal, reply

RUN: dict[str, Any] = {
    "id": "evalrun_1", "object": "eval.run", "kind": "pairwise", "rubric": "helpful", "prompt_version": "1",
    "judge": "large", "models": ["a", "b"], "set": None, "expected": 4, "judgements": {"scored": 3, "pending": 1},
    "created_at": "2026-11-30T12:00:00Z", "ended_at": None,
}  # fmt: skip
COMPARISON: dict[str, Any] = {
    "object": "eval.comparison", "a": "a", "b": "b", "rubric": "helpful", "judge": "large", "run_id": "evalrun_1",
    "n": 40, "difference": -0.5, "interval": {"low": -0.7, "high": -0.3}, "p": 0.0002, "conclusion": "worse",
    "pairwise": {"a_wins": 25, "b_wins": 5, "ties": 10, "order_disagreement": 12}, "unparsable": 1, "failed": 0,
    "pending": 0,
}  # fmt: skip
AGREEMENT = {"n": 40, "observed": 0.7, "kappa": 0.71, "interval": {"low": 0.5, "high": 0.85}}
UNKNOWN = {"n": 0, "observed": None, "kappa": None, "interval": None}


def page(*items: dict[str, Any]) -> dict[str, Any]:
    return {"object": "list", "data": list(items), "has_more": False, "first_id": None, "last_id": None}


def test_rubrics_are_listed_by_default(api: ScriptedApi) -> None:
    rubric = {
        "name": "helpful", "scale": "1-5", "judge": "large", "prompt_version": "1", "sampling": {"rate": 0.02},
        "live": {"judgements": {"scored": 12, "unparsable": 3}, "paused_until": None},
    }  # fmt: skip
    api.on(
        "GET /v1/evals/rubrics", reply({"object": "list", "data": [rubric, {**rubric, "name": "new", "live": None}]})
    )
    result = run(api.url, "evals")
    assert result.exit_code == 0, result.stderr
    _, first, second = result.stdout.splitlines()
    assert first.split() == ["helpful", "1-5", "large", "0.02", "12", "3", "0", "-"]
    assert second.split() == ["new", "1-5", "large", "0.02", "0", "0", "0", "-"]


def test_runs_and_judgements_are_listed(api: ScriptedApi) -> None:
    api.on("GET /v1/evals/runs", reply(page(RUN)))
    result = run(api.url, "evals", "runs", "--rubric", "helpful")
    assert result.exit_code == 0, result.stderr
    assert "a, b" in result.stdout
    assert "rubric=helpful" in api.requests[-1].path
    judgement = {"id": "7", "item": "q1", "model": "a", "position": 2, "state": "scored", "score": 0.5, "reason": "so"}
    failed = {**judgement, "id": "8", "state": "unparsable", "score": None, "reason": None}
    api.on("GET /v1/evals/runs/evalrun_1/judgements", reply(page(judgement, failed)))
    result = run(api.url, "evals", "judgements", "evalrun_1")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[1].split() == ["q1", "a", "2", "scored", "0.5", "so"]
    assert result.stdout.splitlines()[2].split() == ["q1", "a", "2", "unparsable", "-", "-"]


def test_a_report_shows_intervals_and_agreement(api: ScriptedApi) -> None:
    model = {
        "model": "small", "n": 180, "mean": 3.9, "interval": {"low": 3.7, "high": 4.1}, "scores": {}, "pending": 0,
        "unparsable": 3, "failed": 1,
    }  # fmt: skip
    report = {
        "rubric": "helpful", "scale": "1-5", "judge": "large", "prompt_version": "1", "judge_cost_usd": 0.42,
        "models": [model, {**model, "model": "new", "n": 0, "mean": None, "interval": None}],
        "agreement": AGREEMENT, "by_labeller": {"key_12": {**AGREEMENT, "name": "ann"}}, "between_people": UNKNOWN,
    }  # fmt: skip
    api.on("GET /v1/evals/report", reply(report))
    result = run(api.url, "evals", "report", "helpful", "--days", "7")
    assert result.exit_code == 0, result.stderr
    for shown in (
        "kappa 0.71 (0.500 to 0.850), n = 40",
        "with ann (key_12)",
        "not known, n = 0",
        "$0.4200",
        "3.700 to 4.100",
    ):
        assert shown in result.stdout
    assert "days=7" in api.requests[-1].path


def test_two_models_are_compared(api: ScriptedApi) -> None:
    api.on("GET /v1/evals/comparison", reply(COMPARISON))
    result = run(api.url, "evals", "compare", "a", "b", "--rubric", "helpful")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[0] == "b is worse than a."
    for shown in ("-0.500", "-0.700 to -0.300", "0.0002", "a 25, neither 10, b 5", "12 of 40 items", "1 unparsable"):
        assert shown in result.stdout
    assert "run_id" not in api.requests[-1].path
    assert "has not answered" not in result.stdout
    counted = {
        "n": 60,
        "difference": -0.75,
        "interval": {"low": -0.9, "high": -0.6},
        "p": 0.0001,
        "conclusion": "worse",
    }
    sensitivity = {"failures_as_worst": counted, "unscored_against_b": None, "unscored_against_a": {**counted, "n": 61}}
    lacking = {"unanswered": {"a": 0, "b": 20}, "unscored": 1, "sensitivity": sensitivity}
    api.on("GET /v1/evals/comparison", reply({**COMPARISON, **lacking}))
    result = run(api.url, "evals", "compare", "a", "b")
    for shown in ("b has not answered", "20 items", "failed answers as the worst", "-0.750", "n = 60", "n = 61"):
        assert shown in result.stdout
    assert "a has not answered" not in result.stdout
    api.on("GET /v1/evals/comparison", refusal(404, "No run has compared `a` with `b`."))
    result = run(api.url, "evals", "compare", "a", "b")
    assert result.exit_code != 0
    assert "No run has compared" in result.stderr
