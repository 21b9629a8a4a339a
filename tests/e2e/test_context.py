"""Long conversations over real processes: windows, and summaries that workers write."""

from __future__ import annotations

from typing import Any

import httpx
import openai

from tests.e2e.conftest import FAIL
from tests.support.stack import KEY, Stack

SUMMARIZE = {"strategy": "summarize", "trigger_tokens": 400}


def conversation(turns: int, first: str = "") -> list[dict[str, Any]]:
    text = " word" * 18
    messages: list[dict[str, Any]] = [{"role": "system", "content": "be brief"}]
    for number in range(turns):
        question = f"{number} {first if number == 0 else text}"
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
    return [*messages, {"role": "user", "content": "now" + text}]


async def run(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    payload = {"model": "sim", "max_tokens": 3, "messages": conversation(12), **body}
    response = await client.post("/v1/jobs", json=payload, headers={"Prefer": "wait=30"})
    assert response.status_code == 200, response.text
    job: dict[str, Any] = response.json()
    assert job["status"] == "incomplete"
    if "context" in job:
        assert job["usage"]["prompt_tokens"] == job["context"]["tokens_after"]
    return job


async def test_the_engine_gets_the_newest_turns(sim: httpx.AsyncClient) -> None:
    job = await run(sim, context={"strategy": "sliding_window", "trigger_tokens": 400})
    context = job["context"]
    assert (context["strategy"], context["dropped_messages"], context["tokens_before"]) == ("sliding_window", 12, 474)
    assert "context" not in await run(sim)


async def test_a_summary_is_written_once_and_used_again(sim: httpx.AsyncClient) -> None:
    first = (await run(sim, context=SUMMARIZE))["context"]
    assert (first["strategy"], first.get("note")) == ("summarize", None)
    assert first["summarized_messages"] > 0
    job = (await sim.get(f"/v1/jobs/{first['summary_job']}")).json()
    assert (job["kind"], job["model"], job["user"]) == ("summary", "sim", None)
    assert job["usage"]["completion_tokens"] > 0

    again = (await run(sim, messages=[*conversation(12), *conversation(1)[2:]], context=SUMMARIZE))["context"]
    assert again["summary_job"] == first["summary_job"]
    longer = (await run(sim, messages=conversation(22), context=SUMMARIZE))["context"]
    assert longer["summary_job"] != first["summary_job"]

    # Last, because the project then gets no summaries for a while.
    context = (await run(sim, messages=conversation(12, FAIL), context=SUMMARIZE))["context"]
    assert context["strategy"] == "sliding_window"
    assert "dropped without a summary: the summary's job job_" in context["note"]
    assert context["dropped_messages"] > 0


async def test_a_chain_of_responses_stops_growing(sim_stack: Stack) -> None:
    async with openai.AsyncOpenAI(base_url=f"{sim_stack.url}/v1", api_key=KEY, max_retries=0) as sdk:
        previous: str | None = None
        prompt_tokens = []
        for number in range(8):
            response = await sdk.responses.create(
                model="sim",
                input=f"{number}" + " word" * 900,
                instructions="be brief",
                previous_response_id=previous or openai.omit,
                truncation="auto",
                max_output_tokens=16,
            )
            assert response.truncation == "auto"
            assert response.usage is not None
            prompt_tokens.append(response.usage.input_tokens)
            previous = response.id
        assert max(prompt_tokens) < 3300
        assert prompt_tokens[-1] < prompt_tokens[2]
        assert previous is not None
        items = await sdk.responses.input_items.list(previous)
        assert len(items.data) == 1


async def test_anthropics_client_clears_old_results(sim: httpx.AsyncClient) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "look"}]
    for number in range(8):
        use = {"type": "tool_use", "id": f"toolu_{number}", "name": "f", "input": {}}
        result = {"type": "tool_result", "tool_use_id": f"toolu_{number}", "content": "found " * 99}
        messages += [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    edit = {"type": "clear_tool_uses_20250919", "trigger": {"type": "input_tokens", "value": 500}}
    body = {"model": "sim", "max_tokens": 4, "messages": messages, "context_management": {"edits": [edit]}}
    answer = (await sim.post("/v1/messages", json=body)).json()
    (applied,) = answer["context_management"]["applied_edits"]
    assert applied["cleared_tool_uses"] == 4
    assert answer["usage"]["input_tokens"] < 8 * 100 - applied["cleared_input_tokens"] + 100
    streamed = (await sim.post("/v1/messages", json={**body, "stream": True})).text
    assert '"context_management":{"applied_edits":[{"type":"clear_tool_uses_20250919"' in streamed
    del body["context_management"]
    assert "context_management" not in (await sim.post("/v1/messages", json=body)).json()
