"""Errors and exit codes, lists, and files of batches."""

from __future__ import annotations

import json
import os
import re
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support.command_line import REPOSITORY, Screen, on_terminal, run, screen, start
from tests.support.ports import free_port
from tests.support.scripted_api import JOB, ScriptedApi, events, refusal, reply

TIMES = {"queued_ms": 1, "ttft_ms": 20, "total_ms": 300}


def job(number: int, **more: Any) -> dict[str, Any]:
    return {
        "id": f"job_{number:032x}", "model": "smollm2", "status": "completed", "priority": 3,
        "created_at": "2026-01-01T00:00:00Z", "timings": TIMES, "attempts": [], "error": None, "metadata": {},
        "usage": {"prompt_tokens": 3, "completion_tokens": 1234}, "output": [], **more,
    }  # fmt: skip


def page(*jobs: dict[str, Any], more: bool = False) -> Any:
    return reply({"data": list(jobs), "has_more": more, "last_id": jobs[-1]["id"] if jobs else None})


@pytest.mark.parametrize(
    ("status", "code", "hint"),
    [
        (400, 2, None), (401, 4, "HEADRACE_API_KEY"), (403, 4, None), (404, 5, None), (409, 2, None), (422, 2, None),
        (429, 6, "Try again in 3 s."), (500, 6, None), (503, 6, "Try again in 3 s."),
    ],
)  # fmt: skip
def test_errors_are_one_line_with_the_parameter(api: ScriptedApi, status: int, code: int, hint: str | None) -> None:
    headers = {"Retry_After": "3"} if hint and "Try" in hint else {}
    api.on("GET /v1/jobs", refusal(status, "must be\nless \x1b[2J", "limit", **headers))
    result = run(api.url, "jobs")
    first, *rest = result.stderr.splitlines()
    assert (result.exit_code, result.stdout) == (code, "")
    assert first == "Error: must be less  [2J (limit)"
    assert len(rest) == (1 if hint else 0)
    assert hint is None or hint in rest[0]


def test_server_that_cannot_be_reached_is_exit_code_3(api: ScriptedApi) -> None:
    result = run(f"http://127.0.0.1:{free_port()}", "jobs")
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: Cannot connect to http://127.0.0.1:")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'"x"'])
def test_server_that_is_another_is_reported(api: ScriptedApi, body: bytes) -> None:
    answer = reply({})
    answer.body = body
    api.on("GET /v1/jobs", answer)
    result = run(api.url, "jobs")
    assert result.exit_code == 6
    assert "is it a Headrace API?" in result.stderr


def test_key_that_no_header_may_contain_is_refused(api: ScriptedApi) -> None:
    result = run(api.url, "jobs", key="hr_é")
    assert (result.exit_code, api.requests) == (4, [])


def test_list_is_read_page_by_page(api: ScriptedApi) -> None:
    api.on("GET /v1/jobs", page(job(3), job(2), more=True), page(job(1)))
    result = run(api.url, "jobs", "--all", "--json", "--status", "completed", "--model", "smollm2")
    assert [json.loads(line)["id"][-1] for line in result.stdout.splitlines()] == ["3", "2", "1"]
    first, second = (request.path for request in api.requests)
    assert "status=completed" in first
    assert "model=smollm2" in first
    assert f"after={job(2)['id']}" in second


def test_list_says_how_to_see_more(api: ScriptedApi) -> None:
    api.on("GET /v1/jobs", page(job(3), job(2), more=True))
    assert f"--after {job(2)['id']}" in run(api.url, "jobs", "--limit", "2").stderr


def test_empty_list_is_empty_output(api: ScriptedApi) -> None:
    api.on("GET /v1/jobs", page())
    result = run(api.url, "jobs")
    assert (result.stdout, result.stderr) == ("", "There are no such jobs.\n")


def test_piped_table_is_complete_and_plain(api: ScriptedApi) -> None:
    api.on("GET /v1/jobs", page(job(1, model="a-long-name" * 10)))
    header, row = run(api.url, "jobs").stdout.splitlines()
    assert header.split()[:3] == ["JOB", "STATUS", "MODEL"]
    assert "a-long-name" * 10 in row
    assert "1,234" in row
    assert "\x1b" not in row


def test_numbers_are_aligned_to_the_right(api: ScriptedApi) -> None:
    api.on("GET /v1/jobs", page(job(1), job(2, usage={"completion_tokens": 7})))
    header, one, two = run(api.url, "jobs").stdout.splitlines()
    end = header.index("TOKENS") + len("TOKENS")
    assert one[:end].endswith("1,234")
    assert two[:end].endswith("    7")


def test_narrow_terminal_keeps_ids_whole_and_lines_short(api: ScriptedApi) -> None:
    api.on("GET /v1/jobs", page(job(1)))
    shown = screen(api.url, "jobs", columns=60, NO_COLOR="1")
    header, row = re.sub(r"\x1b\[\d*m", "", shown).splitlines()  # bold is no colour
    assert job(1)["id"] in row
    assert max(len(header), len(row)) <= 60
    assert "ATTEMPTS" not in header


@pytest.mark.parametrize("setting", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colour_is_for_terminals_that_want_it(api: ScriptedApi, setting: dict[str, str]) -> None:
    api.on("GET /v1/jobs", page(job(1)))
    assert ("\x1b[32m" in screen(api.url, "jobs", columns=200, **setting)) == (not setting)


def test_names_from_clients_are_safe_on_the_terminal(api: ScriptedApi) -> None:
    found = job(
        1, metadata={"k": "\x1b]0;owned\x07[bold]x[/bold]"}, user="a\nb", error={"code": "c", "message": "\x1b[2J"}
    )
    api.on(f"GET /v1/jobs/{JOB}", reply(found))
    shown = screen(api.url, "job", JOB)
    assert "k= ]0;owned [bold]x[/bold]" in shown
    assert "a b" in shown
    assert "\x1b]0" not in shown
    assert "\x1b[2J" not in shown


def test_ids_cannot_leave_their_path(api: ScriptedApi) -> None:
    run(api.url, "job", "../keys?x=1")
    assert [request.path for request in api.requests] == ["/v1/jobs/..%2Fkeys%3Fx%3D1"]


def test_followed_events_are_json_lines(api: ScriptedApi) -> None:
    api.on(f"GET /v1/jobs/{JOB}", reply(job(1, id=JOB)))
    stream = events((None, "keepalive", {}), (1, "started", {"attempt": 1}), (2, "failed", {"error": {"code": "x"}}))
    api.on(f"GET /v1/jobs/{JOB}/stream", stream)
    result = run(api.url, "job", JOB, "--follow", "--json")
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"event": "job.started", "id": 1, "data": {"attempt": 1}},
        {"event": "job.failed", "id": 2, "data": {"error": {"code": "x"}}},
    ]
    assert result.exit_code == 1


def test_cancel_goes_on_after_an_id_that_is_unknown(api: ScriptedApi) -> None:
    api.on("POST /v1/jobs/job_2/cancel", reply({"id": "job_2", "status": "cancelled"}))
    api.on("POST /v1/batches/batch_3/cancel", reply({"id": "batch_3", "status": "cancelling"}))
    result = run(api.url, "cancel", "job_1", "job_2", "batch_3")
    assert result.exit_code == 5
    assert result.stdout == "job_2  cancelled\nbatch_3  cancelling\n"
    assert result.stderr.startswith("job_1: There is no POST")


def test_reader_that_leaves_ends_the_command_quietly(api: ScriptedApi) -> None:
    api.on("GET /v1/jobs", page(*[job(number) for number in range(100)], more=True))
    read, write = os.pipe()
    process = start(api.url, "jobs", "--all", "--json", stdout=write)
    os.close(write)
    os.read(read, 10)
    os.close(read)
    _, errors = process.communicate(timeout=20)
    assert (errors, process.returncode) == ("", 141)


def batch(status: str = "completed", **more: Any) -> dict[str, Any]:
    return {
        "id": "batch_1", "status": status, "endpoint": "/v1/chat/completions", "input_file_id": "file-1",
        "output_file_id": "file-2", "error_file_id": None, "errors": None, "usage": None, "created_at": 1_800_000_000,
        "request_counts": {"total": 2, "completed": 2, "failed": 0}, **more,
    }  # fmt: skip


@pytest.fixture
def requests_file(tmp_path: Path) -> Path:
    file = tmp_path / "requests.jsonl"
    lines = [{"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": {}} for n in range(2)]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def test_batch_is_uploaded_watched_and_saved(
    api: ScriptedApi, requests_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.commands.batch.POLL_S", 0.001)
    monkeypatch.setattr("cli.client.FIRST_DELAY_S", 0.001)
    api.on("POST /v1/files", reply({"id": "file-1"}))
    api.on("POST /v1/batches", reply(batch("validating")))
    api.on("GET /v1/batches/batch_1", refusal(503, "starting"), reply(batch("in_progress")), reply(batch()))
    results = reply({"custom_id": "0"})
    api.on("GET /v1/files/file-2/content", results)
    result = run(api.url, "batch", str(requests_file))
    output = requests_file.with_name("requests.output.jsonl")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{output}\n"
    assert "2 of 2 requests completed, 0 failed" in result.stderr
    assert output.read_bytes() == results.body
    assert requests_file.read_bytes() in api.of("POST /v1/files")[0].body
    assert api.of("POST /v1/batches")[0].json == {
        "input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"
    }  # fmt: skip


def test_batch_with_failed_requests_is_exit_code_1(api: ScriptedApi, tmp_path: Path) -> None:
    counts = {"total": 2, "completed": 1, "failed": 1}
    api.on("GET /v1/batches/batch_1", reply(batch(error_file_id="file-3", request_counts=counts)))
    api.on("GET /v1/files/file-2/content", reply({"custom_id": "0"}))
    api.on("GET /v1/files/file-3/content", reply({"custom_id": "1"}))
    result = run(api.url, "batch", "--watch", "batch_1", "--output", f"{tmp_path}/out.jsonl", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (found["output_path"], found["errors_path"]) == (f"{tmp_path}/out.jsonl", f"{tmp_path}/out.errors.jsonl")
    assert json.loads((tmp_path / "out.errors.jsonl").read_text()) == {"custom_id": "1"}


def test_invalid_lines_are_named(api: ScriptedApi, requests_file: Path) -> None:
    error = {"code": "x", "line": 2, "message": "must be at least 1", "param": "body.max_tokens"}
    failed = batch("failed", output_file_id=None, errors={"data": [error]})
    api.on("POST /v1/files", reply({"id": "file-1"}))
    api.on("POST /v1/batches", reply(failed))
    result = run(api.url, "batch", str(requests_file))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "requests.jsonl:2: must be at least 1 (body.max_tokens)" in result.stderr


def test_results_do_not_replace_files(api: ScriptedApi, requests_file: Path) -> None:
    requests_file.with_name("requests.output.jsonl").write_text("precious")
    result = run(api.url, "batch", str(requests_file))
    assert (result.exit_code, api.requests) == (2, [])
    assert "--force" in result.stderr


@pytest.mark.parametrize(("output", "errors"), [("file-2", None), (None, "file-3"), (None, None)])
def test_forced_run_leaves_no_results_of_an_earlier_one(
    api: ScriptedApi, tmp_path: Path, output: str | None, errors: str | None
) -> None:
    api.on("GET /v1/batches/batch_1", reply(batch(output_file_id=output, error_file_id=errors)))
    for file in ("file-2", "file-3"):
        api.on(f"GET /v1/files/{file}/content", reply("new"))
    for name in ("out.jsonl", "out.errors.jsonl"):
        (tmp_path / name).write_text("old")
    run(api.url, "batch", "--watch", "batch_1", "--output", f"{tmp_path}/out.jsonl", "--force")
    left = {file.name: file.read_text() for file in tmp_path.iterdir() if file.is_file()}
    if output is None and errors is None:
        assert left == {"out.jsonl": "old", "out.errors.jsonl": "old"}, "there is nothing to replace them"
    else:
        assert left == {"out.errors.jsonl" if output is None else "out.jsonl": '"new"'}


def test_interrupted_download_leaves_no_file(api: ScriptedApi, tmp_path: Path) -> None:
    api.on("GET /v1/batches/batch_1", reply(batch()))
    content = reply({"custom_id": "0"})
    content.cut = True
    api.on("GET /v1/files/file-2/content", content)
    result = run(api.url, "batch", "--watch", "batch_1", "--output", f"{tmp_path}/out.jsonl")
    assert result.exit_code == 3
    assert list(tmp_path.glob("*out*")) == []


@pytest.mark.parametrize("content", ["", "not JSON\n", '{"custom_id": "1"}\n'])
def test_file_of_other_content_is_refused(api: ScriptedApi, tmp_path: Path, content: str) -> None:
    (tmp_path / "file").write_text(content)
    result = run(api.url, "batch", f"{tmp_path}/file")
    assert (result.exit_code, api.requests) == (2, [])
    assert "its first line has no `url`" in result.stderr


@pytest.mark.parametrize("arguments", [["--watch", "batch_1", "FILE"], []])
def test_batch_needs_a_file_or_an_id(api: ScriptedApi, arguments: list[str]) -> None:
    assert run(api.url, "batch", *arguments).exit_code == 2


METRICS = """# HELP headrace_workers Workers
headrace_workers{model="smollm2",state="ready"} 2.0
headrace_workers{model="smollm2",state="draining"} 1.0
headrace_worker_slots{model="smollm2"} 64.0
headrace_jobs_running{model="smollm2",priority="0-2"} 3.0
headrace_jobs_running{model="smollm2",priority="9"} 4.0
headrace_jobs_waiting{model="smollm2",priority="3-5"} 5.0
headrace_queue_oldest_age_seconds{model="smollm2",priority="3-5"} 1.5
headrace_database_up 1.0
"""


def status_of(api: ScriptedApi, *, ready: bool = True, metrics: bool = True, admin: bool = True) -> None:
    state = "ok" if ready else "no live worker"
    checks = {"database": "ok", "redis": "ok", "model smollm2": state}
    api.on("GET /readyz", reply({"status": "ok" if ready else "unready", "checks": checks}, 200 if ready else 503))
    api.on("GET /version", reply({"version": "1.2.3"}))
    api.on("GET /v1/models", reply({"data": [{"id": "smollm2"}, {"id": "auto", "route": {"models": ["smollm2"]}}]}))
    api.on("GET /v1/jobs", page(job(1), job(2, timings=TIMES | {"ttft_ms": 40})))
    api.on("GET /v1/workers", fleet(*WORKERS) if admin else refusal(403, "needs the admin scope"))
    text = reply({})
    text.body = METRICS.encode()
    api.on("GET /metrics", text if metrics else refusal(403, "not from outside"))


WORKER = {
    "id": "smollm2-4711@gpu-1", "model": "smollm2", "state": "ready", "alive": True, "slots": 64, "running": 12,
    "waiting": 1, "kv_cache_usage": 0.314, "tokens_per_s": 1840.5, "started_at": "2026-01-01T00:00:00Z",
    "version": "0.1.0", "breaker": None, "last_error": None,
}  # fmt: skip


WORKERS = [
    WORKER,
    WORKER | {"id": "smollm2-4712@gpu-1"},
    WORKER | {"id": "smollm2-4713@gpu-1", "state": "draining"},
    WORKER | {"id": "smollm2-4714@gpu-1", "alive": False},
]


def fleet(*workers: dict[str, Any], paused: bool = False) -> Any:
    pauses = [{"model": "smollm2", "paused_at": "2026-01-01T00:00:00Z"}] if paused else []
    return reply({"data": list(workers), "paused": pauses})


def test_workers_show_how_full_they_are_and_what_is_wrong(api: ScriptedApi) -> None:
    breaker = {"since": "2026-01-01T00:00:00Z", "reason": "503 of the upstream"}
    lost = WORKER | {"id": "w-2", "alive": False, "breaker": breaker}
    api.on("GET /v1/workers", fleet(WORKER, lost, paused=True))
    result = run(api.url, "workers")
    _, one, two = result.stdout.splitlines()
    assert one.split()[:9] == ["smollm2-4711@gpu-1", "ready", "smollm2", "12/64", "1", "31", "%", "1,840.5", "tokens/s"]
    assert two.split()[:9] == ["w-2", "lost", "smollm2", *["-"] * 5, "0.1.0"], "not what it did last"
    assert two.endswith("503 of the upstream")
    assert "The queue of smollm2 has been paused for" in result.stderr


def test_ids_of_workers_are_escaped(api: ScriptedApi) -> None:
    api.on("POST /v1/workers/a%2Fb%40c/drain", reply(WORKER | {"id": "a/b@c", "state": "draining"}))
    assert run(api.url, "workers", "drain", "a/b@c").stdout == "a/b@c  draining, 12 jobs left\n"


def test_queues_are_paused_and_resumed(api: ScriptedApi) -> None:
    api.on("POST /v1/models/smollm2/pause", reply({"model": "smollm2", "paused_at": "2026-01-01T00:00:00Z"}))
    api.on("POST /v1/models/smollm2/resume", reply({"model": "smollm2", "paused_at": None}))
    assert run(api.url, "models", "pause", "smollm2").stdout == "smollm2  paused\n"
    assert run(api.url, "models", "resume", "smollm2").stdout == "smollm2  resumed\n"


KEY = {
    "id": "key_7", "name": "web", "prefix": "hr_1a2b", "project": "shop", "scopes": ["inference"], "expires_at": None,
    "created_at": "2026-01-01T00:00:00Z", "revoked_at": None, "last_used_at": None,
}  # fmt: skip


def test_keys_are_created_rotated_and_revoked(api: ScriptedApi) -> None:
    api.on("POST /v1/admin/keys", reply(KEY | {"secret": "hr_secret"}))
    api.on("POST /v1/admin/keys/key_7/rotate", reply(KEY | {"id": "key_8", "secret": "hr_new"}))
    api.on("POST /v1/admin/keys/key_8/revoke", reply(KEY | {"id": "key_8"}))
    created = run(
        api.url, "keys", "create", "web", "--project", "shop", "--scope", "admin", "--expires", "90d",
        "--allowed-models", "sim",
    )  # fmt: skip
    assert (created.stdout, created.exit_code) == ("hr_secret\n", 0)
    assert "key_7" in created.stderr
    assert api.requests[0].json == {
        "name": "web", "project": "shop", "scopes": ["admin"], "expires_in_s": 90 * 86400,
        "options": {"allowed_models": ["sim"]},
    }  # fmt: skip
    assert run(api.url, "keys", "rotate", "key_7", "--overlap", "30m").stdout == "hr_new\n"
    assert api.requests[1].json == {"overlap_s": 1800}
    assert run(api.url, "keys", "revoke", "key_8", "--yes").stdout == "key_8  revoked\n"
    assert run(api.url, "keys", "create", "web", "--expires", "soon").exit_code == 2


def test_revoking_keys_needs_an_answer(api: ScriptedApi) -> None:
    api.on("POST /v1/admin/keys/key_7/revoke", reply(KEY))
    result = run(api.url, "keys", "revoke", "key_7", stdin="y\n")
    assert (result.exit_code, api.requests) == (2, []), "there is no terminal for a question"
    assert "--yes" in result.stderr
    for answer, code, requests in (("n", 1, 0), ("y", 0, 1)):
        with on_terminal(api.url, "keys", "revoke", "key_7") as (process, terminal):
            os.write(terminal, f"{answer}\n".encode())
            assert process.wait(timeout=30) == code
            assert "Revoke key_7? It cannot be undone. [y/N]" in Screen(terminal).text()
        assert len(api.requests) == requests


def test_keys_are_changed(api: ScriptedApi) -> None:
    api.on("PATCH /v1/admin/keys/key_7", reply(KEY))

    def body_of(*arguments: str) -> Any:
        result = run(api.url, "keys", "set", "key_7", *arguments)
        assert (result.exit_code, result.stdout) == (0, "key_7  changed\n"), result.stderr
        return api.requests[-1].json

    assert body_of("--name", "shop", "--scope", "inference", "--scope", "admin", "--priority-floor", "0") == {
        "name": "shop", "scopes": ["inference", "admin"], "priority_floor": 0,
    }  # fmt: skip
    assert body_of("--expires", "90d") == {"expires_in_s": 90 * 86400}
    assert body_of("--expires", "never") == {"expires_in_s": None}
    assert body_of("--max-output-tokens", "1000", "--on-exceed", "clamp", "--max-input-tokens", "none") == {
        "options": {"token_limits": {"max_output": 1000, "max_input": None, "on_exceed": "clamp"}}
    }
    assert body_of("--cache-ttl", "1h", "--cache-scope", "user") == {
        "options": {"cache": {"ttl": 3600, "scope": "user"}}
    }
    assert body_of("--cache-ttl", "none") == {"options": {"cache": None, "no_cache": False}}
    assert body_of("--no-cache") == {"options": {"no_cache": True}}
    assert body_of("--context", "summarize", "--context-trigger", "0.9", "--context-model", "small") == {
        "options": {"context": {"strategy": "summarize", "model": "small", "trigger": 0.9}}
    }
    assert body_of("--context", "none") == {"options": {"context": None}}
    assert body_of("--allowed-models", "small, auto") == {"options": {"allowed_models": ["small", "auto"]}}
    assert body_of("--allowed-models", "none") == {"options": {"allowed_models": None}}


@pytest.mark.parametrize(
    "arguments",
    [
        (), ("--expires", "soon"), ("--max-output-tokens", "many"), ("--context-trigger", "true"),
        ("--context", "none", "--context-target", "0.3"), ("--cache-ttl", "none", "--cache-scope", "user"),
    ],
)  # fmt: skip
def test_changes_that_make_no_sense_are_refused(api: ScriptedApi, arguments: tuple[str, ...]) -> None:
    assert run(api.url, "keys", "set", "key_7", *arguments).exit_code == 2
    assert api.requests == []


def test_the_audit_log_is_listed(api: ScriptedApi) -> None:
    entry = {
        "id": "audit_1", "at": "2026-01-01T00:00:00Z", "key": "key_1", "key_name": "ops", "action": "key.change",
        "object_id": "key_7", "project": "shop", "before": {"name": "a"}, "after": {"name": "b"},
    }  # fmt: skip
    created = entry | {"key": None, "action": "key.create", "before": None, "after": {"name": "a", "options": {}}}
    deleted = entry | {"action": "budget.delete", "object_id": "budget_2", "after": None}
    api.on("GET /v1/admin/audit", page(entry, created, deleted))
    result = run(api.url, "audit", "--object", "key_7", "--action", "key")
    _, changed, made, removed = result.stdout.splitlines()
    assert re.search(r'ops \(key_1\) +key\.change +key_7 +shop +name: "a" -> "b"$', changed)
    assert re.search(r'command line +key\.create +key_7 +shop +name: "a"$', made)
    assert removed.endswith("-")
    query = parse_qs(urlsplit(api.requests[0].path).query)
    assert (query["object"], query["action"]) == (["key_7"], ["key"])


def test_prices_are_listed(api: ScriptedApi) -> None:
    price = {
        "id": "price_1", "model": "small", "tier": "default", "from_input_tokens": 0, "input": "0.25",
        "cache_read": None, "output": "2", "reasoning": None, "valid_from": "2026-01-01T00:00:00Z",
        "source": "models.yaml",
    }  # fmt: skip
    api.on("GET /v1/admin/prices", page(price))
    result = run(api.url, "prices", "--history")
    assert result.stdout.splitlines()[1].split()[:7] == ["small", "default", "0", "0.25", "-", "2", "-"]
    assert "history=true" in api.requests[0].path


def test_projects_are_changed(api: ScriptedApi) -> None:
    api.on("PATCH /v1/admin/projects/a%2Fb", reply({"name": "a/b", "tier": None}))
    assert run(api.url, "projects", "set", "a/b", "--tier", "free").stdout == "a/b  changed\n"
    run(api.url, "projects", "set", "a/b", "--tier", "none")
    assert [request.json for request in api.requests] == [{"tier": "free"}, {"tier": None}]


def test_the_rules_of_a_projects_redaction_are_set_and_removed(api: ScriptedApi, tmp_path: Path) -> None:
    rules = {"phone_regions": ["DE"], "own": [{"name": "codename", "words": ["Project Falcon"]}]}
    file = tmp_path / "rules.json"
    file.write_text(json.dumps(rules))
    api.on("PATCH /v1/admin/projects/shop", reply({"name": "shop", "tier": None}))
    api.on("POST /v1/admin/projects", reply({"name": "new", "tier": None}))
    assert run(api.url, "projects", "set", "shop", "--redaction", str(file)).stdout == "shop  changed\n"
    run(api.url, "projects", "set", "shop", "--redaction", "unset", "--log-level", "redacted")
    run(api.url, "projects", "create", "new", "--redaction", "-", stdin=json.dumps(rules))
    assert [request.json for request in api.requests] == [
        {"options": {"redaction": rules}},
        {"options": {"log_level": "redacted", "redaction": None}},
        {"name": "new", "options": {"redaction": rules}},
    ]


@pytest.mark.parametrize("text", ["{", "null", "[]", '"DE"'])
def test_rules_that_are_no_object_are_an_error_of_usage(api: ScriptedApi, tmp_path: Path, text: str) -> None:
    """Above all `null`, which would remove the rules of the project."""
    file = tmp_path / "rules.json"
    file.write_text(text)
    result = run(api.url, "projects", "set", "shop", "--redaction", str(file))
    assert (result.exit_code, api.requests) == (2, [])
    assert "rules.json" in result.stderr


def test_the_version_is_that_of_the_installation() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    result = run(None, "--version")
    assert (result.exit_code, result.stdout) == (0, f"headrace {project['version']}\n")


def test_states_of_keys(api: ScriptedApi) -> None:
    past, future = "2026-01-01T00:00:00Z", "2126-01-01T00:00:00Z"
    states = [KEY, KEY | {"revoked_at": past}, KEY | {"expires_at": past}, KEY | {"expires_at": future}]
    api.on("GET /v1/admin/keys", page(*states))
    _, *rows = run(api.url, "keys").stdout.splitlines()
    assert [row.split()[3] for row in rows] == ["valid", "revoked", "expired", "until"]


def test_failed_jobs_are_listed_with_their_errors_and_discarded(api: ScriptedApi) -> None:
    error = {"code": "attempts_exhausted", "message": "Three workers died."}
    api.on("GET /v1/jobs", page(job(1, status="failed", error=error)))
    api.on(f"DELETE /v1/jobs/{JOB}", reply({"id": JOB, "deleted": True}))
    assert "attempts_exhausted  Three workers died." in run(api.url, "failed").stdout
    assert "status=failed" in api.requests[0].path
    assert run(api.url, "failed", "discard", JOB).stdout == f"{JOB} discarded\n"
    api.on(f"POST /v1/jobs/{JOB}/replay", reply(job(2, metadata={"replay_of": JOB}), 202))
    assert run(api.url, "failed", "replay", JOB).stdout == f"{JOB} replayed as {job(2)['id']}\n"


def outcome(number: int, status: str = "cancelled", **more: Any) -> dict[str, Any]:
    return {"id": f"job_{number:032x}", "status": status, "replayed_as": None, "error": None, **more}


def counted(number: int, *, complete: bool = True) -> Any:
    return reply({"count": number, "complete": complete, "created_before": "2026-01-01T00:00:00Z"})


def test_all_jobs_that_match_are_cancelled(api: ScriptedApi) -> None:
    api.on("GET /v1/jobs/count", counted(3))
    api.on("POST /v1/jobs/cancel", page(outcome(3), outcome(2, "completed"), more=True), page(outcome(1, error="No.")))
    result = run(api.url, "jobs", "--model", "small", "--cancel", "--yes")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == "1 of 3 cancelled, 1 had ended already, 1 failed."
    asked, first, second = (parse_qs(urlsplit(request.path).query) for request in api.requests)
    assert asked == {"model": ["small"], "action": ["cancel"]}
    assert first == {"model": ["small"], "created_before": ["2026-01-01T00:00:00Z"], "limit": ["100"]}
    assert second == {**first, "after": [f"job_{2:032x}"]}
    keys = {request.headers["Idempotency-Key"] for request in api.requests[1:]}
    assert len(keys) == 1


def test_a_limit_applies_to_all_jobs_that_match(api: ScriptedApi) -> None:
    api.on("GET /v1/jobs/count", counted(500, complete=False))
    api.on("POST /v1/jobs/replay", page(outcome(3, replayed_as="job_9"), more=True))
    result = run(api.url, "jobs", "--status", "failed", "--replay", "--limit", "1", "--json", "--act", "a1")
    assert result.exit_code == 2, "there is no terminal for a question"
    result = run(api.url, "jobs", "--status", "failed", "--replay", "--limit", "1", "--json", "--act", "a1", "--yes")
    assert (result.exit_code, json.loads(result.stdout)["replayed_as"]) == (0, "job_9")
    assert f"--after job_{3:032x}" in result.stderr
    assert api.requests[-1].headers["Idempotency-Key"] == "a1"
    assert "limit=1&" in f"{api.requests[-1].path}&"


def test_an_interrupted_act_says_how_to_go_on(api: ScriptedApi) -> None:
    api.on("GET /v1/jobs/count", counted(3))
    api.on("POST /v1/jobs/replay", page(outcome(3), more=True), refusal(403, "No more."))
    result = run(api.url, "jobs", "--status", "failed", "--replay", "--yes", "--act", "a1")
    assert result.exit_code == 4
    assert f"1 of 3 replayed. To go on: --act a1 --after job_{3:032x}" in result.stderr


def test_nothing_is_asked_if_no_job_matches(api: ScriptedApi) -> None:
    api.on("GET /v1/jobs/count", counted(0))
    result = run(api.url, "jobs", "--status", "failed", "--replay")
    assert (result.exit_code, result.stderr) == (0, "There are no jobs to replay.\n")
    assert run(api.url, "jobs", "--replay", "--cancel").exit_code == 2


def test_filters_of_jobs_become_parameters(api: ScriptedApi) -> None:
    api.on("GET /v1/jobs", page())
    run(
        api.url, "jobs", "--status", "failed", "--status", "expired", "--since", "2026-01-31T12:00:00+01:00",
        "--until", "2h", "--user", "ann", "--key", "key_1", "--metadata", "a=b", "--project", "*",
    )  # fmt: skip
    query = parse_qs(urlsplit(api.requests[0].path).query)
    until = datetime.fromisoformat(query.pop("created_before")[0])
    assert 7190 < (datetime.now(UTC) - until).total_seconds() < 7260
    assert query == {
        "status": ["failed", "expired"], "created_after": ["2026-01-31T11:00:00+00:00"], "user": ["ann"],
        "key": ["key_1"], "metadata": ["a=b"], "project": ["*"], "limit": ["20"],
    }  # fmt: skip
    assert run(api.url, "jobs", "--since", "yesterday").exit_code == 2


def test_search_that_was_stopped_says_how_to_go_on(api: ScriptedApi) -> None:
    stopped = reply({"data": [job(3)], "has_more": True, "last_id": "job_9", "partial": True})
    api.on("GET /v1/jobs", stopped)
    result = run(api.url, "jobs")
    assert len(api.requests) == 1
    assert "stopped early: add --after job_9, or --all" in result.stderr


def test_status_once(api: ScriptedApi) -> None:
    status_of(api)
    result = run(api.url, "status", "--once")
    assert result.exit_code == 0, result.stderr
    line = next(line for line in result.stdout.splitlines() if line.startswith("smollm2"))
    assert line.split() == [
        "smollm2", "ok", "2", "128", "7", "5", "1.50", "s", "20", "ms", "40", "ms", "4,403.6", "tokens/s"
    ]  # fmt: skip
    assert "smollm2-4711@gpu-1" in result.stdout


def test_status_in_json_says_what_is_not_ready(api: ScriptedApi) -> None:
    status_of(api, ready=False, metrics=False, admin=False)
    result = run(api.url, "status", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["status"]) == (1, "unready")
    assert found["models"][0]["state"] == "no live worker"
    assert found["models"][0]["running"] is None
    assert found["workers"] is None


@pytest.mark.parametrize("admin", [True, False])
def test_slots_are_those_of_all_ready_workers(api: ScriptedApi, admin: bool) -> None:
    status_of(api, admin=admin)
    [model] = json.loads(run(api.url, "status", "--json").stdout, parse_float=str)["models"]
    counts = {name: model[name] for name in ("workers", "slots", "running", "waiting", "oldest_s")}
    assert counts == {"workers": 2, "slots": 128, "running": 7, "waiting": 5, "oldest_s": "1.5"}


@pytest.mark.parametrize(("paused", "shown"), [(None, "-"), (False, "open"), (True, "paused")])
def test_models_show_whether_their_queues_are_paused(api: ScriptedApi, paused: bool | None, shown: str) -> None:
    about = {"max_model_len": 100, "capabilities": {}}
    api.on("GET /v1/models", reply({"data": [{"id": "smollm2"} | about]}))
    api.on("GET /v1/models/smollm2", reply({"id": "smollm2"} | about))
    api.on("GET /v1/workers", refusal(403, "no") if paused is None else fleet(WORKER, paused=paused))
    assert run(api.url, "models").stdout.splitlines()[1].split() == ["smollm2", "model", shown, "100"]
    assert re.search(rf"^Queue +{shown}$", run(api.url, "models", "show", "smollm2").stdout, re.MULTILINE)


def test_unknown_commands_and_options_are_exit_code_2(api: ScriptedApi) -> None:
    assert run(api.url, "nonsense").exit_code == 2
    assert run(api.url, "jobs", "--nonsense").exit_code == 2
    result = run(api.url, "jobs", "--status", "nonsense")
    assert result.exit_code == 2
    assert "Invalid value for '--status': 'nonsense' is not one of 'queued'" in result.stderr
