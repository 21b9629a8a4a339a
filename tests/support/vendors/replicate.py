"""Predictions of Replicate.

- https://replicate.com/docs/reference/http: predictions.create, models.predictions.create,
  deployments.predictions.create, predictions.get, predictions.cancel; errors are problem details (RFC 7807)
- https://replicate.com/docs/topics/predictions/lifecycle: the states, and the header Cancel-After
- https://replicate.com/docs/topics/predictions/streaming: the events `output`, `error` and `done`, with ids such as
  `1690212292:0`

A prediction runs whether or not somebody reads its stream. As with a real one, a stream begins at the first event,
or after the one named by Last-Event-ID.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import orjson
from aiohttp import web

from shared.config.models.replicate import ReplicateModel
from tests.support.vendors.script import Script
from tests.support.vendors.vendor import KEY_ENV, Cut, Vendor

EPOCH = 1690212292
RAN_S = 1.5


@dataclass(slots=True)
class Prediction:
    """A prediction: its output is complete at once, except while the script holds it back."""

    id: str
    script: Script
    input: Any
    body: Any
    status: str = "starting"
    error: str | None = None
    # Streams that were opened, by their Last-Event-ID.
    streams: list[str | None] = field(default_factory=list)
    polls: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class ReplicateVendor(Vendor):
    """Replicate's API. Attributes change how it treats all predictions; a test sets them before it begins."""

    tools: ClassVar[bool] = False
    reasoning: ClassVar[bool] = False
    structure: ClassVar[bool] = False
    filters: ClassVar[bool] = False
    resumes: ClassVar[bool] = True
    raw_prompts = True
    polled: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.predictions: dict[str, Prediction] = {}
        # Whether predictions have a stream, its URL if not the usual one, and whether it resumes after an event.
        self.streams = True
        self.stream_url = ""
        self.offers_resume = True
        # The states that polls see before the last one; by default none.
        self.states: list[str] = []
        # Whether each event is sent twice.
        self.repeats = False
        # Statuses of the next polls and streams.
        self.poll_statuses: list[int] = []
        self.stream_statuses: list[int] = []
        # Fields that replace those of a state.
        self.overrides: dict[str, Any] = {}
        # The same, once a stream has been opened.
        self.overrides_after_stream: dict[str, Any] = {}
        # How an event's id is made of its position.
        self.event_id: Callable[[int], str] = lambda position: f"{EPOCH}:{position}"

    def routes(self) -> Iterable[web.RouteDef]:
        return [
            web.post("/v1/predictions", self._create),
            web.post("/v1/models/{owner}/{name}/predictions", self._create),
            web.post("/v1/deployments/{owner}/{name}/predictions", self._create),
            web.get("/v1/predictions/{id}", self._get),
            web.post("/v1/predictions/{id}/cancel", self._cancel),
            web.get("/v1/stream/{id}", self._stream),
        ]

    def spec(self, **options: Any) -> ReplicateModel:
        inputs = {"parameters": {"max_tokens": "max_tokens", "temperature": "temperature", "stop": "stop_sequences"}}
        entry = {
            "base_url": f"{self.url}/v1",
            "api_key_env": KEY_ENV,
            "input": inputs,
            "poll_interval_s": 0.001,
            "max_poll_interval_s": 0.002,
            "max_polls_per_s": 1e6,
        }
        return ReplicateModel.model_validate(
            {"name": "up", "engine": "replicate", "model": "meta/llama", "options": {**entry, **options}}
        )

    def error(self, script: Script) -> Any:
        return {"type": "about:blank", "title": "Error", "detail": script.message, "status": script.status}

    def forget(self) -> None:
        self.predictions.clear()

    async def go_on(self) -> None:
        for prediction in self.predictions.values():
            prediction.script = replace(prediction.script, hang_after=None)

    def stops_of(self, body: Any) -> list[str]:
        stops: str = body["input"]["stop_sequences"]
        return stops.split(",")

    @property
    def prediction(self) -> Prediction:
        """The last prediction."""
        return list(self.predictions.values())[-1]

    async def _create(self, request: web.Request) -> web.StreamResponse:
        seen = await self.record(request)
        script = self.next_script()
        if (refusal := self.refusal(script)) is not None:
            return refusal
        prediction = Prediction(f"pred{self.generated - 1}", script, seen.body["input"], seen.body)
        self.predictions[prediction.id] = prediction
        return web.json_response(self._state(prediction), status=201)

    async def _get(self, request: web.Request) -> web.Response:
        await self.record(request)
        if self.poll_statuses and (status := self.poll_statuses.pop(0)) != 200:
            return self._problem(status)
        if (prediction := self.predictions.get(request.match_info["id"])) is None:
            return self._problem(404)
        prediction.polls += 1
        if self.states:
            prediction.status = self.states.pop(0)
        elif prediction.status in ("starting", "processing"):
            self._settle(prediction)
        return web.json_response(self._state(prediction))

    async def _cancel(self, request: web.Request) -> web.Response:
        await self.record(request)
        if (prediction := self.predictions.get(request.match_info["id"])) is None:
            return self._problem(404)
        prediction.status = "canceled"
        prediction.changed.set()
        self.cancelled.set()
        return web.json_response(self._state(prediction))

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        await self.record(request)
        if (prediction := self.predictions.get(request.match_info["id"])) is None:
            return self._problem(404)
        after = request.headers.get("Last-Event-ID")
        prediction.streams.append(after)
        if self.stream_statuses and (status := self.stream_statuses.pop(0)) != 200:
            return self._problem(status)
        return await self.stream(request, self._events(prediction, after), prediction.script)

    async def _events(self, prediction: Prediction, after: str | None) -> AsyncIterator[bytes]:
        """The events of a prediction. A cut applies to its first stream only."""
        script = prediction.script
        prediction.status = "processing"
        start = 0
        if after is not None and self.offers_resume:
            start = next((n + 1 for n in range(len(script.text)) if self.event_id(n) == after), 0)
        if script.noise:
            yield b": a comment\n\nevent: logs\nid: 1:1\ndata: loading\n\nevent: tool\ndata: {}\n\nretry: 10\nx: y\n\n"
        for position in range(len(script.text) + 1):
            if position == script.fail_after:
                prediction.status, prediction.error = "failed", script.message
                yield self._event("error", orjson.dumps({"detail": script.message}).decode(), position)
                return
            if position == script.cut_after and len(prediction.streams) == 1:
                raise Cut
            if position == script.hang_after:
                await prediction.changed.wait()
                return
            if start <= position < len(script.text):
                for _ in range(2 if self.repeats else 1):
                    yield self._event("output", script.text[position], position)
        self._settle(prediction)
        yield self._event("done", "{}", len(script.text))
        await prediction.changed.wait()  # a server may leave the stream open

    def _event(self, kind: str, data: str, position: int) -> bytes:
        lines = "".join(f"data: {line}\n" for line in data.split("\n"))
        return f"event: {kind}\nid: {self.event_id(position)}\n{lines}\n".encode()

    def _settle(self, prediction: Prediction) -> None:
        """Nothing stops the prediction: it has reached its end, or hangs."""
        script = prediction.script
        if script.fail_after is not None:
            prediction.status, prediction.error = "failed", script.message
        elif script.hang_after is None:
            prediction.status = "succeeded"
        else:
            prediction.status = "processing"

    def _state(self, prediction: Prediction) -> dict[str, Any]:
        script, usage = prediction.script, prediction.script.usage
        base = f"{self.url}/v1/predictions/{prediction.id}"
        urls = {"get": base, "cancel": f"{base}/cancel"}
        if self.streams:
            urls["stream"] = self.stream_url or f"{self.url}/v1/stream/{prediction.id}"
        state: dict[str, Any] = {
            "id": prediction.id,
            "model": "meta/llama",
            "version": "hidden",
            "input": prediction.input,
            "logs": "",
            "output": None,
            "data_removed": False,
            "error": prediction.error,
            "status": prediction.status,
            "created_at": "2025-01-15T09:54:55.566Z",
            "urls": urls,
        }
        if prediction.status == "processing":
            state["output"] = list(script.text[: script.hang_after])
        if prediction.status == "succeeded":
            state |= {
                "output": list(script.text),
                "started_at": "2025-01-15T09:54:58.066123456Z",
                "completed_at": "2025-01-15T09:54:59.566Z",
                "metrics": {
                    "input_token_count": usage.prompt_tokens,
                    "output_token_count": usage.completion_tokens,
                    "predict_time": RAN_S,
                    "total_time": 4.0,
                },
            }
        return state | self.overrides | (self.overrides_after_stream if prediction.streams else {})

    def _problem(self, status: int) -> web.Response:
        body = self.error(Script(status=status, message="the reason"))
        headers = {"Retry-After": "0"} if status == 429 else {}
        return web.json_response(body, status=status, headers=headers)
