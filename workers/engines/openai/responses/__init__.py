"""OpenAI's Responses API: a response runs in the background, and its stream can be resumed."""

from __future__ import annotations

from workers.engines.openai.responses.exchange import ResponseExchange as ResponseExchange
from workers.engines.openai.responses.exchange import cancel_call as cancel_call
from workers.engines.openai.responses.request import optional_parameters as optional_parameters
from workers.engines.openai.responses.request import response_body as response_body
from workers.engines.openai.responses.stream import ResponseParser as ResponseParser
