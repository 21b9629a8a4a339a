"""One FastAPI process: `uvicorn benchmarks.bare.api:app`.

`POST /v1/jobs` answers once a row with the request is committed. `POST /v1/chat/completions` commits such a row too,
then relays the request to an upstream and streams the response's bytes. Nothing else is stored, checked or retried.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import asyncpg
import orjson
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

POOL = 10
INSERT = "INSERT INTO requests (id, request) VALUES ($1, $2)"


@asynccontextmanager
async def _resources(app: FastAPI) -> AsyncIterator[None]:
    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        asyncpg.create_pool(os.environ["BARE_DATABASE_URL"], min_size=POOL, max_size=POOL) as pool,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session,
    ):
        await pool.execute("CREATE TABLE IF NOT EXISTS requests (id text PRIMARY KEY, request json NOT NULL)")
        app.state.pool, app.state.session = pool, session
        yield


app = FastAPI(lifespan=_resources)


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}


async def _commit(body: bytes) -> str:
    request_id = uuid.uuid4().hex
    await app.state.pool.execute(INSERT, request_id, body.decode())
    return request_id


@app.post("/v1/jobs")
async def submit(request: Request) -> Response:
    body = await request.body()
    orjson.loads(body)  # as any route would
    request_id = await _commit(body)
    return Response(orjson.dumps({"id": request_id}), status_code=202, media_type="application/json")


@app.post("/v1/chat/completions")
async def relay(request: Request) -> StreamingResponse:
    body = await request.body()
    orjson.loads(body)
    await _commit(body)
    return StreamingResponse(_answer(body), media_type="text/event-stream")


async def _answer(body: bytes) -> AsyncIterator[bytes]:
    url = f"{os.environ['BARE_UPSTREAM']}/chat/completions"
    async with app.state.session.post(url, data=body, headers={"Content-Type": "application/json"}) as response:
        async for data in response.content.iter_any():
            yield data
