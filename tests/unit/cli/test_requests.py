"""`headrace requests` and `headrace export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support.command_line import run
from tests.support.scripted_api import Response, ScriptedApi, refusal, reply

ID = "job_01a22a89f246739a8c44c59745894a6a"
REQUEST: dict[str, Any] = {
    "id": ID, "object": "request", "created_at": "2026-11-30T14:02:11Z", "ended_at": "2026-11-30T14:02:12Z",
    "project": "shop", "key": "key_12", "user": "ann", "conversation": None, "request_id": "req_1", "batch": None,
    "kind": None, "model": "smollm2", "route": "auto", "status": "completed", "error_code": None,
    "first_token_ms": 184, "total_ms": 1504, "input_tokens": 42, "output_tokens": 1200, "answered_by_other": False,
    "level": "redacted", "body": "kept", "refused": False, "refusal_source": "classifier",
    "feedback": [{"metric": "rating", "value": True, "tags": []}],
    "scores": [{"rubric": "help", "score": 4.0, "judge_model": "large"}],
}  # fmt: skip


def page(*items: dict[str, Any], last_id: str | None = None, **more: Any) -> Any:
    return reply({"data": list(items), "last_id": last_id, "has_more": last_id is not None, "partial": False, **more})


def query_of(api: ScriptedApi, number: int = -1) -> dict[str, list[str]]:
    return parse_qs(urlsplit(api.requests[number].path).query)


def test_requests_are_listed(api: ScriptedApi) -> None:
    api.on("GET /v1/requests", page(REQUEST))
    result = run(
        api.url, "requests", "--user", "ann", "--route", "auto", "--route", "b", "--not-refused", "--since",
        "2026-11-30T00:00+00:00", "--feedback", "rating=true", "--rubric", "help", "--min-score", "3",
    )  # fmt: skip
    header, line = result.stdout.splitlines()
    assert header.split()[:3] == ["REQUEST", "STATUS", "MODEL"]
    assert line.split()[:3] == [ID, "completed", "smollm2"]
    for text in ("ann", "shop", "1,242", "no (classifier)", "rating=true", "kept"):
        assert text in line
    assert query_of(api) == {
        "user": ["ann"], "route": ["auto", "b"], "refused": ["false"], "start": ["2026-11-30T00:00:00+00:00"],
        "feedback": ["rating=true"], "rubric": ["help"], "min_score": ["3.0"], "limit": ["20"],
    }  # fmt: skip


def test_a_search_that_stopped_says_how_to_continue(api: ScriptedApi) -> None:
    cursor = f"{ID}@1796047332986000"
    api.on("GET /v1/requests", page(last_id=cursor, partial=True), page(REQUEST))
    result = run(api.url, "requests", "--error-code", "engine_error")
    assert f"The search was stopped early: add --after {cursor}, or --all." in result.stderr
    assert "There are no such requests." in result.stderr + result.stdout
    run(api.url, "requests", "--after", cursor)
    assert query_of(api)["after"] == [cursor]


def test_a_request_is_shown_beside_its_answer(api: ScriptedApi) -> None:
    asked = [{"type": "text", "text": "Write to [EMAIL]"}, {"type": "image"}]
    content = {
        "level": "redacted", "metadata": {}, "error_message": None, "redactions": {"email": 2},
        "request": {"messages": [{"role": "user", "content": asked}]},
        "output": [{"text": "Dear\u001b[2J Ann", "tool_calls": [{"id": "c", "name": "f", "arguments": "{}"}]}],
    }  # fmt: skip
    api.on(f"GET /v1/requests/{ID}", reply({**REQUEST, "content": content, "missing": None}))
    result = run(api.url, "requests", "show", ID)
    for text in ("auto", "42 in, 1,200 out", "help 4", "user: Write to [EMAIL]", "[image]", "answer: Dear", "f({})"):
        assert text in result.stdout
    assert "\u001b[2J" not in result.stdout, "no text of a model commands the terminal"
    assert "Replaced: 2 email" in result.stderr


def test_why_a_body_is_missing(api: ScriptedApi) -> None:
    missing = {"reason": "level", "message": "The log level of this job keeps no bodies."}
    api.on(f"GET /v1/requests/{ID}", reply({**REQUEST, "content": None, "missing": missing}))
    result = run(api.url, "requests", "show", ID)
    assert result.exit_code == 0
    assert missing["message"] in result.stderr


def line(number: int, rows: int | None = None) -> bytes:
    headrace = {"export": "export_1"} | ({} if rows is None else {"rows": rows})
    return json.dumps({"messages": [], "metadata": {"job_id": number, "headrace": headrace}}).encode() + b"\n"


def file(content: bytes) -> Response:
    return Response(content, 200, {"Content-Type": "application/x-ndjson"})


def test_an_export_is_saved(api: ScriptedApi, tmp_path: Path) -> None:
    content, path = line(1) + line(2, rows=2), tmp_path / "set.jsonl"
    api.on("GET /v1/requests/export", file(content))
    arguments = ["--model", "smollm2", "--sample", "2", "--seed", "7", "--level", "full", "--refused"]
    result = run(api.url, "export", "--output", str(path), *arguments)
    assert (result.exit_code, result.stdout.strip()) == (0, str(path))
    assert path.read_bytes() == content
    assert "Exported 2 requests" in result.stderr
    assert "level full" in result.stderr
    assert query_of(api) == {
        "format": ["jsonl"], "level": ["full"], "sample": ["2"], "seed": ["7"], "model": ["smollm2"],
        "refused": ["true"],
    }  # fmt: skip
    again = run(api.url, "export", "--output", str(path))
    assert again.exit_code == 2
    assert "--force" in again.stderr
    assert run(api.url, "export", "--output", str(path), "--force").exit_code == 0


def test_an_export_to_stdout(api: ScriptedApi) -> None:
    content = line(1, rows=1)
    api.on("GET /v1/requests/export", file(content))
    result = run(api.url, "export", "--quiet")
    assert (result.exit_code, result.stdout_bytes, result.stderr) == (0, content, "")


@pytest.mark.parametrize("content", [line(1), line(1) + line(2, rows=3), line(1)[:-9], line(1, rows=1)[:-2]])
def test_a_file_that_was_cut_off_is_not_saved(api: ScriptedApi, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text("earlier")
    api.on("GET /v1/requests/export", file(content))
    result = run(api.url, "export", "--output", str(path), "--force")
    assert result.exit_code == 3
    assert "before it was complete" in result.stderr
    assert path.read_text() == "earlier"
    assert list(tmp_path.glob(".*")) == []


def test_an_export_without_requests_is_an_empty_file(api: ScriptedApi, tmp_path: Path) -> None:
    api.on("GET /v1/requests/export", file(b""))
    assert run(api.url, "export", "--output", str(tmp_path / "set.jsonl")).exit_code == 0
    assert (tmp_path / "set.jsonl").read_bytes() == b""


def test_parquet_ends_as_it_begins(api: ScriptedApi, tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    api.on("GET /v1/requests/export", file(b"PAR1..."), file(b"PAR1...PAR1"))
    arguments = ["export", "--format", "parquet", "--output", str(path)]
    assert run(api.url, *arguments).exit_code == 3
    assert not path.exists()
    assert run(api.url, *arguments).exit_code == 0
    assert path.read_bytes() == b"PAR1...PAR1"


def test_errors_of_the_server(api: ScriptedApi) -> None:
    api.on("GET /v1/requests/export", refusal(403, "This API key has no `logs` scope.", None))
    result = run(api.url, "export")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "`logs` scope" in result.stderr
