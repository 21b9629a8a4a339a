"""`make up` under load: each of its parts is killed in turn, and no job and no stream notices more than a pause."""

from __future__ import annotations

import asyncio
import os
import pwd
import random
import signal
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
from sqlalchemy import text

from chaos.plan import MODEL, Plan
from chaos.readers import Reader
from chaos.work import Work, make_work
from launcher.linux import start_time
from shared.postgres.engine import connect
from tests.support.launcher import Launcher
from tests.support.stack import write_models
from tests.support.waiting import eventually, eventually_sync

PLAN = Plan(seed=1, faults=(), tokens=(20, 60), ttft_ms=5, itl_ms=10)
SUBMITTERS = 8
LEASE_S = "1.5"
WITHOUT_SECRETS = {"metrics", "pids", "lock"}
PARTS = ("worker-sim-1", "postgres", "api", "valkey", "flower")


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    folder = tmp_path_factory.mktemp("up")
    options = {"ttft_ms": PLAN.ttft_ms, "itl_ms": PLAN.itl_ms}
    model = {"name": MODEL, "engine": "simulated", "slots": 16, "options": options}
    models = write_models(folder / "models.yaml", [model])
    launcher = Launcher(folder / "home", "launcher")
    process = launcher.start_and_wait(
        HEADRACE_MODELS=str(models), HEADRACE_LEASE_S=LEASE_S, HEADRACE_HEARTBEAT_S="0.4", HEADRACE_DRAIN_S="1"
    )
    yield launcher
    if process.poll() is None:
        process.terminate()
        process.wait(30)


@pytest.fixture
async def client(launcher: Launcher) -> httpx.AsyncClient:
    key = (launcher.home / "api_key").read_text().strip()
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{launcher.port}", headers={"Authorization": f"Bearer {key}"}, timeout=10
    )


@dataclass
class Load:
    """Submits jobs, each with an idempotency key and a reader, until `stop` is set."""

    client: httpx.AsyncClient
    works: list[Work]
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    readers: dict[str, tuple[Reader, Work]] = field(default_factory=dict)
    _number: int = 0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(SUBMITTERS):
                group.create_task(self._submit_all())

    async def _submit_all(self) -> None:
        while not self.stop.is_set():
            self._number += 1
            number = self._number
            work = self.works[number % len(self.works)]
            job_id = await self._submit(work, number)
            reader = Reader(job_id, [self.client], random.Random(number))
            self.readers[job_id] = reader, work
            await reader.run()

    async def _submit(self, work: Work, number: int) -> str:
        while True:
            try:
                response = await self.client.post(
                    "/v1/jobs", json=work.body(number), headers={"Idempotency-Key": f"job-{number}"}
                )
            except httpx.HTTPError:
                pass
            else:
                if response.status_code in (200, 202):
                    return str(response.json()["id"])
                assert response.status_code == 503, response.text
            await asyncio.sleep(0.1)


def children(launcher: Launcher) -> dict[str, psutil.Process]:
    """The processes that the launcher started, by the names in its messages."""
    pids = [int(line.split()[0]) for line in (launcher.home / "pids").read_text().splitlines()]
    named = dict(zip(("api", "worker-sim-1", "flower"), map(psutil.Process, pids), strict=True))
    for child in psutil.Process(launcher.running[-1].pid).children():
        if child.pid not in pids:
            named[{"valkey-server": "valkey"}.get(Path(child.exe()).name, "postgres")] = child
    return named


@pytest.mark.timeout(180)
async def test_every_part_is_killed_under_load(launcher: Launcher, client: httpx.AsyncClient) -> None:
    load = Load(client, await make_work(PLAN, random.Random(1)))
    running = asyncio.create_task(load.run())
    assert set(children(launcher)) == set(PARTS)

    async def more_jobs_end(after: int) -> bool:
        if running.done():
            running.result()
        return sum(reader.terminal is not None for reader, _ in list(load.readers.values())) > after + 2 * SUBMITTERS

    for part in PARTS:
        ended = sum(reader.terminal is not None for reader, _ in list(load.readers.values()))
        await eventually(lambda ended=ended: more_jobs_end(ended), f"jobs end before {part} is killed")  # type: ignore[misc]
        children(launcher)[part].kill()
        await eventually(
            lambda part=part: _says(launcher, f"{part} restarted."),  # type: ignore[misc]
            f"{part} is restarted",
        )
        assert f"{part} died (SIGKILL); restarting in 0.5 s" in launcher.output
    # A single backend, after which PostgreSQL itself ends all sessions and recovers.
    backends = [
        process
        for process in children(launcher)["postgres"].children()
        if process.cmdline()[:1][0].startswith("postgres: postgres")
    ]
    backends[0].kill()
    ended = len(load.readers)
    await eventually(lambda: more_jobs_end(ended), "jobs end after all faults", within_s=40)
    load.stop.set()
    await asyncio.wait_for(running, 60)

    assert len(load.readers) > 50
    for job_id, (reader, work) in load.readers.items():
        assert not reader.problems
        job = (await client.get(f"/v1/jobs/{job_id}")).json()
        assert job["status"] in ("completed", "incomplete"), job
        assert reader.text() == job["output_text"] == work.text
        assert job["usage"]["completion_tokens"] == work.tokens
    assert await _rows(launcher) == len(load.readers)
    assert set(children(launcher)) == set(PARTS)
    assert psutil.STATUS_ZOMBIE not in {child.status() for child in children(launcher).values()}
    await client.aclose()


async def _says(launcher: Launcher, line: str) -> bool:
    return line in launcher.output


async def _rows(launcher: Launcher) -> int:
    """The number of jobs in the database: a submit that is repeated must not create a second one."""
    engine = connect(f"postgresql+asyncpg://postgres@/postgres?host={launcher.home / 'postgres'}")
    try:
        async with engine.connect() as connection:
            return int((await connection.execute(text("SELECT count(*) FROM jobs"))).scalar_one())
    finally:
        await engine.dispose()


async def test_flower_requires_its_password_and_an_expected_host(launcher: Launcher) -> None:
    url = f"http://127.0.0.1:{launcher.flower_port}"
    password = (launcher.home / "flower_password").read_text().strip()
    async with httpx.AsyncClient(timeout=10) as anyone:

        async def shown(path: str, **headers: str) -> tuple[int, str]:
            try:
                response = await anyone.get(f"{url}{path}", headers=headers, auth=("admin", password))
            except httpx.TransportError:
                return 0, ""
            return response.status_code, response.text

        async def reads_the_queue() -> bool:
            """Flower asks the workers for their queues, and then Valkey, over its socket, for the queues' lengths."""
            await shown("/workers?refresh=1")
            status, page = await shown("/broker")
            return status == 200 and "headrace.sim" in page

        await eventually(reads_the_queue, "Flower shows the queue")
        assert (await anyone.get(f"{url}/broker")).status_code == 401
        assert (await shown("/broker", Host="attacker.example"))[0] == 421


def test_another_user_of_the_machine_reads_nothing(launcher: Launcher) -> None:
    """Neither files nor sockets of the running stack, nor secrets in command lines."""
    private = {path for path in launcher.home.iterdir() if path.name not in WITHOUT_SECRETS}
    assert {path.name for path in private} >= {"api_key", "env", "flower_password", "logs", "postgres", "valkey"}
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    secrets = [(launcher.home / name).read_text().strip() for name in ("api_key", "flower_password")]
    for process in children(launcher).values():
        assert not any(secret in " ".join(process.cmdline()) for secret in secrets)
    if os.geteuid() == 0:
        assert children(launcher)["postgres"].uids().real not in {0, *(entry.pw_uid for entry in pwd.getpwall())}


def test_no_process_survives_a_killed_launcher(launcher: Launcher) -> None:
    """Last, because it ends the stack of this file."""
    process = launcher.running[-1]
    everything = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    eventually_sync(lambda: all(start_time(pid) is None for pid in everything), "all processes have ended")
    assert os.listdir(launcher.home)
