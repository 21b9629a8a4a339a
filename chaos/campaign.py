"""One run: apply load, inject faults, wait until all jobs end, verify."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from chaos.cluster import Cluster, running
from chaos.faults import FAULTS, Happened, endless, strike
from chaos.load import Load
from chaos.measure import BACK_S, rescues, throughput
from chaos.plan import Plan
from chaos.report import history
from chaos.result import Result
from chaos.verify import verify
from chaos.webhooks import wait_until_delivered
from chaos.work import make_work

WARM_UP_S = 5.0
# Shorter runs end before two measurement windows and the faults between them are over.
MIN_JOBS_FOR_THROUGHPUT = 4000
MAX_HISTORIES = 5
_OUTSTANDING = text("SELECT count(*) FROM jobs WHERE status IN ('queued', 'in_progress', 'cancelling')")


async def run(plan: Plan, folder: Path, say: Callable[[str], None]) -> Result:
    """Run a plan, with logs and data in `folder`. All processes are stopped at the end."""
    works = await make_work(plan, random.Random(f"{plan.seed} work"))
    async with running(plan, folder) as cluster:
        began = time.monotonic()
        load = Load(cluster, works, random.Random(f"{plan.seed} load"))
        loading = asyncio.create_task(load.run())
        happened: list[Happened] = []
        before = after = None
        rng = random.Random(f"{plan.seed} faults")
        if plan.jobs is None:
            await _inject_each_once(cluster, rng, happened, say)
            load.stop()
        elif plan.jobs < MIN_JOBS_FOR_THROUGHPUT:
            await _inject_until_reserve(cluster, load, rng, 0, happened, say)
        else:
            await asyncio.sleep(WARM_UP_S)
            before = await throughput(cluster, plan.window_s)
            say(f"before the first fault: {before:.0f} tokens/s")
            per_job = sum(work.tokens for work in works) / len(works)
            reserve = round(1.5 * before / per_job * (plan.window_s + _settling_s(plan)))
            await _inject_until_reserve(cluster, load, rng, reserve, happened, say)
            await asyncio.sleep(_settling_s(plan))
            measured = await throughput(cluster, plan.window_s)
            after = measured if load.left else None
            say(f"after the last fault: {measured:.0f} tokens/s{'' if after else ' (the load had ended)'}")
        await loading
        quiet_after_s = await _wait_until_quiet(cluster, load)
        say(f"all jobs ended after {quiet_after_s:.1f} s; verifying {len(load.accepted)} jobs")
        await wait_until_delivered(cluster.observer, plan.quiet_s)
        verdict = await verify(cluster, load)
        readers = [item.reader for item in load.accepted if item.reader]
        offending = dict.fromkeys(item.job_id for item in verdict.broken if item.job_id)
        return Result(
            plan=plan,
            verdict=verdict,
            happened=happened,
            accepted=len(load.accepted),
            refused=load.refused,
            retried=load.retried,
            disconnected=load.disconnected,
            readers=len(readers),
            resumes=sum(max(0, reader.resumes - 1) for reader in readers),
            restarts=sum(event.event == "job.restarted" for reader in readers for event in reader.seen),
            self_restarts=cluster.processes.self_restarts,
            failed_starts=cluster.processes.failed_starts,
            rescues=rescues([death for death in cluster.deaths if not death.graceful], readers),
            hand_overs=rescues([death for death in cluster.deaths if death.graceful], readers),
            seconds=time.monotonic() - began,
            early_starts=cluster.logged(" tokens early=1"),
            overtaken=cluster.logged(" its early start is thrown away"),
            before=before,
            after=after,
            quiet_after_s=quiet_after_s,
            webhooks=len(cluster.webhooks.events),
            webhooks_repeated=cluster.webhooks.repeated,
            webhook_lags=cluster.webhooks.lags(verdict.jobs),
            histories=[await history(cluster, load, job_id) for job_id in list(offending)[:MAX_HISTORIES]],
        )


def _settling_s(plan: Plan) -> float:
    """Time after the last fault until lost jobs are recovered and all workers are full again."""
    return 2 * plan.lease_s + 6


async def _inject_each_once(
    cluster: Cluster, rng: random.Random, happened: list[Happened], say: Callable[[str], None]
) -> None:
    for name in cluster.plan.faults:
        await asyncio.sleep(rng.uniform(*cluster.plan.pause_s))
        happened.append(await _inject(cluster, name, rng, say))


async def _inject_until_reserve(
    cluster: Cluster, load: Load, rng: random.Random, reserve: int, happened: list[Happened], say: Callable[[str], None]
) -> None:
    """Inject overlapping faults until `reserve` jobs are left. PostgreSQL and Valkey get one fault at a time."""
    busy: dict[str, asyncio.Task[Happened]] = {}
    tasks: list[asyncio.Task[Happened]] = []
    for name in endless(cluster.plan.faults, rng):
        await asyncio.sleep(rng.uniform(*cluster.plan.pause_s))
        if load.left <= reserve:
            break
        role = name.partition("-")[0]
        if role in busy and role not in ("api", "worker"):
            await busy[role]
            await asyncio.sleep(BACK_S)
        busy[role] = asyncio.create_task(_inject(cluster, name, random.Random(rng.random()), say))
        tasks.append(busy[role])
    happened += await asyncio.gather(*tasks)


async def _inject(cluster: Cluster, name: str, rng: random.Random, say: Callable[[str], None]) -> Happened:
    happened = await strike(cluster, name, rng)
    say(f"{happened.name:18} {happened.what}")
    return happened


async def _wait_until_quiet(cluster: Cluster, load: Load) -> float:
    """Wait until all jobs and readers have ended, at most `plan.quiet_s`. Returns the seconds waited."""
    began = time.monotonic()
    deadline = began + cluster.plan.quiet_s
    while time.monotonic() < deadline:
        if await _all_jobs_ended(cluster) and await cluster.ready():
            break
        await asyncio.sleep(0.2)
    try:
        async with asyncio.timeout(max(1.0, deadline - time.monotonic())):
            await load.readers_ended()
    except TimeoutError:
        load.drop_readers()
    return time.monotonic() - began


async def _all_jobs_ended(cluster: Cluster) -> bool:
    try:
        async with cluster.observer.connect() as connection:
            return not (await connection.execute(_OUTSTANDING)).scalar_one()
    except (SQLAlchemyError, OSError):
        return False


def names(listed: str | None) -> tuple[str, ...]:
    """Parse a comma-separated list of faults; None means all. Raises ValueError for an unknown name."""
    if listed is None:
        return tuple(FAULTS)
    selected = tuple(name.strip() for name in listed.split(","))
    if unknown := [name for name in selected if name not in FAULTS]:
        raise ValueError(f"unknown fault: {', '.join(unknown)}; choose from: {', '.join(FAULTS)}")
    return selected
