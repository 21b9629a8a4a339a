"""One process with the engine: `uvicorn benchmarks.raw.api:app`.

`POST /v1/rounds` takes the prompts of a round and returns when all answers are complete. vLLM schedules them itself and
sends nothing in between, so this is the most that the engine can do with its options.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from fastapi import FastAPI


@asynccontextmanager
async def _engine(app: FastAPI) -> AsyncIterator[None]:
    from vllm import LLM

    options = orjson.loads(os.environ["RAW_OPTIONS"])
    app.state.llm = LLM(model=os.environ["RAW_MODEL"], disable_log_stats=True, **options)
    yield


app = FastAPI(lifespan=_engine)


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/v1/rounds")
def answer_all(body: dict[str, Any]) -> dict[str, Any]:
    """Answer `streams` prompts, each `prompt` after its number, with at most `max_tokens` greedy tokens."""
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=body["max_tokens"], temperature=0, ignore_eos=body["ignore_eos"])
    conversations = [[{"role": "user", "content": f"{number}.{body['prompt']}"}] for number in range(body["streams"])]
    outputs = app.state.llm.chat(conversations, sampling, use_tqdm=False)
    return {"usage": {"completion_tokens": sum(len(output.outputs[0].token_ids) for output in outputs)}}
