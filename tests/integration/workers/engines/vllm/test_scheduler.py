"""The scheduler for CPUs: batch requests skip a step for an interactive prompt."""

from __future__ import annotations

import json
import os

import pytest

from shared.config.bundled_model import bundled_model_path
from tests.support.vllm_forks import run_with_vllm

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def steps() -> list[set[str]]:
    """The requests that received a token in each step: 3 of a batch, an urgent one, one more of a batch, a long one."""
    folder = str(bundled_model_path("SmolLM2-135M-Instruct"))
    done = run_with_vllm("tests.support.stepping", folder, environment=os.environ)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("STEPS ")]
    return [set(step) for step in json.loads(line.removeprefix("STEPS "))]


def batches(step: set[str]) -> int:
    return sum(name.startswith("batch") for name in step)


def test_urgent_prompt_has_a_step_of_its_own(steps: list[set[str]]) -> None:
    at = next(number for number, step in enumerate(steps) if "urgent" in step)
    assert batches(steps[at - 1]) == 3
    assert steps[at] == {"urgent"}
    assert steps[at + 1] == {"urgent", "batch-0", "batch-1", "batch-2"}, "its next tokens share a step with the batch"


def test_batch_prompt_shares_its_step(steps: list[set[str]]) -> None:
    at = next(number for number, step in enumerate(steps) if "later" in step)
    assert batches(steps[at]) == 3


def test_batches_never_skip_two_consecutive_steps(steps: list[set[str]]) -> None:
    at = next(number for number, step in enumerate(steps) if "long" in step)
    assert [batches(step) for step in steps[at - 2 : at + 1]] == [0, 3, 0], "its prompt takes three steps"


def test_all_requests_complete(steps: list[set[str]]) -> None:
    for name in ("batch-0", "batch-1", "batch-2", "urgent", "later", "long"):
        assert sum(name in step for step in steps) == 12
