"""The API with a vLLM engine, the `openai` client and an SSE client."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import psutil
import pytest

from chaos.sse import read_events
from tests.e2e.conftest import WARM_TEXT
from tests.e2e.test_jobs import wait_for_end
from tests.e2e.test_projects import bearer, create_key
from tests.support.metrics import Samples, samples
from tests.support.sse import follow, text_of
from tests.support.stack import KEY, Stack
from tests.support.waiting import eventually

# Token boundaries split these characters: one emoji is three tokens of this model.
EMOJI_PROMPT = "Repeat exactly: 😀🐦🌊 Füße, naïve, 水車"


@pytest.fixture
async def client(vllm_stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{vllm_stack.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


async def submit(http: httpx.AsyncClient, content: str, **body: Any) -> dict[str, Any]:
    payload = {"model": "smollm2", "messages": [{"role": "user", "content": content}], "temperature": 0, **body}
    response = await http.post("/v1/jobs", json=payload)
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


async def requests_in_engines(stack: Stack) -> int:
    """The number of requests in the engines, as reported by the workers' heartbeats."""
    from sqlalchemy import func, select
    from sqlalchemy.ext.asyncio import create_async_engine

    from shared.postgres.tables import WorkerRow

    engine = create_async_engine(stack.environment["DATABASE_URL"])
    async with engine.connect() as connection:
        running = (await connection.execute(select(func.sum(WorkerRow.running)))).scalar_one()
    await engine.dispose()
    return int(running)


async def test_submit_and_poll(vllm: httpx.AsyncClient) -> None:
    job = await submit(vllm, "What is the capital of France? Answer in one word.", max_tokens=16)
    done = await wait_for_end(vllm, job["id"])
    assert done["status"] == "completed"
    assert "Paris" in done["output_text"]
    assert done["output"][0]["finish_reason"] == "stop"
    assert done["usage"]["prompt_tokens"] > 10
    assert done["usage"]["completion_tokens"] <= 16


async def test_raw_prompt_has_no_chat_template(vllm: httpx.AsyncClient) -> None:
    body = {"model": "smollm2", "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
    response = await vllm.post("/v1/jobs", json=body, headers={"Prefer": "wait=60"})
    done = response.json()
    assert done["usage"]["prompt_tokens"] == 5
    assert "Paris" in done["output_text"]


async def test_a_response_is_resumed_and_continued(client: openai.AsyncOpenAI) -> None:
    stream = await client.responses.create(
        model="smollm2",
        instructions="Answer in one word.",
        input="What is the capital of France?",
        max_output_tokens=16,
        temperature=0,
        background=True,
        stream=True,
    )
    events = [event.to_dict() async for event in stream]
    last: Any = events[-1]["response"]
    assert last["status"] == "completed"
    assert "Paris" in last["output"][0]["content"][0]["text"]
    resumed = await client.responses.retrieve(last["id"], stream=True, starting_after=5)
    assert [event.to_dict() async for event in resumed] == events[6:]
    second = await client.responses.create(
        model="smollm2", input="And of Italy?", previous_response_id=last["id"], max_output_tokens=16, temperature=0
    )
    assert second.output_text
    assert second.usage is not None
    assert second.usage.input_tokens > last["usage"]["input_tokens"]


async def test_a_stream_is_resumed_from_a_cursor(vllm: httpx.AsyncClient) -> None:
    job = await submit(vllm, "Tell me a long story about a mill.", max_tokens=60)
    seen = []
    async with vllm.stream("GET", f"/v1/jobs/{job['id']}/stream") as response:
        async for item in read_events(response):
            seen.append(item)
            if len([one for one in seen if one.event == "job.delta"]) == 8:
                break
    seen += await follow(vllm, job["id"], after=seen[-1].id)
    ids = [item.id for item in seen if item.id is not None]
    assert ids == list(range(1, len(ids) + 1))
    assert text_of(seen) == (await wait_for_end(vllm, job["id"]))["output_text"]


async def test_multi_byte_characters_are_never_split(vllm: httpx.AsyncClient) -> None:
    job = await submit(vllm, EMOJI_PROMPT, max_tokens=48)
    events = await follow(vllm, job["id"])
    texts = [item.data["text"] for item in events if item.event == "job.delta"]
    done = await wait_for_end(vllm, job["id"])
    assert any(ord(character) > 0xFFFF for character in done["output_text"]), done["output_text"]
    assert "".join(texts) == done["output_text"]
    assert not any("\ufffd" in text for text in texts)


async def test_cancel_during_generation_frees_the_engine(vllm_stack: Stack, vllm: httpx.AsyncClient) -> None:
    job = await submit(vllm, "Count from one to a thousand.", max_tokens=900, ignore_eos=True)
    seen = []
    async with vllm.stream("GET", f"/v1/jobs/{job['id']}/stream") as response:
        async for item in read_events(response):
            seen.append(item)
            if item.id == 10:

                async def busy() -> bool:
                    return await requests_in_engines(vllm_stack) == 1

                await eventually(busy, "the engine reports one running request")
                await vllm.post(f"/v1/jobs/{job['id']}/cancel")
    assert seen[-1].event == "job.cancelled"
    done = await wait_for_end(vllm, job["id"])
    assert done["output_text"] == text_of(seen)
    assert 0 < done["usage"]["completion_tokens"] < 900

    async def idle() -> bool:
        return await requests_in_engines(vllm_stack) == 0

    await eventually(idle, "the engine reports no running requests")


async def test_sixteen_concurrent_jobs(vllm: httpx.AsyncClient) -> None:
    jobs = await asyncio.gather(*(submit(vllm, f"Write about the number {i}.", max_tokens=24) for i in range(16)))
    streams = await asyncio.gather(*(follow(vllm, job["id"]) for job in jobs))
    done = [await wait_for_end(vllm, job["id"]) for job in jobs]
    assert [text_of(events) for events in streams] == [job["output_text"] for job in done]
    first_end = min(job["finished_at"] for job in done)
    assert all(job["started_at"] < first_end for job in done), "all ran concurrently"


async def test_a_request_that_the_engine_rejects_fails_only_its_job(vllm: httpx.AsyncClient) -> None:
    rejected = await submit(vllm, "hi", logit_bias={"49999999": 5}, max_tokens=4)
    failed = await wait_for_end(vllm, rejected["id"])
    assert (failed["status"], failed["error"]["code"]) == ("failed", "invalid_request")
    assert "49999999" in failed["error"]["message"]
    assert (await wait_for_end(vllm, (await submit(vllm, "hi", max_tokens=4))["id"]))["status"] in (
        "completed",
        "incomplete",
    )


async def test_a_prompt_above_the_context_is_rejected_at_submit(vllm: httpx.AsyncClient) -> None:
    payload = {"model": "smollm2", "messages": [{"role": "user", "content": "mill " * 1100}]}
    response = await vllm.post("/v1/jobs", json=payload)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages"
    assert "context is 1024 tokens" in response.json()["error"]["message"]


async def test_the_api_counts_tokens_as_the_engine_does(vllm: httpx.AsyncClient) -> None:
    """The longest prompt that the API accepts fits the engine; one more token is rejected."""

    def body(words: int) -> dict[str, Any]:
        return {"model": "smollm2", "prompt": " mill" * words, "max_tokens": 1}

    fits = await vllm.post("/v1/jobs", json=body(1023), headers={"Prefer": "wait=60"})
    assert fits.json()["usage"]["prompt_tokens"] == 1023
    assert (await vllm.post("/v1/jobs", json=body(1024))).status_code == 400


async def cached_tokens_of_the_warm_prompt(http: httpx.AsyncClient, question: str) -> int:
    """Send a request with the system message of `warm_prompts`, and return how much of its prompt was cached."""
    messages = [{"role": "system", "content": WARM_TEXT}, {"role": "user", "content": question}]
    body = {"model": "smollm2", "messages": messages, "max_tokens": 1}
    response = await http.post("/v1/chat/completions", json=body)
    return int(response.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


async def test_warm_prompts_are_warm_for_the_projects_of_the_start_only(
    vllm: httpx.AsyncClient, vllm_stack: Stack
) -> None:
    assert await cached_tokens_of_the_warm_prompt(vllm, "Why?") >= 128
    assert (await samples(vllm_stack, "worker"))["headrace_warmed_prefixes_total", "smollm2", "warm"] >= 1
    created = vllm_stack.command("api.keys", "create", "another-project")
    (key,) = re.findall(r"hr_\S+", created.stdout)
    async with vllm_stack.client() as other:
        other.headers["Authorization"] = f"Bearer {key}"
        assert await cached_tokens_of_the_warm_prompt(other, "Why?") == 0
        assert await cached_tokens_of_the_warm_prompt(other, "And how?") >= 128


async def test_the_engines_cache_and_stage_metrics_are_exported(vllm: httpx.AsyncClient, vllm_stack: Stack) -> None:
    """vLLM's statistics are exported, without vLLM's own metrics, which are more expensive."""
    before = await samples(vllm_stack, "worker")
    prompt = "The same beginning, long enough for a block of the cache. " * 12
    during: list[Samples] = []
    for _ in range(2):
        job = await submit(vllm, prompt, max_tokens=24, ignore_eos=True)
        async with vllm.stream("GET", f"/v1/jobs/{job['id']}/stream") as response:
            async for item in read_events(response):
                if item.event == "job.delta" and len(during) < 2:
                    during.append(await samples(vllm_stack, "worker"))
    assert max(found["headrace_engine_kv_cache_usage_ratio", "smollm2"] for found in during) > 0
    assert max(found["headrace_engine_requests_running", "smollm2"] for found in during) >= 1

    after = await samples(vllm_stack, "worker")
    for stage in ("headrace_engine_queue_seconds", "headrace_engine_prefill_seconds"):
        assert after[f"{stage}_count", "smollm2"] - before.get((f"{stage}_count", "smollm2"), 0) == 2
    growth = {
        name: after[f"headrace_engine_prefix_cache_{name}_total", "smollm2"]
        - before[f"headrace_engine_prefix_cache_{name}_total", "smollm2"]
        for name in ("queried_tokens", "hit_tokens")
    }
    assert growth["queried_tokens"] > growth["hit_tokens"] > 0
    assert after["headrace_cached_tokens_total", "smollm2"] > before["headrace_cached_tokens_total", "smollm2"]
    assert ("headrace_engine_preemptions_total", "smollm2") in after
    assert not [key for key in after if key[0].startswith("vllm:")]


class TestOpenAIClient:
    async def test_chat(self, client: openai.AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "What is the capital of France? Answer in one word."}],
            max_completion_tokens=16,
            temperature=0,
        )
        assert "Paris" in (answer.choices[0].message.content or "")
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens

    async def test_streamed_chat_equals_the_complete_answer(self, client: openai.AsyncOpenAI) -> None:
        question: Any = {
            "model": "smollm2",
            "messages": [{"role": "user", "content": EMOJI_PROMPT}],
            "max_tokens": 40,
            "temperature": 0,
        }
        complete = await client.chat.completions.create(**question)
        stream = await client.chat.completions.create(**question, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
        assert chunks[0].choices[0].delta.role == "assistant"
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == complete.choices[0].message.content
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        assert complete.usage is not None
        assert chunks[-1].usage.completion_tokens == complete.usage.completion_tokens

    async def test_completions_and_stop(self, client: openai.AsyncOpenAI) -> None:
        prompt = "1, 2, 3, 4, 5, 6,"
        answer = await client.completions.create(
            model="smollm2", prompt=prompt, max_tokens=40, temperature=0, stop=["12"]
        )
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].text.rstrip().endswith("11,")
        stream = await client.completions.create(
            model="smollm2", prompt=prompt, max_tokens=40, temperature=0, stop=["12"], stream=True
        )
        text = "".join([chunk.choices[0].text async for chunk in stream])
        assert text == answer.choices[0].text

    async def test_sampling_parameters_reach_the_engine(self, client: openai.AsyncOpenAI) -> None:
        async def answer_with(**options: Any) -> Any:
            return await client.chat.completions.create(
                model="smollm2", messages=[{"role": "user", "content": "Say something."}], **options
            )

        seeded = [
            (await answer_with(seed=7, temperature=1, top_p=0.9, max_tokens=12)).choices[0].message.content
            for _ in range(2)
        ]
        assert seeded[0] == seeded[1]
        several = await answer_with(n=3, temperature=1, max_tokens=8, seed=1)
        assert [choice.index for choice in several.choices] == [0, 1, 2]
        long = await answer_with(temperature=0, max_tokens=50, extra_body={"ignore_eos": True})
        assert long.usage.completion_tokens == 50
        minimum = await answer_with(
            temperature=0, max_tokens=40, extra_body={"min_tokens": 30, "top_k": 5, "min_p": 0.1}
        )
        assert minimum.usage.completion_tokens >= 30
        other = await answer_with(
            temperature=0, max_tokens=12, presence_penalty=1.5, frequency_penalty=1.5,
            extra_body={"repetition_penalty": 1.5},
        )  # fmt: skip
        plain = await answer_with(temperature=0, max_tokens=12)
        assert other.choices[0].message.content != plain.choices[0].message.content

    async def test_models(self, client: openai.AsyncOpenAI) -> None:
        models = [model.id async for model in client.models.list()]
        assert models == ["smollm2", "auto"]
        assert (await client.models.retrieve("smollm2")).id == "smollm2"

    async def test_a_disconnect_cancels_the_job(self, client: openai.AsyncOpenAI, vllm: httpx.AsyncClient) -> None:
        stream = await client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "Count to a thousand."}],
            max_tokens=900,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        job_id = stream.response.headers["x-headrace-job-id"]
        async for _ in stream:
            break
        await stream.close()
        assert (await wait_for_end(vllm, job_id))["status"] == "cancelled"

    async def test_errors_have_openais_format(self, client: openai.AsyncOpenAI, vllm_stack: Stack) -> None:
        with pytest.raises(openai.NotFoundError) as not_found:
            await client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "x"}])
        assert not_found.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as bad:
            await client.chat.completions.create(model="smollm2", messages=[])
        assert bad.value.param == "messages"
        async with client.with_options(api_key="hr_wrong") as unauthorized_client:
            with pytest.raises(openai.AuthenticationError) as unauthorized:
                await unauthorized_client.models.list()
        assert unauthorized.value.code == "invalid_api_key"


async def test_urgent_jobs_preempt_batch_jobs(vllm: httpx.AsyncClient) -> None:
    """Urgent jobs start although batch jobs fill the engine. Preempted jobs have the output of uninterrupted ones."""
    slots, body = 32, {"max_tokens": 60, "ignore_eos": True}
    complete = await wait_for_end(vllm, (await submit(vllm, "Tell me about mills.", **body))["id"])
    batch = [await submit(vllm, "Tell me about mills.", priority=9, **body) for _ in range(slots + 4)]

    async def full() -> bool:
        found = (await vllm.get("/v1/jobs", params={"status": "in_progress", "limit": 100})).json()["data"]
        return len(found) == slots

    await eventually(full, "batch jobs fill the engine")
    urgent = [await submit(vllm, f"Count to {number}.", max_tokens=4) for number in range(3)]
    done_urgent = [await wait_for_end(vllm, job["id"]) for job in urgent]
    assert all(job["output_text"] for job in done_urgent)
    done = [await wait_for_end(vllm, job["id"]) for job in batch]
    first_end = min(job["finished_at"] for job in done)
    assert max(job["finished_at"] for job in done_urgent) < first_end, "urgent jobs ended before any batch job"
    outcomes = [attempt["outcome"] for job in done for attempt in job["attempts"]]
    assert outcomes.count("set_aside") >= 1
    assert {job["output_text"] for job in done} == {complete["output_text"]}


NOTE: Any = {
    "type": "function",
    "function": {
        "name": "note",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"text": {"type": "string", "minLength": 200}},
            "required": ["text"],
            "additionalProperties": False,
        },
    },
}


async def call_of(client: openai.AsyncOpenAI, partial: asyncio.Event) -> tuple[set[str | None], str, str, str | None]:
    """Ids, name, arguments and finish reason of a streamed call. Sets `partial` after part of the arguments."""
    stream = await client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Note a long story about a river, the mill at it and its miller."}],
        tools=[NOTE],
        tool_choice={"type": "function", "function": {"name": "note"}},
        temperature=0,
        max_tokens=120,
        stream=True,
    )
    ids: set[str | None] = set()
    name, arguments, reason = "", "", None
    async for chunk in stream:
        for choice in chunk.choices:
            reason = choice.finish_reason or reason
            for call in choice.delta.tool_calls or ():
                if call.id is not None:
                    ids.add(call.id)
                assert call.function is not None
                name += call.function.name or ""
                arguments += call.function.arguments or ""
                if len(arguments) > 30:
                    partial.set()
    assert partial.is_set(), arguments
    return ids, name, arguments, reason


class TestFailover:
    async def test_a_job_resumes_in_the_same_stream_after_its_engine_is_killed(
        self, vllm_stack: Stack, vllm: httpx.AsyncClient
    ) -> None:
        """`kill -9` of the engine process: the worker survives, reports not ready, and restarts the engine."""
        body: Any = {"max_tokens": 80, "ignore_eos": True}
        complete = await wait_for_end(vllm, (await submit(vllm, "Tell me about mills.", **body))["id"])
        job = await submit(vllm, "Tell me about mills.", **body)
        (worker,) = [process for name, process in vllm_stack.processes.items() if name.startswith("worker")]
        warm = ("headrace_warmed_prefixes_total", "smollm2", "warm")
        warmed = (await samples(vllm_stack, "worker"))[warm]
        killed = False
        events = []
        async with vllm.stream("GET", f"/v1/jobs/{job['id']}/stream") as response:
            async for item in read_events(response):
                events.append(item)
                if not killed and [one.event for one in events].count("job.delta") == 20:
                    killed = True
                    children = psutil.Process(worker.pid).children(recursive=True)
                    max(children, key=lambda child: child.memory_info().rss).kill()

                    async def unready() -> bool:
                        checks = (await vllm.get("/readyz")).json()["checks"]
                        return bool(checks["model smollm2"] == "no live worker")

                    await eventually(unready, "the worker reports not ready")
        assert killed
        done = await wait_for_end(vllm, job["id"])
        assert worker.poll() is None, "the worker survives"
        assert [one.event for one in events].count("job.started") == 2
        assert "job.restarted" not in [one.event for one in events]
        assert text_of(events) == done["output_text"] == complete["output_text"]
        assert done["usage"]["completion_tokens"] == complete["usage"]["completion_tokens"]
        assert [attempt["outcome"] for attempt in done["attempts"]] == ["engine_lost", "incomplete"]
        assert sum(attempt["tokens"] for attempt in done["attempts"]) == 80
        assert (await vllm.get("/readyz")).status_code == 200
        assert (await samples(vllm_stack, "worker"))[warm] > warmed
        assert await cached_tokens_of_the_warm_prompt(vllm, "When?") >= 128

    async def test_a_job_resumes_in_the_same_stream_after_its_worker_is_killed(
        self, vllm_stack: Stack, vllm: httpx.AsyncClient, client: openai.AsyncOpenAI
    ) -> None:
        """`kill -9` during a stream: the SSE connection stays open and has the text of an uninterrupted run. A partly
        generated tool call is resumed too, although an engine cannot start its grammar in the middle."""
        complete_call = await call_of(client, asyncio.Event())
        partial = asyncio.Event()
        calling = asyncio.create_task(call_of(client, partial))
        await asyncio.wait((calling, asyncio.create_task(partial.wait())), return_when=asyncio.FIRST_COMPLETED)
        assert not calling.done(), "the call is not complete"
        body: Any = {"max_tokens": 80, "ignore_eos": True}
        complete = await wait_for_end(vllm, (await submit(vllm, "Tell me about rivers and 🌊.", **body))["id"])
        job = await submit(vllm, "Tell me about rivers and 🌊.", **body)
        (worker,) = [name for name in vllm_stack.processes if name.startswith("worker")]
        events = []
        async with vllm.stream("GET", f"/v1/jobs/{job['id']}/stream") as response:
            async for item in read_events(response):
                events.append(item)
                if len([one for one in events if one.event == "job.delta"]) == 20 and worker in vllm_stack.processes:
                    engine = psutil.Process(vllm_stack.processes[worker].pid).children(recursive=True)
                    vllm_stack.kill(worker)
                    await asyncio.to_thread(vllm_stack.start_worker, "smollm2", within_s=240)
        done = await wait_for_end(vllm, job["id"])
        assert [one.event for one in events].count("job.started") == 2
        assert "job.restarted" not in [one.event for one in events]
        assert text_of(events) == done["output_text"] == complete["output_text"]
        assert done["usage"] == {**complete["usage"], "cached_tokens": done["usage"]["cached_tokens"]}
        assert [attempt["outcome"] for attempt in done["attempts"]] == ["worker_lost", "incomplete"]
        (call_id,), *call = await calling
        assert call_id
        assert call == list(complete_call[1:])
        assert len(engine) >= 2
        assert not any(process.is_running() for process in engine), "the engine of the killed worker has exited"


async def test_a_real_model_judges_in_both_orders(vllm_stack: Stack) -> None:
    """Its opinions are worth nothing. Its answers keep to the schema, or are no scores."""
    key = create_key(vllm_stack, "judge-of-vllm", "--scope", "admin", "--scope", "inference")
    item = {
        "id": "q1",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "answers": [{"model": "a", "text": "It is Paris."}, {"model": "b", "text": "It is Lyon."}],
    }
    found = {}
    async with bearer(vllm_stack, key) as client:
        for rubric in ("helpful", "cut"):
            body = {"kind": "pairwise", "rubric": rubric, "models": ["a", "b"],
                "set": {"name": "x", "sha256": "0" * 64, "items": 1}}  # fmt: skip
            run = (await client.post("/v1/evals/runs", json=body)).json()
            added = await client.post(f"/v1/evals/runs/{run['id']}/items", json={"items": [item]})
            assert added.status_code == 200, added.text
            found[rubric] = f"/v1/evals/runs/{run['id']}"

        async def have_ended() -> bool:
            runs = [(await client.get(path)).json() for path in found.values()]
            return all(run["ended_at"] is not None for run in runs)

        await eventually(have_ended, "the judgements have ended", within_s=180)
        judged = {name: (await client.get(f"{path}/judgements")).json()["data"] for name, path in found.items()}
    for judgements in judged.values():
        assert [one["position"] for one in judgements] == [1, 2]
    for one in judged["helpful"]:
        assert (one["state"], one["score"]) in [("scored", 0), ("scored", 0.5), ("scored", 1), ("unparsable", None)]
    assert [(one["state"], one["score"]) for one in judged["cut"]] == [("unparsable", None)] * 2
