"""`headrace` against a running stack: as processes where signals, pipes and lost connections matter."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import Result

from launcher.home import write_environment
from tests.e2e.conftest import FAIL
from tests.support import command_line
from tests.support.console import create_key
from tests.support.ports import free_port
from tests.support.stack import KEY, Stack
from tests.support.waiting import eventually_sync


def run(stack: Stack, *arguments: str, key: str = KEY, stdin: str | None = None) -> Result:
    return command_line.run(stack.url, *arguments, key=key, stdin=stdin)


def start(url: str, *arguments: str) -> subprocess.Popen[str]:
    return command_line.start(url, *arguments, key=KEY)


def job_of(stack: Stack, job_id: str) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {KEY}"}
    found: dict[str, Any] = httpx.get(f"{stack.url}/v1/jobs/{job_id}", headers=headers, timeout=20).json()
    return found


def newest(stack: Stack, model: str) -> dict[str, Any]:
    """The last job that was submitted to a model."""
    (line,) = run(stack, "jobs", "--model", model, "--limit", "1", "--json").stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def first_character(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.read(1)


def rest(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for a process; returns its exit code and what remained to be read."""
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        # Not by `communicate`, which would lose what is buffered here.
        stdout, stderr = process.stdout.read(), process.stderr.read()
        return process.wait(60), stdout, stderr


def test_answer_comes_while_it_is_generated(sim_stack: Stack) -> None:
    process = start(sim_stack.url, "submit", "Name three rivers.", "--model", "small", "--max-tokens", "60")
    begun = first_character(process)
    assert process.poll() is None
    assert newest(sim_stack, "small")["status"] == "in_progress"
    code, text, statistics = rest(process)
    job = job_of(sim_stack, newest(sim_stack, "small")["id"])
    assert code == 0, statistics
    assert begun + text == job["output_text"] + "\n"
    assert "60 tokens, first token " in statistics
    assert " tokens/s, total " in statistics


def test_answer_survives_the_loss_of_the_api(sim_stack: Stack) -> None:
    with sim_stack.second_api() as url:
        process = start(
            url, "submit", "Go on.", "--model", "small", "--max-tokens", "150", "--param", "ignore_eos=true"
        )
        begun = first_character(process)
        sim_stack.replace_api(url)
        code, text, notes = rest(process)
    job = job_of(sim_stack, newest(sim_stack, "small")["id"])
    assert code == 0, notes
    assert begun + text == job["output_text"] + "\n"
    assert job["usage"]["completion_tokens"] == 150
    assert "Trying again" in notes


@pytest.mark.parametrize("cancel", [False, True])
def test_interrupt_leaves_the_job_or_cancels_it(sim_stack: Stack, cancel: bool) -> None:
    options = ["--cancel-on-interrupt"] if cancel else []
    # It runs until it is cancelled, so that the interrupt does not come after its end.
    endless = ("--max-tokens", "3000", "--param", "ignore_eos=true")
    process = start(sim_stack.url, "submit", "Go on.", "--model", "small", *endless, *options)
    first_character(process)
    job_id = newest(sim_stack, "small")["id"]
    process.send_signal(signal.SIGINT)
    code, _, notes = rest(process)
    assert code == 130
    assert "Traceback" not in notes
    if cancel:
        assert f"Cancelled {job_id}." in notes
    else:
        assert job_of(sim_stack, job_id)["status"] == "in_progress"
        assert f"headrace job {job_id} --follow" in notes
        assert run(sim_stack, "cancel", job_id).exit_code == 0
    followed = run(sim_stack, "job", job_id, "--follow")
    assert followed.exit_code == 1
    job = job_of(sim_stack, job_id)
    assert job["status"] == "cancelled"
    assert followed.stdout == job["output_text"] + "\n"


def test_schema_is_followed(sim_stack: Stack, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"river": {"type": "string"}}, "required": ["river"]}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    result = run(sim_stack, "submit", "-m", "sim", "--schema", f"{tmp_path}/schema.json", stdin="Name a river.")
    assert result.exit_code == 0, result.stderr
    assert isinstance(json.loads(result.stdout)["river"], str)


def test_batch_end_to_end(sim_stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    bodies = [
        {"model": "sim", "messages": [{"role": "user", "content": text}], "max_tokens": 5} for text in ("a", FAIL)
    ]
    requests = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
        for number, body in enumerate(bodies)
    ]
    file.write_text("\n".join(map(json.dumps, requests)))
    created = run(sim_stack, "batch", str(file), "--no-wait")
    assert created.exit_code == 0, created.stderr
    watched = run(sim_stack, "batch", "--watch", created.stdout.strip(), "--output", f"{tmp_path}/out.jsonl")
    assert watched.exit_code == 1
    assert "1 of 2 requests completed, 1 failed" in watched.stderr
    assert watched.stdout.splitlines() == [f"{tmp_path}/out.jsonl", f"{tmp_path}/out.errors.jsonl"]
    (result,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert result["custom_id"] == "0"
    assert result["response"]["status_code"] == 200
    listed = [json.loads(line) for line in run(sim_stack, "batches", "--json").stdout.splitlines()]
    assert created.stdout.strip() in [batch["id"] for batch in listed]


def test_exit_codes(sim_stack: Stack) -> None:
    closed = f"http://127.0.0.1:{free_port()}"
    assert command_line.run(closed, "jobs").exit_code == 3
    assert run(sim_stack, "jobs", key="hr_wrong").exit_code == 4
    assert run(sim_stack, "job", "job_unknown").exit_code == 5
    assert run(sim_stack, "submit", "x", "--model", "unknown").exit_code == 5
    assert run(sim_stack, "submit", FAIL, "--model", "sim").exit_code == 1
    refused = run(sim_stack, "submit", "x", "--model", "sim", "--param", "top_p=7")
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1
    assert "top_p" in refused.stderr


def test_json_of_every_command(sim_stack: Stack) -> None:
    submitted = run(sim_stack, "submit", "x", "-m", "sim", "--max-tokens", "3", "--json")
    job = json.loads(submitted.stdout)
    assert (submitted.exit_code, job["status"], submitted.stderr) == (0, "incomplete", "")
    assert json.loads(run(sim_stack, "job", job["id"], "--json").stdout)["output_text"] == job["output_text"]
    events = [json.loads(line) for line in run(sim_stack, "job", job["id"], "-f", "--json").stdout.splitlines()]
    assert events[-1]["event"] == "job.incomplete"
    assert json.loads(run(sim_stack, "cancel", job["id"], "--json").stdout)["status"] == "incomplete"
    waiting = json.loads(run(sim_stack, "submit", "x", "-m", "orphan", "--no-wait", "--json").stdout)
    assert json.loads(run(sim_stack, "cancel", waiting["id"], "--json").stdout)["status"] == "cancelled"
    assert job["id"] in run(sim_stack, "jobs", "--status", "incomplete", "--json").stdout
    models = [json.loads(line)["id"] for line in run(sim_stack, "models", "--json").stdout.splitlines()]
    assert models[:3] == ["sim", "small", "orphan"]
    assert json.loads(run(sim_stack, "models", "show", "sim", "--json").stdout)["max_model_len"] == 4096


def test_status_shows_what_is_not_ready(sim_stack: Stack) -> None:
    run(sim_stack, "submit", "x", "-m", "sim", "--max-tokens", "3")
    result = run(sim_stack, "status", "--json")
    found = json.loads(result.stdout)
    states = {model["model"]: model for model in found["models"]}
    assert (result.exit_code, found["status"]) == (1, "unready")  # no worker serves `orphan`
    assert states["sim"]["state"] == "ok"
    assert states["sim"]["workers"] >= 1
    assert states["sim"]["slots"] == 32
    assert states["sim"]["ttft_p50_ms"] >= 0
    assert states["orphan"]["workers"] == 0


@pytest.fixture(scope="module")
def local_key(sim_stack: Stack) -> str:
    """A key with the scopes of that which `make up` creates, of the same project."""
    return create_key(sim_stack, "cli-local", "inference", "admin", project="e2e")


@pytest.fixture
def home(sim_stack: Stack, local_key: str, tmp_path: Path) -> Path:
    """HEADRACE_HOME, as the launcher writes it, of the stack."""
    variables = ("DATABASE_URL", "REDIS_URL", "HEADRACE_MODELS")
    environment = {name: sim_stack.environment[name] for name in variables}
    write_environment(tmp_path / "env", environment | {"HEADRACE_URL": sim_stack.url})
    (tmp_path / "api_key").write_text(f"{local_key}\n")
    return tmp_path


def local(home: Path, *arguments: str) -> Result:
    """Run a command on the machine of the installation, without any setting."""
    result = command_line.run(None, *arguments, key=None, HEADRACE_HOME=str(home))
    assert result.exit_code == 0, result.stderr
    return result


def test_operators_manage_keys_workers_and_queues_of_this_machine(sim_stack: Stack, home: Path) -> None:
    created = local(home, "keys", "create", "cli-web", "--project", "cli-shop")
    web = created.stdout.strip()
    assert run(sim_stack, "jobs", key=web).exit_code == 0
    assert run(sim_stack, "keys", key=web).exit_code == 4
    (listed,) = [
        json.loads(line) for line in local(home, "keys", "--project", "cli-shop", "--json").stdout.splitlines()
    ]
    rotated = json.loads(local(home, "keys", "rotate", listed["id"], "--overlap", "1h", "--json").stdout)
    assert run(sim_stack, "jobs", key=rotated["secret"]).exit_code == 0
    local(home, "keys", "revoke", listed["id"], rotated["id"], "--yes")
    assert "revoked" in local(home, "keys", "--project", "cli-shop").stdout
    local(home, "projects", "create", "cli-empty", "--tier", "free")
    names = [json.loads(line)["name"] for line in local(home, "projects", "--all", "--json").stdout.splitlines()]
    assert {"cli-empty", "cli-shop"} <= set(names)

    workers = [json.loads(line) for line in local(home, "workers", "--json").stdout.splitlines()]
    assert {"sim", "small"} <= {worker["model"] for worker in workers}
    local(home, "models", "pause", "orphan")
    assert "orphan" in local(home, "workers").stderr
    local(home, "models", "resume", "orphan")
    assert "orphan" not in local(home, "workers").stderr


def test_failed_jobs_are_replayed_or_discarded(sim_stack: Stack, home: Path) -> None:
    submitted = run(sim_stack, "submit", FAIL, "--model", "sim", "--json")
    job_id = json.loads(submitted.stdout)["id"]
    assert job_id in local(home, "failed", "--limit", "100").stdout
    replayed = json.loads(local(home, "failed", "replay", job_id, "--json").stdout)
    assert run(sim_stack, "job", replayed["id"], "--follow").exit_code == 1
    assert job_of(sim_stack, replayed["id"])["metadata"] == {"replay_of": job_id}  # in the project of the job
    local(home, "failed", "discard", job_id, replayed["id"])
    assert run(sim_stack, "job", job_id).exit_code == 5


def test_drained_worker_ends(sim_stack: Stack, home: Path) -> None:
    name = sim_stack.start_worker("sim")
    process = sim_stack.processes.pop(name)
    workers = [json.loads(line) for line in local(home, "workers", "--json").stdout.splitlines()]
    (worker,) = [item["id"] for item in workers if f"-{process.pid}-" in item["id"]]
    assert worker in local(home, "workers", "drain", worker).stdout
    assert process.wait(30) == 0


def test_jobs_are_found_by_what_they_are_about(sim_stack: Stack) -> None:
    made = run(sim_stack, "submit", "x", "-m", "sim", "--metadata", "cli=filter me", "-p", "user=cli-ann", "--json")
    job_id = json.loads(made.stdout)["id"]
    for filters in (["--metadata", "cli=filter me"], ["--user", "cli-ann", "--since", "1h"]):
        found = run(sim_stack, "jobs", "--json", *filters)
        assert [json.loads(line)["id"] for line in found.stdout.splitlines()] == [job_id], found.stderr
    assert run(sim_stack, "jobs", "--user", "cli-ann", "--until", "1h").stdout == ""


def test_live_status_is_drawn_until_it_is_interrupted(sim_stack: Stack) -> None:
    arguments = ("status", "--interval", "0.2")
    with command_line.on_terminal(sim_stack.url, *arguments, HEADRACE_API_KEY=KEY) as (process, terminal):
        shown = command_line.Screen(terminal)
        eventually_sync(lambda: shown.text().count("WAITING") >= 3, "the status is drawn three times")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert "\x1b[?25h" in shown.text()  # the cursor is visible again
        assert "Traceback" not in shown.text()
