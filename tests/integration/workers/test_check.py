"""`python -m workers.check`: what an engine would run with, without servers and without loading the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.forked import run_forked
from tests.support.real_engine import SMOLLM2
from tests.support.stack import write_models
from tests.support.vllm_forks import run_with_vllm

REAL: dict[str, Any] = {"name": "real", "engine": "vllm", "model": SMOLLM2.model, "options": dict(SMOLLM2.options)}
SIM: dict[str, Any] = {"name": "sim", "engine": "simulated", "slots": 4, "options": {"max_model_len": 512}}


def environment(models: Path) -> dict[str, str]:
    """The variables of this process, without addresses of servers."""
    kept = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")}
    return {**kept, "HEADRACE_MODELS": str(models)}


def test_a_model_of_another_engine(tmp_path: Path) -> None:
    models = write_models(tmp_path / "models.yaml", [SIM])
    ended = run_forked("workers.check", "sim", "--json", environment=environment(models))
    assert ended.returncode == 0, ended.stderr
    described = json.loads(ended.stdout)
    assert (described["engine"], described["slots"], described["context"]) == ("simulated", 4, 512)
    assert described["fingerprint"].startswith("fp_")


def test_an_unknown_model_is_a_wrong_call(tmp_path: Path) -> None:
    models = write_models(tmp_path / "models.yaml", [SIM])
    ended = run_forked("workers.check", "other", environment=environment(models))
    assert ended.returncode == 2
    assert "The model `other` does not exist; available models: sim" in ended.stderr


@pytest.mark.vllm
def test_a_vllm_model(tmp_path: Path) -> None:
    """The output is the description alone: vLLM adds nothing to it, not even when it is imported."""
    models = write_models(tmp_path / "models.yaml", [REAL])
    ended = subprocess.run(
        [sys.executable, "-m", "workers.check", "real"],
        env=environment(models),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = dict(line.rsplit(maxsplit=1) for line in ended.stdout.splitlines() if len(line.split()) > 1)
    values = {name.strip(): value for name, value in lines.items()}
    assert values["dtype"] == "float32"
    assert values["attention backend"] == "CPU_ATTN"
    assert (values["source"], values["adapters"]) == (SMOLLM2.source, "-")
    assert (values["slots"], values["context"], values["start"]) == ("8", "256", "fast")
    assert int(values["tokens"]) == int(values["blocks"]) * int(values["block tokens"]) > 256
    assert values["fingerprint"].startswith("fp_")


@pytest.mark.vllm
def test_a_vllm_model_with_an_unknown_option(tmp_path: Path) -> None:
    options = {**REAL["options"], "quantization": "awk"}
    models = write_models(tmp_path / "models.yaml", [{**REAL, "options": options}])
    ended = run_with_vllm("workers.check", "real", environment=environment(models))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "models.yaml: real.options.quantization: this build of vLLM" in ended.stderr
    assert "has no method 'awk'; did you mean 'awq'?" in ended.stderr
