"""Answers on stdout as they come; everything else on stderr; lost connections are restored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tests.support.command_line import run, screen
from tests.support.scripted_api import JOB, ScriptedApi, completed, delta, events, refusal, reply

STREAM = f"GET /v1/jobs/{JOB}/stream"
STARTED = (1, "started", {"attempt": 1, "worker": "w-1"})


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.client.FIRST_DELAY_S", 0.001)
    monkeypatch.setattr("cli.client.MAX_DELAY_S", 0.001)


def submit(api: ScriptedApi, *arguments: str, **options: Any) -> Result:
    api.on("POST /v1/jobs", reply({"id": JOB, "status": "queued"}, 202))
    return run(api.url, "submit", "--model", "m", *arguments, **options)


def body(api: ScriptedApi) -> dict[str, Any]:
    (request,) = api.of("POST /v1/jobs")
    found: dict[str, Any] = request.json
    return found


def test_answer_is_stdout_and_statistics_are_stderr(api: ScriptedApi) -> None:
    api.on(
        STREAM, events((None, "queued", {"position": 2}), STARTED, delta(2, "Loire, "), delta(3, "Rhine"), completed(4))
    )
    result = submit(api, "Name two rivers.")
    assert result.exit_code == 0
    assert result.stdout == "Loire, Rhine\n"
    assert result.stderr == f"{JOB} completed, 3 tokens, first token 200 ms, 2.0 tokens/s, total 1.20 s\n"
    assert body(api) == {"model": "m", "messages": [{"role": "user", "content": "Name two rivers."}]}
    (request,) = api.of("POST /v1/jobs")
    assert request.headers["Authorization"] == "Bearer hr_test_key"


def test_a_paused_queue_is_reported(api: ScriptedApi) -> None:
    """Once per pause, also without a terminal."""
    paused = [(None, "queued", {"position": place, "paused": True}) for place in (1, 0)]
    api.on(STREAM, events(*paused, (None, "queued", {"position": 0}), STARTED, completed(2)))
    first, last = submit(api, "x").stderr.splitlines()
    assert first == "The queue of the model is paused; the job waits until it is resumed."
    assert "completed" in last


def test_options_become_parameters(api: ScriptedApi, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    (tmp_path / "notes.txt").write_text("some notes\n")
    api.on(STREAM, events(completed(1)))
    result = submit(
        api, "Summarise:", "--file", f"{tmp_path}/notes.txt", "--system", "Be brief.", "--max-tokens", "5",
        "--temperature", "0", "--schema", f"{tmp_path}/schema.json", "--param", "top_p=0.5", "-p", "user=ann",
        "--metadata", "a=b=c", "--priority", "4", "--cancel-after", "90s", "--quiet",
    )  # fmt: skip
    assert (result.exit_code, result.stderr) == (0, "")
    assert body(api) == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Summarise:\n\nsome notes\n"},
        ],
        "max_tokens": 5,
        "temperature": 0.0,
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}},
        "top_p": 0.5,
        "user": "ann",
        "metadata": {"a": "b=c"},
        "priority": 4,
    }
    assert api.of("POST /v1/jobs")[0].headers["Cancel-After"] == "90s"


@pytest.mark.parametrize("arguments", [[], ["--no-wait"]])
def test_ignored_parameters_are_named(api: ScriptedApi, arguments: list[str]) -> None:
    ignored = {"x_headrace_ignored": "nosuchparam, messages[].na%C3%AFve"}
    names = ["nosuchparam", "messages[].naïve"]
    api.on("POST /v1/jobs", reply({"id": JOB}, 202, **ignored))
    api.on(STREAM, events(completed(1)))
    api.on(f"GET /v1/jobs/{JOB}", reply({"id": JOB, "status": "completed"}))
    result = run(api.url, "submit", "x", "--model", "m", "--param", "nosuchparam=3", "--json", *arguments)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["x-headrace-ignored"] == names
    assert result.stderr == f"Warning: unknown or without effect, and ignored: {', '.join(names)}.\n"
    plain = run(api.url, "submit", "x", "--model", "m", "--quiet", *arguments)
    assert plain.stderr == result.stderr


def test_an_error_is_a_part_of_the_last_line(api: ScriptedApi) -> None:
    error = {"code": "deadline_exceeded", "message": "Not finished in time.", "param": "cancel_after"}
    _, _, data = completed(4, tokens=14)
    api.on(STREAM, events((4, "failed", data | {"error": error})))
    result = submit(api, "x")
    assert result.stderr.startswith(
        f"{JOB} failed, deadline_exceeded: Not finished in time (cancel_after), 14 tokens, first token"
    )


def test_prompt_comes_from_stdin_without_an_argument(api: ScriptedApi) -> None:
    api.on(STREAM, events(completed(1)))
    submit(api, stdin="from stdin")
    assert body(api)["messages"][0]["content"] == "from stdin"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--file", "/nowhere"], "/nowhere cannot be read: No such file or directory."),
        (["x", "--schema", "/dev/null"], "/dev/null is not JSON"),
        (["x", "--param", "top_p"], "--param must be NAME=VALUE, got 'top_p'."),
        (["x", "--max-tokens", "0"], "--max-tokens"),
    ],
)
def test_invalid_options_are_named(api: ScriptedApi, arguments: list[str], message: str) -> None:
    result = submit(api, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert api.requests == []


@pytest.mark.parametrize(("models", "chosen"), [(["a", "auto"], "auto"), (["a", "b"], "a")])
def test_without_a_model_the_route_auto_or_the_first_is_used(api: ScriptedApi, models: list[str], chosen: str) -> None:
    api.on("GET /v1/models", reply({"data": [{"id": name} for name in models]}))
    api.on("POST /v1/jobs", reply({"id": JOB}, 202))
    assert run(api.url, "submit", "x", "--no-wait").stdout == f"{JOB}\n"
    assert body(api)["model"] == chosen


def test_lost_connection_is_continued_after_the_last_event(api: ScriptedApi) -> None:
    api.on(
        STREAM,
        events(STARTED, delta(2, "Loire, "), cut=True),
        refusal(503, "Redis is temporarily unavailable"),
        events(delta(3, "Rhine"), completed(4)),
    )
    result = submit(api, "x")
    assert (result.exit_code, result.stdout) == (0, "Loire, Rhine\n")
    assert [request.headers.get("Last-Event-ID") for request in api.of(STREAM)] == [None, "2", "2"]
    assert "was lost" in result.stderr


def test_lost_response_of_the_submit_makes_no_second_job(api: ScriptedApi) -> None:
    lost = reply({"id": JOB}, 202)
    lost.cut = True
    api.on("POST /v1/jobs", lost, refusal(503, "starting"), reply({"id": JOB}, 202))
    assert run(api.url, "submit", "x", "--model", "m", "--no-wait").stdout == f"{JOB}\n"
    keys = [request.headers["Idempotency-Key"] for request in api.of("POST /v1/jobs")]
    assert len(keys) == 3
    assert len(set(keys)) == 1


@pytest.mark.parametrize(
    ("again", "shown"),
    [
        (["one ", "two ", "three"], "one two three\n"),
        (["one ", "two "], "one two \n"),
        (["one ", "2"], "one two \none 2\n"),
        (["one "], "one two \none \n"),
    ],
)
def test_answer_that_is_generated_again_is_shown_once(api: ScriptedApi, again: list[str], shown: str) -> None:
    texts = [delta(number, text) for number, text in enumerate(again, 10)]
    restarted = (9, "restarted", {"attempt": 2})
    api.on(STREAM, events(STARTED, delta(2, "one "), delta(3, "two "), restarted, *texts, completed(20)))
    result = submit(api, "x")
    assert result.stdout == shown
    assert ("discard the text above" in result.stderr) == (shown.count("one") > 1)


def test_tool_calls_and_choices_follow_the_answer(api: ScriptedApi) -> None:
    calls = (
        [{"index": 0, "id": "c", "name": "weather", "arguments": '{"city": '}],
        [{"index": 0, "arguments": '"Ulm"}'}],
    )
    other = (4, "delta", {"index": 1, "text": "second"})
    api.on(STREAM, events(delta(2, "", tool_calls=calls[0]), delta(3, "", tool_calls=calls[1]), other, completed(5)))
    assert submit(api, "x").stdout == 'weather({"city": "Ulm"})\n--- choice 2 ---\nsecond\n'


@pytest.mark.parametrize("status", ["failed", "cancelled", "expired"])
def test_job_without_an_answer_is_exit_code_1(api: ScriptedApi, status: str) -> None:
    error = {"code": "engine_error", "message": "out of \x1b[2Jmemory"}
    api.on(STREAM, events(STARTED, delta(2, "par"), (3, status, {"usage": {}, "timings": {}, "error": error})))
    result = submit(api, "x", "--quiet")
    assert (result.exit_code, result.stdout) == (1, "par\n")
    assert result.stderr == f"{JOB} {status}, engine_error: out of  [2Jmemory\n"


def test_json_is_the_finished_job(api: ScriptedApi) -> None:
    api.on(STREAM, events(delta(2, "a"), completed(3)))
    api.on(f"GET /v1/jobs/{JOB}", reply({"id": JOB, "status": "completed", "output_text": "\x1b[2J\x9b"}))
    result = submit(api, "x", "--json")
    assert json.loads(result.stdout)["output_text"] == "\x1b[2J\x9b"
    assert "\x1b" not in result.stdout
    assert "\x9b" not in result.stdout


def test_escape_sequences_of_an_answer_do_not_reach_the_terminal(api: ScriptedApi) -> None:
    api.on("POST /v1/jobs", reply({"id": JOB}, 202))
    api.on(STREAM, events(STARTED, delta(2, "a\x1b]0;owned\x07b\x9b2Jc\r\n"), completed(3)))
    shown = screen(api.url, "submit", "x", "--model", "m")
    assert "a]0;ownedb2Jc" in shown
    for sequence in ("\x1b]0", "\x07", "\x9b"):
        assert sequence not in shown


def test_piped_answers_are_unchanged(api: ScriptedApi) -> None:
    api.on(STREAM, events(delta(2, "a\x1b[1mb"), completed(3)))
    assert submit(api, "x").stdout == "a\x1b[1mb\n"
