"""Arguments, files, streams and servers that are not what a command expects: one line on stderr, and an exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import REPOSITORY, run
from tests.support.ports import free_port
from tests.support.scripted_api import Response, ScriptedApi, reply


def shell(script: str, url: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash in which $headrace is the command."""
    environment = {**os.environ, "HEADRACE_URL": url, "HEADRACE_API_KEY": "hr_x", "PYTHON": sys.executable}
    line = f'headrace="$PYTHON -m cli"; {script}'
    return subprocess.run(
        ["bash", "-c", line], cwd=REPOSITORY, env=environment, capture_output=True, check=False, timeout=60
    )


def jobs(count: int, *, more: bool = False) -> Response:
    timings = {"queued_ms": 1, "ttft_ms": 2, "total_ms": 3}
    items: list[dict[str, Any]] = [
        {"id": f"job_{number:032x}", "status": "completed", "model": "m", "created_at": "2026-01-01T00:00:00Z",
         "timings": timings, "usage": None, "attempts": []}
        for number in range(count)
    ]  # fmt: skip
    return reply({"data": items, "has_more": more, "last_id": items[-1]["id"]})


@pytest.mark.parametrize(
    ("route", "arguments"),
    [
        ("GET /v1/jobs", ["jobs"]),
        ("GET /v1/models", ["models"]),
        ("GET /v1/models", ["submit", "x"]),
        ("GET /v1/workers", ["workers"]),
        ("GET /v1/jobs/x", ["job", "x"]),
        ("POST /v1/jobs", ["submit", "x", "-m", "m"]),
    ],
)
def test_another_program_that_answers_with_json_is_reported(api: ScriptedApi, route: str, arguments: list[str]) -> None:
    api.on(route, reply({"name": "something else"}))
    result = run(api.url, *arguments)
    assert result.exit_code == 6
    assert "is it a Headrace API" in result.stderr


def test_a_redirect_says_where_it_leads(api: ScriptedApi) -> None:
    api.on("GET /v1/jobs", reply({}, 301, Location="https://llm.example.com/v1/jobs"))
    result = run(api.url, "jobs")
    assert result.exit_code == 2
    assert "leads to https://llm.example.com/v1/jobs." in result.stderr
    assert "HEADRACE_URL" in result.stderr


def test_a_response_that_cannot_be_decoded_is_reported(api: ScriptedApi) -> None:
    api.on("GET /v1/jobs", reply({}, Content_Encoding="gzip"))
    result = run(api.url, "jobs")
    assert result.exit_code == 6
    assert "cannot be decoded" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit", "\udcff", "-m", "m"], "not UTF-8"),
        (["jobs", "--user", "\udcff"], "not UTF-8"),
        (["submit", "x", "-m", "m", "-p", "top_p=NaN"], "no such number"),
        (["submit", "x", "-m", "m", "-p", "top_p=1e999"], "no such number"),
    ],
)
def test_what_json_and_urls_cannot_express_is_a_usage_error(
    api: ScriptedApi, arguments: list[str], message: str
) -> None:
    result = run(api.url, *arguments)
    assert (result.exit_code, api.requests) == (2, [])
    assert message in result.stderr


def test_an_id_that_is_not_utf_8_is_sent_as_it_is(api: ScriptedApi) -> None:
    assert run(api.url, "job", "\udcff").exit_code == 5
    assert api.requests[0].path == "/v1/jobs/%FF"


def test_json_that_is_nested_too_deeply_is_a_text(api: ScriptedApi) -> None:
    api.on("POST /v1/jobs", reply({"id": "job_1"}))
    assert run(api.url, "submit", "x", "-m", "m", "--no-wait", "-p", "a=" + "[" * 100_000).exit_code == 0
    assert api.requests[0].json["a"] == "[" * 100_000


@pytest.mark.parametrize(
    "arguments",
    [
        [""],
        ["."],
        ["/"],
        ["--watch", ""],
        ["--watch", "batch_1", "--output", ""],
        ["--watch", "batch_1", "--output", "/"],
    ],
)
def test_a_batch_needs_names(api: ScriptedApi, arguments: list[str]) -> None:
    result = run(api.url, "batch", *arguments)
    assert (result.exit_code, api.requests) == (2, [])
    assert "must have a name" in result.stderr


def test_results_and_json_cannot_both_go_to_stdout(api: ScriptedApi) -> None:
    result = run(api.url, "batch", "--watch", "batch_1", "--output", "-", "--json")
    assert (result.exit_code, result.stdout, api.requests) == (2, "", [])


def test_a_pipe_cannot_be_uploaded(api: ScriptedApi, tmp_path: Path) -> None:
    ended = shell("""$headrace batch <(echo '{"url": "/v1/completions"}')""", api.url)
    assert ended.returncode == 2
    assert b"is not a regular file" in ended.stderr


def test_a_list_that_is_cut_says_so_beside_json_too(api: ScriptedApi) -> None:
    api.on("GET /v1/jobs", jobs(2, more=True))
    result = run(api.url, "jobs", "--json", "-n", "2")
    assert [json.loads(line)["status"] for line in result.stdout.splitlines()] == ["completed"] * 2
    assert f"--after job_{1:032x}" in result.stderr


@pytest.mark.parametrize("option", ["", "--json"])
def test_a_reader_that_leaves_is_exit_code_141(api: ScriptedApi, option: str) -> None:
    api.on("GET /v1/jobs", jobs(5000))
    ended = shell(f"$headrace jobs -n 5000 {option} | head -1; exit ${{PIPESTATUS[0]}}", api.url)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_a_reader_of_errors_that_leaves_is_exit_code_141() -> None:
    environment = {**os.environ, "HEADRACE_URL": f"http://127.0.0.1:{free_port()}"}
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "cli", "jobs"]
    try:
        ended = subprocess.run(command, cwd=REPOSITORY, env=environment, stderr=write, check=False, timeout=60)
    finally:
        os.close(write)
    assert ended.returncode == 141


def test_closed_streams_are_no_reason_to_fail(api: ScriptedApi) -> None:
    api.on("GET /v1/jobs", jobs(2))
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        assert shell(f"$headrace jobs {closed}", api.url).returncode == 0
        assert shell(f"$headrace jobs --json {closed}", api.url).returncode == 0
    ended = shell("$headrace submit -m m --file - <&-", api.url)
    assert ended.returncode == 2
    assert b"stdin is closed" in ended.stderr
