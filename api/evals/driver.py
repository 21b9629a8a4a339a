"""Runs and comparisons over a set, through the API: models answer the items, and judges compare the answers.

Everything that takes long is a job, and each call may be repeated: a command that was interrupted finds the answers
of the models again, if it is started with the same set before their jobs are deleted.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson

from api.evals.sets import EvalSet, SetItem
from shared.domain.priorities import BATCH_PRIORITY
from shared.runtime.portions import portions

# Jobs of a command that are open at the same time.
CONCURRENCY = 32
# Items that are sent to the judges at once, and their bytes, about: an API accepts bodies of some megabytes.
ITEMS_PER_CALL, BYTES_PER_CALL = 20, 1024 * 1024
POLL_S, MAX_POLL_S = 0.5, 5.0
WAIT_S = 30
TIMEOUT_S = 90.0
_RETRIED = (429, 500, 502, 503, 504)
MAX_TRIES = 8
MAX_RETRY_S = 30.0
# Of why a model has not answered.
MAX_REASON = 200
# Outcomes of the response cache with which an answer is not a new one.
_NOT_NEW = ("HIT", "COALESCED")

Progress = Callable[[str, int, int], None]


class DriverError(Exception):
    """The command cannot continue; the message says why. `param`: the parameter that the API has refused. `too_large`:
    it was the whole request."""

    def __init__(self, message: str, param: str | None = None, *, too_large: bool = False) -> None:
        super().__init__(message)
        self.param = param
        self.too_large = too_large


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of a model, or of a route, to the items of a set, by item.

    `failed`: items that it has not answered, and why. `reused`: how many of the answers, and failures, are those of an
    earlier command. `by`: the models that have answered, of a route, and how many items each. `cut`: answers that ended
    at the limit of their tokens.
    """

    model: str
    texts: Mapping[str, str]
    failed: Mapping[str, str] = field(default_factory=dict)
    reused: int = 0
    by: Mapping[str, int] = field(default_factory=dict)
    cut: int = 0


@dataclass(frozen=True, slots=True)
class _Answer:
    """The answer to an item, or why there is none."""

    text: str | None
    problem: str = ""
    is_reused: bool = False
    model: str | None = None
    is_cut: bool = False


class Driver:
    """Calls the API for a command. Use it as a context manager."""

    def __init__(
        self,
        url: str,
        key: str,
        progress: Progress,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=TIMEOUT_S, transport=transport
        )
        self._progress = progress
        self._sleep = sleep

    async def __aenter__(self) -> Driver:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """Send a request, and again while the server is busy.

        Raises:
            DriverError: it is refused, or the server is unavailable for long.
        """
        found: dict[str, Any] = (await self._send(method, path, **options)).json()
        return found

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """As `call`."""
        too_large = False
        for attempt in range(MAX_TRIES):
            try:
                response = await self._http.request(method, path, **options)
            except httpx.TransportError as error:
                problem, param, wait_s = f"{type(error).__name__}: {error}", None, 2.0**attempt / 4
            else:
                if response.is_success:
                    return response
                problem, param = _problem(response)
                too_large = response.status_code == 413
                if response.status_code not in _RETRIED or response.headers.get("x-should-retry") == "false":
                    break
                wait_s = _retry_after(response, 2.0**attempt / 4)
            if attempt < MAX_TRIES - 1:
                await self._sleep(min(wait_s, MAX_RETRY_S))
        raise DriverError(f"{method} {path}: {problem}", param, too_large=too_large)

    async def answers(self, model: str, items: EvalSet, *, max_tokens: int | None, fresh: bool = False) -> Answers:
        """Let a model answer the items, as jobs at the priority of batches. `fresh`: again, if it has answered them.

        Raises:
            DriverError: the API refuses a request, and not because of the item.
        """
        slots, done = asyncio.Semaphore(CONCURRENCY), 0
        salt = secrets.token_hex(8) if fresh else ""

        async def answer(item: SetItem) -> _Answer:
            nonlocal done
            async with slots:
                found = await self._answer(model, items, item, max_tokens, salt)
            done += 1
            self._progress(f"{model} answers", done, len(items.items))
            return found

        found = list(zip(items.items, await asyncio.gather(*map(answer, items.items)), strict=True))
        return Answers(
            model,
            {item.id: one.text for item, one in found if one.text is not None},
            {item.id: one.problem for item, one in found if one.text is None},
            sum(one.is_reused for _, one in found),
            Counter(one.model for _, one in found if one.model is not None),
            sum(one.is_cut for _, one in found),
        )

    async def _answer(self, model: str, items: EvalSet, item: SetItem, max_tokens: int | None, salt: str) -> _Answer:
        body: dict[str, Any] = {
            "model": model,
            "messages": _messages(item),
            "priority": BATCH_PRIORITY,
            "temperature": 0,
        }
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        digest = hashlib.sha256(orjson.dumps([items.sha256, item.id, body, salt])).hexdigest()
        headers = {"Idempotency-Key": f"eval-{digest[:48]}", "Prefer": f"wait={WAIT_S}"}
        if salt:
            headers["Cache-Control"] = "no-cache"  # nor an answer of the response cache
        try:
            response = await self._send("POST", "/v1/jobs", json=body, headers=headers)
        except DriverError as error:
            if error.param != "messages" and not error.too_large:
                raise
            return _Answer(None, str(error))  # such as a prompt that is too long for this model
        is_reused = response.headers.get("idempotent-replayed") == "true"
        job, wait_s = response.json(), POLL_S
        while job["status"] in ("queued", "in_progress", "cancelling"):
            await self._sleep(wait_s)
            wait_s = min(MAX_POLL_S, wait_s * 1.5)
            job = await self.call("GET", f"/v1/jobs/{job['id']}")
        is_reused |= (job.get("cache") or {}).get("outcome") in _NOT_NEW
        if job["status"] not in ("completed", "incomplete"):
            return _Answer(None, (job.get("error") or {}).get("message") or job["status"], is_reused)
        by_route = job.get("requested_model") is not None
        if not by_route and job["model"] != model:
            return _Answer(None, f"{job['model']} has answered instead", is_reused)
        by, is_cut = job["model"] if by_route else None, job["status"] == "incomplete"
        return _Answer(job.get("output_text") or "", "", is_reused, by, is_cut)

    async def judge(
        self,
        kind: str,
        items: EvalSet,
        answers: Sequence[Answers],
        *,
        rubric: str | None,
        judge: str | None,
    ) -> dict[str, Any]:
        """Let a judge score the answers, or compare them, and return the run once it has ended.

        It has all items of which there is an answer, or of which a model has failed to give one.
        """
        wanted = [item for item in items.items if all(item.id in one.texts or item.id in one.failed for one in answers)]
        if not wanted:
            raise DriverError("there are no answers to judge")
        run = await self.call(
            "POST",
            "/v1/evals/runs",
            json={
                "kind": kind,
                "rubric": rubric,
                "judge": judge,
                "models": [one.model for one in answers],
                "set": {"name": items.name[:200], "sha256": items.sha256, "items": len(wanted)},
            },
        )
        parts = portions(
            (_item(item, answers) for item in wanted),
            lambda item: len(orjson.dumps(item)),
            max_size=BYTES_PER_CALL,
            max_items=ITEMS_PER_CALL,
        )
        for part in parts:
            await self.call("POST", f"/v1/evals/runs/{run['id']}/items", json={"items": part})
        wait_s = POLL_S
        while run["ended_at"] is None:
            await self._sleep(wait_s)
            wait_s = min(MAX_POLL_S, wait_s * 1.5)
            run = await self.call("GET", f"/v1/evals/runs/{run['id']}")
            ended = sum(count for state, count in run["judgements"].items() if state != "pending")
            self._progress("judged", ended, run["expected"])
        return run

    async def comparison(self, a: str, b: str, run_id: str) -> dict[str, Any]:
        """Compare two models by a run."""
        return await self.call("GET", "/v1/evals/comparison", params={"a": a, "b": b, "run_id": run_id})

    async def judgements(self, run_id: str) -> list[dict[str, Any]]:
        """All judgements of a run."""
        found: list[dict[str, Any]] = []
        params: dict[str, Any] = {"limit": 100}
        while True:
            page = await self.call("GET", f"/v1/evals/runs/{run_id}/judgements", params=params)
            found += page["data"]
            if not page["has_more"]:
                return found
            params["after"] = page["last_id"]


def _messages(item: SetItem) -> list[dict[str, str]]:
    """The messages of a request. Results of tools are given as messages of the user, because a set has texts only."""
    return [
        {"role": "user", "content": f"[result of a tool]\n{text}"}
        if role == "tool"
        else {"role": role, "content": text}
        for role, text in item.messages
    ]


def _item(item: SetItem, answers: Iterable[Answers]) -> dict[str, Any]:
    return {
        "id": item.id,
        "messages": [{"role": role, "content": text} for role, text in item.messages],
        "answers": [_given(item, one) for one in answers],
    }


def _given(item: SetItem, answers: Answers) -> dict[str, str]:
    if (text := answers.texts.get(item.id)) is not None:
        return {"model": answers.model, "text": text}
    # A reason may be any text of an upstream.
    return {"model": answers.model, "failed": answers.failed[item.id].replace("\0", "")[:MAX_REASON] or "unknown"}


def _retry_after(response: httpx.Response, default_s: float) -> float:
    """When to send a request again. A proxy may name a time instead of seconds; then, as if it had named none."""
    try:
        return max(0.0, float(response.headers.get("retry-after", default_s)))
    except ValueError:
        return default_s


def _problem(response: httpx.Response) -> tuple[str, str | None]:
    """What an error response says, and about which parameter."""
    try:
        error = response.json()["error"]
        return f"{response.status_code}: {error['message']}", error.get("param")
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}", None
