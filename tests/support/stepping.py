"""Runs a vLLM engine in this process step by step; prints as JSON which requests received a token in each step.

python -m tests.support.stepping MODEL_FOLDER
"""

from __future__ import annotations

import json
import sys
from typing import Any

from vllm import EngineArgs, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine

from shared.domain.priorities import BATCH_PRIORITY
from workers.engines.vllm.executor import cpu_options
from workers.engines.vllm.scheduler import scheduler_options


def main(model: str) -> None:
    # With this token budget the long prompt takes three steps.
    options: dict[str, Any] = {
        "enforce_eager": True,
        "max_model_len": 512,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "kv_cache_memory_bytes": 1 << 28,
        "scheduling_policy": "priority",
    }
    arguments = EngineArgs(model=model, dtype="float32", **options, **cpu_options({}), **scheduler_options())
    engine = LLMEngine.from_engine_args(arguments, enable_multiprocessing=False)

    def add(request_id: str, priority: int, words: int = 3) -> None:
        params = SamplingParams(
            max_tokens=12, ignore_eos=True, temperature=0.0, output_kind=RequestOutputKind.DELTA, detokenize=False
        )
        engine.add_request(request_id, {"prompt_token_ids": [7] * words}, params, priority=priority)

    steps: list[list[str]] = []

    def step(count: int = 1) -> None:
        steps.extend(
            sorted(output.request_id for output in engine.step() if output.outputs[0].token_ids) for _ in range(count)
        )

    for number in range(3):
        add(f"batch-{number}", BATCH_PRIORITY)
    step(3)
    add("urgent", 0)
    step(3)
    add("later", BATCH_PRIORITY)
    step(2)
    add("long", 0, words=150)
    step(6)
    while engine.has_unfinished_requests():
        step()
    print("STEPS", json.dumps(steps))


if __name__ == "__main__":
    main(sys.argv[1])
