"""`python -m api.request_log`: the master key is generated, rotated and reported."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from api.request_log.__main__ import main
from api.request_log.data_keys import DataKeys
from api.request_log.encryption import MasterKeys
from api.request_log.partitions import PartitionUpkeep
from shared.domain.log_level import LogLevel
from shared.domain.master_key import decode_master_key, generate_master_key
from shared.domain.owner import Owner
from shared.postgres.job_store import JobStore
from tests.conftest import Workers
from tests.integration.api.request_log.test_bodies import KEY, OTHER_KEY, logged, opened, writer_of
from tests.support.metrics import api_metrics


@pytest.fixture(autouse=True)
def environment(database_url: str, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("DATABASE_URL", database_url)
    return monkeypatch


async def run(*arguments: str) -> int:
    with ThreadPoolExecutor(1) as thread:  # the command has an event loop of its own
        return await asyncio.get_running_loop().run_in_executor(thread, main, arguments)


async def test_a_key_is_generated(capsys: pytest.CaptureFixture[str]) -> None:
    assert await run("generate-key") == 0
    assert len(decode_master_key(capsys.readouterr().out.strip())) == 32


async def test_keys_are_rotated(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine, environment: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    job_id = await logged(store, workers, owner)
    await writer_of(database).step()
    environment.setenv("HEADRACE_LOG_KEY", OTHER_KEY)
    assert await run("rotate") == 1
    assert "HEADRACE_LOG_KEY_PREVIOUS" in capsys.readouterr().err
    assert await run("status") == 1
    assert "not configured" in capsys.readouterr().out
    environment.setenv("HEADRACE_LOG_KEY_PREVIOUS", KEY)
    assert await run("rotate") == 0
    assert "1 data keys are now encrypted with HEADRACE_LOG_KEY" in capsys.readouterr().out
    environment.delenv("HEADRACE_LOG_KEY_PREVIOUS")
    assert await run("status") == 0
    assert await opened(database, job_id, OTHER_KEY)


async def test_the_status_shows_what_is_kept_and_what_waits(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine, environment: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    await PartitionUpkeep(database, api_metrics(), body_days=30, row_days=90).step()
    await logged(store, workers, owner, LogLevel.FULL)
    await DataKeys(database, MasterKeys.of(KEY)).of_day(datetime.now(UTC).date())
    environment.setenv("HEADRACE_LOG_KEY", KEY)
    environment.setenv("HEADRACE_REQUEST_LOG_LEVEL", "redacted")
    assert await run("status") == 0
    shown = capsys.readouterr().out
    assert "level           redacted\n" in shown
    assert f"master key      {MasterKeys.of(KEY).current}  1 data keys  HEADRACE_LOG_KEY\n" in shown
    assert f"rows            {datetime.now(UTC).date()} to " in shown
    assert "pending bodies  1, the first since " in shown
    assert KEY not in shown


async def test_without_a_key_nothing_is_rotated(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.delenv("HEADRACE_LOG_KEY", raising=False)
    assert await run("rotate") == 2
    assert "HEADRACE_LOG_KEY: is required" in capsys.readouterr().err
    assert await run("status") == 0


async def test_a_key_that_is_no_key_is_reported(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = generate_master_key()[:-8]
    environment.setenv("HEADRACE_LOG_KEY", secret)
    with pytest.raises(SystemExit):
        await run("rotate")
    shown = capsys.readouterr().err
    assert shown.startswith("HEADRACE_LOG_KEY: must be base64 of 32 bytes")
    assert secret not in shown
