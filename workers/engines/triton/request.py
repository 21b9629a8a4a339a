"""Converts a request into the body of Triton's generate extension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from shared.config.models.triton import TritonModel
from shared.domain.request import GenerateRequest, StructuredOutputs

# Seeds are unsigned in Triton.
_MAX_SEED = (1 << 64) - 1


def request_body(
    model: TritonModel, request: GenerateRequest, prompt: str, max_tokens: int, emitted: int = 0
) -> dict[str, Any]:
    """The body. Inputs that the model does not declare become parameters of the request.

    `emitted`: the tokens of the answer at the end of the prompt, after which it continues with `max_tokens` more.
    """
    convention, options = model.convention, model.options
    sampling = request.sampling.model_dump(exclude_defaults=True, exclude={"n"}) | {"max_tokens": max_tokens}
    if model.cuts_at_stop_strings and convention.stops:
        sampling.pop("stop", None)
        sampling.pop("include_stop_str_in_output", None)
    if emitted and "min_tokens" in sampling:
        sampling["min_tokens"] = max(0, sampling["min_tokens"] - emitted)
    body: dict[str, Any] = {
        **(request.extra_body or {}),
        **convention.inputs,
        **options.inputs,
        options.text_input: prompt,
    }
    parameters = model.parameters
    for name in parameters.keys() & sampling.keys():
        value = sampling.pop(name)
        body[parameters[name]] = value & _MAX_SEED if name == "seed" else value
    output = request.structured_outputs
    if convention.sampling_parameters is not None:
        if output is not None:
            # The name that all versions of the backend know. Its value is JSON in JSON.
            sampling["guided_decoding"] = orjson.dumps(_guide(output, convention.guides)).decode()
        body[convention.sampling_parameters] = orjson.dumps(sampling).decode()
    elif output is not None:
        [(kind, guide)] = _guide(output, convention.guides).items()
        body["guided_decoding_guide_type"] = kind
        if kind != "json":
            body["guided_decoding_guide"] = guide if isinstance(guide, str) else orjson.dumps(guide).decode()
    return body


def _guide(output: StructuredOutputs, names: Mapping[str, str]) -> dict[str, Any]:
    """The member of a structured output that is set, by the backend's name for it."""
    return {names[name]: value for name, value in output if value is not None and name in names}
