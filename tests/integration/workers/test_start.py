"""A worker that cannot run exits with an error that names the cause."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import TEST_REDIS_DB, Servers
from tests.support.forked import run_forked
from tests.support.stack import write_models
from tests.support.vllm_forks import run_with_vllm

SIM = {"name": "sim", "engine": "simulated"}


def environment(servers: Servers, database_url: str, models: Path) -> dict[str, str]:
    return {
        **os.environ,
        "DATABASE_URL": database_url,
        "REDIS_URL": servers.redis(TEST_REDIS_DB),
        "HEADRACE_MODELS": str(models),
    }


def run(servers: Servers, database_url: str, models: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_forked(*arguments, environment=environment(servers, database_url, models))


def test_the_celery_worker_command_is_rejected(servers: Servers, database_url: str, tmp_path: Path) -> None:
    models = write_models(tmp_path / "models.yaml", [SIM])
    ended = run(servers, database_url, models, "celery", "-A", "workers.app", "worker", "-c", "1")
    assert ended.returncode != 0
    assert "python -m workers MODEL" in ended.stderr


def test_an_unknown_model_is_rejected(servers: Servers, database_url: str, tmp_path: Path) -> None:
    models = write_models(tmp_path / "models.yaml", [SIM])
    ended = run(servers, database_url, models, "workers", "other")
    assert ended.returncode == 2
    assert "declares no model 'other'; it has: sim" in ended.stderr


@pytest.mark.vllm
@pytest.mark.parametrize("option", ["max_num_seqz"])
def test_an_unknown_engine_option_is_named(servers: Servers, database_url: str, tmp_path: Path, option: str) -> None:
    model = {"name": "m", "engine": "vllm", "model": str(tmp_path), "options": {option: 1}}
    models = write_models(tmp_path / "models.yaml", [model])
    ended = run_with_vllm("workers", "m", environment=environment(servers, database_url, models))
    assert ended.returncode != 0
    assert re.search(rf"m\.options\.{option}: vLLM \S+ has no {option}; did you mean 'max_num_seqs'\?", ended.stderr)


def test_a_missing_file_of_warm_prompts_is_named(servers: Servers, database_url: str, tmp_path: Path) -> None:
    model = {"name": "m", "engine": "vllm", "model": str(tmp_path), "warm_prompts": [{"file": "missing.txt"}]}
    models = write_models(tmp_path / "models.yaml", [model])
    ended = run(servers, database_url, models, "workers", "m")
    assert ended.returncode == 2
    assert "models[0].warm_prompts[0].file: missing.txt cannot be read (No such file or directory)" in ended.stderr


def test_a_missing_upstream_key_is_named(servers: Servers, database_url: str, tmp_path: Path) -> None:
    options = {"base_url": "http://127.0.0.1:1/v1", "api_key_env": "HEADRACE_TEST_NO_SUCH_KEY"}
    model = {"name": "m", "engine": "openai", "model": "x", "options": options}
    ended = run(servers, database_url, write_models(tmp_path / "models.yaml", [model]), "workers", "m")
    assert ended.returncode != 0
    assert "m.options.api_key_env: HEADRACE_TEST_NO_SUCH_KEY is not set" in ended.stderr
