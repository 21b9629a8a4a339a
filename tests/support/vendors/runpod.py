"""A queue-based serverless endpoint of RunPod, with worker-vllm behind it.

- https://docs.runpod.io/serverless/endpoints/send-requests (`/run`, policies, errors)
- https://docs.runpod.io/serverless/endpoints/operation-reference (`/stream`, `/status`, `/cancel`)
- https://docs.runpod.io/serverless/endpoints/job-states (states and times)
- https://github.com/runpod-workers/worker-vllm, src/handler.py (inputs and outputs), and runpod-python's
  serverless/modules/rp_job.py (errors, `return_aggregate_stream`)

A job runs whether or not somebody asks for it. `/stream` returns each output once; the final state has them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import orjson
from aiohttp import web

from shared.config.models.runpod import RunpodModel
from tests.support.vendors.openai import OpenAIVendor, media_of_chat
from tests.support.vendors.script import Script
from tests.support.vendors.vendor import KEY_ENV, Cut, Hang, Vendor

WAITED_MS, RAN_MS = 31_618, 1_437


@dataclass(slots=True)
class Job:
    """A job, what its worker has yielded, and how much of it was streamed."""

    id: str
    script: Script
    body: Any
    outputs: list[Any] = field(default_factory=list)
    streamed: int = 0
    status: str = "IN_QUEUE"
    error: Any = None
    # The output that is lost with its response, and whether the worker hangs.
    lost: int | None = None
    hangs: bool = False
    polls: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class RunpodVendor(Vendor):
    """RunPod's API. Attributes change how it treats all jobs; a test sets them before it begins."""

    resumes: ClassVar[bool] = True
    raw_prompts = True
    modalities = ("image",)
    polled: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, Job] = {}
        # What the worker yields: pieces of an event stream, chunks, worker-vllm's own shape, texts, or one object.
        self.shape = "events"
        # Outputs in one response of `/stream`.
        self.batch = 1
        self.aggregates = True
        # The states that requests see before the real one.
        self.states: list[str] = []
        self.stream_statuses: list[int] = []
        # The header Retry-After of these.
        self.retry_after: str | None = None
        self.status_statuses: list[int] = []
        self.numbers = False
        self.repeats = False
        # Whether the last output is in each response again.
        self.repeats_end = False
        self.overrides: dict[str, Any] = {}

    def routes(self) -> Iterable[web.RouteDef]:
        return [
            web.post("/v2/{endpoint}/run", self._run),
            web.get("/v2/{endpoint}/stream/{id}", self._stream_outputs),
            web.get("/v2/{endpoint}/status/{id}", self._status),
            web.post("/v2/{endpoint}/cancel/{id}", self._cancel),
        ]

    def spec(self, **options: Any) -> RunpodModel:
        entry = {
            "base_url": f"{self.url}/v2",
            "api_key_env": KEY_ENV,
            "poll_interval_s": 0.001,
            "max_poll_interval_s": 0.002,
            "max_polls_per_s": 1e6,
            **options,
        }
        values = {"name": "up", "engine": "runpod", "endpoint": "endpoint1", "model": "theirs", "options": entry}
        if options.get("input") == "vllm":
            del values["model"]
            return RunpodModel.model_validate(values)
        return RunpodModel.model_validate(values | {"modalities": ["text", *self.modalities]})

    def error(self, script: Script) -> Any:
        return {"error": script.message}

    def forget(self) -> None:
        self.jobs.clear()

    async def go_on(self) -> None:
        for job in self.jobs.values():
            job.script, job.hangs = replace(job.script, hang_after=None), False
            job.outputs.clear()
            await self.generate(job)

    def stops_of(self, body: Any) -> list[str]:
        stops: list[str] = body["input"]["openai_input"]["stop"]
        return stops

    def schema_of(self, body: Any) -> Any:
        return body["input"]["openai_input"]["response_format"]["json_schema"]["schema"]

    def media_of(self, body: Any) -> list[str]:
        return media_of_chat(body["input"]["openai_input"]["messages"])

    @property
    def job(self) -> Job:
        """The last job."""
        return list(self.jobs.values())[-1]

    async def _run(self, request: web.Request) -> web.StreamResponse:
        seen = await self.record(request)
        script = self.next_script()
        if (refusal := self.refusal(script)) is not None:
            return refusal
        job = Job(f"job{self.generated - 1}-u1", script, seen.body)
        self.jobs[job.id] = job
        await self.generate(job)
        return web.json_response({"id": job.id, "status": "IN_QUEUE"})

    async def _stream_outputs(self, request: web.Request) -> web.StreamResponse:
        await self.record(request)
        if (job := self.jobs.get(request.match_info["id"])) is None:
            return web.json_response({"error": "job not found"}, status=404)
        if self.stream_statuses and (status := self.stream_statuses.pop(0)) != 200:
            headers = {} if self.retry_after is None else {"Retry-After": self.retry_after}
            return web.json_response({"error": "the reason"}, status=status, headers=headers)
        state = self._state(job)
        if state in ("IN_QUEUE", "IN_PROGRESS") and job.status != state:
            return web.json_response({"status": state, "stream": []})
        if job.script.before is not None:
            await job.script.before.wait()
        if self.repeats_end:
            job.streamed = min(job.streamed, len(job.outputs) - 1)
        first = job.streamed
        outputs = job.outputs[first : first + self.batch]
        job.streamed += len(outputs)
        if job.lost is not None and (job.lost < job.streamed or not outputs):
            job.lost = None
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if not outputs and job.hangs:  # a poll is held open for a while
            try:
                await asyncio.wait_for(job.changed.wait(), 0.2)
            except TimeoutError:
                pass
            except asyncio.CancelledError:
                self.left()
                raise
        chunks = []
        for number, output in enumerate(outputs, first):
            chunk = {"output": output, "metrics": {"stream_index": number}} if self.numbers else {"output": output}
            chunks += [chunk] * (2 if self.repeats else 1)
        if job.streamed < len(job.outputs):
            state = "IN_PROGRESS"
        return await self._document(request, {"status": state, "stream": chunks}, split=job.script.split)

    async def _status(self, request: web.Request) -> web.StreamResponse:
        await self.record(request)
        if (job := self.jobs.get(request.match_info["id"])) is None:
            return web.json_response({"error": "job not found"}, status=404)
        job.polls += 1
        if self.status_statuses and (status := self.status_statuses.pop(0)) != 200:
            return web.json_response({"error": "the reason"}, status=status)
        state: dict[str, Any] = {"id": job.id, "status": self._state(job), "delayTime": WAITED_MS}
        if state["status"] == "COMPLETED":
            state |= {"executionTime": RAN_MS, "output": job.outputs if self.aggregates else []}
        if state["status"] == "FAILED":
            state["error"] = job.error
        return await self._document(request, state | self.overrides, split=job.script.split)

    async def _cancel(self, request: web.Request) -> web.Response:
        await self.record(request)
        if (job := self.jobs.get(request.match_info["id"])) is None:
            return web.json_response({"error": "job not found"}, status=404)
        job.status = "CANCELLED"
        job.changed.set()
        self.cancelled.set()
        return web.json_response({"id": job.id, "status": "CANCELLED"})

    def _state(self, job: Job) -> str:
        if self.states:
            return self.states.pop(0)
        return job.status

    async def _document(self, request: web.Request, value: Any, *, split: bool) -> web.StreamResponse:
        async def frames() -> AsyncIterator[bytes]:
            yield orjson.dumps(value)

        return await self.stream(request, frames(), Script(split=split), "application/json")

    # The worker

    async def generate(self, job: Job) -> None:
        """Yield all outputs of a job. It fails, hangs, or loses a response of `/stream` where the script says so."""
        job.status = "COMPLETED"
        try:
            async for output in self._outputs(job, job.script):
                if isinstance(output, dict) and output.get("error"):
                    job.status, job.error = "FAILED", str(output["error"])
                    return
                job.outputs.append(output)
        except Hang:
            job.status, job.hangs = "IN_PROGRESS", True
        except Cut:  # the job goes on; the response with its next output is lost
            job.lost = len(job.outputs)
            whole = replace(job.script, cut_after=None)
            job.outputs = [output async for output in self._outputs(job, whole)]

    async def _outputs(self, job: Job, script: Script) -> AsyncIterator[Any]:
        server = OpenAIVendor()
        is_raw = job.body["input"].get("openai_route") == "/v1/completions"
        relayed = server.text_frames(script) if is_raw else server.frames(script)
        if self.shape == "events":
            async for frame in relayed:
                text = frame.decode()
                if error := _error_in(text):
                    yield {"error": error}
                    return
                for start in range(0, len(text), 7 if script.split else len(text)):
                    yield text[start : start + (7 if script.split else len(text))]
        elif self.shape == "chunks":
            async for frame in relayed:
                if frame.startswith(b"data: {"):
                    chunk = orjson.loads(frame[6:])
                    yield {"error": chunk["error"]} if "error" in chunk else [chunk]
        else:
            async for output in self._texts(script):
                yield output

    async def _texts(self, script: Script) -> AsyncIterator[Any]:
        for position in range(len(script.text) + 1):
            if position == script.fail_after:
                yield {"error": script.message}
                return
            if position == script.cut_after:
                raise Cut
            if position == script.hang_after:
                raise Hang
            if position == len(script.text):
                return
            text, count = script.text[position], position + 1
            if self.shape == "text":
                yield text
            elif self.shape == "object":
                yield {"text": [text], "input_tokens": script.usage.prompt_tokens, "output_tokens": count}
            else:
                yield {
                    "choices": [{"tokens": [text]}],
                    "usage": {"input": script.usage.prompt_tokens, "output": count},
                }


def _error_in(frame: str) -> Any:
    if not frame.startswith('data: {"error"'):
        return None
    return orjson.loads(frame[6:])["error"]
