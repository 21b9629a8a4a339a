"""Relays to a model on a Triton server, by `generate_stream`.

Triton takes a text, so conversations are rendered here, with the chat template that the model's spec names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import quote

from shared.config.models.triton import TritonModel
from shared.domain.errors import InvalidRequest
from shared.domain.request import GenerateRequest
from shared.prompts.chat_template import ChatTemplate, model_template, with_system_roles
from shared.prompts.token_counter import TokenCounter
from shared.runtime.offload import off_loop
from shared.telemetry.metrics import Metrics
from workers.engines.base import NO_PRIOR, CannotContinue, Prior
from workers.engines.resume import Resume
from workers.engines.triton.errors import is_classified, response_error
from workers.engines.triton.event_texts import EventTexts
from workers.engines.triton.output_counter import OutputCounter
from workers.engines.triton.request import request_body
from workers.engines.triton.stop_strings import StopStrings
from workers.engines.triton.stream import StreamParser
from workers.engines.upstream.engine import UpstreamEngine
from workers.engines.upstream.errors import ErrorBody
from workers.engines.upstream.estimated_tokens import counted_tokens, fewest_tokens
from workers.engines.upstream.exchange import Call, SingleCall


class TritonEngine(UpstreamEngine):
    """The `triton` engine."""

    def __init__(self, model: TritonModel, metrics: Metrics) -> None:
        super().__init__(model, metrics)
        self._triton = model
        self._counter: TokenCounter | None = None
        self._template: ChatTemplate | None = None
        version = f"/versions/{model.options.version}" if model.options.version is not None else ""
        self._path = f"v2/models/{quote(model.model, safe='')}{version}/generate_stream"

    async def start(self) -> None:
        """Read the tokenizer and the chat template, and open the session.

        Raises:
            InvalidRequest: a file cannot be read, or the variable named by `api_key_env` is not set.
        """
        await asyncio.to_thread(self._read_files)
        await super().start()

    def auth_headers(self, key: str) -> Mapping[str, str]:
        if (header := self._triton.options.api_key_header) is not None:
            return {header: key}
        return super().auth_headers(key)

    def error_body(self, content: bytes) -> ErrorBody:
        return response_error(content)

    def is_classified(self, content: bytes) -> bool:
        return is_classified(content)

    def resume_mode(self, request: GenerateRequest, prior: Prior = NO_PRIOR) -> Resume:
        """The model continues the text so far, unless a constraint would begin anew with it."""
        return Resume.EXACT if request.structured_outputs is None else Resume.NONE

    async def exchange(self, request: GenerateRequest, prior: Prior) -> SingleCall:
        if prior.deltas and self.resume_mode(request) is Resume.NONE:
            raise CannotContinue
        model = self._triton
        prompt = await off_loop(request.size, self._prompt, request)
        so_far = "".join([delta.text for delta in prior.deltas])
        emitted, at_least = counted_tokens(prior.deltas), fewest_tokens(prior.deltas)
        prompt_tokens = 0
        if self._counter is not None:
            prompt_tokens = await off_loop(request.size, self._counter.count_text, prompt)
            emitted = await off_loop(len(so_far), self._counter.count_text, so_far, add_special_tokens=False)
            at_least = emitted
        prompt += so_far
        max_tokens = max(1, (request.sampling.max_tokens or self._room(prompt_tokens)) - at_least)
        convention, options = model.convention, model.options
        stops = None
        if request.sampling.stop and model.cuts_at_stop_strings:
            included = request.sampling.include_stop_str_in_output
            stops = StopStrings(request.sampling.stop, included=included)
        cumulative = convention.cumulative if options.output is None else options.output == "cumulative"
        parser = StreamParser(
            convention,
            options.text_output,
            EventTexts(cumulative=cumulative, prompt=prompt if options.includes_prompt else ""),
            stops=stops,
            max_tokens=max_tokens,
            prompt_tokens=prompt_tokens,
            emitted=emitted,
            counter=OutputCounter(self._counter) if self._counter is not None else None,
        )
        call = Call(self._path, request_body(model, request, prompt, max_tokens, at_least))
        return _Exchange(call, parser, repeats=cumulative)

    def _room(self, prompt_tokens: int) -> int:
        """The most output tokens of a request that does not limit them."""
        length = self._triton.max_model_len
        if length is None or not prompt_tokens:
            return self._triton.options.default_max_tokens
        return max(1, length - prompt_tokens)

    def _prompt(self, request: GenerateRequest) -> str:
        """The text for the model.

        Raises:
            InvalidRequest: it cannot be rendered.
        """
        if request.messages is None:
            if isinstance(request.prompt, list):
                raise InvalidRequest("prompt: this model takes a text, not token ids", param="prompt")
            return request.prompt or ""
        text = self._template.render(with_system_roles(request)) if self._template is not None else None
        if text is None:
            raise InvalidRequest("messages: this model cannot render the conversation", param="messages")
        # The model's own tokenizer adds the token at the start again.
        start = self._template.special_tokens.get("bos_token", "") if self._template is not None else ""
        adds_start = self._counter is not None and start and self._counter.adds(start)
        return text.removeprefix(start) if adds_start else text

    def _read_files(self) -> None:
        folder, template = self._triton.tokenizer_folder, self._triton.template_file
        try:
            self._counter = TokenCounter(folder, renders_chat=False) if folder is not None else None
            self._template = model_template(folder, template)
        except Exception as error:  # the libraries raise any
            field = "tokenizer" if folder is not None and self._counter is None else "chat_template"
            raise self._unreadable(field, error) from error
        if template is not None and self._template is None:
            raise self._unreadable("chat_template", "it is no template that can be read here")

    def _unreadable(self, field: str, reason: object) -> InvalidRequest:
        return InvalidRequest(f"{self._triton.place(f'options.{field}')}: cannot be read: {reason}")


class _Exchange(SingleCall):
    """An answer that may be ended here, at a stop string."""

    def __init__(self, call: Call, parser: StreamParser, *, repeats: bool) -> None:
        super().__init__(call, parser)
        self._stream = parser
        self._repeats = repeats

    @property
    def repeats(self) -> bool:
        return self._repeats

    @property
    def leaves_early(self) -> bool:
        return self._stream.is_cut
