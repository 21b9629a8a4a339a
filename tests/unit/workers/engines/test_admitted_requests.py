"""What admission accepts, the engine can send: for Claude also by the rules of the stand-in for Anthropic's API."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from api.jobs.capability_check import CapabilityCheck
from shared.config.models.anthropic import AnthropicModel
from shared.config.models.loader import Registry
from shared.domain.errors import InvalidRequest
from shared.domain.request import GenerateRequest
from tests.support.metrics import worker_metrics
from tests.support.vendors.anthropic import problem
from tests.unit.api.jobs.test_specs_at_admission import CLAUDES, OTHERS
from tests.unit.workers.engines.test_extra_body import body

SPECS = [*CLAUDES, *(spec for spec in OTHERS if spec.engine in ("openai", "replicate"))]
METRICS = worker_metrics()
CHECK = CapabilityCheck(Registry({spec.name: spec for spec in SPECS}))
TOOL = {"function": {"name": "f", "parameters": {"type": "object"}}}
TEXTS = st.sampled_from(["x", " ", "", "It is ", "a\n"])


def optional(**values: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the members."""
    return st.fixed_dictionaries({}, optional={name: st.sampled_from(choices) for name, choices in values.items()})


SAMPLING = optional(
    temperature=[0, 0.5, 1, 1.5], top_p=[0.5, 0.95, 1], top_k=[-1, 0, 5],
    stop=[["END"], [" "], ["a,b"], list("abcdef")],
    max_tokens=[1, 500, 1024, 1025, 3000, 64_000, 64_001, 128_000, 500_000], thinking_token_budget=[0, 1, 1024, 3000],
)  # fmt: skip
CHAT = optional(
    reasoning_effort=["none", "minimal", "low", "xhigh", "max"], tools=[[TOOL]], parallel_tool_calls=[False],
    tool_choice=["none", "auto", "required", {"name": "f"}], add_generation_prompt=[False],
    continue_final_message=[True],
)  # fmt: skip
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "developer", "user", "assistant"]), "content": TEXTS},
        optional={"name": st.just("Ann")},
    ),
    min_size=1,
    max_size=4,
)
REQUESTS = st.builds(
    lambda messages, sampling, chat, more: GenerateRequest.model_validate(
        {"messages": messages, "sampling": sampling, "chat": chat, **more}
    ),
    MESSAGES,
    SAMPLING,
    CHAT,
    optional(structured_outputs=[{"json_schema": {}}, {"regex": "a"}], adaptive_thinking=[True], prompt_only=[True]),
)


@given(request=REQUESTS)
def test_an_engine_can_send_what_is_admitted(request: GenerateRequest) -> None:
    for spec in SPECS:
        try:
            CHECK.check(spec.name, request)
        except InvalidRequest:
            continue
        sent = body(spec, request, METRICS)
        if isinstance(spec, AnthropicModel):
            # A request that counts has no limit.
            refusal = problem({"max_tokens": 128_000, **sent}, {"anthropic-version": "2023-06-01"})
            assert refusal is None, refusal
