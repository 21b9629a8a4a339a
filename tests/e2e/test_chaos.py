"""A short `make chaos` on real processes: each fault once. Guarantees are asserted; times are not."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path

import pytest

import chaos.processes
from chaos.campaign import names, run
from chaos.faults import FAULTS
from chaos.plan import Plan
from chaos.report import failures, table
from tests.support.forked_child import ForkedChild


@pytest.fixture(autouse=True)
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The faults restart some thirty processes, which otherwise import their modules half of the time."""
    monkeypatch.setattr(chaos.processes, "Child", ForkedChild)


@pytest.mark.timeout(240)
async def test_each_fault_once(tmp_path: Path) -> None:
    plan = Plan(seed=1, faults=tuple(FAULTS), jobs=None, quick=True)
    result = await run(replace(plan, outstanding=36, slots=10), tmp_path, print)
    print(table(result))
    assert not result.verdict.broken, failures(result)
    assert [item.name for item in result.happened] == list(FAULTS)
    assert result.accepted > 100
    assert result.readers > 10
    assert result.early_starts > 10
    assert not result.verdict.exhausted
    assert result.verdict.ledger_tokens["engine"] > 0
    assert result.verdict.log_tokens == result.verdict.ledger_of_logs > 0
    assert result.retried > 5
    assert result.disconnected > 10
    assert result.webhooks >= result.accepted


@pytest.mark.long
async def test_overlapping_faults(tmp_path: Path) -> None:
    """Like `make chaos` with 2,000 jobs."""
    plan = Plan(seed=secrets.randbelow(10**6), faults=tuple(FAULTS), jobs=2000, quick=True)
    print(f"seed {plan.seed}")
    result = await run(plan, tmp_path, print)
    print(table(result))
    assert not result.verdict.broken, failures(result)


def test_faults_are_selected_by_name() -> None:
    assert names(None) == tuple(FAULTS)
    assert names("valkey-flush, worker-kill") == ("valkey-flush", "worker-kill")
    with pytest.raises(ValueError, match="unknown fault: nonsense"):
        names("worker-kill,nonsense")
