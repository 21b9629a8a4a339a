"""vLLM's scheduler, as it is used on a CPU: batches give way to prompts that somebody waits for."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from shared.bundled import bundled_model_path

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def steps() -> list[set[str]]:
    """Whose tokens each step gave: three batch requests, an urgent one, one more of a batch, an urgent long prompt."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.stepping", str(bundled_model_path("SmolLM2-135M-Instruct"))],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("STEPS ")]
    return [set(step) for step in json.loads(line.removeprefix("STEPS "))]


def batches(step: set[str]) -> int:
    return sum(name.startswith("batch") for name in step)


def test_an_urgent_prompt_has_its_step_to_itself(steps: list[set[str]]) -> None:
    at = next(number for number, step in enumerate(steps) if "urgent" in step)
    assert batches(steps[at - 1]) == 3
    assert steps[at] == {"urgent"}
    assert steps[at + 1] == {"urgent", "batch-0", "batch-1", "batch-2"}, "its next tokens ride along"


def test_a_batch_prompt_has_not(steps: list[set[str]]) -> None:
    at = next(number for number, step in enumerate(steps) if "later" in step)
    assert batches(steps[at]) == 3


def test_batches_give_way_in_no_two_steps_in_a_row(steps: list[set[str]]) -> None:
    at = next(number for number, step in enumerate(steps) if "long" in step)
    assert [batches(step) for step in steps[at - 2 : at + 1]] == [0, 3, 0], "its prompt takes three steps"


def test_all_end_with_all_their_tokens(steps: list[set[str]]) -> None:
    for name in ("batch-0", "batch-1", "batch-2", "urgent", "later", "long"):
        assert sum(name in step for step in steps) == 12
