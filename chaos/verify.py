"""Verification of the guarantees over HTTP, after all jobs have ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import httpx

from chaos.cluster import Cluster
from chaos.ledger import differences, logged_tokens, read_entries
from chaos.load import Accepted, Load
from chaos.readers import TERMINAL, Reader
from chaos.sse import Sse, read_events, text_of

PAGE = 100


class Promise(StrEnum):
    """The guarantees, named by their violations."""

    LOST = "acknowledged jobs lost"
    SECOND_END = "streams with a second or different end"
    STREAM = "streams with a gap, a duplicate or no end"
    TEXT = "streams whose text differs from the stored output"
    OUTPUT = "outputs that differ from an undisturbed run"
    USAGE = "jobs with a wrong token count"
    LEDGER = "jobs with wrong entries in the ledger"
    WEBHOOK = "webhooks lost, or with a wrong id or signature"
    FAILED = "jobs that failed or were cancelled unexpectedly"
    ANSWER = "HTTP responses that no fault explains"
    PROCESS = "processes that exited unexpectedly"


@dataclass(frozen=True, slots=True)
class Violation:
    """A violated guarantee."""

    promise: Promise
    job_id: str | None
    what: str


@dataclass(slots=True)
class Verdict:
    """The violations found. `exhausted` counts jobs that failed correctly after too many worker deaths.

    `ledger_tokens` are the output tokens in the ledger, by the source of the entries. `log_tokens` are those in the
    event logs of jobs whose texts show how many they are, and `ledger_of_logs` those of the same jobs in the ledger;
    without `lost_logs`, the jobs whose log was lost with Redis, or whose output started again: what there is of it
    cannot have more tokens than the ledger.
    """

    broken: list[Violation]
    jobs: dict[str, dict[str, Any]]
    exhausted: int = 0
    ledger_tokens: Counter[str] = field(default_factory=Counter)
    log_tokens: int = 0
    lost_logs: int = 0
    ledger_of_logs: int = 0

    def count(self, promise: Promise) -> int:
        return sum(item.promise is promise for item in self.broken)

    def statuses(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for job in self.jobs.values():
            counts[job["status"]] = counts.get(job["status"], 0) + 1
        return dict(sorted(counts.items()))


async def verify(cluster: Cluster, load: Load) -> Verdict:
    """Check every accepted job and every reader, and that no other job is unfinished."""
    client = cluster.clients[0]
    verdict = Verdict([], await _all_jobs(client))
    accepted = {item.job_id for item in load.accepted}
    for item in load.accepted:
        _check_job(verdict, item, verdict.jobs.get(item.job_id))
        if item.reader is not None:
            job = verdict.jobs.get(item.job_id)
            _check_reader(verdict, item.reader, job)
            if job is not None:
                await _check_replay(verdict, client, item.reader, job)
    for job_id, job in verdict.jobs.items():
        if job_id not in accepted and f"job.{job['status']}" not in TERMINAL:
            verdict.broken.append(Violation(Promise.LOST, job_id, f"not acknowledged, but still {job['status']}"))
    countable = {item.job_id for item in load.accepted if item.work.stop is None and not item.work.more}
    await _check_ledger(verdict, cluster, countable)
    _check_webhooks(verdict, cluster)
    verdict.broken += [Violation(Promise.ANSWER, None, what) for what in load.problems]
    verdict.broken += [Violation(Promise.PROCESS, None, what) for what in cluster.processes.unexpected_exits]
    return verdict


async def _check_ledger(verdict: Verdict, cluster: Cluster, countable: Set[str]) -> None:
    """Check the entries of all jobs. `countable`: the jobs whose texts show how many tokens they are."""
    entries = await read_entries(cluster.observer)
    for job_id, job in verdict.jobs.items():
        if f"job.{job['status']}" in TERMINAL:
            found = differences(job, entries.get(job_id, []))
            verdict.broken += [Violation(Promise.LEDGER, job_id, what) for what in found]
    async for log in logged_tokens(cluster.observer):
        if log.job_id not in countable:
            continue
        in_ledger = sum(entry.output for entry in entries.get(log.job_id, []))
        if log.whole:
            verdict.log_tokens += in_ledger if log.agrees(in_ledger) else log.tokens
            verdict.ledger_of_logs += in_ledger
        else:
            verdict.lost_logs += 1
        if not log.agrees(in_ledger):
            what = f"{in_ledger} output tokens in the ledger, {log.tokens} in the event log"
            verdict.broken.append(Violation(Promise.LEDGER, log.job_id, what))
    for entry in (entry for of_job in entries.values() for entry in of_job):
        verdict.ledger_tokens[entry.source] += entry.output


def _check_webhooks(verdict: Verdict, cluster: Cluster) -> None:
    ended = {job_id: job for job_id, job in verdict.jobs.items() if f"job.{job['status']}" in TERMINAL}
    for job_id in cluster.webhooks.missing(ended):
        what = f"no event job.{ended[job_id]['status']} has arrived"
        verdict.broken.append(Violation(Promise.WEBHOOK, job_id, what))
    verdict.broken += [Violation(Promise.WEBHOOK, None, what) for what in cluster.webhooks.problems]


async def _all_jobs(client: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    jobs: dict[str, dict[str, Any]] = {}
    after: dict[str, str] = {}
    while True:
        response = await client.get("/v1/jobs", params={"limit": PAGE, "include": "output", **after}, timeout=30)
        response.raise_for_status()
        page = response.json()
        jobs |= {job["id"]: job for job in page["data"]}
        if not page["has_more"]:
            return jobs
        after = {"after": page["last_id"]}


def _check_job(verdict: Verdict, item: Accepted, job: dict[str, Any] | None) -> None:
    def broken(promise: Promise, what: str) -> None:
        verdict.broken.append(Violation(promise, item.job_id, what))

    work = item.work
    if job is None:
        broken(Promise.LOST, "not found")
        return
    text = job["output_text"] or ""
    match job["status"]:
        case "completed" | "incomplete":
            finish_reason = job["output"][0]["finish_reason"]
            if text != work.text or finish_reason != work.finish_reason:
                broken(Promise.OUTPUT, f"{finish_reason} {text!r}\nexpected {work.finish_reason} {work.text!r}")
            if job["usage"]["completion_tokens"] != work.tokens:
                broken(Promise.USAGE, f"{job['usage']['completion_tokens']} tokens, expected {work.tokens}")
        case "cancelled":
            if not item.cancel_requested:
                broken(Promise.FAILED, "cancelled without a request")
            if not work.text.startswith(text):
                broken(Promise.OUTPUT, f"{text!r}\nis not a prefix of {work.text!r}")
        case "failed" if job["error"]["code"] == "attempts_exhausted":
            verdict.exhausted += 1
        case "failed" | "expired":
            broken(Promise.FAILED, f"{job['status']}: {job['error']}")
        case status:
            broken(Promise.LOST, f"still {status}")


def _check_reader(verdict: Verdict, reader: Reader, job: dict[str, Any] | None) -> None:
    for problem in reader.problems:
        second = reader.terminal is not None and " came after job." in problem
        verdict.broken.append(Violation(Promise.SECOND_END if second else Promise.STREAM, reader.job_id, problem))
    if reader.terminal is None:
        verdict.broken.append(Violation(Promise.STREAM, reader.job_id, "the stream has no terminal event"))
        return
    if job is None:
        return
    if reader.terminal.event != f"job.{job['status']}":
        what = f"the stream ended with {reader.terminal.event}, but the job is {job['status']}"
        verdict.broken.append(Violation(Promise.SECOND_END, reader.job_id, what))
    _check_text(verdict, reader.job_id, reader.seen, job, "live")


async def _check_replay(verdict: Verdict, client: httpx.AsyncClient, reader: Reader, job: dict[str, Any]) -> None:
    """Replay the stream from its start, and request it after its last event."""
    url = f"/v1/jobs/{reader.job_id}/stream"
    async with client.stream("GET", url) as response:
        events = [event async for event in read_events(response)]
    ends = [event for event in events if event.event in TERMINAL]
    ids = [event.id for event in events if event.id is not None]
    if len(ends) != 1 or ends[0] is not events[-1]:
        verdict.broken.append(Violation(Promise.SECOND_END, reader.job_id, f"a replay has the terminal events {ends}"))
    elif reader.terminal is not None and ends[0] != reader.terminal:
        what = f"the reader received {reader.terminal}, a replay ended with {ends[0]}"
        verdict.broken.append(Violation(Promise.SECOND_END, reader.job_id, what))
    if ids != sorted(set(ids)):
        verdict.broken.append(Violation(Promise.STREAM, reader.job_id, f"a replay has the ids {ids}"))
    _check_text(verdict, reader.job_id, events, job, "replayed")
    if reader.terminal is not None:
        rest = await client.get(url, params={"starting_after": reader.cursor})
        if rest.status_code != 204:
            what = f"after the last event the stream returned {rest.status_code} {rest.text}"
            verdict.broken.append(Violation(Promise.SECOND_END, reader.job_id, what))


def _check_text(verdict: Verdict, job_id: str, events: Sequence[Sse], job: dict[str, Any], how: str) -> None:
    read, stored = text_of(list(events)), job["output_text"] or ""
    if read != stored:
        what = f"{how} {read!r}\nstored {stored!r}"
        verdict.broken.append(Violation(Promise.TEXT, job_id, what))
