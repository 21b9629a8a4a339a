"""The route, which sends a task and waits for its result: `uvicorn benchmarks.naive.api:app`."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI

from benchmarks.naive.tasks import generate

app = FastAPI()


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/v1/chat/completions")
async def chat_completions(body: dict[str, Any]) -> dict[str, Any]:
    sampling = {name: body[name] for name in ("max_tokens", "temperature", "ignore_eos") if name in body}
    result = generate.delay(body["messages"], sampling)
    answer = await asyncio.to_thread(result.get)
    return {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": answer["text"]}}],
        "usage": {"completion_tokens": answer["tokens"]},
    }
