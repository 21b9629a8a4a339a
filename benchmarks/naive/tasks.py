"""The worker, running one job at a time on one engine: `celery -A benchmarks.naive.tasks worker --pool solo`."""

from __future__ import annotations

import os
from typing import Any

import orjson
from celery import Celery
from celery.signals import worker_init

app = Celery("naive", broker=os.environ["NAIVE_REDIS_URL"], backend=os.environ["NAIVE_REDIS_URL"])
app.conf.update(worker_prefetch_multiplier=1, worker_hijack_root_logger=False, broker_connection_retry_on_startup=True)
_engine: dict[str, Any] = {}


@worker_init.connect  # type: ignore[untyped-decorator]  # Celery has no types
def load(**_: object) -> None:
    """Load the model before the first job."""
    from vllm import LLM

    options = orjson.loads(os.environ["NAIVE_OPTIONS"])
    _engine["llm"] = LLM(model=os.environ["NAIVE_MODEL"], disable_log_stats=True, **options)


@app.task(name="naive.generate")  # type: ignore[untyped-decorator]
def generate(messages: list[dict[str, str]], sampling: dict[str, Any]) -> dict[str, Any]:
    """Run one request to completion."""
    from vllm import SamplingParams

    (output,) = _engine["llm"].chat(messages, SamplingParams(**sampling), use_tqdm=False)
    return {"text": output.outputs[0].text, "tokens": len(output.outputs[0].token_ids)}
