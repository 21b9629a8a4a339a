"""Report of a run: its figures, its violations, and the histories of the jobs concerned."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
from sqlalchemy import text

from chaos.cluster import Cluster
from chaos.load import Load
from chaos.measure import Rescue, percentile, undisturbed
from chaos.readers import Reader
from chaos.result import Result
from chaos.verify import Promise

RESCUE_GOAL_S = 15.0
THROUGHPUT_GOAL = 0.95
LINE = 200
_ROW = text("SELECT row_to_json(jobs) FROM jobs WHERE id = :id")


def table(result: Result) -> str:
    """Return the figures, one per line."""
    verdict, plan = result.verdict, result.plan
    lines = [
        ("seed", str(plan.seed)),
        ("duration", f"{result.seconds:.0f} s; all jobs ended {result.quiet_after_s:.1f} s after the last submit"),
        ("faults", f"{len(result.happened)}, of {len({item.name for item in result.happened})} kinds"),
        ("jobs acknowledged", f"{result.accepted} ({result.refused} submits failed and were retried)"),
        ("jobs by status", ", ".join(f"{count} {status}" for status, count in verdict.statuses().items())),
        ("SSE readers", f"{result.readers}, {result.resumes} resumes, {result.restarts} restarts"),
    ]
    lines.append(("clients", f"{result.retried} submits repeated, {result.disconnected} streams left in the middle"))
    lines += [(promise.value, str(verdict.count(promise))) for promise in Promise]
    tokens = ", ".join(f"{count} {source}" for source, count in sorted(verdict.ledger_tokens.items()))
    lines.append(("output tokens in the ledger", tokens))
    difference = f"{verdict.log_tokens} in the event logs, difference {verdict.ledger_of_logs - verdict.log_tokens}"
    lines.append(("  of jobs with a whole log", f"{difference}; {verdict.lost_logs} logs are not whole"))
    lines.append(("attempts exhausted", str(verdict.exhausted)))
    lines.append(("workers restarted by their watchdog", str(result.self_restarts)))
    lines.append(("failed starts during outages", str(result.failed_starts)))
    lines.append(("jobs started before their claims", str(result.early_starts)))
    lines.append(("overtaken work thrown away", str(result.overtaken)))
    lines.append(("webhooks", _webhooks(result)))
    if result.rescues:
        lines.append(("kill to next token", _quantiles(result.rescues)))
    if clean := undisturbed(result.rescues, result.happened):
        goal = f"; goal: p99 <= {RESCUE_GOAL_S:.0f} s, {_met(percentile(clean, 0.99) <= RESCUE_GOAL_S)}"
        lines.append(("  without Redis or PostgreSQL faults", _quantiles(clean) + ("" if plan.quick else goal)))
    if result.hand_overs:
        lines.append(("SIGTERM to next token", _quantiles(result.hand_overs)))
    if result.before is not None and result.after is not None:
        share = result.after / result.before
        figures = f"{result.before:.0f} before, {result.after:.0f} after: {share:.1%}"
        lines.append(("tokens/s", f"{figures}; goal: >= {THROUGHPUT_GOAL:.0%}, {_met(share >= THROUGHPUT_GOAL)}"))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _webhooks(result: Result) -> str:
    counts = f"{result.webhooks} events, {result.webhooks_repeated} repetitions"
    if not (lags := result.webhook_lags):
        return counts
    p50, p99 = (lags[int(share * (len(lags) - 1))] for share in (0.5, 0.99))
    return f"{counts}; from the job's end: p50 {p50:.2f} s, p99 {p99:.2f} s"


def failures(result: Result) -> str:
    """Return each violation, and the histories of the first jobs concerned."""
    parts = [f"VIOLATION: {item.promise.value}: {item.job_id or ''}\n{item.what}" for item in result.verdict.broken]
    return "\n\n".join(parts + result.histories)


async def history(cluster: Cluster, load: Load, job_id: str) -> str:
    """Return a job's row, the events its reader received, and every log line with its id."""
    async with cluster.observer.connect() as connection:
        row = (await connection.execute(_ROW, {"id": job_id})).scalar_one_or_none()
    parts = [f"--- history of {job_id}", "row:"]
    parts.append(orjson.dumps(row, option=orjson.OPT_INDENT_2).decode())
    for item in load.accepted:
        if item.job_id == job_id and item.reader is not None:
            parts += ["events received by its reader:", *_seen(item.reader)]
    parts.append("log lines:")
    found = []
    for log in sorted(cluster.folder.glob("*.log*")):
        with log.open(errors="replace") as lines:
            found += [f"{line.rstrip()}  [{log.name}]" for line in lines if job_id in line]
    return "\n".join(parts + sorted(found))


def _seen(reader: Reader) -> list[str]:
    first = reader.times[0] if reader.times else 0.0
    return [
        f"  {at - first:9.3f} {event.id or '':>8} {event.event} {orjson.dumps(event.data).decode()[:LINE]}"
        for event, at in zip(reader.seen, reader.times, strict=True)
    ]


def _quantiles(rescues: Sequence[Rescue]) -> str:
    p50, p99 = percentile(rescues, 0.5), percentile(rescues, 0.99)
    return f"p50 {p50:.1f} s, p99 {p99:.1f} s, of {len(rescues)} streams; slowest: {rescues[-1].job_id}"


def _met(met: bool) -> str:
    return "met" if met else "MISSED"
