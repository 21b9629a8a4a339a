"""Runs requests as predictions of Replicate: https://replicate.com/docs/reference/http."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from shared.config.models.replicate import ReplicateModel
from shared.domain.errors import InvalidRequest
from shared.domain.request import GenerateRequest
from shared.prompts.chat_template import ChatTemplate, model_template
from shared.telemetry.metrics import Metrics
from workers.engines.base import NO_PRIOR, Prior
from workers.engines.replicate.exchange import PredictionExchange, cancel_call, create_call
from workers.engines.replicate.request import model_input
from workers.engines.upstream.engine import UpstreamEngine
from workers.engines.upstream.exchange import Call
from workers.engines.upstream.polling import PollRate
from workers.engines.upstream.run_times import RunTimes

logger = logging.getLogger(__name__)


class ReplicateEngine(UpstreamEngine):
    """The `replicate` engine."""

    run_api = "replicate"

    def __init__(self, model: ReplicateModel, metrics: Metrics) -> None:
        super().__init__(model, metrics)
        self._version = model.version
        self._replicate = model.options
        self._template: ChatTemplate | None = None
        if model.model is not None:
            self._path = f"models/{model.model}/predictions"
        elif model.deployment is not None:
            self._path = f"deployments/{model.deployment}/predictions"
        else:
            self._path = "predictions"
        self._schemes = {urlsplit(target.endpoint.base_url).scheme for target in model.options.targets}
        self._hosts = model.stream_hosts
        self._refused_hosts: set[str] = set()
        self._poll_rate = PollRate(model.options.max_polls_per_s)
        self._times = RunTimes(metrics, model.name, model.options.price_per_second)

    async def start(self) -> None:
        file = self._replicate.input.chat_template
        if file is not None:
            try:
                self._template = model_template(None, file)
            except (OSError, UnicodeDecodeError):
                self._template = None
            if self._template is None:
                raise InvalidRequest(
                    f"{self._model.place('options.input.chat_template')}: {file} is not a template that can be read"
                )
        await super().start()

    def cancel_call(self, run_id: str) -> Call:
        return cancel_call(run_id)

    async def exchange(self, request: GenerateRequest, prior: Prior = NO_PRIOR) -> PredictionExchange:
        options = self._replicate
        values = await model_input(request, options.input, self._template)
        create = create_call(self._path, self._version, values, options.cancel_after_s)
        max_tokens = request.sampling.max_tokens if "max_tokens" in options.input.parameters else None
        return PredictionExchange(
            create,
            prior,
            options,
            max_tokens=max_tokens,
            may_stream=self._may_stream,
            on_times=self._times.record,
            rate=self._poll_rate,
        )

    def optional(self, body: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        # Deprecated: newer versions of the API stream whatever can be streamed.
        return {"stream": {}} if "stream" in body else {}

    def _may_stream(self, url: str) -> bool:
        """Whether a URL that the upstream returned leads to a host that may receive the key."""
        try:
            parts = urlsplit(url)
            host = parts.netloc.lower()
        except ValueError:
            return False
        if parts.scheme in {"https", *self._schemes} and host in self._hosts:
            return True
        if host not in self._refused_hosts and len(self._refused_hosts) < 16:
            self._refused_hosts.add(host)
            logger.warning(
                "model=%s streams are on a host that options.stream_hosts does not list (%s); polling instead",
                self._model.name,
                "".join(filter(str.isprintable, host))[:200],
            )
        return False
