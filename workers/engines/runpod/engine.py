"""Runs requests as jobs of a serverless endpoint: https://docs.runpod.io/serverless/endpoints/send-requests."""

from __future__ import annotations

from functools import partial

from shared.config.models.runpod import RunpodModel
from shared.domain.request import GenerateRequest
from shared.telemetry.metrics import Metrics
from workers.engines.base import NO_PRIOR, Prior
from workers.engines.runpod.exchange import JobExchange, cancel_call
from workers.engines.runpod.output import OutputParser
from workers.engines.runpod.reader import JobReader
from workers.engines.runpod.request import job_body
from workers.engines.upstream.engine import UpstreamEngine
from workers.engines.upstream.exchange import Call
from workers.engines.upstream.polling import PollRate
from workers.engines.upstream.run_times import RunTimes


class RunpodEngine(UpstreamEngine):
    """The `runpod` engine."""

    run_api = "runpod"

    def __init__(self, model: RunpodModel, metrics: Metrics) -> None:
        super().__init__(model, metrics)
        self._runpod = model
        self._poll_rate = PollRate(model.options.max_polls_per_s)
        self._times = RunTimes(metrics, model.name, model.options.price_per_second)

    def cancel_call(self, run_id: str) -> Call:
        return cancel_call(self._runpod.endpoint, run_id)

    async def exchange(self, request: GenerateRequest, prior: Prior = NO_PRIOR) -> JobExchange:
        new_parser = partial(
            OutputParser,
            request.sampling.n,
            logprobs=request.logprobs is not None,
            named_tool=request.chat is not None and isinstance(request.chat.tool_choice, dict),
            max_tokens=request.sampling.max_tokens,
        )
        reader = JobReader(prior, new_parser, self._times.record)
        body = await job_body(request, self._runpod)
        return JobExchange(self._runpod.endpoint, body, self._runpod.options, reader, self._poll_rate)
